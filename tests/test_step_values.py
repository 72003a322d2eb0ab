"""What a body gets of its steps: the same value, live and whenever it is replayed."""

from __future__ import annotations

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
from clock import ManualClock
from faults import MONTH_S, live_and_replayed
from odd import containing_itself, nested, unawaited
from waiting import WAIT_S_MAX, until_parked, until_step

import durable
from durable import Engine, RunFailed, Step, StepState

seen: list[Any] = []


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
    assert value is None or isinstance(value, str) or again is not value
    seen.append(value)
    await step.sleep(MONTH_S)


@pytest.mark.parametrize("what", VALUES)
async def test_a_body_gets_the_decoded_value_from_the_start(path: Path, what: str) -> None:
    """Not the action's own object on the first run, and something else after a crash."""
    live, replayed = await live_and_replayed(path, taking(what), seen)
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


NO_RESULTS: dict[str, Callable[[], object]] = {
    "NaN": lambda: float("nan"),
    "infinity in a list": lambda: [1.0, float("-inf")],
    "surrogate": lambda: "\ud800",
    "object": object,
    "generator": lambda: (n for n in range(3)),
    "coroutine": unawaited,
    "call": pair,
    "function": lambda: unawaited,
    "exception": lambda: ValueError("returned"),
    "deep": nested,
    "endless": containing_itself,
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
        assert said.startswith("the result of test_step_values:give: ")
        run = await engine.start(returning(what))
        with pytest.raises(RunFailed, match="the result of test_step_values:returning: "):
            await run.result(timeout=WAIT_S_MAX)
        assert (await run.status()).state == "failed"
        assert await engine.run(getting("NaN"))


@durable.workflow
async def named_oddly(step: Step, name: str) -> int:
    first, _ = await step.run(pair(), name=name)
    await step.sleep(MONTH_S, name=name)
    return first


@pytest.mark.parametrize(
    "name", ["\n\t and more", "'; DROP TABLE", "\u2028 \U0001f600", "x" * 9999]
)
async def test_a_step_may_have_an_odd_name(path: Path, name: str) -> None:
    engine, clock = Engine(path), ManualClock()
    clock.install(engine)
    async with engine:
        run = await engine.start(named_oddly(name))
        await until_step(run, name, StepState.RUNNING)
        await until_parked(engine)
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
