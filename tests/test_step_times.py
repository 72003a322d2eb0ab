"""A body's time, timers, randomness and log: the same however often it is begun anew."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import structlog
from clock import START_MS, ManualClock
from faults import MONTH_S, crashing, opened
from waiting import WAIT_S_MAX, until, until_open, until_parked, until_step

import durable
from durable import Engine, Step, StepState

if TYPE_CHECKING:
    from collections.abc import Generator

START = datetime.fromtimestamp(START_MS / 1000, UTC)


class World:
    """What the lives of a body see, and what its actions do."""

    def __init__(self) -> None:
        self.lives: list[list[Any]] = []
        self.begun = 0
        self.may_end = asyncio.Event()


world = World()


@pytest.fixture(autouse=True)
def _new_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_step_times.world", World())


@durable.action
async def note(n: int) -> int:
    world.begun += 1
    return n


@durable.action
async def hang() -> str:
    world.begun += 1
    await world.may_end.wait()
    return "ended"


# --- timers --------------------------------------------------------------------------------------

SLEEPS: dict[str, Callable[[Step], Coroutine[Any, Any, object]]] = {
    "step.sleep": lambda step: step.sleep(100),
    "step.sleep, timedelta": lambda step: step.sleep(timedelta(seconds=100), name="nap"),
    "step.sleep_until": lambda step: step.sleep_until(step.now() + timedelta(seconds=100)),
    "asyncio.sleep": lambda _: asyncio.sleep(100),
    "anyio.sleep": lambda _: anyio.sleep(100),
    "asyncio.wait_for": lambda _: _timed_out(asyncio.wait_for(hang(), 100)),
    "asyncio.timeout": lambda _: _within_a_timeout(),
    "anyio.move_on_after": lambda _: _within_a_scope(),
    "run_after": lambda step: step.run(note(1), run_after=100),
}


async def _timed_out(waiting: Coroutine[Any, Any, object]) -> None:
    with pytest.raises(TimeoutError):
        await waiting


async def _within_a_timeout() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(100):
            await hang()


async def _within_a_scope() -> None:
    with anyio.move_on_after(100) as scope:
        await hang()
    assert scope.cancelled_caught


@durable.workflow
async def waiting(step: Step, how: str) -> float:
    begun = step.now()
    await SLEEPS[how](step)
    return (step.now() - begun).total_seconds()


@pytest.mark.parametrize("how", SLEEPS)
@pytest.mark.parametrize("away", [0, 39, 60, 5000])
async def test_a_timer_is_due_when_it_was_however_long_the_engine_was_away(
    path: Path, clock: ManualClock, how: str, away: float
) -> None:
    """Fixed once, never early, not extended, and at once when it has passed meanwhile."""
    async with crashing(path, clock) as engine:
        run = await engine.start(waiting(how), id="it")
        await until_open(run)
        clock.advance(40)
        assert (await run.status()).state == "running"
    clock.advance(away)
    async with opened(path, clock) as engine:
        run = engine.get("it")
        if away < 60:
            clock.advance(60 - away - 0.001)
            assert await engine.run(noting()) == 1
            assert (await run.status()).state == "running"
            clock.advance(0.001)
        assert await run.result(timeout=WAIT_S_MAX) == max(100, 40 + away)


@durable.workflow
async def noting(_: Step) -> int:
    return await note(1)


async def test_jumps_of_the_clock_fire_nothing_twice_and_hang_nothing(
    path: Path, clock: ManualClock
) -> None:
    """It may be set back by an hour, and on again."""
    async with opened(path, clock) as engine:
        run = await engine.start(waiting("step.sleep"))
        await until_open(run)
        clock.advance(-3600)
        assert await engine.run(noting()) == 1
        assert (await run.status()).state == "running"
        clock.advance(3600 + 99)
        assert await engine.run(noting()) == 1
        assert (await run.status()).state == "running"
        clock.advance(3600)
        assert await run.result(timeout=WAIT_S_MAX) == 3699
        assert len([step async for step in run.steps()]) == 1


@durable.workflow
async def sleeping_oddly(step: Step) -> list[str]:
    said: list[str] = []
    await step.sleep(0)
    await step.sleep(-5)
    await step.sleep_until(step.now() - timedelta(days=1))
    await asyncio.sleep(0)
    for wrong in (float("nan"), "long"):
        try:
            await step.sleep(wrong)  # type: ignore[arg-type]
        except (ValueError, TypeError) as exc:
            said.append(type(exc).__name__)
    try:
        await step.sleep_until(step.now().replace(tzinfo=None))
    except ValueError as exc:
        said.append(str(exc).split(":")[0])
    for_ever = asyncio.create_task(step.sleep(float("inf")))
    await note(1)
    for_ever.cancel()
    return said


async def test_odd_waits(path: Path) -> None:
    """What has passed is due at once, and for ever is longer than anyone waits."""
    async with Engine(path) as engine:
        run = await engine.start(sleeping_oddly())
        expected = ["ValueError", "TypeError", "when is an aware datetime"]
        assert await run.result(timeout=WAIT_S_MAX) == expected


@durable.workflow
async def branching(step: Step) -> str:
    """What is decided by a time-out stays decided."""
    branch = "in time"
    try:
        async with asyncio.timeout(10):
            await hang()
    except TimeoutError:
        branch = "late"
    world.lives.append([branch])
    await step.sleep(MONTH_S)
    world.lives[-1].append(await note(1))
    await step.sleep(MONTH_S)
    return branch


async def test_a_time_out_that_fired_fires_on_replay_and_its_loser_stays_withdrawn(
    path: Path, clock: ManualClock
) -> None:
    async with crashing(path, clock) as engine:
        await engine.start(branching(), id="it")
        await until(lambda: world.begun)
        clock.advance(10)
        await until(lambda: world.lives)
        await until_parked(engine)
    world.may_end.set()  # In time it would be now.
    async with opened(path, clock) as engine:
        run = engine.get("it")
        clock.advance(MONTH_S)
        await until(lambda: world.lives[-1] == ["late", 1])
        await until_parked(engine)
        clock.advance(MONTH_S)
        assert await run.result(timeout=WAIT_S_MAX) == "late"
        hung = [step async for step in run.steps() if step.name == hang.name]
    assert [(step.state, step.attempts) for step in hung] == [(StepState.CANCELED, 1)]
    assert world.lives == [["late"], ["late", 1], ["late", 1]]


# --- now -----------------------------------------------------------------------------------------


@durable.workflow
async def looking_at_the_clock(step: Step) -> None:
    nows: list[datetime] = []
    world.lives.append(nows)
    nows.append(step.now())
    clock_of_the_test.advance(7)
    nows.append(step.now())
    await step.sleep(20)
    nows.append(step.now())
    await note(1)
    nows.append(step.now())
    await asyncio.gather(note(2), note(3))
    nows.append(step.now())
    clock_of_the_test.advance(7)
    nows.append(step.now())
    await step.sleep(MONTH_S)
    nows.append(step.now())


clock_of_the_test = ManualClock()


async def test_now_is_constant_between_awaits_and_the_same_on_replay(
    path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("test_step_times.clock_of_the_test", clock)
    async with crashing(path, clock) as engine:
        await engine.start(looking_at_the_clock(), id="it")
        await until(lambda: world.lives)
        clock.advance(500)
        await until(lambda: len(world.lives[0]) == 6)
        await until_parked(engine)
    clock.advance(12345)
    async with opened(path, clock) as engine:
        clock.advance(MONTH_S)
        await engine.get("it").result(timeout=WAIT_S_MAX)
    live, replayed = world.lives
    assert replayed[:6] == live
    assert live[0] == live[1] == START
    assert live[2] == START + timedelta(seconds=507), "when it fired, not when it was due"
    assert live[2] <= live[3] <= live[4] == live[5]
    assert replayed[6] > live[5] + timedelta(seconds=MONTH_S)
    assert all(now.tzinfo is UTC for now in replayed)


# --- randomness ----------------------------------------------------------------------------------


@durable.workflow
async def drawing(step: Step) -> None:
    drawn: list[Any] = []
    world.lives.append(drawn)
    drawn.extend([step.random.random(), step.uuid4(), step.random.randrange(10**9)])
    await step.sleep(MONTH_S)
    drawn.extend([step.uuid4(), step.random.random()])


async def test_randomness_is_the_same_on_replay_and_differs_from_run_to_run(
    path: Path, clock: ManualClock
) -> None:
    async with opened(path, clock) as engine:
        for run_id in ("one", "other"):
            run = await engine.start(drawing(), id=run_id)
            await until_step(run, "sleep", StepState.RUNNING)
            await until_parked(engine)
            clock.advance(MONTH_S)
            await run.result(timeout=WAIT_S_MAX)
    one, one_replayed, other, other_replayed = world.lives
    assert (one_replayed[:3], other_replayed[:3]) == (one, other)
    assert len({*one_replayed, *other_replayed}) == 10, "no value comes twice"
    assert all(isinstance(drawn[1], uuid.UUID) and drawn[1].version == 4 for drawn in (one, other))


# --- log -----------------------------------------------------------------------------------------


@pytest.fixture
def logged() -> Generator[list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []

    def keep(_logger: object, _method: str, event: Any) -> Any:  # noqa: ANN401
        events.append(dict(event))
        raise structlog.DropEvent

    structlog.configure(processors=[structlog.processors.add_log_level, keep])
    yield events
    structlog.reset_defaults()


@durable.workflow(name="times.logging")
async def logging(step: Step) -> None:
    log = step.log.bind(more=1)
    log.info("first", value=1)
    await note(1)
    step.log.warning("second")
    try:
        await step.sleep(MONTH_S)
    finally:
        log.info("third")


async def test_a_body_logs_each_event_once_however_often_it_is_replayed(
    path: Path, clock: ManualClock, logged: list[dict[str, Any]]
) -> None:
    async with crashing(path, clock) as engine:
        await engine.start(logging(), id="it")
        await until_parked(engine)
    async with crashing(path, clock) as engine:
        assert await engine.run(noting()) == 1
    async with opened(path, clock) as engine:
        clock.advance(MONTH_S)
        await engine.get("it").result(timeout=WAIT_S_MAX)
    of_the_body = [event for event in logged if not event["event"].startswith("durable.")]
    bound = {"run_id": "it", "workflow": "times.logging"}
    assert of_the_body == [
        {"event": "first", "value": 1, "more": 1, "level": "info", **bound},
        {"event": "second", "level": "warning", **bound},
        {"event": "third", "more": 1, "level": "info", **bound},
    ]
