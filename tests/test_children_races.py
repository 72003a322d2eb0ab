"""A child's end and something else at the same time: one outcome, which both of them have."""

from __future__ import annotations

import asyncio
import contextlib
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from clock import ManualClock
from cycles import at_cycle
from families import check_families, the_child
from faults import MONTH_S, FaultyJournal, crashing, leaving_nothing, opened
from waiting import WAIT_S_MAX, until, until_open, until_written
from world import echo, held, new_world, world

import durable
from durable import Engine, RunCanceled, RunState, Step
from durable.runtime.live import Phase

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from faults import Disk

    from durable.journal.base import Claim

pytestmark = pytest.mark.slow

NAP_S = 10.0
CYCLES = 40
"""More cycles of the loop than any of these takes from its beginning to its end."""

ENDS_IN_CYCLE = 2
"""When the child's action ends."""


@durable.workflow
async def calling(_step: Step) -> str:
    return await held("it")


@durable.workflow
async def timing_out(_step: Step) -> str:
    try:
        async with asyncio.timeout(NAP_S):
            return await held("it")
    except TimeoutError:
        return "late"


@durable.workflow
async def with_a_past(_step: Step) -> str:
    for n in range(50):
        await echo(str(n))
    return await held("it")


async def outcome(run: durable.Run[str]) -> str:
    try:
        return await run.result(timeout=WAIT_S_MAX)
    except RunCanceled:
        return "canceled"
    except durable.RunFailed as failed:
        return failed.error.type_name


async def check_both(engine: Engine, run: durable.Run[str]) -> tuple[str, RunState]:
    """Return what became of a run, and of its child."""
    told = await outcome(run)
    child = await the_child(engine, run.id)
    with contextlib.suppress(RunCanceled):
        await engine.get(child.id).result(timeout=WAIT_S_MAX)
    world.may_end.set()
    return told, (await engine.status(child.id)).state


async def race(
    path: Path,
    workflow: Callable[[], durable.Call[str]],
    act: Callable[[Engine, str, ManualClock], Any],
) -> list[tuple[str, RunState]]:
    """Let the child end, and something else happen in each cycle of the loop from there."""
    clock = ManualClock()
    told: list[tuple[str, RunState]] = []
    async with opened(path, clock) as engine:
        for cycle in count():
            new_world()
            run = await engine.start(workflow(), id=f"{cycle}")
            await until(lambda: world.begun)
            child = await the_child(engine, run.id)
            await until_open(engine.get(child.id))
            acts: list[Any] = []

            def act_now(
                run_id: str = run.id, child_id: str = child.id, acts: list[Any] = acts
            ) -> None:
                acts.append(act(engine, f"{run_id} {child_id}", clock))

            with at_cycle(cycle, act_now):
                for _ in range(ENDS_IN_CYCLE):
                    await asyncio.sleep(0)
                world.may_end.set()
                await asyncio.wait([asyncio.create_task(outcome(run))], timeout=WAIT_S_MAX)
            if not acts:
                break
            if acts[0] is not None:
                await acts[0]
            told.append(await check_both(engine, run))
        await check_families(engine)
    return told


@pytest.mark.both_loops
async def test_a_child_that_ends_while_its_parent_is_cancelled(path: Path) -> None:
    told = await race(
        path, calling, lambda engine, ids, _: asyncio.create_task(engine.cancel(ids.split()[0]))
    )
    assert set(told) <= {
        ("it", RunState.COMPLETED),
        ("canceled", RunState.COMPLETED),
        ("canceled", RunState.CANCELED),
    }
    assert told[0] == ("canceled", RunState.CANCELED)
    assert told[-1] == ("it", RunState.COMPLETED)


@pytest.mark.both_loops
async def test_a_child_that_ends_while_it_is_cancelled(path: Path) -> None:
    told = await race(
        path, calling, lambda engine, ids, _: asyncio.create_task(engine.cancel(ids.split()[1]))
    )
    assert set(told) == {
        ("it", RunState.COMPLETED),
        ("durable.RunCanceled", RunState.CANCELED),
    }


async def test_a_child_that_ends_while_its_time_runs_out(path: Path) -> None:
    told = await race(path, timing_out, lambda _engine, _ids, clock: clock.advance(NAP_S))
    assert set(told) <= {
        ("it", RunState.COMPLETED),
        ("late", RunState.COMPLETED),
        ("late", RunState.CANCELED),
    }
    assert told[0] == ("late", RunState.CANCELED)
    assert told[-1] == ("it", RunState.COMPLETED)


