"""Slots: who has one, who waits for one, and what closing makes of those who have."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from datetime import timedelta
from pathlib import Path

import pytest
from clock import ManualClock
from faults import crashing, opened
from floor import (
    ACTIONS,
    all_gated,
    all_quick,
    fail_once,
    floor,
    gated,
    mixed,
    quick,
    states_of,
)
from waiting import WAIT_S_MAX, until, until_step

import durable
from durable import Engine, EngineClosedError, Step, StepState


@pytest.fixture(autouse=True)
def _new_floor() -> Generator[None]:
    floor.clear()
    yield
    floor.clear()


# --- how many, in which order --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.both_loops
@pytest.mark.parametrize("parallelism", [1, 3])
async def test_at_most_so_many_actions_run_at_every_instant(path: Path, parallelism: int) -> None:
    async with Engine(path, max_parallelism=parallelism) as engine:
        runs = [await engine.start(mixed(run, 20)) for run in "abc"]
        for run in runs:
            assert len(await run.result(timeout=WAIT_S_MAX)) == 20
    assert len(floor.begun) == 60
    assert floor.at_work_max <= parallelism


@pytest.mark.slow
async def test_a_recovery_keeps_to_the_parallelism_too(path: Path) -> None:
    """All interrupted steps are due at once; the slots are given one by one all the same."""
    names = [str(n) for n in range(12)]
    async with crashing(path) as engine:
        runs = [await engine.start(all_gated([f"{run}{name}" for name in names])) for run in "abc"]
        await until(lambda: len(floor.at_work) == 25)
    floor.at_work_max = 0
    floor.begun.clear()
    async with Engine(path, max_parallelism=2) as engine:
        for left in range(36, 0, -1):
            await until(lambda left=left: len(floor.at_work) == min(2, left))  # type: ignore[misc]
            floor.gates[min(floor.at_work)].set()
            await until(lambda left=left: len(floor.begun) - len(floor.at_work) == 37 - left)  # type: ignore[misc]
        for run in runs:
            await engine.get(run.id).result(timeout=WAIT_S_MAX)
    assert floor.at_work_max == 2
    assert len(floor.begun) == 36


async def test_with_one_slot_actions_run_in_the_order_of_their_issue(path: Path) -> None:
    async with Engine(path, max_parallelism=1) as engine:
        first = await engine.start(all_gated(["first"]))
        await until(lambda: floor.begun)
        runs = [await engine.start(all_quick([f"{r}1", f"{r}2", f"{r}3"])) for r in "abcd"]
        await until(lambda: engine.statistics().queued_actions == 12)
        floor.gates["first"].set()
        for run in [first, *runs]:
            await run.result(timeout=WAIT_S_MAX)
    assert floor.begun == ["first", *(f"{r}{n}" for r in "abcd" for n in (1, 2, 3))]


async def test_a_slot_that_is_free_is_taken_at_once(path: Path) -> None:
    """Not in batches: the third begins when one of the first two has ended."""
    async with Engine(path, max_parallelism=2) as engine:
        run = await engine.start(all_gated(["a", "b", "c", "d"]))
        await until(lambda: floor.at_work == {"a", "b"})
        floor.gates["b"].set()
        await until(lambda: floor.at_work == {"a", "c"})
        floor.gates["c"].set()
        await until(lambda: floor.at_work == {"a", "d"})
        floor.gates["a"].set()
        floor.gates["d"].set()
        assert await run.result(timeout=WAIT_S_MAX) == ["a", "b", "c", "d"]


# --- waiting holds no slot -----------------------------------------------------------------------


@durable.workflow
async def waiting_in_every_way(step: Step) -> list[str]:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(step.sleep(60))
        tasks.create_task(asyncio.sleep(60))
        delayed = tasks.create_task(step.run(quick("delayed"), run_after=60))
        retried = tasks.create_task(fail_once("retried"))
    return [delayed.result(), retried.result()]


async def test_sleeping_backing_off_and_delays_hold_no_slot(path: Path) -> None:
    clock = ManualClock()
    async with opened(path, clock, max_parallelism=1) as engine:
        run = await engine.start(waiting_in_every_way())
        await until(lambda: floor.ended == ["retried"])
        async with asyncio.timeout(WAIT_S_MAX):
            while (await until_step(run, fail_once.name, StepState.PENDING)).attempts != 1:
                pass
        assert engine.statistics().running_actions == 0
        assert await engine.run(all_quick(["other"])) == ["other"]
        clock.advance(60)
        assert await run.result(timeout=WAIT_S_MAX) == ["delayed", "retried"]


async def test_actions_that_wait_for_runs_are_no_deadlock_with_slots_enough(path: Path) -> None:
    """An action that starts a run and waits for it keeps its slot: it runs."""

    @durable.action(name="workpool.ask")
    async def ask(depth: int) -> int:
        return await Engine.current().run(asking(depth - 1))

    @durable.workflow(name="workpool.asking")
    async def asking(_: Step, depth: int) -> int:
        return 0 if depth == 0 else 1 + await ask(depth)

    async with Engine(path, max_parallelism=5) as engine:
        run = await engine.start(asking(5))
        assert await run.result(timeout=WAIT_S_MAX) == 5


# --- changing the number -------------------------------------------------------------------------


async def test_none_pauses_what_begins_and_ends_nothing(path: Path) -> None:
    async with Engine(path, max_parallelism=2) as engine:
        run = await engine.start(all_gated(["a", "b", "c", "d", "e"]))
        await until(lambda: floor.at_work == {"a", "b"})
        engine.set_max_parallelism(0)
        floor.gates["a"].set()
        await until_step(run, gated.name, StepState.PENDING)
        await until(lambda: floor.at_work == {"b"})
        await engine.start(all_quick(["other"]))
        assert engine.statistics().queued_actions == 4
        engine.set_max_parallelism(1)
        assert floor.at_work == {"b"}, "it is one already"
        engine.set_max_parallelism(3)
        await until(lambda: floor.at_work == {"b", "c", "d"})
        for name in "bcde":
            floor.gates[name].set()
        await run.result(timeout=WAIT_S_MAX)
    assert floor.at_work_max == 3


# --- closing -------------------------------------------------------------------------------------


@durable.workflow
async def gated_then_quick(_: Step, what: str) -> str:
    return f"{await ACTIONS[what](what)} {await quick('then')}"


async def start_for_ever(engine: Engine) -> None:
    while True:
        await engine.start(all_quick(["other"]))


@pytest.mark.parametrize("what", ["gated", "thread"])
async def test_closing_waits_for_what_runs_and_records_it(path: Path, what: str) -> None:
    """What comes after it is issued, and waits for the next engine."""
    engine = await Engine(path).__aenter__()
    run = await engine.start(gated_then_quick(what))
    await until(lambda: floor.at_work)
    closing = asyncio.create_task(engine.__aexit__(None, None, None))
    with pytest.raises(EngineClosedError):
        await start_for_ever(engine)
    assert floor.at_work == {what}
    floor.gates[what].set()
    floor.thread_gates[what].set()
    await closing
    assert floor.ended.count(what) == 1
    async with Engine(path, max_parallelism=0) as engine:
        states = await states_of(engine.get(run.id))
        assert states == {what: ("completed", 1), "then": ("pending", 0)}
        engine.set_max_parallelism(1)
        assert await engine.get(run.id).result(timeout=WAIT_S_MAX) == f"{what} then"
    assert floor.begun.count(what) == 1


@pytest.mark.parametrize("what", ["gated", "thread"])
@pytest.mark.parametrize("drain_timeout", [0.01, timedelta(milliseconds=10)])
async def test_closing_waits_no_longer_than_told(
    path: Path, what: str, drain_timeout: float | timedelta
) -> None:
    async with asyncio.timeout(WAIT_S_MAX):
        async with Engine(path, drain_timeout=drain_timeout) as engine:
            run = await engine.start(gated_then_quick(what))
            await until(lambda: floor.at_work)
    assert floor.ended == ([] if what == "thread" else [what])
    floor.gates[what].set()
    floor.thread_gates[what].set()
    async with Engine(path) as engine:
        assert await engine.get(run.id).result(timeout=WAIT_S_MAX) == f"{what} then"
    assert floor.begun == [what, what, "then"], "interrupted, and run again"


@durable.action
async def clean_up(name: str) -> None:
    floor.begun.append(name)
    try:
        await floor.gates[name].wait()
    finally:
        for _ in range(3):
            await asyncio.sleep(0)
        floor.ended.append(name)


@durable.workflow
async def cleaning_up(_: Step, names: list[str]) -> None:
    await asyncio.gather(*(clean_up(name) for name in names))


@pytest.mark.parametrize("names", [["a"], ["a", "b"]])
async def test_what_is_cancelled_by_closing_may_clean_up(path: Path, names: list[str]) -> None:
    """A cancellation comes once, as asyncio has it, not at each await."""
    async with Engine(path, drain_timeout=0.01) as engine:
        await engine.start(cleaning_up(names))
        await until(lambda: len(floor.begun) == len(names))
    assert sorted(floor.ended) == names
