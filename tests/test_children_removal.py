"""Removing runs that have children, or a parent: whole trees, and nothing that is still needed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from clock import ManualClock
from cycles import at_cycle
from families import check_families, check_nothing_is_left, children_of, journal_rows, the_child
from faults import MONTH_S, Disk, Fault, once_available, opened
from waiting import WAIT_S_MAX, until, until_parked, until_step
from world import echoing, gated, world

import durable
from durable import Engine, RunCanceled, RunNotFoundError, RunState, Step, StepState

if TYPE_CHECKING:
    from pathlib import Path

NAP_S = 10.0
CYCLES = 30


@durable.workflow
async def tree(_step: Step, depth: int) -> str:
    if depth == 0:
        return await gated("deep")
    one, two = await asyncio.gather(echoing(f"{depth}"), tree(depth - 1))
    return one + two


@durable.workflow
async def sleeper(step: Step) -> None:
    await step.sleep(MONTH_S)


@durable.workflow
async def above_a_delayed(step: Step) -> None:
    await step.run(echoing("late"), run_after=MONTH_S)


@durable.workflow
async def above_a_sleeper(_step: Step, depth: int) -> None:
    await (sleeper() if depth == 0 else above_a_sleeper(depth - 1))


@durable.workflow
async def cleaning_up(step: Step) -> None:
    try:
        await step.sleep(MONTH_S)
    finally:
        await gated("clean")


@durable.workflow
async def above_a_clean_up(_step: Step) -> None:
    await cleaning_up()


async def check_empty(engine: Engine) -> None:
    """Check that the journal has no row of any run, and that nothing of one is in memory."""
    assert await journal_rows(engine, "run_id) FROM durable_run") == []
    assert await journal_rows(engine, "run_id, number) FROM durable_step") == []
    await check_nothing_is_left(engine)


async def family(engine: Engine, run_id: str) -> list[str]:
    """Return the ids of a run and all under it."""
    ids = [run_id]
    for each in ids:
        ids += [child.id for child in await children_of(engine, each)]
    return ids


async def test_a_run_is_removed_with_all_that_is_under_it(path: Path) -> None:
    async with opened(path) as engine:
        world.may_end.set()
        await engine.run(tree(3), id="it")
        await engine.run(echoing("other"), id="other")
        ids = await family(engine, "it")
        assert len(ids) == 7
        assert await engine.cleanup("it") is True
        for run_id in ids:
            with pytest.raises(RunNotFoundError):
                await engine.status(run_id)
        assert [status.id async for status in engine.iter_runs()] == ["other"]
        assert await engine.cleanup("it") is False
        assert await engine.cleanup("other") is True
        await check_empty(engine)


@pytest.mark.parametrize("force", [True, False])
async def test_a_child_is_not_removed_while_its_parent_may_need_it(path: Path, force: bool) -> None:
    """Whether it is over or not: the parent would wait for ever, or could not be restarted."""
    async with opened(path) as engine:
        run = await engine.start(tree(1), id="it")
        await until(lambda: world.begun["deep"])
        await until_step(run, echoing.name, StepState.COMPLETED)
        over, under_way = await children_of(engine, "it")
        assert over.state is RunState.COMPLETED
        for child in (over, under_way):
            assert await engine.cleanup(child.id, force=force) is False
        world.may_end.set()
        assert await run.result(timeout=WAIT_S_MAX) == "1deep"
        for child in (over, under_way):
            assert await engine.cleanup(child.id, force=force) is True
            with pytest.raises(RunNotFoundError):
                await engine.status(child.id)
        assert await run.result() == "1deep", "its journal is complete by itself"
        steps = [(step.result, step.child_run_id) async for step in run.steps()]
        assert steps == [("1", over.id), ("deep", under_way.id)]
        assert await run.cleanup() is True
        await check_empty(engine)


async def test_what_is_under_an_ended_child_may_go_before_it(path: Path) -> None:
    """Its own parent is over: nobody can read it any more."""

    @durable.workflow(name="children.three")
    async def three(_step: Step) -> str:
        await two()
        return await gated("it")

    @durable.workflow(name="children.two_levels")
    async def two(_step: Step) -> str:
        return await echoing("x")

    async with opened(path) as engine:
        run = await engine.start(three(), id="it")
        await until(lambda: world.begun["it"])
        child = await the_child(engine, "it")
        grandchild = await the_child(engine, child.id)
        assert await engine.cleanup(grandchild.id) is True
        assert await engine.cleanup(child.id) is False
        world.may_end.set()
        await run.result(timeout=WAIT_S_MAX)
        assert await engine.cleanup("it") is True
        await check_empty(engine)


async def test_a_run_is_not_removed_while_something_under_it_cleans_up(path: Path) -> None:
    """Unless the removal is forced."""
    clock = ManualClock()
    async with opened(path, clock) as engine:
        run = await engine.start(above_a_clean_up(), id="it")
        await until(lambda: engine.statistics().commits > 1)
        async with asyncio.timeout(WAIT_S_MAX):
            while not await children_of(engine, "it"):
                pass
        child = engine.get((await the_child(engine, "it")).id)
        await until_step(child, "sleep", StepState.RUNNING)
        assert await run.cancel() is True
        await until(lambda: world.begun["clean"])
        assert (await run.status()).state is RunState.CANCELED
        assert await run.cleanup() is False
        assert (await child.status()).state is RunState.CANCELING
        world.may_end.set()
        with pytest.raises(RunCanceled):
            await child.result(timeout=WAIT_S_MAX)
        assert await run.cleanup() is True
        await check_empty(engine)


async def test_a_family_at_work_is_removed_by_force(path: Path) -> None:
    """Running actions are cancelled, who waits for a result is told that there is no such run."""
    async with opened(path, max_parallelism=2) as engine:
        run = await engine.start(tree(3), id="it")
        await until(lambda: world.begun["deep"])
        ids = await family(engine, "it")
        waiting = [asyncio.create_task(engine.get(run_id).result()) for run_id in ids]
        await asyncio.sleep(0)
        assert await run.cleanup() is False
        assert await run.cleanup(force=True) is True
        await until(lambda: "deep" in world.interrupted)
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(result) for result in results} <= {RunNotFoundError, str}
        assert isinstance(results[0], RunNotFoundError)
        await check_empty(engine)
        world.may_end.set()
        assert await engine.run(tree(1), id="it") == "1deep", "the id is free again"
        await check_families(engine)


async def test_a_sleeping_family_is_removed_by_force(path: Path) -> None:
    clock = ManualClock()
    async with opened(path, clock) as engine:
        run = await engine.start(above_a_sleeper(2), id="it")
        async with asyncio.timeout(WAIT_S_MAX):
            while len(await family(engine, "it")) < 4:
                pass
        await until_parked(engine)
        assert await run.cleanup() is False
        assert await run.cleanup(force=True) is True
        clock.advance(MONTH_S)
        await check_empty(engine)


async def test_two_removals_at_the_same_time_are_one(path: Path) -> None:
    async with opened(path) as engine:
        await engine.start(tree(2), id="it")
        await until(lambda: world.begun["deep"])
        async with asyncio.timeout(WAIT_S_MAX):
            removed = await asyncio.gather(*(engine.cleanup("it", force=True) for _ in range(3)))
        assert True in removed
        await check_empty(engine)


async def test_a_family_that_is_claimed_while_it_is_removed_is_dropped(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was asked while the family was in the journal, and is written when it is in memory."""
    disk = Disk()
    disk.install(monkeypatch)
    clock = ManualClock()
    async with opened(path, clock) as engine:
        run = await engine.start(above_a_delayed(), id="it")
        async with asyncio.timeout(WAIT_S_MAX):
            while len(await family(engine, "it")) < 2:
                pass
        await until_parked(engine)
        claims = disk.calls["claim"]
        disk.answers.clear()
        clock.advance(MONTH_S)
        await until(lambda: disk.calls["claim"] > claims)
        removing = asyncio.create_task(run.cleanup(force=True))
        assert engine._runner is not None
        writer = engine._runner.writer
        await until(lambda: writer._pending)
        disk.answers.set()
        async with asyncio.timeout(WAIT_S_MAX):
            assert await removing is True
        await check_empty(engine)
        await writer.wait_until_idle()
        await check_empty(engine)
        assert world.begun == {}


