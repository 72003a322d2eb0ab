"""Events and runs that leave memory: parked, crashed, stuck, removed; and what is replayed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from clock import ManualClock
from faults import MONTH_S, crashing, opened
from waiting import WAIT_S_MAX, until, until_open, until_parked, until_state, until_waiting

import durable
from durable import (
    Event,
    EventError,
    EventNotFoundError,
    EventTypeError,
    RunFailed,
    RunNotFoundError,
    RunState,
    Step,
    StepState,
)
from durable.runtime.settings import PARK_AFTER_CROWDED_MS, PARK_AFTER_MS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from faults import Disk

NAP_S = 10.0
PARK_S = 2 * PARK_AFTER_MS / 1000
"""More than a run that waits for an event stays in memory."""

seen: list[Any] = []
bodies: list[str] = []


@pytest.fixture(autouse=True)
def _new_world() -> None:
    seen.clear()
    bodies.clear()


@dataclass
class Approval:
    by: str


@durable.action
async def note(value: Any) -> Any:  # noqa: ANN401
    seen.append(value)
    return value


@durable.workflow
async def noting(step: Step, count: int) -> list[Any]:
    bodies.append(step.run_id)
    return [await note(await step.wait_event("it")) for _ in range(count)]


@durable.workflow
async def in_time(step: Step, timeout: float) -> Any:  # noqa: ANN401, ASYNC109
    bodies.append(step.run_id)
    try:
        return await step.wait_event("it", timeout=timeout)
    except TimeoutError:
        return ["too late", await step.wait_event("it")]


@durable.workflow
async def at_once(step: Step, count: int) -> list[Any]:
    bodies.append(step.run_id)
    return await asyncio.gather(*(step.wait_event("it") for _ in range(count)))


@durable.workflow
async def telling(step: Step, then_sleeps: float) -> list[str]:
    bodies.append(step.run_id)
    told: list[str] = []
    events: list[Event[Any]] = [Event("it", Approval), Event("it", int), Event("it")]
    for event in events:
        try:
            told.append(f"{await step.wait_event(event)}")
        except (EventError, EventTypeError) as exc:
            told.append(f"{type(exc).__name__}: {exc}")
    try:
        await step.wait_event("it", timeout=1)
    except TimeoutError as exc:
        told.append(str(exc))
    seen.append(list(told))
    await step.sleep(then_sleeps)
    return told


async def until_seen(value: object) -> None:
    await until(lambda: value in seen)


# --- leaving memory ------------------------------------------------------------------------------


async def test_a_run_that_waits_for_long_leaves_memory_and_comes_back_for_its_event(
    path: Path, clock: ManualClock
) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(noting(2))
        for n in range(2):
            await until_waiting(run, 2 * n)
            assert engine.statistics().live_runs == 1
            clock.advance(PARK_S)
            await until_parked(engine)
            assert (await run.status()).state is RunState.RUNNING
            await run.send_event("it", n)
            await until_seen(n)
        assert await run.result(timeout=WAIT_S_MAX) == [0, 1]
        assert len(bodies) == 3


async def test_a_run_that_comes_to_its_idle_time_while_its_start_is_written_leaves_memory(
    path: Path, clock: ManualClock, disk: Disk
) -> None:
    async with opened(path, clock) as engine:
        disk.answers.clear()
        starting = asyncio.create_task(engine.start(noting(1), id="it"))
        await until(lambda: disk.calls["commit"] and bodies)
        clock.advance(PARK_S)
        disk.answers.set()
        run = await starting
        await until_parked(engine)
        await run.send_event("it", 1)
        assert await run.result(timeout=WAIT_S_MAX) == [1]


async def test_a_run_that_is_sent_to_often_stays_in_memory(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(noting(20))
        for n in range(20):
            await until_waiting(run, 2 * n)
            clock.advance(PARK_AFTER_MS / 1000 / 3)
            await run.send_event("it", n)
        assert await run.result(timeout=WAIT_S_MAX) == list(range(20))
        assert len(bodies) == 1


async def test_in_a_crowd_a_run_that_waits_leaves_memory_sooner(
    path: Path, clock: ManualClock
) -> None:
    async with opened(path, clock, live_runs_max=2) as engine:
        runs = [await engine.start(noting(1), id=f"{n}") for n in range(5)]
        async with asyncio.timeout(WAIT_S_MAX):
            while len(set(bodies)) < 5:
                clock.advance(PARK_AFTER_CROWDED_MS / 1000)
                await asyncio.sleep(0)
        for run in runs:
            await run.send_event("it", run.id)
        results = [await run.result(timeout=WAIT_S_MAX) for run in runs]
        assert results == [[run.id] for run in runs]


async def test_an_event_that_nobody_waits_for_does_not_wake_a_run(
    path: Path, clock: ManualClock
) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(noting(1))
        await until_open(run)
        clock.advance(PARK_S)
        await until_parked(engine)
        await run.send_event("other", 1)
        await engine.create_event(run.id, "it")
        await run.status()
        assert engine.statistics().live_runs == 0
        assert len(bodies) == 1
        await run.send_event("it", 2)
        assert await run.result(timeout=WAIT_S_MAX) == [2]


async def test_an_event_does_not_start_a_delayed_run_early(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(noting(1), run_after=NAP_S)
        await run.send_event("it", "early")
        clock.advance(NAP_S / 2)
        assert (await run.status()).state is RunState.PENDING
        assert bodies == []
        clock.advance(NAP_S / 2)
        assert await run.result(timeout=WAIT_S_MAX) == ["early"]


async def test_a_parked_wait_times_out_in_time(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(in_time(MONTH_S))
        await until_open(run)
        clock.advance(PARK_S)
        await until_parked(engine)
        clock.advance(MONTH_S - PARK_S - 0.001)
        assert engine.statistics().live_runs == 0
        clock.advance(0.001)
        await until_waiting(run, 1)
        await run.send_event("it", "late")
        assert await run.result(timeout=WAIT_S_MAX) == ["too late", "late"]


# --- the process dies ----------------------------------------------------------------------------


async def test_what_was_sent_survives_a_crash(path: Path) -> None:
    async with crashing(path, max_parallelism=0) as engine:
        run = await engine.start(noting(3), id="it")
        for n in range(3):
            await run.send_event("it", n)
        await until_waiting(run, 1)
    async with opened(path) as engine:
        assert await engine.get("it").result(timeout=WAIT_S_MAX) == [0, 1, 2]
    assert seen == [0, 1, 2]


async def test_each_event_is_consumed_once_over_many_lives(path: Path, clock: ManualClock) -> None:
    count = 6
    for life in range(count):
        async with crashing(path, clock) as engine:
            run = await engine.start(noting(count), id="it")
            await run.send_event("it", life)
            await until_seen(life)
    async with opened(path, clock) as engine:
        assert await engine.get("it").result(timeout=WAIT_S_MAX) == list(range(count))
        steps = [step async for step in engine.get("it").steps() if step.kind == "event"]
        assert len({step.event_id for step in steps}) == count


async def test_waits_at_the_same_time_keep_their_order_over_a_crash(
    path: Path, clock: ManualClock
) -> None:
    async with crashing(path, clock) as engine:
        run = await engine.start(at_once(3), id="it")
        await run.send_event("it", "first")
        await until_waiting(run, 1)
    async with opened(path, clock) as engine:
        run = engine.get("it")
        await run.send_event("it", "second")
        await run.send_event("it", "third")
        assert await run.result(timeout=WAIT_S_MAX) == ["first", "second", "third"]


async def test_on_replay_nothing_is_decided_again(path: Path, clock: ManualClock) -> None:
    """Values, errors of both kinds and a time-out: the body gets what it got."""
    async with crashing(path, clock) as engine:
        run = await engine.start(telling(MONTH_S), id="it")
        await run.send_event("it", {"by": "ann"})
        await run.send_event("it", "no number")
        await run.send_event("it", error=LookupError("gone"))
        await until_waiting(run, 3)
        clock.advance(1)
        await until(lambda: seen)
        await until_waiting(run, 4)
        await run.send_event("it", "after the time-out")
    async with opened(path, clock) as engine:
        run = engine.get("it")
        clock.advance(MONTH_S)
        told = await run.result(timeout=WAIT_S_MAX)
    assert seen == [told, told]
    assert len(bodies) == 2
    assert told[0] == "Approval(by='ann')"
    assert told[1].startswith("EventTypeError: ")
    assert told[2] == "EventError: LookupError: gone"


@pytest.mark.parametrize("is_in_time", [True, False])
async def test_after_a_pause_the_due_time_decides(
    path: Path, clock: ManualClock, *, is_in_time: bool
) -> None:
    """No engine ran when the wait was due: what was sent before it wins, what comes later not."""
    async with crashing(path, clock) as engine:
        run = await engine.start(in_time(NAP_S), id="it")
        await until_open(run)
        if is_in_time:
            runner: Any = engine._runner
            runner.schedule = lambda _live: None  # Its body is not told of it any more.
            await run.send_event("it", "in time")
    clock.advance(2 * NAP_S)
    async with opened(path, clock) as engine:
        run = engine.get("it")
        if is_in_time:
            assert await run.result(timeout=WAIT_S_MAX) == "in time"
        else:
            await run.send_event("it", "late")
            assert await run.result(timeout=WAIT_S_MAX) == ["too late", "late"]
    assert len(bodies) == 2


async def test_a_time_out_is_neither_extended_nor_skipped_by_a_restart(
    path: Path, clock: ManualClock
) -> None:
    async with crashing(path, clock) as engine:
        await engine.start(in_time(NAP_S), id="it")
        await until_open(engine.get("it"))
    clock.advance(NAP_S / 2)
    async with opened(path, clock) as engine:
        run = engine.get("it")
        await until(lambda: len(bodies) == 2)
        clock.advance(NAP_S / 2 - 0.001)
        await until_waiting(run, 0)
        clock.advance(0.001)
        await until_waiting(run, 1)
        steps = [step async for step in run.steps()]
        assert steps[0].started_at is not None
        assert steps[0].finished_at is not None
        assert (steps[0].finished_at - steps[0].started_at).total_seconds() == NAP_S


async def test_a_cancel_that_was_not_told_comes_before_an_event(
    path: Path, clock: ManualClock
) -> None:
    """Both are in the journal when the run is taken up: no step begins by the event."""
    async with crashing(path, clock) as engine:
        run = await engine.start(noting(1), id="it")
        await until_open(run)
        clock.advance(PARK_S)
        await until_parked(engine)
        runner: Any = engine._runner
        runner.writer.ask_claim = lambda: None
        runner.wake.set = lambda _due: None
        await run.send_event("it", 1)
        asking = asyncio.create_task(run.cancel())
        await until_state(run, RunState.RUNNING)
        async with asyncio.timeout(WAIT_S_MAX):
            assert await asking
    async with opened(path, clock) as engine:
        with pytest.raises(durable.RunCanceled):
            await engine.get("it").result(timeout=WAIT_S_MAX)
        assert [step.state async for step in engine.get("it").steps()] == [StepState.CANCELED]
    assert seen == []


# --- stuck, changed, removed ---------------------------------------------------------------------


def waiting_for_two(first: str) -> Callable[[Step], Any]:
    async def body(step: Step) -> list[Any]:
        return [await step.wait_event(first), await step.wait_event("second")]

    return body


def define(body: Callable[[Step], Any]) -> durable.Call[Any]:
    """Define a workflow anew, as a new release of the code does."""
    durable.registry._definitions.pop(("workflow", "test_events.changing", 0), None)
    call: durable.Call[Any] = durable.workflow(name="test_events.changing")(body)()
    return call


async def test_a_stuck_run_keeps_its_events(path: Path, clock: ManualClock) -> None:
    async with crashing(path, clock) as engine:
        run = await engine.start(define(waiting_for_two("first")), id="it")
        await until_open(run)
    define(waiting_for_two("renamed"))
    async with crashing(path, clock) as engine:
        run = engine.get("it")
        status = await until_state(run, RunState.STUCK)
        assert status.error is not None
        assert "'first'" in status.error.message
        assert "'renamed'" in status.error.message
        await run.send_event("first", 1)
        await run.send_event("second", 2)
        await until_parked(engine)
        assert (await run.status()).state is RunState.STUCK
        define(waiting_for_two("first"))
        assert await run.resume()
        assert await run.result(timeout=WAIT_S_MAX) == [1, 2]


async def test_another_id_that_is_awaited_is_divergence(path: Path, clock: ManualClock) -> None:
    ids: list[durable.EventId] = []

    async def body(step: Step) -> Any:  # noqa: ANN401
        return await step.wait_event(ids[-1])

    async with crashing(path, clock) as engine:
        run = await engine.start(define(waiting_for_two("first")), id="other")
        ids.append(await engine.create_event(run.id, "it"))
        run = await engine.start(define(body), id="it")
        ids[-1] = await engine.create_event("other", "it")
        with pytest.raises(RunFailed):  # It is not this run's event.
            await run.result(timeout=WAIT_S_MAX)

    async def waiting_for_own(step: Step) -> Any:  # noqa: ANN401
        if not own:
            await step.sleep(1)
        return await step.wait_event(own[-1])

    own: list[durable.EventId] = []
    async with crashing(path, clock) as engine:
        run = await engine.start(define(waiting_for_own), id="own")
        await until_open(run)
        own.append(await engine.create_event(run.id, "it"))
        clock.advance(1)
        await until_waiting(run, 1)
        own.append(await engine.create_event(run.id, "it"))
    own[:1] = []
    async with opened(path, clock) as engine:
        await until_state(engine.get("own"), RunState.STUCK)


async def test_an_edited_time_out_concerns_the_waits_to_come(
    path: Path, clock: ManualClock
) -> None:
    def waiting(timeout: float) -> Callable[[Step], Any]:
        async def body(step: Step) -> list[float]:
            times = [step.now()]
            for _ in range(2):
                try:
                    await step.wait_event("it", timeout=timeout)
                except TimeoutError:
                    times.append(step.now())
            return [(b - a).total_seconds() for a, b in pairwise(times)]

        return body

    async with crashing(path, clock) as engine:
        await engine.start(define(waiting(NAP_S)), id="it")
        await until_open(engine.get("it"))
    define(waiting(1))
    async with opened(path, clock) as engine:
        run = engine.get("it")
        clock.advance(NAP_S)
        await until_waiting(run, 1)
        clock.advance(1)
        assert await run.result(timeout=WAIT_S_MAX) == [NAP_S, 1]


@durable.workflow
async def two_of_each(step: Step, fails: bool) -> list[Any]:
    got = [await step.wait_event("it"), await note("between"), await step.wait_event("it")]
    by_id = await step.wait_event(Event("id", durable.EventId))
    got.append(await step.wait_event(by_id))
    if fails:
        await step.wait_event("it", timeout=NAP_S)
    return got


@pytest.mark.parametrize(
    ("from_step", "noted"), [(0, 2), (1, 2), (2, 1), ("it", 1), ("id", 1), ("event", 1)]
)
async def test_a_restart_puts_the_events_of_its_steps_back_in_their_places(
    path: Path, clock: ManualClock, from_step: int | str, noted: int
) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(two_of_each(fails=False), id="it")
        by_id = await engine.create_event("it", "own")
        await asyncio.gather(
            run.send_event("id", by_id),
            engine.send_event_id(by_id, "by id"),
            *(run.send_event("it", n) for n in range(3)),
        )
        first = await run.result(timeout=WAIT_S_MAX)
        assert first == [0, "between", 1, "by id"]
        again = await run.restart(from_step=from_step)
        assert await again.result(timeout=WAIT_S_MAX) == first
        assert seen == ["between"] * noted
        steps = [step async for step in again.steps() if step.kind == "event"]
        assert len({step.event_id for step in steps}) == len(steps) == 4


async def test_a_restart_of_a_time_out_waits_anew(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(two_of_each(fails=True), id="it")
        by_id = await engine.create_event("it", "own")
        for n in range(2):
            await run.send_event("it", n)
        await run.send_event("id", by_id)
        await engine.send_event_id(by_id, "by id")
        await until_waiting(run, 5)
        clock.advance(NAP_S)
        with pytest.raises(RunFailed, match="TimeoutError"):
            await run.result(timeout=WAIT_S_MAX)
        clock.advance(NAP_S)
        again = await run.restart()
        await until_waiting(again, 5)
        clock.advance(NAP_S - 0.001)
        await until_waiting(again, 5)
        await again.send_event("it", "in time now")
        assert await again.result(timeout=WAIT_S_MAX) == [0, "between", 1, "by id"]


async def test_cleaning_up_removes_what_was_sent(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(noting(1), id="it")
        for _ in range(3):
            await run.send_event("other", 1)
        created = await engine.create_event("it", "it")
        assert await run.cleanup(force=True)
        with pytest.raises(RunNotFoundError):
            await run.send_event("it")
        with pytest.raises(EventNotFoundError):
            await engine.send_event_id(created)
        run = await engine.start(noting(1), id="it")
        await until_open(run)
        await run.send_event("it", "of the new one")
        assert await run.result(timeout=WAIT_S_MAX) == ["of the new one"]