async def test_both_are_cancelled_at_the_same_time(path: Path) -> None:
    """In either order, so many cycles apart: each cancel is recorded once, and told once."""
    clock = ManualClock()
    async with opened(path, clock) as engine:
        for cycle in range(CYCLES):
            for is_parent_first in (True, False):
                new_world()
                run = await engine.start(calling(), id=f"{cycle} {is_parent_first}")
                await until(lambda: world.begun)
                child = await the_child(engine, run.id)
                ids = [run.id, child.id] if is_parent_first else [child.id, run.id]
                second: list[asyncio.Task[bool]] = []
                with at_cycle(
                    cycle,
                    lambda: second.append(asyncio.create_task(engine.cancel(ids[1]))),  # noqa: B023
                ):
                    await engine.cancel(ids[0])
                    await outcome(run)
                    while not second:  # noqa: ASYNC110  so many cycles
                        await asyncio.sleep(0)
                await second[0]
                told, state = await check_both(engine, run)
                assert state is RunState.CANCELED
                assert told in ("canceled", "durable.RunCanceled")
        await check_families(engine)
    async with opened(path, clock) as engine:
        await check_families(engine)


@pytest.mark.parametrize("workflow", [calling, with_a_past])
async def test_a_child_may_end_at_any_moment_of_its_parents_coming_back(
    path: Path, workflow: Callable[[], durable.Call[str]]
) -> None:
    """While the journal is read, while the parent is replayed, and once it waits."""
    for cycle in range(CYCLES):
        new_world()
        file = path.with_name(f"{cycle}.db")
        async with crashing(file) as engine:
            run = await engine.start(workflow(), id="it")
            await until(lambda: world.begun)
        engine = Engine(file)
        async with engine:
            with at_cycle(cycle, world.may_end.set):
                while not world.may_end.is_set():  # noqa: ASYNC110  so many cycles
                    await asyncio.sleep(0)
                assert await outcome(engine.get(run.id)) == "it"
            await check_families(engine)


async def test_a_child_may_end_at_any_moment_of_its_parents_leaving(path: Path) -> None:
    @durable.workflow(name="children.with_a_sleeper")
    async def with_a_sleeper(step: Step) -> str:
        async with asyncio.timeout(MONTH_S):
            return await late_or_cancelled(step)

    clock = ManualClock()
    async with opened(path, clock) as engine:
        for cycle in range(CYCLES):
            run = await engine.start(with_a_sleeper(), id=f"{cycle}")
            asked: list[asyncio.Task[bool]] = []

            async def cancel_child(run_id: str = run.id) -> bool:
                return await engine.cancel((await the_child(engine, run_id)).id)

            with at_cycle(cycle, lambda: asked.append(asyncio.create_task(cancel_child()))):  # noqa: B023
                while not asked:  # noqa: ASYNC110  so many cycles
                    await asyncio.sleep(0)
            assert await asked[0] is True
            assert await run.result(timeout=WAIT_S_MAX) == "heard"
        await check_families(engine)


async def late_or_cancelled(step: Step) -> str:
    try:
        await step.run(held("it"), run_after=MONTH_S / 2)
    except RunCanceled:
        return "heard"
    return "late"


@durable.workflow
async def delaying(step: Step) -> str:
    try:
        return await step.run(held("it"), run_after=NAP_S)
    except RunCanceled:
        return "canceled"


async def test_a_delayed_child_s_time_may_come_between_its_end_and_its_parent_s_turn(
    path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parent is taken up again while its end is written, and other bodies have their turns."""
    clock, claim = ManualClock(), FaultyJournal.claim

    async def claim_and_hold(journal: FaultyJournal, now_ms: int, limit: int) -> Claim:
        found = await claim(journal, now_ms, limit)
        disk.answers.clear()
        return found

    async with crashing(path, clock) as engine:
        await engine.start(delaying(), id="it")
        await until_open(engine.get("it"))
        child = await the_child(engine, "it")
    disk.answers.clear()
    with monkeypatch.context() as holding:
        holding.setattr(FaultyJournal, "claim", claim_and_hold)
        engine = Engine(path)
        clock.install(engine)
        await engine.__aenter__()
        runner: Any = engine._runner
        canceling = asyncio.create_task(engine.cancel(child.id))
        await until(lambda: runner.writer._pending)
        disk.answers.set()
        await until(lambda: runner.live("it") and runner.live("it").phase is Phase.LIVE)
    waiting: list[Any] = []
    runner.schedule = waiting.append
    disk.answers.set()
    assert await canceling is True
    await until_written(engine)
    (parent,) = set(waiting)
    async with leaving_nothing():
        clock.advance(NAP_S)
        runner.schedule = runner.pump.schedule
        runner.schedule(parent)
        assert await engine.get("it").result(timeout=WAIT_S_MAX) == "canceled"
        await check_families(engine)
        await engine.__aexit__(None, None, None)
    assert not world.begun