@pytest.mark.slow
async def test_a_family_may_be_removed_at_any_moment_of_its_growth(path: Path) -> None:
    """Children that begin meanwhile are removed, too."""
    async with opened(path, max_parallelism=1) as engine:
        for cycle in range(CYCLES):
            asked: list[asyncio.Task[bool]] = []

            def ask(cycle: int = cycle, asked: list[asyncio.Task[bool]] = asked) -> None:
                asked.append(asyncio.create_task(engine.cleanup(f"{cycle}", force=True)))

            await engine.start(tree(4), id=f"{cycle}")
            with at_cycle(cycle, ask):
                while not asked:  # noqa: ASYNC110  so many cycles
                    await asyncio.sleep(0)
            async with asyncio.timeout(WAIT_S_MAX):
                assert await asked[0] is True
            await check_empty(engine)
    async with opened(path) as engine:
        await check_empty(engine)


@pytest.mark.slow
async def test_a_family_may_be_removed_at_any_moment_of_its_coming_back(path: Path) -> None:
    clock = ManualClock()
    async with opened(path, clock) as engine:
        for cycle in range(CYCLES):
            await engine.start(above_a_sleeper(2), id=f"{cycle}")
            async with asyncio.timeout(WAIT_S_MAX):
                while len(await family(engine, f"{cycle}")) < 4:
                    pass
            await until_parked(engine)
            asked: list[asyncio.Task[bool]] = []

            def ask(cycle: int = cycle, asked: list[asyncio.Task[bool]] = asked) -> None:
                asked.append(asyncio.create_task(engine.cleanup(f"{cycle}", force=True)))

            with at_cycle(cycle, ask):
                clock.advance(MONTH_S)
                while not asked:  # noqa: ASYNC110  so many cycles
                    await asyncio.sleep(0)
            async with asyncio.timeout(WAIT_S_MAX):
                assert await asked[0] is True
            await check_empty(engine)


@pytest.mark.parametrize("fault", list(Fault))
async def test_a_removal_in_an_outage_is_whole_or_not_at_all(
    path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    disk = Disk()
    disk.install(monkeypatch)
    async with opened(path, drain_timeout=0) as engine:
        run = await engine.start(tree(2), id="it")
        await until(lambda: world.begun["deep"] and engine.statistics().live_runs == 3)
        assert engine._runner is not None
        await engine._runner.writer.wait_until_idle()
        ids = await family(engine, "it")
        assert len(ids) == 5
        disk.faults["commit", disk.calls["commit"] + 1] = fault
        with pytest.raises(durable.JournalUnavailableError):
            await run.cleanup(force=True)
        await disk.reopened.wait()
        assert len(await family(engine, "it")) == (len(ids) if fault is Fault.LOST else 1)
        again = await once_available(disk, lambda: run.cleanup(force=True))
        assert again is (fault is Fault.LOST)
        await check_empty(engine)
