"""What a body cannot replay is told when it is defined: with the line, and what to do instead."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
import warnings
import zipfile
from functools import partial, wraps
from time import perf_counter, time
from typing import TYPE_CHECKING, Any

import pytest
from looked_at import HEAD, App, serial_numbers

import durable
from durable import DeterminismWarning, Step, registry
from durable.core.forbidden import FORBIDDEN, FREE_WITH_ARGUMENTS
from durable.core.records import StepKind
from durable.determinism import find

if TYPE_CHECKING:
    from pathlib import Path

COST_S_MAX = 0.002
"""Several times what a body takes that is worth reading."""


@pytest.fixture
def app(tmp_path: Path) -> App:
    return App(tmp_path)


def import_in_a_child(path: Path, name: str, *options: str) -> str:
    """Import a module in a fresh interpreter; return what it writes on standard error."""
    done = subprocess.run(
        [sys.executable, *options, "-c", f"import {name}"],
        env={"PYTHONPATH": os.pathsep.join([str(path), *sys.path])},
        check=False,
        capture_output=True,
        text=True,
    )
    return done.stderr


# --- what is found -------------------------------------------------------------------------------

SPELLED: dict[str, tuple[str, str]] = {
    **{
        f"{module}.{name}()": (f"import {module}", f"{module}.{name}()")
        for module, names in FORBIDDEN.items()
        if module not in ("builtins", "requests", "_thread")
        for name in names
        if importlib.util.find_spec(module.partition(".")[0]) and not name.startswith("_")
        if hasattr(importlib.import_module(module), name)
    },
    "concurrent.futures.thread.ThreadPoolExecutor()": (
        "from concurrent.futures import ThreadPoolExecutor",
        "ThreadPoolExecutor()",
    ),
    "open()": ("", "open('x')"),
    "input()": ("", "input()"),
    "datetime.now()": ("import datetime", "datetime.datetime.now(datetime.UTC)"),
    "datetime.utcnow()": ("from datetime import datetime", "datetime.utcnow()"),
    "datetime.today()": ("from datetime import datetime as d", "d.today()"),
    "date.today()": ("from datetime import date", "date.today()"),
    "Path.read_text()": ("from pathlib import Path", "Path('x').read_text(encoding='utf-8')"),
    "Path.open()": ("import pathlib", "pathlib.Path('x').open()"),
    "Path.write_text()": ("from pathlib import Path\nPATH = Path('x')", "PATH.write_text('')"),
    "Path.cwd()": ("from pathlib import Path", "Path.cwd()"),
}
"""What is found: the line at the module's top, and the call."""


@pytest.mark.parametrize("found", SPELLED)
def test_a_call_is_found(app: App, found: str) -> None:
    top, call = SPELLED[found]
    assert app.body("pass", call, top=top) == [f"{found}:2"]


@pytest.mark.parametrize(
    ("top", "lines"),
    [
        ("import time", ["time.time()"]),
        ("import time as t", ["t.time()"]),
        ("from time import time", ["time()"]),
        ("from time import time as now", ["now()"]),
        ("import time\nnow = time.time", ["now()"]),
        ("", ["import time; time.time()"]),
        ("", ["import time as t; t.time()"]),
        ("", ["from time import sleep, time as now; now()"]),
        ("import time", ["now = time.time; now()"]),
        ("import time", ["print(f'{time.time()}', end=str(xs))"]),
        ("import time", ["return [time.time() for _ in xs]"]),
        ("import time", ["return {x: time.time() for x in xs}"]),
        ("import time", ["return sum(time.time() for _ in xs)"]),
        ("import time", ["later = lambda: time.time()"]),
        ("import time", ["async def inner(): return time.time()"]),
        ("import time", ["def inner(): return lambda: time.time()"]),
        ("import time", ["class Local: at = time.time()"]),
        ("import time", ["time.time(*xs)"]),
        ("import time", ["time.time(**{})"]),
        ("import time", ["await asyncio.sleep(time.time())"]),
        ("import time", ["async with asyncio.timeout(time.time()): pass"]),
        ("import time", ["x = None if xs else time.time()"]),
        ("import time", ["raise ValueError(time.time())"]),
    ],
)
def test_all_spellings_are_found(app: App, top: str, lines: list[str]) -> None:
    assert app.body(*lines, top=top) == ["time.time():1"]


