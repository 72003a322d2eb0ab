"""What can be decorated, and what it is then called."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from interpreters import ROOT, run_python

import durable
from durable import DuplicateDefinitionError, Engine, Retry, Step, StepKind, registry


@durable.action
async def twice(number: int) -> int:
    """Give twice the number."""
    return 2 * number


@durable.workflow
async def double(_step: Step, number: int) -> int:
    """Double a number durably."""
    return await twice(number)


def test_a_definition_is_its_function_with_a_name_and_a_kind() -> None:
    assert (twice.name, twice.kind, twice.version) == (
        "test_definitions:twice",
        StepKind.ACTION,
        0,
    )
    assert (double.name, double.kind) == ("test_definitions:double", StepKind.WORKFLOW)
    assert asyncio.run(twice.fn(4)) == 8
    assert double.fn.__name__ == double.__name__ == "double"
    assert (twice.__doc__, twice.__module__) == ("Give twice the number.", "test_definitions")
    assert twice.__wrapped__ is twice.fn
    assert repr(twice) == "<action 'test_definitions:twice'>"


def test_decorators_work_bare_and_with_parentheses() -> None:
    @durable.action()
    def with_parentheses() -> int:
        return 1

    @durable.action(name="a name of its own")
    def named() -> int:
        return 2

    @durable.workflow()
    async def flow(step: Step) -> None: ...

    @durable.workflow(name="a flow", version=3)
    async def versioned(step: Step) -> None: ...

    assert with_parentheses.name.endswith("with_parentheses")
    assert named.name == "a name of its own"
    assert flow.name.endswith("test_decorators_work_bare_and_with_parentheses.<locals>.flow")
    assert (versioned.name, versioned.version) == ("a flow", 3)


def test_a_name_stands_for_one_definition_of_a_kind() -> None:
    @durable.action(name="taken")
    async def first() -> None: ...

    with pytest.raises(DuplicateDefinitionError) as info:

        @durable.action(name="taken")
        async def second() -> None: ...

    message = str(info.value)
    assert "two action definitions are named 'taken'" in message
    assert "first at" in message
    assert "second at" in message
    assert "test_definitions.py:" in message
    assert "another name" in message
    assert registry.find(StepKind.ACTION, "taken") is first

    @durable.workflow(name="taken")
    async def flow(step: Step) -> None: ...

    assert registry.find(StepKind.WORKFLOW, "taken") is flow


def test_versions_of_a_workflow_live_side_by_side() -> None:
    @durable.workflow(name="versions")
    async def old(step: Step) -> None: ...

    @durable.workflow(name="versions", version=1)
    async def new(step: Step) -> None: ...

    assert registry.find(StepKind.WORKFLOW, "versions") is old
    assert registry.find(StepKind.WORKFLOW, "versions", 1) is new
    with pytest.raises(DuplicateDefinitionError, match="'versions' version 1"):

        @durable.workflow(name="versions", version=1)
        async def other(step: Step) -> None: ...


def test_the_same_code_executed_again_takes_its_own_place() -> None:
    """A module is reloaded, a notebook's cell is run again, a function defines a workflow."""

    def define() -> object:
        @durable.action(name="defined again")
        async def act() -> None: ...

        return act

    first, second = define(), define()
    assert first is not second
    assert registry.find(StepKind.ACTION, "defined again") is second


def test_who_listens_is_told_of_new_definitions() -> None:
    told: list[tuple[str, str, int]] = []
    stop = registry.listen(lambda *key: told.append(key))

    @durable.action(name="listened to")
    async def act() -> None: ...

    stop()

    @durable.action(name="not listened to")
    async def late() -> None: ...

    assert told == [("action", "listened to", 0)]


# --- scripts -------------------------------------------------------------------------------------

