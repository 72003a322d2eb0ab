"""Cancelling a run whose body waits in many tasks: each gets it where it waits, once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from clock import ManualClock
from faults import opened
from waiting import WAIT_S_MAX, until, until_step

import durable
from durable import RunCanceled, RunState, Step, StepState

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.both_loops

NAP_S = 10.0


class World:
    """What bodies and actions have noted, and where actions wait until they may end."""

    def __init__(self) -> None:
        self.noted: list[str] = []
        self.ended: list[str] = []
        self.may_end = asyncio.Event()


world = World()


@pytest.fixture(autouse=True)
def _new_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_cancel_tasks.world", World())


@durable.action
async def gated(text: str) -> str:
    world.noted.append(text)
    await world.may_end.wait()
    world.ended.append(text)
    return text


@durable.action
async def undo(text: str) -> None:
    world.noted.append(f"undo {text}")


async def guarded(text: str) -> str:
    """Wait for an action; when cancelled, clean up, by a step and a timer."""
    try:
        return await gated(text)
    except asyncio.CancelledError:
        await undo(text)
        await asyncio.sleep(NAP_S)
        await undo(f"{text} again")
        raise


async def guarded_and_uncancelled(text: str) -> str:
    """The same, as one that takes its cancellation back."""
    try:
        return await gated(text)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
        await undo(text)
        await asyncio.sleep(NAP_S)
        await undo(f"{text} again")
        return "undone"


@durable.workflow
async def in_gather(_step: Step) -> None:
    """With exceptions in its results: else it ends, as ever, with the first of them."""
    await asyncio.gather(guarded("a"), guarded("b"), return_exceptions=True)


@durable.workflow
async def in_group(_step: Step) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(guarded("a"))
        group.create_task(guarded("b"))


@durable.workflow
async def in_group_uncancelled(_step: Step) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(guarded_and_uncancelled("a"))
        group.create_task(guarded_and_uncancelled("b"))


@durable.workflow
async def in_nested_groups(_step: Step) -> None:
    async with asyncio.TaskGroup() as outer:
        outer.create_task(guarded("a"))
        async with asyncio.TaskGroup() as inner:
            inner.create_task(guarded("b"))


@durable.workflow
async def in_background(_step: Step) -> list[str]:
    """The body's own task waits for the others to clean up."""
    tasks = [asyncio.create_task(guarded("a")), asyncio.create_task(guarded("b"))]
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.gather(*tasks, return_exceptions=True)
    return []


@durable.workflow
async def left_behind(_step: Step) -> None:
    """The body's own task does not wait: they clean up all the same."""
    tasks = {asyncio.create_task(guarded("a")), asyncio.create_task(guarded("b"))}
    await asyncio.wait(tasks)


@durable.workflow
async def in_shield(_step: Step) -> None:
    """A shield protects from who waits: not from the end of it all."""
    await asyncio.shield(asyncio.gather(guarded("a"), guarded("b")))


@durable.workflow
async def in_timeout(_step: Step) -> None:
    async with asyncio.timeout(NAP_S * 100), asyncio.TaskGroup() as group:
        group.create_task(guarded("a"))
        group.create_task(asyncio.wait_for(guarded("b"), NAP_S * 100))


async def guarded_by_anyio(text: str) -> None:
    try:
        await gated(text)
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True):
            await undo(text)
            await anyio.sleep(NAP_S)
            await undo(f"{text} again")
        raise


@durable.workflow
async def in_anyio_group(_step: Step) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(guarded_by_anyio, "a")
        group.start_soon(guarded_by_anyio, "b")


@durable.workflow
async def in_anyio_scopes(_step: Step) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(guarded_by_anyio, "a")
        with anyio.move_on_after(NAP_S * 100), anyio.CancelScope(shield=True):
            await guarded_by_anyio("b")


ALL = (
    in_gather,
    in_group,
    in_background,
    left_behind,
    in_shield,
    in_timeout,
    in_anyio_group,
    in_anyio_scopes,
)


@pytest.mark.parametrize("workflow", ALL, ids=lambda workflow: workflow.fn.__name__)
async def test_each_task_may_clean_up_and_the_run_is_canceled(
    path: Path, workflow: Callable[[], durable.Call[Any]]
) -> None:
    """Each is cancelled once: its clean-up comes to its end, which waits in between."""
    clock = ManualClock()
    async with opened(path, clock) as engine:
        run = await engine.start(workflow())
        await until(lambda: sorted(world.noted) == ["a", "b"])
        assert await run.cancel() is True
        await until(lambda: sorted(world.noted) == ["a", "b", "undo a", "undo b"])
        await until_sleeping(run, 2)
        status = await run.status()
        assert status.state is RunState.CANCELING
        assert {step.name for step in status.running} == {"timer"}
        clock.advance(NAP_S)
        with pytest.raises(RunCanceled):
            await run.result(timeout=WAIT_S_MAX)
        assert sorted(world.noted[4:]) == ["undo a again", "undo b again"]
        states = [(step.name, step.state) async for step in run.steps()]
        assert states.count((gated.name, StepState.CANCELED)) == 2
        assert states.count((undo.name, StepState.COMPLETED)) == 4
        assert states.count(("timer", StepState.COMPLETED)) == 2
        # What ran goes on to its end, and nobody hears of it.
        assert engine.statistics().running_actions == 2
        world.may_end.set()
        await until(lambda: engine.statistics().running_actions == 0)
        assert sorted(world.ended) == ["a", "b"]
        assert [(step.name, step.state) async for step in run.steps()] == states
        assert engine.statistics().live_runs == 0