def test_a_body_with_many_names_is_read_too(app: App) -> None:
    """More than fit into one byte of an instruction."""
    lines = [f"print(name_{number})" for number in range(300)]
    assert app.body(*lines, "time.time()", top="import time") == ["time.time():301"]
    assert app.body("time.time()", *lines, top="import time") == ["time.time():1"]


def test_what_a_closure_holds_is_found(app: App) -> None:
    found = app.define(
        """
        import time
        from time import monotonic

        def make(clock):
            @durable.workflow
            async def flow(step: Step) -> float:
                def inner() -> float:
                    return clock()
                return inner()

        make(monotonic)
        """
    )
    assert [(each.lineno, "time.monotonic()" in str(each.message)) for each in found] == [
        (11, True)
    ]


def test_a_package_that_is_not_imported_yet_is_known_by_its_name(app: App) -> None:
    assert app.body("import requests", "requests.get('x')") == ["requests.get():2"]
    assert app.body("from requests import post as p", "p('x')") == ["requests.post():2"]


@pytest.mark.parametrize(
    ("line", "is_found"),
    [
        ("time.localtime()", True),
        ("time.localtime(step.now().timestamp())", False),
        ("time.strftime('%c')", True),
        ("time.strftime('%c', (2000,) * 9)", False),
        ("random.Random()", True),
        ("random.Random(step.run_id).random()", False),
        ("rng = random.Random(1); rng.random(); rng.shuffle(xs)", False),
        ("SHARED.random()", True),
        ("draw()", True),
    ],
)
def test_what_depends_on_the_arguments_or_the_object(
    app: App, line: str, *, is_found: bool
) -> None:
    top = "import random, time\nSHARED = random.Random(1)\ndraw = SHARED.random"
    assert bool(app.body(line, top=top)) == is_found


@pytest.mark.parametrize(
    ("line", "is_found"),
    [
        ("for x in {'a', step.run_id}: pass", True),
        ("for x in {'a', 'b'}: pass", True),
        ("for x in {*xs, 1}: pass", True),
        ("for x in set(xs): pass", True),
        ("for x in frozenset(xs): pass", True),
        ("return [x for x in {'a', step.run_id}]", True),
        ("return [x for x in {str(y) for y in xs}]", True),
        ("for x in {str(y) for y in xs}: pass", True),
        ("return list({'a', step.run_id})", True),
        ("return tuple(set(xs))", True),
        ("for x in list({'a', 'b', 'c'}): pass", True),
        ("for i, x in enumerate({'a', 'b'}): pass", True),
        ("for i, x in enumerate(list({'a', 'b'})): pass", True),
        ("return next(iter({'a', 'b'}))", True),
        ("return ','.join({'a', 'b'})", True),
        ("return '-'.join(x.upper() for x in set(xs))", True),
        ("await asyncio.gather(*{step.sleep(x) for x in xs})", True),
        ("await asyncio.gather(*{step.sleep(1), step.sleep(2)})", True),
        ("await asyncio.gather(*map(step.sleep, set(xs)))", True),
        ("for x in set(xs) - set(step.run_id): pass", True),
        ("for x in set(xs) | {1}: pass", True),
        ("for x in xs - set(step.run_id): pass", True),
        ("return sorted(step.uuid4() for x in set(xs))", True),
        ("return {asyncio.create_task(step.sleep(x)) for x in set(xs)}", True),
        ("return {x: 1 for x in set(xs)}", True),
        ("return sorted(asyncio.isfuture(list(set(xs))))", True),
        ("return sorted(x.upper() for x in set(xs))", False),
        ("return sorted(list(set(xs))), len(tuple(set(xs)))", False),
        ("return sum(len(x) for x in {'a', 'bb'}), any(x for x in {'a', 'b'})", False),
        ("return max((abs(x) for x in set(xs)), default=0)", False),
        ("return {x.upper() for x in set(xs)}, frozenset(x for x in set(xs))", False),
        ("for x in set(): pass", False),
        ("for x in frozenset(): pass", False),
        ("return sorted(set(xs) - {1}), 1 in set(xs) - {1}", False),
        ("return list(xs), enumerate(xs), ','.join(xs)", False),
        ("for x in sorted({'a', 'b'}): pass", False),
        ("for x in sorted(set(xs)): pass", False),
        ("for x in {'a'}: pass", False),
        ("for x in {'a': 1, 'b': 2}: pass", False),
        ("for x in ['a', step.run_id]: pass", False),
        ("return 1 in {1, 2}, len({'a', *xs}), max(set(xs), default=0)", False),
        ("seen = set()\n    for x in xs: seen.add(x)", False),
        ("gate = asyncio.Event(); gate.set()\n    for x in xs: pass", False),
    ],
)
def test_the_order_of_a_set(app: App, line: str, *, is_found: bool) -> None:
    assert app.body(line) == (["the order of a set:1"] if is_found else [])


