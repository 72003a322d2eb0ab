"""Families of runs leave memory, come back, and wait in the journal for room."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from clock import ManualClock
from families import check_families, children_of, the_child
from faults import MONTH_S, Disk, crashing, opened
from waiting import WAIT_S_MAX, until, until_open, until_parked, until_state, until_step
from world import echo, echoing, gated, held, world

import durable
from durable import RunCanceled, RunState, Step, StepState
from durable.catalog import Catalog
from durable.runtime.live import LiveRun

if TYPE_CHECKING:
    from pathlib import Path

NAP_S = 10.0


@durable.workflow
async def sleeper(step: Step, nap_s: float) -> str:
    world.bodies["sleeper"] += 1
    await step.sleep(nap_s)
    return "slept"


@durable.workflow
async def nested(_step: Step, depth: int) -> str:
    world.bodies[f"{depth}"] += 1
    return await (sleeper(MONTH_S) if depth == 0 else nested(depth - 1))


@durable.workflow
async def bounded(_step: Step, bound_s: float) -> str:
    world.bodies["bounded"] += 1
    async with asyncio.timeout(bound_s):
        return await held("it")


@durable.workflow
async def fan(_step: Step, count: int) -> int:
    return len(await asyncio.gather(*(echoing(f"{n}") for n in range(count))))


# --- sleeping families ---------------------------------------------------------------------------


@pytest.mark.both_loops
async def test_a_family_leaves_memory_with_the_child_that_sleeps(
    path: Path, clock: ManualClock
) -> None:
    """Each of them is replayed once, when the one under it is over."""
    async with opened(path, clock) as engine:
        run = await engine.start(nested(3), id="top")
        await until(lambda: world.bodies["sleeper"] and engine.statistics().live_runs == 0)
        assert len([status async for status in engine.iter_runs(state="running")]) == 5
        clock.advance(MONTH_S)
        assert await run.result(timeout=WAIT_S_MAX) == "slept"
        assert world.bodies == {"sleeper": 2, "0": 2, "1": 2, "2": 2, "3": 2}
        await check_families(engine)


async def test_a_sleeping_family_costs_a_new_engine_nothing(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock) as engine:
        await engine.start(nested(2), id="top")
        await until(lambda: world.bodies["sleeper"] and engine.statistics().live_runs == 0)
    bodies = dict(world.bodies)
    async with opened(path, clock) as engine:
        assert [status.state async for status in engine.iter_runs()] == [RunState.RUNNING] * 4
        clock.advance(MONTH_S / 2)
        await engine.status("top")
        assert engine.statistics().live_runs == 0
        assert world.bodies == bodies
        clock.advance(MONTH_S / 2)
        assert await engine.get("top").result(timeout=WAIT_S_MAX) == "slept"
        await check_families(engine)


async def test_a_parent_with_a_far_time_out_stays_while_its_child_works(
    path: Path, clock: ManualClock
) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(bounded(MONTH_S), id="top")
        await until(lambda: world.begun)
        await until_step(run, "timer", StepState.RUNNING)
        assert engine.statistics().live_runs == 2
        world.may_end.set()
        assert await run.result(timeout=WAIT_S_MAX) == "it"
        assert world.bodies["bounded"] == 1, "it was not replayed"
        await check_families(engine)


async def test_a_parent_stays_until_the_last_of_its_children_has_left(
    path: Path, clock: ManualClock
) -> None:
    @durable.workflow(name="children.two")
    async def two(_step: Step) -> list[str]:
        world.bodies["two"] += 1
        return list(await asyncio.gather(sleeper(MONTH_S), held("it")))

    async with opened(path, clock) as engine:
        run = await engine.start(two(), id="top")
        await until(lambda: world.begun["it"] and engine.statistics().live_runs == 2)
        world.may_end.set()
        await until_parked(engine)
        steps = [step.state async for step in run.steps()]
        assert steps == [StepState.RUNNING, StepState.COMPLETED]
        assert world.bodies["two"] == 1
        clock.advance(MONTH_S)
        assert await run.result(timeout=WAIT_S_MAX) == ["slept", "it"]
        assert world.bodies["two"] == 2
        await check_families(engine)


async def test_a_child_that_is_stuck_lets_its_parent_leave(
    path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(echoing, "fn", _refused)
    async with opened(path, clock) as engine:
        run = await engine.start(fan(1), id="top")
        async with asyncio.timeout(WAIT_S_MAX):
            while not (found := await children_of(engine, "top")):
                pass
        await until_state(engine.get(found[0].id), RunState.STUCK)
        await until_parked(engine)
        assert (await run.status()).state is RunState.RUNNING
        monkeypatch.undo()
        await engine.resume(found[0].id)
        assert await run.result(timeout=WAIT_S_MAX) == 1
        await check_families(engine)


async def _refused(_step: Step, text: str) -> str:
    try:
        asyncio.get_running_loop().run_in_executor(None, print)
    except durable.NonDeterminismError:
        await asyncio.sleep(NAP_S)
    return text


async def test_children_that_ended_meanwhile_are_heard_of_in_that_order(
    path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The winner of a race is who finished first, not who was issued first."""

    @durable.workflow(name="children.race")
    async def race(_step: Step) -> str:
        tasks = [
            asyncio.ensure_future(sleeper(2 * MONTH_S)),
            asyncio.ensure_future(note_after(MONTH_S)),
        ]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(iter(done)).result()

    async with opened(path, clock) as engine:
        run = await engine.start(race(), id="top")
        await until(lambda: world.bodies["sleeper"] and engine.statistics().live_runs == 0)
    # Only the children are there: as if the parent's owner were busy elsewhere.
    catalog_find = Catalog.find
    monkeypatch.setattr(
        "durable.catalog.Catalog.find",
        lambda self, name, version: (
            None if name == "children.race" else catalog_find(self, name, version)
        ),
    )
    async with opened(path, clock) as engine:
        one, two = await children_of(engine, "top")
        clock.advance(MONTH_S)
        await engine.get(two.id).result(timeout=WAIT_S_MAX)
        await until_state(engine.get("top"), RunState.STUCK)
        clock.advance(MONTH_S)
        await engine.get(one.id).result(timeout=WAIT_S_MAX)
    monkeypatch.undo()
    async with opened(path, clock) as engine:
        assert await engine.get(run.id).result(timeout=WAIT_S_MAX) == "noted"
        await until_step(engine.get("top"), note_after.name, StepState.COMPLETED)


