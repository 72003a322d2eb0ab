"""What a body gets of its steps: the same value or exception, live and whenever it is replayed."""

from __future__ import annotations

import asyncio
import contextlib
import decimal
import enum
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

import durable
from clock import ManualClock
from durable import Engine, RunFailed, Step, StepFailed, StepState
from faults import WAIT_S_MAX, until, until_step

MONTH_S = 30 * 86400


class Seen:
    """What each life of a body saw."""

    def __init__(self) -> None:
        self.values: list[Any] = []


seen = Seen()


@pytest.fixture(autouse=True)
def _nothing_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_step_outcomes.seen", Seen())


async def live_and_replayed(path: Path, call: durable.Call[Any]) -> Any:  # noqa: ANN401
    """Run a body that shows what it saw and then sleeps for a month: it leaves memory meanwhile."""
    engine, clock = Engine(path), ManualClock()
    clock.install(engine)
    async with engine:
        run = await engine.start(call)
        await until(lambda: seen.values)
        await until(lambda: engine.statistics().live_runs == 0)
        clock.advance(MONTH_S)
        await run.result(timeout=WAIT_S_MAX)
    live, replayed = seen.values
    return live, replayed


# --- exceptions ----------------------------------------------------------------------------------


class PlainError(Exception):
    """Nothing of its own."""


class CodedError(Exception):
    """It takes something else than its ``args``, and carries it."""

    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(f"code {code}")
        self.code = code
        self.hint = hint


class TwoPartError(Exception):
    def __init__(self, first: str, second: list[int]) -> None:
        super().__init__(first, second)
        self.first = first


class OddArgument:
    """It has no JSON."""

    def __repr__(self) -> str:
        return "odd"


class FinalError(BaseException):
    """No ``Exception``: nothing that a body is to catch by accident."""


def local_error() -> Exception:
    class LocalError(Exception):
        pass

    return LocalError("local")


def broken_error() -> Exception:
    class BrokenTextError(Exception):
        def __str__(self) -> str:
            msg = "no text"
            raise RuntimeError(msg)

    return BrokenTextError("x")


def cyclic_error() -> Exception:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    return first


def noted_error() -> Exception:
    error = ValueError("noted")
    error.add_note("a note")
    return error


AS_ITSELF: dict[str, Callable[[], BaseException]] = {
    "builtin": lambda: ValueError("wrong", 1),
    "no arguments": lambda: KeyError(),
    "key": lambda: KeyError("key"),
    "module": lambda: PlainError("plain"),
    "odd init": lambda: CodedError(7, hint="look there"),
    "two parts": lambda: TwoPartError("first", [1, 2]),
    "file": lambda: FileNotFoundError(2, "No such file", "/some/where"),
    "two files": lambda: OSError(18, "Invalid link", "/from", None, "/to"),
    "raises": lambda: decimal.InvalidOperation("declared"),
    "timeout": lambda: TimeoutError("late"),
    "durable": lambda: durable.NonRetryable("never"),
    "cyclic": cyclic_error,
    "noted": noted_error,
}

AS_STEP_FAILED: dict[str, Callable[[], BaseException]] = {
    "local class": local_error,
    "unencodable": lambda: ValueError(OddArgument()),
    "a tuple, which would come back as a list": lambda: ValueError((1, 2)),
    "broken text": broken_error,
    "group": lambda: ExceptionGroup("some", [ValueError("one"), PlainError("two")]),
    "elsewhere": lambda: decimal.DivisionByZero("not declared"),
    "surrogate": lambda: ValueError("\ud800"),
    "no exception": lambda: FinalError("base"),
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": lambda: KeyboardInterrupt("pressed"),
    "GeneratorExit": lambda: GeneratorExit("closed"),
    "CancelledError": lambda: asyncio.CancelledError("by myself"),
    "StopAsyncIteration": lambda: StopAsyncIteration("no more"),
}

FACTORIES = AS_ITSELF | AS_STEP_FAILED


@durable.action(raises=(decimal.InvalidOperation,))
async def fail(how: str) -> None:
    raise FACTORIES[how]()


@durable.action(raises=(decimal.InvalidOperation,))
def fail_in_thread(how: str) -> None:
    raise FACTORIES[how]()


@durable.action
def stop_iteration() -> None:
    raise StopIteration("no more")


def shown(exc: BaseException) -> tuple[object, ...]:
    attributes = {key: value for key, value in vars(exc).items() if key != "__notes__"}
    return (type(exc), str(exc), exc.args, attributes, str(exc.__cause__))


