"""Cancelling a run: what its body gets, what it may still do, and what everybody is told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from clock import START_MS, ManualClock
from faults import opened
from waiting import WAIT_S_MAX, until_step

import durable
from durable import (
    Engine,
    RunCanceled,
    RunFailed,
    RunState,
    Step,
    StepState,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.both_loops

HOUR_S = 3600.0
NAP_S = 10.0


class World:
    """What bodies and actions have noted, and where actions wait until they may end."""

    def __init__(self) -> None:
        self.noted: list[str] = []
        self.may_end = asyncio.Event()


world = World()


@pytest.fixture(autouse=True)
def _new_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_cancel.world", World())


@durable.action
async def note(text: str) -> str:
    world.noted.append(text)
    return text


@durable.action
async def gated(text: str) -> str:
    world.noted.append(text)
    await world.may_end.wait()
    return text


@durable.workflow
async def napping(step: Step) -> str:
    await step.sleep(NAP_S)
    return "slept"


@durable.workflow
async def cleaning_up(step: Step) -> str:
    try:
        await step.sleep(NAP_S)
    except asyncio.CancelledError:
        await note("except")
        raise
    finally:
        await gated("finally")
        await step.sleep(NAP_S)
    return "slept"


@durable.workflow
async def swallowing(step: Step) -> str:
    try:
        await step.sleep(NAP_S)
    except asyncio.CancelledError:
        return await note("swallowed")
    return "slept"


@durable.workflow
async def swallowing_in_full(step: Step) -> str:
    """As asyncio has it: the cancellation is taken back before anything else is awaited."""
    try:
        await step.sleep(NAP_S)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
        return await note("swallowed")
    return "slept"


@durable.workflow
async def going_on(step: Step) -> list[str]:
    """It takes no notice, and goes on sleeping."""
    try:
        await step.sleep(NAP_S)
    except asyncio.CancelledError:
        await step.sleep(NAP_S)
    return [await note("one"), await note("two")]


@durable.workflow
async def raising(step: Step) -> None:
    try:
        await step.sleep(NAP_S)
    finally:
        await note("before")
        msg = "no clean-up"
        raise LookupError(msg)


@durable.workflow
async def ending_late(_step: Step) -> str:
    return await gated("late")


@durable.workflow
async def raising_a_cancellation(_step: Step) -> None:
    await note("before")
    msg = "of its own"
    raise asyncio.CancelledError(msg)


@durable.workflow
async def cancelling_itself(step: Step) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await step.sleep(NAP_S)


async def canceled(run: durable.Run[Any]) -> None:
    """Wait for a run's end, and check that it is canceled for everybody."""
    with pytest.raises(RunCanceled) as caught:
        await run.result(timeout=WAIT_S_MAX)
    assert caught.value.run_id == run.id
    status = await run.status()
    assert (status.state, status.result, status.error) == (RunState.CANCELED, None, None)
    assert status.finished_at is not None
    assert status.running == []
    steps = [step async for step in run.steps()]
    assert all(step.state.is_final and step.finished_at is not None for step in steps)


# --- what the body does --------------------------------------------------------------------------


async def test_a_sleeping_body_wakes_at_once_and_its_run_is_over(
    path: Path, clock: ManualClock
) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(napping())
        await until_step(run, "sleep", StepState.RUNNING)
        clock.advance(1)
        assert await run.cancel() is True
        status = await run.status()
        assert (status.state, status.running) == (RunState.CANCELED, [])
        assert status.finished_at is not None
        assert status.finished_at.timestamp() * 1000 == START_MS + 1000
        await canceled(run)
        (sleep,) = [step async for step in run.steps()]
        assert sleep.state is StepState.CANCELED
        assert sleep.finished_at == status.finished_at
        assert engine.statistics().live_runs == 0
        assert not [alarm for alarm in alarms_of(engine) if not alarm.is_cancelled]


def alarms_of(engine: Engine) -> list[Any]:
    assert engine._runner is not None
    heap: list[Any] = engine._runner.alarms._heap
    return heap


