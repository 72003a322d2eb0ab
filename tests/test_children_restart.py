"""Restarting a run that has children, or is one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from clock import ManualClock
from families import check_nothing_is_left, children_of, steps_of
from faults import crashing, opened
from waiting import WAIT_S_MAX, until
from world import echoing, held, world

import durable
from durable import RunCanceled, RunFailed, RunState, Step, StepState

if TYPE_CHECKING:
    from pathlib import Path


@durable.workflow
async def three(_step: Step) -> list[str]:
    return [await echoing("a"), await echoing("b"), await echoing("c")]


@durable.workflow
async def parallel(_step: Step) -> list[str]:
    return list(await asyncio.gather(echoing("a"), echoing("b"), echoing("c")))


async def test_a_dropped_child_step_is_another_child(path: Path) -> None:
    """Those before it keep their children, and their outcome; the new ones have the same call."""
    world.failing.add("b")
    async with opened(path) as engine:
        run = await engine.start(three(), id="it")
        with pytest.raises(RunFailed):
            await run.result(timeout=WAIT_S_MAX)
        before = await steps_of(engine, "it")
        world.failing.clear()
        again = await engine.restart("it")
        assert await again.result(timeout=WAIT_S_MAX) == ["a", "b", "c"]
        assert world.begun == {"a": 1, "b": 2, "c": 1}
        after = await steps_of(engine, "it")
        assert [step.state for step in after] == [StepState.COMPLETED] * 3
        assert after[0] == before[0]
        assert after[1].child_run_id != before[1].child_run_id
        children = {child.id: child for child in await children_of(engine, "it")}
        assert len(children) == 4
        assert children[str(before[1].child_run_id)].state is RunState.FAILED
        assert children[str(after[1].child_run_id)].state is RunState.COMPLETED
        assert children[str(after[1].child_run_id)].args == {"text": "b"}
        await check_nothing_is_left(engine)
        assert await engine.cleanup("it") is True
        assert [status async for status in engine.iter_runs()] == []


async def test_a_restart_from_the_beginning_has_new_children_only(path: Path) -> None:
    async with opened(path) as engine:
        await engine.run(three(), id="it")
        run = await engine.restart("it", from_step=0)
        assert await run.result(timeout=WAIT_S_MAX) == ["a", "b", "c"]
        assert world.begun == {"a": 2, "b": 2, "c": 2}
        assert len(await children_of(engine, "it")) == 6


async def test_parallel_children_that_are_not_dropped_are_kept(path: Path) -> None:
    world.failing.add("c")
    async with opened(path) as engine:
        run = await engine.start(parallel(), id="it")
        with pytest.raises(RunFailed):
            await run.result(timeout=WAIT_S_MAX)
        world.failing.clear()
        steps = await steps_of(engine, "it")
        kept = sum(step.state is StepState.COMPLETED for step in steps)
        run = await engine.restart("it", from_step=2)
        assert await run.result(timeout=WAIT_S_MAX) == ["a", "b", "c"]
        assert world.begun["c"] == 2
        assert len(await children_of(engine, "it")) == 6 - kept


async def test_a_cancelled_family_goes_on_after_a_restart(path: Path) -> None:
    """The child that was cancelled with it stays so; another one takes its place."""
    async with opened(path) as engine:

        @durable.workflow(name="children.restarted")
        async def restarted(_step: Step) -> str:
            return await held("it")

        run = await engine.start(restarted(), id="it")
        await until(lambda: world.begun)
        (first,) = await children_of(engine, "it")
        assert await run.cancel() is True
        with pytest.raises(RunCanceled):
            await engine.get(first.id).result(timeout=WAIT_S_MAX)
        run = await engine.restart("it")
        await until(lambda: world.begun["it"] == 2)
        world.may_end.set()
        assert await run.result(timeout=WAIT_S_MAX) == "it"
        first, second = await children_of(engine, "it")
        assert (first.state, second.state) == (RunState.CANCELED, RunState.COMPLETED)
        await check_nothing_is_left(engine)


async def test_a_restart_outlives_its_process_before_and_after_its_children_begin(
    path: Path,
) -> None:
    world.failing.add("b")
    async with opened(path) as engine:
        run = await engine.start(three(), id="it")
        with pytest.raises(RunFailed):
            await run.result(timeout=WAIT_S_MAX)
    world.failing.clear()
    for _ in range(3):
        async with crashing(path, ManualClock(), max_parallelism=0) as engine:
            if (await engine.status("it")).state is RunState.FAILED:
                await engine.restart("it")
    async with opened(path) as engine:
        assert await engine.get("it").result(timeout=WAIT_S_MAX) == ["a", "b", "c"]
        assert world.begun == {"a": 1, "b": 2, "c": 1}
        assert len(await children_of(engine, "it")) == 4
        await check_nothing_is_left(engine)


async def test_a_restarted_child_does_not_change_what_its_parent_has(path: Path) -> None:
    world.failing.add("b")
    async with opened(path) as engine:
        run = await engine.start(three(), id="it")
        with pytest.raises(RunFailed):
            await run.result(timeout=WAIT_S_MAX)
        world.failing.clear()
        _, child = await children_of(engine, "it")
        again = await engine.restart(child.id)
        assert await again.result(timeout=WAIT_S_MAX) == "b"
        assert (await run.status()).state is RunState.FAILED
        steps = await steps_of(engine, "it")
        assert [step.state for step in steps] == [StepState.COMPLETED, StepState.FAILED]
        await check_nothing_is_left(engine)
