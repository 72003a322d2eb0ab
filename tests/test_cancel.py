"""Cancelling a run: what its body gets, what it may still do, and what everybody is told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from clock import START_MS, ManualClock
from faults import MONTH_S, opened
from waiting import WAIT_S_MAX, until, until_open, until_state, until_step

import durable
from durable import (
    Engine,
    EngineClosedError,
    NonDeterminismError,
    RunCanceled,
    RunFailed,
    RunNotFoundError,
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


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


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
    raise asyncio.CancelledError


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
    assert all([step.state.is_final for step in [step async for step in run.steps()]])
    assert all([step.finished_at is not None for step in [step async for step in run.steps()]])


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
        assert caught.value.error.type_name.endswith("CancelledError")
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


# --- who asks, and when --------------------------------------------------------------------------


async def test_a_second_cancel_does_nothing(path: Path, clock: ManualClock) -> None:
    """Asked at the same time, during the clean-up, and from the handle of somebody else."""
    async with opened(path, clock) as engine:
        run = await engine.start(cleaning_up())
        await until_step(run, "sleep", StepState.RUNNING)
        asked = await asyncio.gather(*(engine.cancel(run.id) for _ in range(5)))
        assert asked == [True] * 5
        await until_step(run, gated.name, StepState.RUNNING)
        assert await engine.get(run.id).cancel(interrupt=True) is True
        assert await asyncio.gather(run.cancel(), run.cancel()) == [True, True]
        assert (await run.status()).state is RunState.CANCELING
        world.may_end.set()
        await until_step(run, "sleep", StepState.RUNNING)
        assert await run.cancel() is True
        clock.advance(NAP_S)
        await canceled(run)
        assert world.noted == ["except", "finally"]
        assert len([step async for step in run.steps()]) == 4
        assert await run.cancel() is False


async def test_a_run_that_is_over_cannot_be_cancelled(path: Path) -> None:
    async with opened(path) as engine:
        world.may_end.set()
        completed = await engine.start(ending_late())
        failed = await engine.start(raising_a_cancellation())
        assert await completed.result() == "late"
        with pytest.raises(RunFailed):
            await failed.result()
        before = [await completed.status(), await failed.status()]
        for run in (completed, failed):
            assert await run.cancel() is False
            assert await run.cancel(interrupt=True) is False
        assert [await completed.status(), await failed.status()] == before
        assert await completed.result() == "late"


async def test_a_run_that_is_not_there_cannot_be_cancelled(path: Path) -> None:
    async with opened(path) as engine:
        with pytest.raises(RunNotFoundError, match="nowhere"):
            await engine.cancel("nowhere")
        assert (await engine.list_runs()).items == []


async def test_a_closed_engine_cancels_nothing(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(napping(), id="it")
        await until_open(run)
    with pytest.raises(EngineClosedError):
        await run.cancel()
    async with opened(path, clock) as engine:
        assert (await engine.status("it")).state is RunState.RUNNING


@pytest.mark.parametrize("bad", [1, None, "yes"])
async def test_interrupt_is_a_flag(path: Path, bad: Any) -> None:  # noqa: ANN401
    async with opened(path) as engine:
        with pytest.raises(TypeError, match="interrupt"):
            await engine.cancel("it", interrupt=bad)


async def test_everybody_who_waits_is_told(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(napping(), id="it")
        waiting = [
            asyncio.create_task(run.result()),
            asyncio.create_task(engine.get("it").result(timeout=WAIT_S_MAX)),
            asyncio.create_task(engine.run(napping(), id="it")),
        ]
        await until_open(run)
        await until(lambda: engine._runner and len(engine._runner.ends._waiters._by_run["it"]) == 3)
        assert await run.cancel()
        async with asyncio.timeout(WAIT_S_MAX):
            for waiter in waiting:
                with pytest.raises(RunCanceled) as caught:
                    await waiter
                assert caught.value.run_id == "it"
        with pytest.raises(RunCanceled):
            await engine.run(napping(), id="it")
    async with opened(path, clock) as engine:
        await canceled(engine.get("it"))


async def test_the_cancel_is_no_step_to_anybody(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(cleaning_up())
        await until_step(run, "sleep", StepState.RUNNING)
        await run.cancel()
        await until_step(run, gated.name, StepState.RUNNING)
        names = ["sleep", note.name, gated.name]
        for order in ("asc", "desc"):
            page = await engine.list_steps(run.id, order=order)
            found = page.items if order == "asc" else page.items[::-1]
            assert [step.name for step in found] == names
            assert [step.number for step in found] == [0, 1, 2]
        paged = await engine.list_steps(run.id, order="desc", limit=3)
        assert len(paged.items) == 3
        assert paged.cursor is None
        assert [step.name for step in (await run.status()).running] == [gated.name]
        world.may_end.set()


async def test_a_body_cannot_cancel(path: Path) -> None:
    seen: list[NonDeterminismError] = []

    @durable.workflow(name="cancel.from_body")
    async def from_body(step: Step, way: str) -> None:
        try:
            if way == "engine":
                await engines[0].cancel(step.run_id)
            else:
                await runs[0].cancel()
        except NonDeterminismError as exc:
            seen.append(exc)
            raise

    async with opened(path) as engine:
        engines, runs = [engine], [engine.get("other")]
        for way in ("engine", "run"):
            run = await engine.start(from_body(way))
            await until(lambda: len(seen) == 1)
            assert "engine.cancel()" in str(seen.pop())
            assert "call it in an action" in str((await until_over(run)).error)


async def until_over(run: durable.Run[Any]) -> durable.RunStatus:
    async with asyncio.timeout(WAIT_S_MAX):
        while (status := await run.status()).state in (RunState.PENDING, RunState.RUNNING):
            pass
    return status


# --- before it begins ----------------------------------------------------------------------------


async def test_a_run_cancelled_before_it_begins_never_does(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(ending_late(), id="it", run_after=HOUR_S)
        waiter = asyncio.create_task(run.result())
        await until(lambda: engine._runner and engine._runner.ends._waiters._by_run)
        clock.advance(1)
        assert await run.cancel() is True
        await canceled(run)
        with pytest.raises(RunCanceled):
            await waiter
        status = await run.status()
        assert status.started_at is None
        assert [step async for step in run.steps()] == []
        assert await run.cancel() is False
        clock.advance(HOUR_S)
        assert await engine.start(ending_late(), id="it") is not None
        await canceled(run)
    async with opened(path, clock) as engine:
        clock.advance(MONTH_S)
        await canceled(engine.get("it"))
        world.may_end.set()
        assert await engine.run(ending_late(), id="other") == "late"
    assert world.noted == ["late"], "the other one's"


async def test_a_start_that_is_under_way_can_be_cancelled(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock) as engine:
        start = asyncio.create_task(engine.start(napping(), id="it"))
        await until(lambda: engine._runner and engine._runner.is_here("it"))
        assert await engine.cancel("it") is True
        await canceled(await start)
        assert engine.statistics().live_runs == 0
        await until_state(engine.get("it"), RunState.CANCELED)