@pytest.mark.parametrize(
    ("given", "is_found"),
    [
        ("[part(), part()]", True),
        ("[part() for _ in xs]", True),
        ("(part() for _ in xs)", True),
        ("[outer(1)]", True),
        ("[asyncio.create_task(part()) for _ in xs]", False),
        ("[asyncio.create_task(part()), asyncio.create_task(part())]", False),
        ("[asyncio.wait_for(part(), 1)]", True),
        ("[act(1), act(2)]", False),
        ("[act(x) for x in xs]", False),
        ("xs", False),
    ],
)
def test_bare_coroutines_in_as_completed(app: App, given: str, *, is_found: bool) -> None:
    top = "async def outer(x): pass\n@action\nasync def act(x: int) -> int: return x\n"
    lines = ["async def part(): pass", f"for each in asyncio.as_completed({given}): await each"]
    found = app.body(*lines, top=top)
    what = "asyncio.as_completed() with bare coroutines, which hash by address:2"
    assert found == ([what] if is_found else [])


def test_the_warning_says_where_and_what_to_do_instead(app: App) -> None:
    (warning,) = app.define(
        """
        import time

        @durable.workflow
        async def flow(step: Step) -> float:
            return time.time()
        """
    )
    assert (warning.filename, warning.lineno) == (str(app.path), 8)
    assert str(warning.message) == (
        "a workflow's body may not use time.time(), in flow(): it could not be replayed. Do this "
        "instead: step.now(), which is the run's own time. If it does no harm there, end its line "
        "with `# durable: allow`."
    )


# --- what is not ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("top", "lines"),
    [
        ("", ["await asyncio.sleep(1)", "await step.sleep(1)", "step.now(); step.uuid4()"]),
        ("import random, time", ["step.random.random(); step.random.shuffle(xs)"]),
        ("import time", ["clock = time.time"]),
        ("import random", ["xs.sort(key=random.random)"]),
        ("import time", ["asyncio.isfuture(time.time); print(time.time, time.sleep)"]),
        ("from time import time", ["asyncio.isfuture(time); isinstance(time, time)"]),
        ("import socket, requests_like as requests", []),
        ("import socket", ["isinstance(xs, socket.socket)"]),
        ("import subprocess", ["raise subprocess.CalledProcessError(1, 'x')"]),
        ("import threading", ["threading.get_ident()"]),
        ("from datetime import datetime, timedelta", ["datetime.fromisoformat('x')"]),
        ("from datetime import datetime", ["datetime(2000, 1, 1).date()"]),
        ("from pathlib import PurePath", ["PurePath('x').name"]),
        ("from pathlib import Path", ["Path('x').name; Path('x').with_suffix('.y')"]),
        ("import uuid", ["uuid.UUID(int=1); uuid.uuid5(uuid.NAMESPACE_URL, 'x')"]),
        ("import os", ["os.path.join('a', 'b'); os.environ"]),
        ("def time(): return 1", ["time()"]),
        ("class time:\n    time = staticmethod(int)", ["time.time()"]),
        ("def open(path): return path", ["open('x')"]),
        ("import time", ["time = step", "time.time()"]),
        ("import time", ["def inner(time): return time.time()"]),
        ("import time", ["for time in xs: time.time()"]),
        ("import time", ["time = step", "import time"]),
        ("class Own:\n    def now(self): return 1\ndatetime = Own()", ["datetime.now()"]),
        ("import time", ["@durable.action\n    async def inner() -> float: return time.time()"]),
        ("import time", ["@action\n    def inner() -> float: return time.time()"]),
        (
            "import time",
            [
                "@action(name='a', retry=True)",
                "def inner(x: int = 3) -> float: return time.time()",
            ],
        ),
        ("import time", ["@durable.query\n    async def inner(tx) -> float: return time.time()"]),
        (
            "import time",
            ["@durable.mutation\n    async def inner(tx) -> float: return time.time()"],
        ),
        ("import time", ["@durable.action\n    def inner() -> list[float]: return [time.time()]"]),
    ],
)
def test_what_is_no_finding(app: App, top: str, lines: list[str]) -> None:
    top = top.replace(", requests_like as requests", "")
    assert app.body(*lines, "pass", top=top) == []