@durable.workflow
async def catching(step: Step, how: str, where: str) -> None:
    calls = {"async": fail(how), "thread": fail_in_thread(how), "stop": stop_iteration()}
    try:
        await calls[where]
    except Exception as exc:  # noqa: BLE001  whatever reaches a body
        seen.values.append(shown(exc))
    await step.sleep(MONTH_S)


@pytest.mark.parametrize("where", ["async", "thread"])
@pytest.mark.parametrize("how", AS_ITSELF)
async def test_an_exception_that_can_be_made_again_reaches_the_body_as_itself(
    path: Path, how: str, where: str
) -> None:
    live, replayed = await live_and_replayed(path, catching(how, where))
    *expected, _ = shown(AS_ITSELF[how]())
    assert list(live[:-1]) == expected
    assert live == replayed
    function = "in fail" if where == "async" else "in fail_in_thread"
    assert function in live[-1], "its cause is the traceback of the original"
    assert "raise FACTORIES[how]()" in live[-1]


@pytest.mark.parametrize("where", ["async", "thread"])
@pytest.mark.parametrize("how", AS_STEP_FAILED)
async def test_any_other_exception_reaches_the_body_as_a_failed_step(
    path: Path, how: str, where: str
) -> None:
    """The engine lives on, whatever it was."""
    live, replayed = await live_and_replayed(path, catching(how, where))
    assert live == replayed
    cls, _, _, attributes, cause = live
    assert cls is StepFailed
    original = AS_STEP_FAILED[how]()
    assert attributes["type_name"].endswith(type(original).__qualname__)
    with contextlib.suppress(RuntimeError):
        text = str(original).encode(errors="backslashreplace").decode()
        assert attributes["message"] == text
    assert "raise FACTORIES[how]()" in cause


async def test_what_no_coroutine_can_raise_reaches_the_body_as_a_failed_step(path: Path) -> None:
    live, replayed = await live_and_replayed(path, catching("builtin", "stop"))
    assert live == replayed
    assert live[0] is StepFailed
    assert live[1] == "StopIteration: no more"


@durable.workflow
async def failing(_: Step, how: str) -> None:
    await fail(how)


@pytest.mark.parametrize(
    ("how", "type_name"), [("odd init", "test_step_outcomes.CodedError"), ("file", None)]
)
async def test_the_run_fails_with_what_its_step_failed_with(
    path: Path, how: str, type_name: str | None
) -> None:
    """So says every reader: the waiter, the status, the step."""
    async with Engine(path) as engine:
        run = await engine.start(failing(how))
        with pytest.raises(RunFailed) as caught:
            await run.result(timeout=WAIT_S_MAX)
        status = await run.status()
        (step,) = [step async for step in run.steps()]
    assert caught.value.run_id == run.id
    assert caught.value.error == status.error
    assert status.error is not None
    assert status.error.type_name == (type_name or "FileNotFoundError")
    assert step.error is not None
    assert step.error.message == status.error.message == str(FACTORIES[how]())
    assert shown(caught.value.__cause__ or RunFailed)[:-1] == shown(FACTORIES[how]())[:-1]


# --- values --------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"


@dataclass(frozen=True)
class Point:
    x: int
    tags: tuple[str, ...] = ()


class Shape(msgspec.Struct, frozen=True):
    corners: tuple[Point, ...]
    colour: Colour


@durable.action
async def pair() -> tuple[int, str]:
    return 1, "a"


@durable.action
async def by_number() -> dict[int, bytes]:
    return {1: b"\x00\xff"}


@durable.action
def shape() -> Shape:
    return Shape(corners=(Point(1, ("a",)), Point(2)), colour=Colour.RED)


@durable.action
async def moment() -> datetime:
    return datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


@durable.action
async def exact() -> tuple[decimal.Decimal, uuid.UUID, timedelta, set[int], frozenset[str]]:
    return decimal.Decimal("0.10"), uuid.UUID(int=5), timedelta(days=1), {2, 1}, frozenset("a")


@durable.action
async def untyped():  # type: ignore[no-untyped-def]  # noqa: ANN201  a missing annotation means Any
    return {"tuple": (1, (2,)), 3: {4}}


@durable.action
async def anything() -> object:
    return Point(1, ("a",))


@durable.action
async def choice() -> Literal["a", "b"] | int | None:
    return None


@durable.action
async def text() -> str:
    return "NUL \0, \u2028, \U0001f600"


