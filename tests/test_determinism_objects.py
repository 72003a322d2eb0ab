"""A look at a body runs none of the code of what its names stand for, and follows what it calls."""

from __future__ import annotations

import linecache
import sys
from time import perf_counter
from typing import TYPE_CHECKING

import pytest
from looked_at import App

from durable.runtime.allowing import is_allowed

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def app(tmp_path: Path) -> App:
    return App(tmp_path)


# --- objects whose attributes run code -----------------------------------------------------------

NOSY = {
    "a property": "class Nosy:\n    @property\n    def time(self): nosy()\nodd = Nosy()",
    "__getattr__": "class Nosy:\n    def __getattr__(self, name): nosy()\nodd = Nosy()",
    "__getattribute__": "class Nosy:\n    def __getattribute__(self, name): nosy()\nodd = Nosy()",
    "__class__": "class Nosy:\n    @property\n    def __class__(self): nosy()\nodd = Nosy()",
    "__dict__": "class Nosy:\n    @property\n    def __dict__(self): nosy()\nodd = Nosy()",
    "__wrapped__": "class Nosy:\n    @property\n    def __wrapped__(self): nosy()\nodd = Nosy()",
    "__bool__": "class Nosy:\n    def __bool__(self): nosy()\nodd = Nosy()",
    "__eq__": (
        "class Nosy:\n    def __eq__(self, other): nosy()\n    def __hash__(self): nosy()\n"
        "odd = Nosy()"
    ),
    "__len__": "class Nosy(set):\n    def __len__(self): nosy()\nodd = Nosy()",
    "a class of a class": (
        "class Meta(type):\n"
        "    def __getattribute__(cls, name): nosy()\n"
        "    def __instancecheck__(cls, each): nosy()\n"
        "    def __subclasscheck__(cls, each): nosy()\n"
        "    def __eq__(cls, other): nosy()\n"
        "    def __hash__(cls): nosy()\n"
        "class odd(metaclass=Meta): pass"
    ),
    "an object of that": (
        "class Meta(type):\n"
        "    def __getattribute__(cls, name): nosy()\n"
        "    def __eq__(cls, other): nosy()\n"
        "    def __hash__(cls): nosy()\n"
        "class Nosy(metaclass=Meta): pass\n"
        "odd = object.__new__(Nosy)"
    ),
    "a class with an odd name": "class odd: __module__ = ['nowhere']",
    "a module": (
        "import types\n"
        "class Module(types.ModuleType):\n"
        "    def __getattribute__(self, name): nosy()\n"
        "odd = Module('random')"
    ),
    "a module without a name": (
        "import types\nodd = types.ModuleType('odd')\ndel odd.__name__\nodd.__getattr__ = nosy"
    ),
    "a method of an odd function": (
        "import types\n"
        "class Nosy:\n"
        "    def __getattr__(self, name): nosy()\n"
        "    def __call__(self): pass\n"
        "odd = types.MethodType(Nosy(), 1)"
    ),
    "a function that is put around itself": "def odd(): pass\nodd.__wrapped__ = odd",
    "a partial function of an odd one": (
        "import functools\n"
        "class Nosy:\n"
        "    def __getattr__(self, name): nosy()\n"
        "    def __call__(self): pass\n"
        "odd = functools.partial(Nosy())"
    ),
}
USES = [
    "odd",
    "odd()",
    "odd.time()",
    "odd.time.time()",
    "odd.pop()",
    "odd(*xs)",
    "odd.read_text(*xs)",
    "list(odd)",
    "print(odd / xs, xs / odd, odd | {1, 2}, (odd - xs).union(xs))",
    "[x for x in odd]",
    "import odd as other; other.time()",
    "local = odd; local.time()",
    "time.time()  # durable: allow",
]


@pytest.mark.parametrize("name", NOSY)
def test_nothing_is_run_of_a_global(app: App, name: str) -> None:
    top = f"import time\ndef nosy(*_): raise SystemError('it was run')\n{NOSY[name]}"
    assert app.body(*USES, "time.time()", top=top) == [f"time.time():{len(USES) + 1}"]


@pytest.mark.parametrize("name", NOSY)
def test_nothing_is_run_of_what_a_closure_holds(app: App, name: str) -> None:
    make = [
        "import time",
        "def nosy(*_): raise SystemError('it was run')",
        "def make():",
        *(f"    {line}" for line in NOSY[name].splitlines()),
        "    def outer():",
        *(f"        {line}" for line in USES if "import" not in line),
        "        return time.time()",
        "    @durable.workflow",
        "    async def flow(step: Step, xs: list[int]):",
        *(f"        {line}" for line in USES if "import" not in line),
        "        return time.time()",
        "make()",
    ]
    found = [str(each.message) for each in app.define("\n".join(make))]
    assert len(found) == 1
    assert "time.time()" in found[0]