def test_a_date_class_with_a_clock_of_its_own_is_no_finding(app: App) -> None:
    top = """
from datetime import datetime
class Frozen(datetime):
    @classmethod
    def now(cls, tz=None): return cls(2000, 1, 1)
class Plain(datetime): pass
"""
    assert app.body("Frozen.now()", "Plain.now()", top=top) == ["Plain.now():2"]


def test_the_same_calls_in_actions_queries_and_mutations_are_no_finding(app: App) -> None:
    found = app.define(
        """
        import random, time, uuid

        @action
        async def act() -> float:
            for x in {"a", "b"}:
                open(x)
            return time.time() + random.random()

        @action
        def act_in_a_thread() -> str:
            return str(uuid.uuid4())

        @durable.query
        async def look(tx) -> float:
            return time.time()

        @durable.mutation
        async def change(tx) -> float:
            return time.time()

        @durable.workflow
        async def flow(step: Step) -> None:
            await act(); await act_in_a_thread(); await look(); await change()
        """
    )
    assert found == []


def test_the_module_of_a_relative_import_is_no_finding(tmp_path: Path) -> None:
    package = tmp_path / f"package_{next(serial_numbers)}"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "time.py").write_text("def time(): return 1\n")
    body = (
        "    from .time import time\n    from . import time as module\n    time(); module.time()\n"
    )
    text = f"{HEAD}@durable.workflow\nasync def flow(step: Step):\n{body}"
    (package / "flows.py").write_text(text)
    printed = import_in_a_child(tmp_path, f"{package.name}.flows", "-W", "error")
    assert printed == ""


# --- functions of the body's module --------------------------------------------------------------

HELPERS = """
import time

def deepest(): return time.time()
def deeper(): return deepest()
def deep(): return deeper()
def helper(): return time.time()
async def waiting(): time.sleep(1)
def recursive(n): return recursive(n - 1) if n else time.time()
def harmless(n): return harmless(n - 1) if n else 0
def unused(): return time.time()
def allowed(): return time.time()  # durable: allow
@action
async def act() -> float: return helper()
"""


@pytest.mark.parametrize(
    ("call", "chain"),
    [
        ("helper()", "helper(), called by flow()"),
        ("deeper()", "deepest(), called by deeper(), called by flow()"),
        ("deep()", "deepest(), called by deeper(), called by deep(), called by flow()"),
        ("[helper() for _ in xs]", "helper(), called by flow"),
        ("await waiting()", "waiting(), called by flow()"),
        ("recursive(3)", "recursive(), called by flow()"),
        ("harmless(3)", None),
        ("await act()", None),
        ("allowed()", None),
        ("helper()  # durable: allow", None),
        ("print(unused)", None),
    ],
)
def test_functions_that_the_body_calls_are_a_part_of_it(
    app: App, call: str, chain: str | None
) -> None:
    source = (
        f"{HELPERS}\n@durable.workflow\nasync def flow(step: Step, xs: list[int]):\n    {call}\n"
    )
    found = app.define(source)
    assert len(found) == (0 if chain is None else 1)
    assert all(str(chain) in str(each.message) for each in found)
    for each in found:
        assert "time." in app.path.read_text("utf-8").splitlines()[each.lineno - 1]