VALUES: dict[str, tuple[Callable[[], durable.Call[Any]], object]] = {
    "tuple": (pair, (1, "a")),
    "int keys and bytes": (by_number, {1: b"\x00\xff"}),
    "structures": (shape, Shape(corners=(Point(1, ("a",)), Point(2)), colour=Colour.RED)),
    "datetime": (moment, datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)),
    "exact": (exact, (decimal.Decimal("0.10"), uuid.UUID(int=5), timedelta(1), {1, 2}, {"a"})),
    "untyped": (untyped, {"tuple": [1, [2]], "3": [4]}),
    "object": (anything, {"x": 1, "tags": ["a"]}),
    "union": (choice, None),
    "text": (text, "NUL \0, \u2028, \U0001f600"),
}


@durable.workflow
async def taking(step: Step, what: str) -> None:
    call, _ = VALUES[what]
    value = await call()
    again = await step.run(call(), name="again")
    assert again == value
    assert value is None or again is not value
    seen.values.append(value)
    await step.sleep(MONTH_S)


@pytest.mark.parametrize("what", VALUES)
async def test_a_body_gets_the_decoded_value_from_the_start(path: Path, what: str) -> None:
    """Not the action's own object on the first run, and something else after a crash."""
    live, replayed = await live_and_replayed(path, taking(what))
    _, expected = VALUES[what]
    assert live == replayed == expected
    assert type(live) is type(replayed) is type(expected)


async def test_the_result_of_a_run_is_decoded_too(path: Path) -> None:
    @durable.workflow(name="outcomes.result")
    async def result(_: Step) -> dict[int, tuple[Point, ...]]:
        return {1: (Point(1, ("a",)),)}

    async with Engine(path) as engine:
        at_once = await engine.run(result(), id="it")
        assert at_once == await engine.get("it").result() == {1: (Point(1, ("a",)),)}
    async with Engine(path) as engine:
        assert await engine.get("it").result() == at_once


# --- what cannot be a result ---------------------------------------------------------------------


def deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(10_000):
        value = [value]
    return value


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


async def unawaited() -> int:
    return 1


NO_RESULTS: dict[str, Callable[[], object]] = {
    "NaN": lambda: float("nan"),
    "infinity in a list": lambda: [1.0, float("-inf")],
    "surrogate": lambda: "\ud800",
    "object": object,
    "generator": lambda: (n for n in range(3)),
    "coroutine": unawaited,
    "call": lambda: pair(),
    "function": lambda: unawaited,
    "exception": lambda: ValueError("returned"),
    "deep": deep,
    "endless": endless,
}


@durable.action
async def give(what: str) -> Any:  # noqa: ANN401  anything indeed
    return NO_RESULTS[what]()


@durable.workflow
async def getting(_: Step, what: str) -> str:
    try:
        await give(what)
    except durable.ReturnTypeError as exc:
        return str(exc)
    return "nothing"


@durable.workflow
async def returning(_: Step, what: str) -> Any:  # noqa: ANN401  anything indeed
    return NO_RESULTS[what]()


@pytest.mark.parametrize("what", NO_RESULTS)
async def test_what_has_no_json_fails_the_step_or_the_run_and_nothing_else(
    path: Path, what: str
) -> None:
    async with Engine(path) as engine:
        said = await engine.run(getting(what))
        assert said.startswith("the result of test_step_outcomes:give: ")
        run = await engine.start(returning(what))
        with pytest.raises(RunFailed, match="the result of test_step_outcomes:returning: "):
            await run.result(timeout=WAIT_S_MAX)
        assert (await run.status()).state == "failed"
        assert await engine.run(getting("NaN"))


@durable.workflow
async def named_oddly(step: Step, name: str) -> int:
    first, _ = await step.run(pair(), name=name)
    await step.sleep(MONTH_S, name=name)
    return first


@pytest.mark.parametrize(
    "name", ["NUL \0 and more", "'; DROP TABLE", "\u2028 \U0001f600", "x" * 9999]
)
async def test_a_step_may_have_any_name(path: Path, name: str) -> None:
    engine, clock = Engine(path), ManualClock()
    clock.install(engine)
    async with engine:
        run = await engine.start(named_oddly(name))
        await until_step(run, name, StepState.RUNNING)
        await until(lambda: engine.statistics().live_runs == 0)
        clock.advance(MONTH_S)
        assert await run.result(timeout=WAIT_S_MAX) == 1
        assert [step.name async for step in run.steps()] == [name, name]


@durable.workflow
async def named_by_no_text(step: Step) -> str:
    try:
        await step.run(pair(), name="\ud800")
    except ValueError as exc:
        return str(exc)
    return "nothing"


async def test_a_name_that_cannot_be_stored_is_refused_in_the_body(path: Path) -> None:
    async with Engine(path) as engine:
        assert "surrogate" in await engine.run(named_by_no_text())
        assert await engine.run(getting("NaN"))
