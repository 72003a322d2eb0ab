"""Runs that have nothing to do for long leave memory, and come back in time."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from clock import ManualClock
from faults import Disk, crashing, opened
from waiting import WAIT_S_MAX, until, until_parked, until_step

import durable
from durable import Retry, RunState, Step, StepState
from durable.core.execution import Execution

DAY_S = 86400.0

bodies: Counter[str] = Counter()
"""How often the body of each run was begun: once, and once more for each time it came back."""

may_end = asyncio.Event()


@pytest.fixture(autouse=True)
def _new_world(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies.clear()
    monkeypatch.setattr("test_parking.may_end", asyncio.Event())


@durable.action
async def add(n: int) -> int:
    await asyncio.sleep(0)
    return n + 1


@durable.action
async def gated() -> None:
    await may_end.wait()


@durable.action(retry=False)
async def at_most_once() -> str:
    return "done"


@durable.action(retry=Retry(2, DAY_S, jitter=False))
async def fail_once() -> int:
    if durable.attempt().number == 1:
        raise ValueError
    return durable.attempt().number


@durable.workflow
async def sleeping(step: Step, naps: list[float]) -> int:
    bodies[step.run_id] += 1
    total = 0
    for nap in naps:
        total = await add(total)
        await step.sleep(nap)
    return await add(total)


@durable.workflow
async def sleeping_when_told(step: Step, nap: float) -> int:
    await gated()
    await step.sleep(nap)
    return await add(0)


@durable.workflow
async def backing_off(step: Step) -> int:
    bodies[step.run_id] += 1
    return await fail_once()


@durable.workflow
async def delayed_beside_a_running_action(step: Step) -> str:
    bodies[step.run_id] += 1
    later = asyncio.create_task(step.run(at_most_once(), run_after=60))
    await gated()
    return await later


async def test_a_run_that_sleeps_for_long_leaves_memory_and_comes_back(
    path: Path, clock: ManualClock
) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(sleeping([DAY_S, 31, DAY_S]), id="it")
        waiting = asyncio.create_task(run.result())
        for number, nap in enumerate((DAY_S, 31, DAY_S), start=1):
            await until_parked(engine)
            status = await run.status()
            assert status.state is RunState.RUNNING
            assert [(step.name, step.state) for step in status.running] == [("sleep", "running")]
            assert (await engine.start(sleeping([DAY_S, 31, DAY_S]), id="it")).id == "it"
            assert bodies["it"] == number
            assert not waiting.done()
            clock.advance(nap)
            await until(lambda number=number: bodies["it"] == number + 1)  # type: ignore[misc]
        async with asyncio.timeout(WAIT_S_MAX):
            assert await waiting == 4
    assert bodies["it"] == 4


async def test_a_run_that_sleeps_for_a_while_stays(path: Path, clock: ManualClock) -> None:
    """To read its history again would cost more than the memory it takes."""
    async with opened(path, clock) as engine:
        run = await engine.start(sleeping([30]), id="it")
        await until_step(run, "sleep", StepState.RUNNING)
        await engine.run(sleeping([]))
        assert engine.statistics().live_runs == 1
        clock.advance(30)
        assert await run.result(timeout=WAIT_S_MAX) == 2
    assert bodies["it"] == 1


@durable.workflow
async def catching_everything(step: Step) -> str:
    bodies["it"] += 1
    try:
        await step.sleep(DAY_S)
    except Exception:  # noqa: BLE001  as users do
        return "woken by an exception"
    return "slept"


async def test_a_body_that_catches_all_exceptions_sleeps_on(path: Path, clock: ManualClock) -> None:
    """Leaving memory is no exception in the body, so there is none for it to swallow."""
    async with opened(path, clock) as engine:
        run = await engine.start(catching_everything())
        await until_parked(engine)
        clock.advance(DAY_S)
        assert await run.result(timeout=WAIT_S_MAX) == "slept"
        assert bodies["it"] == 2


async def test_a_run_in_a_long_back_off_leaves_memory_too(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(backing_off(), id="it")
        await until_parked(engine)
        assert (await until_step(run, fail_once.name, StepState.PENDING)).attempts == 1
        clock.advance(DAY_S)
        assert await run.result(timeout=WAIT_S_MAX) == 2
    assert bodies["it"] == 2


async def test_sleeping_runs_are_not_read_when_an_engine_opens(
    path: Path, clock: ManualClock
) -> None:
    async with crashing(path, clock) as engine:
        for n in range(5):
            await engine.start(sleeping([DAY_S * (n + 1)]), id=str(n))
        await until_parked(engine)
    async with opened(path, clock) as engine:
        await engine.run(sleeping([]), id="other")
        assert engine.statistics().live_runs == 0
        for n in range(5):
            clock.advance(DAY_S)
            assert await engine.get(str(n)).result(timeout=WAIT_S_MAX) == 2
    assert bodies == {"other": 1} | {str(n): 2 for n in range(5)}


async def test_a_step_that_falls_due_while_its_run_leaves_is_begun_when_it_is_back(
    path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was never begun: at most once, it must not be taken for one that a crash interrupted."""
    disk = Disk()
    disk.install(monkeypatch)
    async with opened(path, clock) as engine:
        run = await engine.start(delayed_beside_a_running_action(), id="it")
        await until(lambda: engine.statistics().running_actions == 1)
        disk.answers.clear()
        commits = disk.calls["commit"]
        may_end.set()
        await until(lambda: disk.calls["commit"] > commits)
        clock.advance(60)
        disk.answers.set()
        assert await run.result(timeout=WAIT_S_MAX) == "done"
        assert (await until_step(run, at_most_once.name, StepState.COMPLETED)).attempts == 1
    assert bodies["it"] == 2, "it had left"