APP = """
import asyncio, sys
import durable

@durable.workflow
async def nap(step: durable.Step) -> str:
    await step.sleep(0.01)
    return "slept"

async def main() -> None:
    async with durable.Engine(sys.argv[1]) as engine:
        engine.set_max_parallelism(0)
        await engine.start(nap(), id="of-the-script", run_after=0.01)

if __name__ == "__main__":
    print(nap.name)
    if len(sys.argv) > 1:
        asyncio.run(main())
"""


def _python(cwd: Path, *args: str) -> str:
    done = run_python(*args, cwd=cwd, paths=[ROOT])
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_a_scripts_definitions_are_named_as_if_it_were_imported(tmp_path: Path) -> None:
    (tmp_path / "an_app.py").write_text(APP)
    (tmp_path / "a_package").mkdir()
    (tmp_path / "a_package" / "__init__.py").touch()
    (tmp_path / "a_package" / "module.py").write_text(APP)
    assert _python(tmp_path, "an_app.py") == "an_app:nap"
    assert _python(tmp_path, "-m", "a_package.module") == "a_package.module:nap"
    assert _python(tmp_path, "-c", APP) == "__main__:nap"


@pytest.mark.slow
def test_a_run_started_by_a_script_is_recovered_by_whoever_imports_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "script_to_import.py").write_text(APP)
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    _python(tmp_path, "script_to_import.py", url)
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__("script_to_import")

    async def recover() -> object:
        async with Engine(url) as engine:
            return await engine.get("of-the-script").result(timeout=5)

    assert asyncio.run(recover()) == "slept"


# --- what cannot be decorated --------------------------------------------------------------------


async def _no_step() -> None: ...
async def _keyword_step(*, step: Step) -> None: ...
async def _steps(*steps: Step) -> None: ...
def _plain(_step: Step) -> None: ...
async def _async_generator(_step: Step) -> AsyncIterator[int]:
    yield 1


def _of_class(_cls: type) -> None: ...


def _generator() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (_plain, r"coroutine function \(async def\), which '_plain' is not"),
        (_async_generator, r"coroutine function \(async def\)"),
        (lambda step: None, r"coroutine function \(async def\)"),  # noqa: ARG005
        (asyncio.Event, r"coroutine function \(async def\)"),
        ("checkout", "'checkout' is not"),
        (_no_step, "needs `step` as its first parameter: `async def _no_step"),
        (_keyword_step, "needs `step` as its first parameter"),
        (_steps, "needs `step` as its first parameter"),
    ],
)
def test_a_workflow_is_a_coroutine_function_with_a_step(body: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(TypeError, match=message):
        durable.workflow(body)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (_generator, "is a generator, but a step has one result: return a list"),
        (_async_generator, "is a generator"),
        ("charge", "decorates a function, not 'charge'"),
        (classmethod(_of_class), "decorates a function, not <classmethod"),
        (functools.partial(_no_step), r"has no name of its own: give it one, by @durable\.action"),
    ],
)
def test_an_action_is_a_function(fn: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(TypeError, match=message):
        durable.action(fn)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name": ""}, TypeError, "name= is text, and not empty; it is ''"),
        ({"name": 5}, TypeError, "name= is text, and not empty; it is 5"),
        ({"name": "\ud800"}, ValueError, "lone surrogate"),
        ({"name": "a\0b"}, ValueError, "NUL"),
        ({"retry": 3}, TypeError, r"retry= is True, False or a durable\.Retry, not 3"),
        ({"timeout": 0}, ValueError, "timeout= is more than 0 seconds, not 0"),
        ({"timeout": timedelta(seconds=-1)}, ValueError, "timeout= is more than 0 seconds"),
        ({"timeout": "5"}, TypeError, "timeout= is seconds or a timedelta, not '5'"),
        ({"raises": 5}, TypeError, "raises= is a tuple of Exception classes, not 5"),
        ({"raises": (KeyboardInterrupt,)}, TypeError, "raises= is a tuple of Exception classes"),
        ({"retries": 3}, TypeError, "unexpected keyword argument 'retries'"),
    ],
)
def test_a_wrong_option_of_an_action_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        durable.action(**options)(_no_step)
    assert registry.find(StepKind.ACTION, "test_definitions:_no_step") is None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name": b"n"}, TypeError, "name= is text"),
        ({"version": -1}, ValueError, "version=.* from 0 to 2147483647, not -1"),
        ({"version": 2**31}, ValueError, "version=.* from 0 to 2147483647"),
        ({"version": "2"}, TypeError, "version=.* whole number, not '2'"),
        ({"version": True}, TypeError, "version=.* whole number, not True"),
        ({"retry": "no"}, TypeError, "retry= is True, False"),
        ({"timeout": 0}, ValueError, "timeout= is more than 0 seconds"),
    ],
)
def test_a_wrong_option_of_a_workflow_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    async def body(step: Step) -> None: ...

    with pytest.raises(error, match=message):
        durable.workflow(**options)(body)