def test_functions_are_followed_so_far_and_no_further(app: App) -> None:
    chain = "def f0(): return time.time()\n" + "".join(
        f"def f{n}(): return f{n - 1}()\n" for n in range(1, 5)
    )
    assert len(app.body("f2()", top="import time\n" + chain)) == 1
    assert app.body("f3()", top="import time\n" + chain) == []


def test_functions_of_other_modules_are_not_read(app: App) -> None:
    """They may have been written for actions."""
    assert app.body(
        "textwrap.dedent(helper())", top="import textwrap\nfrom shutil import which as helper"
    ) == ["shutil.which():1"]
    assert app.body("getpass.getuser()", top="import getpass") == []


# --- silence -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "is_found"),
    [
        ("time.time()  # durable: allow", False),
        ("time.time()  #durable:allow", False),
        ("time.time()  # noqa  # durable: allow, it is for the log", False),
        ("time.time()  # durable: allowance", True),
        ("time.time()  # durable", True),
        ("print('# durable: allow', time.time())", True),
        ("print('#', time.time())  # durable: allow", False),
        ("print(\n    time.time())  # durable: allow", False),
        ("# durable: allow\n    time.time()", True),
    ],
)
def test_a_comment_silences_its_line(app: App, line: str, *, is_found: bool) -> None:
    assert bool(app.body(line, top="import time")) == is_found
    assert app.body(line, "time.sleep(1)", top="import time")[-1].startswith("time.sleep()")


def test_with_an_error_filter_the_definition_fails_and_nothing_is_registered() -> None:
    async def bad(_step: Step) -> float:
        return time()

    name = "determinism.bad"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=DeterminismWarning)
        with pytest.raises(DeterminismWarning, match=r"time\.time"):
            durable.workflow(name=name)(bad)
    assert registry.find(StepKind.WORKFLOW, name) is None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeterminismWarning)
        definition = durable.workflow(name=name)(bad)
    assert registry.find(StepKind.WORKFLOW, name) is definition


def test_filters_by_module_and_by_message_work(app: App) -> None:
    source = """
        import time, warnings
        warnings.filterwarnings("ignore", category=durable.DeterminismWarning, module=__name__)
        @durable.workflow
        async def flow(step: Step): time.time()
        warnings.filterwarnings("ignore", message=".*random", category=durable.DeterminismWarning)
        """
    assert app.define(source) == []


def test_each_line_is_told_once_by_default(app: App) -> None:
    source = """
        import time, warnings
        warnings.simplefilter("default")
        async def body(step: Step): time.time()
        for name in "ab":
            durable.workflow(name=__name__ + name)(body)
        """
    assert len(app.define(source)) == 1


# --- bodies of all sorts -------------------------------------------------------------------------


def test_a_body_without_source_is_read_too() -> None:
    """As in an interactive session, or in an archive that has only bytecode."""
    source = f"import time\n{HEAD}async def flow(step: Step): time.time()  # durable: allow"
    namespace: dict[str, Any] = {"__name__": "nowhere"}
    exec(compile(source, "<stdin>", "exec"), namespace)  # noqa: S102  a test's own
    with pytest.warns(DeterminismWarning, match=r"time\.time") as caught:
        durable.workflow(namespace["flow"])
    assert (caught[0].filename, caught[0].lineno) == ("<stdin>", 4)


def test_a_body_in_a_namespace_without_a_name_is_read_too() -> None:
    namespace: dict[str, Any] = {"time": time}
    exec("async def flow(step): return time()", namespace)  # noqa: S102  a test's own
    with pytest.warns(DeterminismWarning, match=r"time\.time"):
        durable.workflow(name=f"determinism.{next(serial_numbers)}")(namespace["flow"])