@durable.workflow
async def note_after(step: Step, nap_s: float) -> str:
    await step.sleep(nap_s)
    return "noted"


async def test_a_parent_hears_of_an_end_that_comes_while_it_is_replayed(
    path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was claimed before the child's end was in the journal, and does not wait yet."""
    async with crashing(path, clock) as engine:
        await engine.start(bounded(NAP_S), id="top")
        await until(lambda: world.begun)
    advance = LiveRun.advance
    held = [True]

    def is_held(live: LiveRun) -> bool:
        return held[0] and live.record.run_id == "top"

    def advance_unless_held(live: LiveRun, deliveries_max: int) -> None:
        if not is_held(live):
            advance(live, deliveries_max)

    is_ready: Any = LiveRun.is_ready
    monkeypatch.setattr(LiveRun, "advance", advance_unless_held)
    # Held, it is not asked again and again: a loop that never rests starves the journal's threads.
    monkeypatch.setattr(
        LiveRun, "is_ready", property(lambda live: not is_held(live) and is_ready.fget(live))
    )
    async with opened(path, clock) as engine:
        child = await the_child(engine, "top")
        world.may_end.set()
        assert await engine.get(child.id).result(timeout=WAIT_S_MAX) == "it"
        held[0] = False
        assert engine._runner is not None
        parent = engine._runner.live("top")
        assert parent is not None
        engine._runner.schedule(parent)
        assert await engine.get("top").result(timeout=WAIT_S_MAX) == "it"
        await check_families(engine)


async def test_a_parent_hears_of_an_end_that_comes_while_it_is_leaving_memory(
    path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child's end is in a commit in which its parent is still worked on, and the parent's
    leaving in the next one."""
    disk = Disk()
    disk.install(monkeypatch)

    @durable.workflow(name="children.missing")
    async def missing(step: Step) -> str:
        late = asyncio.ensure_future(step.run(echoing("late"), run_after=MONTH_S))
        await step.sleep(NAP_S)
        try:
            return await late
        except RunCanceled:
            return "heard"

    async with opened(path, clock) as engine:
        run = await engine.start(missing(), id="top")
        await until_step(run, "sleep", StepState.RUNNING)
        child = await the_child(engine, "top")
        disk.answers.clear()
        commits = disk.calls["commit"]
        asking = asyncio.create_task(engine.cancel(child.id))
        await until(lambda: disk.calls["commit"] > commits)
        clock.advance(NAP_S)
        assert engine._runner is not None
        parent = engine._runner.live("top")
        assert parent is not None
        await until(lambda: parent.is_about_to_leave)
        disk.answers.set()
        assert await asking is True
        assert await run.result(timeout=WAIT_S_MAX) == "heard"
        await check_families(engine)


# --- no room -------------------------------------------------------------------------------------


@pytest.mark.both_loops
@pytest.mark.parametrize("live_runs_max", [1, 2, 3])
async def test_families_larger_than_the_room_come_to_their_end(
    path: Path, clock: ManualClock, live_runs_max: int
) -> None:
    """Who waits for a child that has no room makes room."""

    @durable.workflow(name="children.deep_fan")
    async def deep_fan(_step: Step, depth: int) -> int:
        if depth == 0:
            return int(await echoing("1"))
        return sum(await asyncio.gather(deep_fan(depth - 1), deep_fan(depth - 1)))

    most = 0
    async with opened(path, clock, live_runs_max) as engine:
        runner: Any = engine._runner
        schedule = runner.schedule

        def schedule_noting(live: LiveRun) -> None:
            nonlocal most
            most = max(most, runner.live_runs_count)
            schedule(live)

        runner.schedule = schedule_noting
        runs = [await engine.start(deep_fan(2)) for _ in range(3)]
        results = asyncio.gather(*(run.result(timeout=WAIT_S_MAX) for run in runs))
        assert await results == [4, 4, 4]
        assert most > 0
        assert most <= live_runs_max
        await check_families(engine)


@pytest.mark.parametrize("live_runs_max", [1, 5])
async def test_many_children_of_one_run_need_no_more_room_than_there_is(
    path: Path, clock: ManualClock, live_runs_max: int
) -> None:
    async with opened(path, clock, live_runs_max) as engine:
        run = await engine.start(fan(20), id="top")
        most = 0
        result = asyncio.create_task(run.result(timeout=WAIT_S_MAX))
        while not result.done():
            most = max(most, engine.statistics().live_runs)
            await asyncio.sleep(0)
        assert await result == 20
        assert most <= live_runs_max
        assert world.begun == {f"{n}": 1 for n in range(20)}
        await check_families(engine)


async def test_children_of_a_start_whose_id_is_taken_keep_no_room(
    path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first turn had called them; nothing of it is written."""
    async with opened(path, clock, 3) as engine:
        await engine.run(echoing("first"), id="taken")
        assert engine._runner is not None

        async def is_there(_record: object) -> bool:
            return False  # As if another process had taken the id since.

        with monkeypatch.context() as patch:
            patch.setattr(engine._runner.starts, "_is_there", is_there)
            with pytest.raises(durable.RunConflictError):
                await engine.start(fan(2), id="taken")
        assert engine._runner.children.promised_count == 0
        await until(lambda: engine._runner and engine._runner.room == 3)
        assert await children_of(engine, "taken") == []
        assert world.begun == {"first": 1}
        await check_families(engine)


# --- what a full memory must not hold up ---------------------------------------------------------


@durable.workflow
async def napping(step: Step) -> str:
    return await step.run(echoing("late"), run_after=0.5)


async def test_a_parent_gives_its_room_to_its_child_that_is_due(
    path: Path, clock: ManualClock
) -> None:
    async with opened(path, clock, live_runs_max=1) as engine:
        run = await engine.start(napping())
        await until_open(run)
        assert engine.statistics().live_runs == 1, "it stays for so short a time"
        clock.advance(0.5)
        assert await run.result(timeout=WAIT_S_MAX) == "late"
        await check_families(engine)


@durable.workflow
async def two_steps(_step: Step) -> list[str]:
    return [await gated("first"), await echo("second")]


@durable.workflow
async def calling(_step: Step) -> list[str]:
    return await two_steps()


async def test_a_child_begins_nothing_after_the_cancel_of_its_parent_that_is_not_in_memory(
    path: Path, clock: ManualClock
) -> None:
    async with opened(path, clock, live_runs_max=1) as engine:
        run = await engine.start(calling())
        await until(lambda: world.begun["first"])
        assert engine.statistics().live_runs == 1, "there is room for the child alone"
        assert await run.cancel()
        world.may_end.set()
        await until_state(run, RunState.CANCELED)
        assert not world.begun["second"]
        await check_families(engine)


@durable.workflow
async def racing(step: Step) -> str:
    tasks = [asyncio.create_task(step.wait_event("go")) for _ in range(2)]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    return await echoing(f"{len(done)} of 2")


async def test_an_outcome_that_is_not_wanted_keeps_no_run_in_memory(
    path: Path, clock: ManualClock
) -> None:
    """Both events are there; the wait for the second is withdrawn before it is its turn."""
    async with opened(path, clock, live_runs_max=1) as engine:
        run = await engine.start(racing(), run_after=1)
        await run.send_event("go", 1)
        await run.send_event("go", 2)
        clock.advance(1)
        assert await run.result(timeout=WAIT_S_MAX) == "1 of 2"
        await check_families(engine)