async def until_sleeping(run: durable.Run[Any], count: int) -> None:
    """Wait until so many clean-ups are in the middle of it: the first step done, a timer open."""
    async with asyncio.timeout(WAIT_S_MAX):
        while True:
            undone = [step.state async for step in run.steps() if step.name == undo.name]
            if undone == [StepState.COMPLETED] * count:
                return


async def test_all_tasks_are_told_in_the_same_turn(path: Path) -> None:
    """Asyncio alone would tell the outer group's task only when the inner group has ended."""
    async with opened(path) as engine:
        run = await engine.start(in_nested_groups())
        await until(lambda: sorted(world.noted) == ["a", "b"])
        assert await run.cancel() is True
        steps = [step async for step in run.steps()]
        assert [step.state for step in steps[:2]] == [StepState.CANCELED] * 2
        assert [step.name for step in steps[2:4]] == [undo.name] * 2
        assert steps[0].finished_at == steps[1].finished_at
        world.may_end.set()
        assert await run.cancel() is True


async def test_tasks_that_take_their_cancellation_back_are_not_cancelled_again(path: Path) -> None:
    clock = ManualClock()
    async with opened(path, clock) as engine:
        run = await engine.start(in_group_uncancelled())
        await until(lambda: sorted(world.noted) == ["a", "b"])
        assert await run.cancel() is True
        await until_sleeping(run, 2)
        clock.advance(NAP_S)
        with pytest.raises(RunCanceled):
            await run.result(timeout=WAIT_S_MAX)
        assert sorted(world.noted[2:]) == ["undo a", "undo a again", "undo b", "undo b again"]


@durable.workflow
async def with_a_deaf_worker(_step: Step) -> None:
    """A task that was cancelled by the body, and goes on, is cancelled by the run's cancel too."""

    async def work() -> None:
        try:
            await gated("first")
        except asyncio.CancelledError:
            await gated("second")

    worker = asyncio.create_task(work())
    await asyncio.sleep(NAP_S)
    worker.cancel()
    try:
        await asyncio.sleep(NAP_S)
    except asyncio.CancelledError:
        await asyncio.wait([worker])
        world.noted.append("worker has ended")
        raise


async def test_a_task_that_did_not_heed_an_earlier_cancel_gets_this_one(path: Path) -> None:
    clock = ManualClock()
    async with opened(path, clock) as engine:
        run = await engine.start(with_a_deaf_worker())
        await until(lambda: world.noted == ["first"])
        clock.advance(NAP_S)
        await until(lambda: world.noted == ["first", "second"])
        assert await run.cancel() is True
        with pytest.raises(RunCanceled):
            await run.result(timeout=WAIT_S_MAX)
        assert world.noted == ["first", "second", "worker has ended"]
        world.may_end.set()


@durable.workflow
async def failing_beside(_step: Step) -> None:
    """One branch raises while it cleans up: the group is what ends the body."""

    async def fail() -> None:
        try:
            await gated("b")
        finally:
            await undo("b")
            msg = "unclean"
            raise LookupError(msg)

    async with asyncio.TaskGroup() as group:
        group.create_task(guarded("a"))
        group.create_task(fail())


async def test_an_error_in_a_groups_clean_up_is_the_runs(path: Path) -> None:
    clock = ManualClock()
    async with opened(path, clock) as engine:
        run = await engine.start(failing_beside())
        await until(lambda: sorted(world.noted) == ["a", "b"])
        assert await run.cancel() is True
        await until_sleeping(run, 2)
        clock.advance(NAP_S)
        with pytest.raises(durable.RunFailed) as caught:
            await run.result(timeout=WAIT_S_MAX)
        assert caught.value.error.type_name.endswith("ExceptionGroup")
        assert world.noted[-1] == "undo a again"
        world.may_end.set()


@durable.workflow
async def expiring(step: Step) -> str:
    """The time-out around the wait is not what ends it."""
    try:
        async with asyncio.timeout(NAP_S):
            await step.sleep(NAP_S * 2)
    except TimeoutError:
        return "late"
    return "slept"


async def test_a_cancel_within_a_timeout_is_no_timeout(path: Path) -> None:
    clock = ManualClock()
    async with opened(path, clock) as engine:
        run = await engine.start(expiring())
        await until_step(run, "sleep", StepState.RUNNING)
        assert await run.cancel() is True
        with pytest.raises(RunCanceled):
            await run.result(timeout=WAIT_S_MAX)
        assert {step.state async for step in run.steps()} == {StepState.CANCELED}
        assert engine._runner is not None
        assert all(alarm.is_cancelled for alarm in engine._runner.alarms._heap)


@durable.workflow
async def timing_out_while_cleaning_up(step: Step) -> None:
    try:
        await step.sleep(NAP_S)
    finally:
        try:
            async with asyncio.timeout(NAP_S):
                await gated("clean-up")
        except TimeoutError:
            await undo("clean-up")


async def test_a_clean_up_may_have_a_timeout_of_its_own(path: Path) -> None:
    clock = ManualClock()
    async with opened(path, clock) as engine:
        run = await engine.start(timing_out_while_cleaning_up())
        await until_step(run, "sleep", StepState.RUNNING)
        assert await run.cancel() is True
        await until(lambda: world.noted == ["clean-up"])
        clock.advance(NAP_S)
        with pytest.raises(RunCanceled):
            await run.result(timeout=WAIT_S_MAX)
        assert world.noted == ["clean-up", "undo clean-up"]
        # The body withdrew that one by itself: so it is cancelled, as ever.
        await until(lambda: engine.statistics().running_actions == 0)
        assert world.ended == []