@pytest.mark.slow
def test_the_comment_of_a_body_in_an_archive_is_found(tmp_path: Path) -> None:
    body = "@durable.workflow\nasync def flow(step: Step): time.time()  # durable: allow\n"
    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w") as written:
        written.writestr("archived.py", f"import time\n{HEAD}{body}")
    printed = import_in_a_child(archive, "archived", "-W", "error")
    assert printed == ""


@pytest.mark.slow
def test_without_columns_what_needs_no_columns_is_found(tmp_path: Path) -> None:
    lines = (
        "    for x in {step, 'a'}: pass\n"
        "    time.time(); Path('x').open(); random.Random(); print(random.Random(1))\n"
        "    z = []; s = {step, 1}; y = {str(x) for x in z}; print([x for x in z])\n"
    )
    source = f"import random, time\nfrom pathlib import Path\n{HEAD}@durable.workflow\n"
    (tmp_path / "bare.py").write_text(source + f"async def flow(step: Step):\n{lines}")
    printed = import_in_a_child(tmp_path, "bare", "-X", "no_debug_ranges")
    found = [line for line in printed.splitlines() if "DeterminismWarning" in line]
    assert ["the order of a set" in found[0], "time.time()" in found[1]] == [True, True]
    assert len(found) == 2


def test_decorators_around_a_body_are_looked_through() -> None:
    async def body(_step: Step, _n: int) -> float:
        return time()

    @wraps(body)
    async def wrapped(step: Step, n: int) -> float:
        return await body(step, n)

    for each in (wrapped, partial(body, _n=1), Bodies().body):
        with pytest.warns(DeterminismWarning, match=r"time\.time"):
            durable.workflow(name=f"determinism.{next(serial_numbers)}")(each)


class Bodies:
    async def body(self, _step: Step) -> float:
        return time()


def test_a_closure_that_gets_its_value_later_is_no_finding() -> None:
    def make() -> Any:  # noqa: ANN401
        async def body(_step: Step) -> float:
            return late()

        definition = durable.workflow(name=f"determinism.{next(serial_numbers)}")(body)
        late = perf_counter
        return definition, late

    assert make()


def test_nothing_is_executed_to_find_out(app: App) -> None:
    top = """
class Nosy:
    @property
    def time(self): raise RuntimeError("a property was executed")
    def __getattr__(self, name): raise RuntimeError("an attribute was asked for")
time = random = Nosy()
"""
    assert app.body("time.time.time()", "random.random()", top=top) == []


def test_a_global_whose_attributes_cannot_be_asked_for_is_no_finding(app: App) -> None:
    top = """
import time
class Nosy:
    def __getattribute__(self, name): raise RuntimeError("an attribute was asked for")
current = Nosy()
"""
    assert app.body("current.time()", "time.time()", top=top) == ["time.time():2"]


# --- cost ----------------------------------------------------------------------------------------


def test_a_body_costs_little_to_look_through() -> None:
    async def clean(step: Step, n: int) -> list[float]:
        numbers = [step.random.random() + number for number in range(n)]
        await step.sleep(sum(numbers))
        return sorted(numbers)

    async def suspect(_step: Step) -> list[float]:
        rng = random.Random(5)  # noqa: S311
        values = {rng.random() for _ in range(3)}
        return sorted(values)

    bodies: list[Any] = [clean, suspect]
    for body in bodies:
        assert find(body) == []
        assert _cost_s(body) < COST_S_MAX


def _cost_s(body: Any) -> float:  # noqa: ANN401
    costs: list[float] = []
    for _ in range(20):
        began = perf_counter()
        find(body)
        costs.append(perf_counter() - began)
    return min(costs)


def test_what_is_free_with_arguments_is_in_the_table() -> None:
    for name in FREE_WITH_ARGUMENTS:
        module, _, function = name.rpartition(".")
        assert function in FORBIDDEN[module]
