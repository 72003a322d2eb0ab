"""Families of runs, and a journal that fails, or a process that dies, at each of their commits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from clock import ManualClock
from families import check_families, children_of, the_child
from faults import MONTH_S, Disk, Fault, crashing, each_to_fail, once_available, opened
from waiting import WAIT_S_MAX, until
from world import echo, gated, world

import durable
from durable import (
    Engine,
    EngineClosedError,
    JournalUnavailableError,
    RunCanceled,
    RunFailed,
    RunState,
    Step,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BOTH = pytest.mark.parametrize("fault", list(Fault))
NAP_S = 10.0


@durable.workflow
async def leaf(_step: Step, text: str) -> str:
    if text == "bad":
        raise LookupError(text)
    return await echo(text)


@durable.workflow
async def hanging(_step: Step) -> None:
    await gated("hang")


@durable.workflow
async def middle(_step: Step, text: str) -> str:
    try:
        return await leaf(text)
    except RunFailed as failed:
        return f"no {failed.error.message}"


@durable.workflow
async def sleepy(step: Step, nap_s: float) -> str:
    await step.sleep(nap_s)
    return await echo("sleepy")


@durable.workflow
async def working(_step: Step) -> list[str]:
    """Results, failures, nesting, a child withdrawn and one left over."""
    got = list(await asyncio.gather(middle("a"), leaf("b"), middle("bad")))
    slow = asyncio.create_task(hanging())
    got.append(await middle("c"))
    slow.cancel()
    left = asyncio.create_task(hanging())
    got.append(await leaf("d"))
    assert not left.done()
    return got


WORKED = ["a", "b", "no bad", "c", "d"]
WORKED_CHILDREN = 7


@durable.workflow
async def sleeping(step: Step) -> list[str]:
    """All of the family leaves memory, and comes back."""
    try:
        async with asyncio.timeout(MONTH_S):
            await sleepy(2 * MONTH_S)
    except TimeoutError:
        await echo("late")
    one, two = await asyncio.gather(
        sleepy(3 * MONTH_S), step.run(leaf("delayed"), run_after=MONTH_S)
    )
    return [one, two]


async def finish(engine: Engine, clock: ManualClock, run_id: str) -> Any:  # noqa: ANN401
    """Let time pass until the run is over, but not in an outage, and not while anything is due.

    Else what is due a month after something else would be due at once with it.
    """
    runner, journal = engine._runner, engine._journal
    assert runner is not None
    assert journal is not None
    async with asyncio.timeout(WAIT_S_MAX):
        result = asyncio.create_task(engine.get(run_id).result())
        while not result.done():
            for _ in range(20):
                await asyncio.sleep(0)
            try:
                due_ms = await journal.next_wake_at_ms()
            except JournalUnavailableError:
                continue
            is_due = due_ms is not None and due_ms <= clock.now_ms()
            is_writing = runner.writer._pending or runner.writer._is_busy
            if not (is_due or is_writing or runner.outage) and runner.pump.is_idle:
                clock.advance(MONTH_S / 4)
        return await result


class Scenario(NamedTuple):
    """A family, its result, how many children its root has, and what its actions note."""

    workflow: Callable[[], durable.Call[list[str]]]
    result: list[str]
    children: int
    notes: set[str]


SCENARIO = pytest.mark.parametrize(
    "scenario",
    [
        Scenario(working, WORKED, WORKED_CHILDREN, {"a", "b", "c", "d"}),
        Scenario(sleeping, ["sleepy", "delayed"], 3, {"late", "sleepy", "delayed"}),
    ],
    ids=["working", "sleeping"],
)


async def check(engine: Engine, children: int) -> None:
    world.may_end.set()
    assert len(await children_of(engine, "it")) == children
    async with asyncio.timeout(WAIT_S_MAX):
        for status in [status async for status in engine.iter_runs()]:
            while (await engine.status(status.id)).finished_at is None:
                pass  # It was withdrawn, and is told.
    await check_families(engine)


async def die(disk: Disk, doing: asyncio.Task[Any]) -> None:
    """Let the fault, if it comes to that, be the last that the process sees."""
    await until(lambda: doing.done() or disk.outages)
    if disk.outages:
        disk.broken = Fault.LOST


@pytest.mark.slow
@BOTH
@SCENARIO
async def test_whichever_commit_fails_each_child_is_there_once(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    scenario: Scenario,
) -> None:
    """The engine goes on by itself; what ran goes on to its end, and begins once."""
    for number, disk in each_to_fail(monkeypatch, 6):
        clock = ManualClock()
        async with opened(path.with_name(f"{number}.db"), clock, drain_timeout=0) as engine:
            disk.faults["commit", disk.calls["commit"] + number] = fault
            await once_available(disk, lambda: engine.start(scenario.workflow(), id="it"))
            assert await finish(engine, clock, "it") == scenario.result
            await check(engine, scenario.children)
            del world.begun["hang"]
            assert world.begun == dict.fromkeys(scenario.notes, 1)


@pytest.mark.slow
@BOTH
@SCENARIO
async def test_a_process_that_dies_at_any_commit_loses_no_child_and_doubles_none(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    scenario: Scenario,
) -> None:
    """That commit is lost, or it is the last thing that the process does."""
    for number, disk in each_to_fail(monkeypatch, 5):
        clock = ManualClock()
        file = path.with_name(f"{number}.db")
        async with crashing(file, clock) as engine:
            await engine.start(scenario.workflow(), id="it")
            first = disk.calls["commit"]
            disk.faults["commit", first + number] = fault
            finishing = asyncio.create_task(finish(engine, clock, "it"))
            await die(disk, finishing)
        await asyncio.gather(finishing, return_exceptions=True)
        disk.broken = None
        async with opened(file, clock, drain_timeout=0) as engine:
            assert await finish(engine, clock, "it") == scenario.result
            await check(engine, scenario.children)
            assert set(world.begun) - {"hang"} == scenario.notes


@pytest.mark.slow
@BOTH
async def test_whichever_commit_of_a_cancel_fails_all_of_the_family_ends(
    path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    for number, disk in each_to_fail(monkeypatch, 2):
        clock = ManualClock()
        async with opened(path.with_name(f"{number}.db"), clock, drain_timeout=0) as engine:
            run = await engine.start(deep(3), id="it")
            await until(lambda: world.begun["hang"])
            disk.faults["commit", disk.calls["commit"] + number] = fault
            asked = await once_available(disk, run.cancel)
            assert asked or fault is Fault.KEPT
            async with asyncio.timeout(WAIT_S_MAX):
                run_id = "it"
                for _ in range(3):
                    with pytest.raises(RunCanceled):
                        await engine.get(run_id).result()
                    run_id = (await the_child(engine, run_id)).id
                    while (await engine.status(run_id)).finished_at is None:
                        pass
            assert [run.state async for run in engine.iter_runs()] == [RunState.CANCELED] * 4
            world.may_end.set()
            await check_families(engine)


@durable.workflow
async def deep(_step: Step, depth: int) -> None:
    await (gated("hang") if depth == 0 else deep(depth - 1))


@pytest.mark.slow
async def test_a_process_that_dies_at_any_commit_of_a_cancel_leaves_it_to_the_next(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the parent is canceled in the journal, all under it is going to be."""
    for number, disk in each_to_fail(monkeypatch, 2):
        clock = ManualClock()
        file = path.with_name(f"{number}.db")
        async with crashing(file, clock) as engine:
            run = await engine.start(deep(3), id="it")
            await until(lambda: world.begun["hang"])
            disk.faults["commit", disk.calls["commit"] + number] = Fault.KEPT
            asking = asyncio.create_task(run.cancel())
            await die(disk, asking)
        await asyncio.gather(asking, return_exceptions=True)
        disk.broken = None
        async with opened(file, clock, drain_timeout=0) as engine:
            async with asyncio.timeout(WAIT_S_MAX):
                for status in [status async for status in engine.iter_runs()]:
                    with pytest.raises(RunCanceled):
                        await engine.get(status.id).result()
            await check_families(engine)


async def test_during_an_outage_children_wait(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    disk.install(monkeypatch)
    async with opened(path) as engine:
        run = await engine.start(deep(2), id="it")
        await until(lambda: world.begun["hang"])
        disk.broken = Fault.LOST
        with pytest.raises(JournalUnavailableError):
            await run.cancel()
        world.may_end.set()
        disk.broken = None
        await disk.reopened.wait()
        await run.result(timeout=WAIT_S_MAX)
        assert world.begun == {"hang": 1}
        await check_families(engine)


async def test_an_engine_that_closes_leaves_its_families_to_the_next(path: Path) -> None:
    async with opened(path, drain_timeout=0) as engine:
        run = await engine.start(deep(2), id="it")
        await until(lambda: world.begun["hang"])
        waiting = asyncio.create_task(run.result())
        await asyncio.sleep(0)
    with pytest.raises(EngineClosedError):
        await waiting
    world.may_end.set()
    async with opened(path) as engine:
        await engine.get("it").result(timeout=WAIT_S_MAX)
        assert world.begun == {"hang": 2}
        await check_families(engine)