def test_a_module_that_is_imported_when_it_is_first_used_is_not_imported(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sqlite3.py").write_text("raise SystemError('it was imported')")
    monkeypatch.delitem(sys.modules, "sqlite3", raising=False)
    top = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("sqlite3", {str(tmp_path / "sqlite3.py")!r})
spec.loader = importlib.util.LazyLoader(spec.loader)
sqlite3 = importlib.util.module_from_spec(spec)
sys.modules["sqlite3"] = sqlite3
spec.loader.exec_module(sqlite3)
"""
    assert app.body("sqlite3.connect('x')", top=top) == ["sqlite3.connect():1"]
    assert app.body("import sqlite3; sqlite3.connect('x')") == ["sqlite3.connect():1"]


def test_a_large_set_costs_nothing(app: App) -> None:
    began = perf_counter()
    assert app.body("return len(KNOWN)", top="KNOWN = set(range(100_000))") == []
    assert perf_counter() - began < 1


# --- functions that decorators are put around ----------------------------------------------------

DECORATED = {
    "contextmanager": "@contextlib.contextmanager\ndef helper(x=0):\n    yield time.time()",
    "asynccontextmanager": (
        "@contextlib.asynccontextmanager\nasync def helper(x=0):\n    yield time.time()"
    ),
    "lru_cache": "@functools.lru_cache\ndef helper(x=0): return time.time()",
    "lru_cache of a size": "@functools.lru_cache(maxsize=5)\ndef helper(x=0): return time.time()",
    "cache": "@functools.cache\ndef helper(x=0): return time.time()",
    "two of them": (
        "@functools.cache\n@contextlib.contextmanager\ndef helper(x=0): yield time.time()"
    ),
    "one of the module": "@traced\ndef helper(x=0): return time.time()",
    "one of another module": "@decorating.traced\ndef helper(x=0): return time.time()",
    "partial": "def named(x=0): return time.time()\nhelper = functools.partial(named, x=1)",
}
TRACED = """
import functools
def traced(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    return wrapper
"""
AS_ACTION = """
import durable, functools
def as_action(function):
    act = durable.action(function)
    @functools.wraps(function)
    async def wrapper(*args, **kwargs):
        return await act(*args, **kwargs)
    return wrapper
"""


@pytest.fixture
def decorating(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "decorating.py").write_text(TRACED + AS_ACTION)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "decorating", raising=False)
    return f"import contextlib, time, decorating\n{TRACED}{AS_ACTION}"


@pytest.mark.parametrize("name", DECORATED)
@pytest.mark.parametrize(
    "use", ["helper()", "helper(1)", "helper(*xs)", "with helper() as x: pass", "[helper()]"]
)
def test_a_decorated_function_is_a_part_of_the_body(
    app: App, decorating: str, name: str, use: str
) -> None:
    top = f"{decorating}{DECORATED[name]}\n"
    (found,) = app.body(use, top=top)
    assert found.startswith("time.time():")
    assert app.body(f"{use}  # durable: allow", top=top) == []


@pytest.mark.parametrize(
    "top",
    [
        # They hold an action: what is done in it is none of the body's.
        "@as_action\nasync def helper(x: int = 0) -> float: return time.time()",
        "@decorating.as_action\nasync def helper(x: int = 0) -> float: return time.time()",
        "@action\n@traced\ndef helper(x: int = 0) -> float: return time.time()",
        "@traced\n@action\ndef helper(x: int = 0) -> float: return time.time()",
        "@decorating.traced\n@action\ndef helper(x: int = 0) -> float: return time.time()",
        "@functools.cache\ndef helper(x=0): return x + 1",
        "@contextlib.contextmanager\ndef helper(x=0): yield x",
        # Of another module: whoever decorates it here.
        "import shutil\nhelper = functools.cache(decorating.traced)",
    ],
)
def test_a_decorated_function_that_does_no_harm_is_no_finding(
    app: App, decorating: str, top: str
) -> None:
    assert app.body("await helper(1)", "helper()", top=f"{decorating}{top}\n") == []


# --- comments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        ["print(", "    1,", "    time.time(),", ")  # durable: allow"],
        ["print(", "    1,", "    time.time(),  # durable: allow", ")"],
        ["print(  # durable: allow", "    1,", "    time.time(),", ")"],
        ["print(", "    1,  # durable: allow", "    time.time(),", ")"],
        ["print(", "    # durable: allow", "    time.time(),", ")"],
        ["return [", "    time.time()", "    for x in xs", "    if x", "]  # durable: allow"],
        ["x = 1 + \\", "    time.time()  # durable: allow"],
        ['x = f"""', "    {time.time()}", '"""  # durable: allow'],
        ["if (", "    time.time()", "    > 1", "):  # durable: allow", "    pass"],
        ["for x in set(", "    xs", "):  # durable: allow", "    pass"],
        ["later = lambda: (", "    time.time()", ")  # durable: allow"],
        ["helper(", "    1", ")  # durable: allow"],
    ],
)
def test_a_comment_on_any_line_of_a_statement_silences_it(app: App, lines: list[str]) -> None:
    top = "import time\ndef helper(x): time.sleep(x)\n"
    assert app.body(*lines, top=top) == []
    without = [line.replace("# durable: allow", "# no") for line in lines]
    assert len(app.body(*without, top=top)) == 1


@pytest.mark.parametrize(
    "lines",
    [
        ["# durable: allow", "time.time()"],
        ["time.time()", "# durable: allow"],
        ["pass  # durable: allow", "time.time()", "pass  # durable: allow"],
        ["if xs:  # durable: allow", "    time.time()"],
        ["if xs:", "    # durable: allow", "    time.time()"],
        ["async def inner():  # durable: allow", "    return time.time()", "await inner()"],
        ["print(time.time(), '''", "# durable: allow", "''')"],
        ["for x in set(", "    xs", "):", "    pass  # durable: allow"],
    ],
)
def test_a_comment_of_another_statement_silences_nothing(app: App, lines: list[str]) -> None:
    assert len(app.body(*lines, top="import time")) == 1


def test_where_statements_cannot_be_told_a_comment_counts_for_its_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a notebook, whose cells are not always modules."""
    source = "now(1)\nnow(  # durable: allow\n)\nnow(\n)\n'''"
    lines = source.splitlines(keepends=True)
    monkeypatch.setitem(linecache.cache, "<cell>", (len(source), None, lines, "<cell>"))
    assert [line for line in range(1, 6) if is_allowed("<cell>", line, {})] == [2]