async def test_a_body_may_run_steps_to_clean_up(path: Path, clock: ManualClock) -> None:
    """Actions and timers both, in ``except`` and ``finally``; the run is canceling meanwhile."""
    async with opened(path, clock) as engine:
        run = await engine.start(cleaning_up())
        await until_step(run, "sleep", StepState.RUNNING)
        assert await run.cancel() is True
        assert (await run.status()).state is RunState.CANCELING
        await until_step(run, gated.name, StepState.RUNNING)
        status = await run.status()
        assert (status.state, status.finished_at) == (RunState.CANCELING, None)
        assert [step.name for step in status.running] == [gated.name]
        page = await engine.list_runs(state="canceling")
        assert [each.id for each in page.items] == [run.id]
        with pytest.raises(TimeoutError):
            await run.result(timeout=0)
        world.may_end.set()
        await until_step(run, "sleep", StepState.RUNNING)
        assert (await run.status()).state is RunState.CANCELING
        clock.advance(NAP_S)
        await canceled(run)
        assert world.noted == ["except", "finally"]
        assert [(step.name, step.state) async for step in run.steps()] == [
            ("sleep", StepState.CANCELED),
            (note.name, StepState.COMPLETED),
            (gated.name, StepState.COMPLETED),
            ("sleep", StepState.COMPLETED),
        ]


@pytest.mark.parametrize("workflow", [swallowing, swallowing_in_full])
async def test_a_body_that_swallows_the_cancel_is_completed(
    path: Path, clock: ManualClock, workflow: Callable[[], durable.Call[str]]
) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(workflow())
        await until_step(run, "sleep", StepState.RUNNING)
        assert await run.cancel() is True
        assert await run.result(timeout=WAIT_S_MAX) == "swallowed"
        assert (await run.status()).state is RunState.COMPLETED
        assert world.noted == ["swallowed"]


async def test_a_body_that_goes_on_after_the_cancel_is_canceling_until_its_end(
    path: Path, clock: ManualClock
) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(going_on())
        await until_step(run, "sleep", StepState.RUNNING)
        assert await run.cancel() is True
        assert await run.cancel() is True, "it is not over"
        assert (await run.status()).state is RunState.CANCELING
        clock.advance(NAP_S)
        assert await run.result(timeout=WAIT_S_MAX) == ["one", "two"]
        assert await run.cancel() is False


async def test_a_body_that_raises_something_else_is_failed_with_that(
    path: Path, clock: ManualClock
) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(raising())
        await until_step(run, "sleep", StepState.RUNNING)
        assert await run.cancel() is True
        with pytest.raises(RunFailed) as caught:
            await run.result(timeout=WAIT_S_MAX)
        assert isinstance(caught.value.__cause__, LookupError)
        assert caught.value.error.message == "no clean-up"
        assert (await run.status()).state is RunState.FAILED
        assert world.noted == ["before"]


@pytest.mark.parametrize("workflow", [raising_a_cancellation, cancelling_itself])
async def test_a_cancellation_of_the_bodys_own_is_a_failure(
    path: Path, workflow: Callable[[], durable.Call[None]]
) -> None:
    async with opened(path) as engine:
        run = await engine.start(workflow())
        with pytest.raises(RunFailed) as caught:
            await run.result(timeout=WAIT_S_MAX)
        error = caught.value.error
        assert error.type_name.endswith("CancelledError")
        assert workflow.__name__ in error.traceback
        assert error.message == ("of its own" if workflow is raising_a_cancellation else "")
        assert (await run.status()).state is RunState.FAILED


async def test_a_cancellation_of_its_own_while_it_is_cancelled_is_a_cancel(
    path: Path, clock: ManualClock
) -> None:
    """Nobody could tell the two apart."""

    @durable.workflow(name="cancel.reraising")
    async def reraising(step: Step) -> None:
        try:
            await step.sleep(NAP_S)
        finally:
            await note("clean")
            raise asyncio.CancelledError

    async with opened(path, clock) as engine:
        run = await engine.start(reraising())
        await until_step(run, "sleep", StepState.RUNNING)
        assert await run.cancel()
        await canceled(run)
        assert world.noted == ["clean"]