# --- more runs than fit --------------------------------------------------------------------------


@pytest.mark.slow
async def test_more_runs_than_fit_in_memory_all_end(path: Path, clock: ManualClock) -> None:
    naps_of: list[list[float]] = [[], [DAY_S], [0, 0], [5, DAY_S]]
    calls = [sleeping(naps) for naps in naps_of for _ in range(5)]
    live_runs_max = 0
    async with opened(path, clock, live_runs_max=3) as engine:
        runs = [await engine.start(call) for call in calls]
        results = asyncio.gather(*(run.result() for run in runs))
        async with asyncio.timeout(WAIT_S_MAX):
            while not results.done():
                await engine.list_runs()
                live_runs_max = max(live_runs_max, engine.statistics().live_runs)
                clock.advance(DAY_S / 100)
        assert await results == [1] * 5 + [2] * 5 + [3] * 10
    assert live_runs_max == 3


@pytest.mark.parametrize("left_behind", [0, 1, 2, 3])
async def test_starts_do_not_take_the_room_of_a_claim_under_way(
    path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, left_behind: int
) -> None:
    """They wait in the journal, also when the claim then brings less than it could have."""
    async with crashing(path, clock, max_parallelism=0) as engine:
        runs = [await engine.start(sleeping_when_told(0)) for _ in range(left_behind)]
    disk = Disk()
    disk.install(monkeypatch)
    disk.answers.clear()
    async with opened(path, clock, live_runs_max=2) as engine:
        await until(lambda: disk.calls["claim"])
        starts = [asyncio.create_task(engine.start(sleeping_when_told(0))) for _ in range(3)]
        await until(lambda: engine._runner and len(engine._runner.starts._starting) == 3)
        disk.answers.set()
        runs = [engine.get(run.id) for run in [*runs, *await asyncio.gather(*starts)]]
        await until(lambda: engine.statistics().running_actions == 2)
        for _ in range(10):
            await engine.list_runs()
            assert engine.statistics().live_runs == 2
        may_end.set()
        assert [await run.result(timeout=WAIT_S_MAX) for run in runs] == [1] * len(runs)


async def test_a_run_that_leaves_makes_room_for_one_that_waits(
    path: Path, clock: ManualClock
) -> None:
    async with opened(path, clock, live_runs_max=1) as engine:
        first = await engine.start(sleeping_when_told(DAY_S))
        await until(lambda: engine.statistics().running_actions == 1)
        second = await engine.start(sleeping([]))
        for _ in range(10):
            assert (await second.status()).state is RunState.PENDING
        may_end.set()
        assert await second.result(timeout=WAIT_S_MAX) == 1
        assert (await first.status()).state is RunState.RUNNING


async def test_when_memory_is_full_a_short_sleep_leaves_it_too(
    path: Path, clock: ManualClock
) -> None:
    async with opened(path, clock, live_runs_max=1) as engine:
        first = await engine.start(sleeping_when_told(20))
        await until(lambda: engine.statistics().running_actions == 1)
        second = await engine.start(sleeping([]))
        may_end.set()
        assert await second.result(timeout=WAIT_S_MAX) == 1
        clock.advance(20)
        assert await first.result(timeout=WAIT_S_MAX) == 1


async def test_runs_left_behind_by_a_crash_may_be_more_than_fit(
    path: Path, clock: ManualClock
) -> None:
    async with crashing(path, clock, max_parallelism=0) as engine:
        for n in range(12):
            await engine.start(sleeping([0]), id=str(n))
    async with opened(path, clock, live_runs_max=2) as engine:
        for n in range(12):
            assert await engine.get(str(n)).result(timeout=WAIT_S_MAX) == 2


async def test_delayed_starts_wait_in_the_journal(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock) as engine:
        run: durable.Run[Any] = await engine.start(sleeping([]), id="it", run_after=5)
        assert engine.statistics().live_runs == 0
        assert (await run.status()).state is RunState.PENDING
        clock.advance(5)
        assert await run.result(timeout=WAIT_S_MAX) == 1


@durable.workflow
async def added(_: Step) -> int:
    return await add(await add(0))


@durable.workflow
async def resting(step: Step) -> None:
    await asyncio.gather(step.sleep(DAY_S), step.sleep(2 * DAY_S))


def _executions() -> int:
    return sum(type(found) is Execution for found in gc.get_objects())


@pytest.mark.parametrize("call", [resting, added])
async def test_a_run_that_leaves_memory_is_freed_without_the_garbage_collector(
    call: durable.Workflow[[], Any], path: Path, clock: ManualClock
) -> None:
    """Runs by the thousand that it had to find would stop the application for a tenth of a second
    now and then."""
    async with opened(path, clock) as engine:
        gc.collect()
        before = _executions()
        gc.disable()
        try:
            await engine.start(call())
            await until_parked(engine)
            await until(lambda: _executions() == before)
        finally:
            gc.enable()