def test_options_are_kept() -> None:
    retry = Retry(3)

    @durable.action(retry=retry, timeout=timedelta(seconds=2), raises=(KeyError,))
    def act() -> None: ...

    assert (act.retry, act.timeout_s, act.raises, act.is_async) == (retry, 2.0, (KeyError,), False)
    assert twice.is_async
    assert (twice.retry, twice.timeout_s, twice.raises) == (None, None, ())


# --- odd functions -------------------------------------------------------------------------------


Whole = int
"""Annotations that name it as text are found only by whoever looks into this module."""


class Adder:
    """A callable object, and methods."""

    def __init__(self, more: int) -> None:
        self._more = more

    async def __call__(self, number: "Whole") -> "Whole":
        return number + self._more

    def add(self, number: "Whole") -> "Whole":
        return number + self._more

    @staticmethod
    @durable.action
    async def add_one(number: int) -> int:
        return number + 1

    @durable.action
    @staticmethod
    def add_two(number: int) -> int:
        return number + 2

    @durable.action
    @staticmethod
    async def add_eight(number: int) -> int:
        return number + 8

    @durable.action
    async def add_more(self, number: int) -> int:
        return number + self._more


def _logged(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        return await fn(*args, **kwargs)

    return wrapper


@durable.action
@_logged
async def decorated(number: "Whole") -> "Whole":
    return number + 5


async def _add(one: "Whole", two: "Whole") -> "Whole":
    return one + two


by_object = durable.action(name="by object")(Adder(3))
by_method = durable.action(name="by method")(Adder(4).add)
by_partial = durable.action(name="by partial")(functools.partial(_add, 6))
by_builtin = durable.action(name="by builtin")(len)


@durable.workflow
async def odd(_step: Step) -> list[int]:
    return [
        await Adder.add_one(0),
        await Adder.add_two(0),
        await by_object(0),
        await by_method(0),
        await decorated(0),
        await by_partial(0),
        await by_builtin("1234567"),
        await Adder.add_eight(0),
    ]


async def test_callables_of_all_kinds_are_actions(path: Path) -> None:
    async with Engine(path) as engine:
        run = await engine.start(odd())
        assert await run.result(timeout=5) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert (by_object.name, by_object.is_async) == ("by object", True)
    assert (by_partial.is_async, by_method.is_async, by_builtin.is_async) == (True, False, False)


async def test_they_are_checked_by_their_own_annotations() -> None:
    for action in (Adder.add_one, Adder.add_two, by_object, by_method, decorated, by_partial):
        name = next(iter(action(1).arguments))
        with pytest.raises(durable.ArgumentError, match=rf"got `str` - at `\$\.{name}`"):
            action.parameters.encode({name: "1"}, 1000)


def test_a_method_called_by_its_object_misses_an_argument() -> None:
    """Objects do not outlive a process: a step's arguments must say everything."""
    with pytest.raises(TypeError, match=r"Adder\.add_more: missing a required argument: 'number'"):
        Adder(1).add_more(5)  # type: ignore[call-arg, arg-type]
