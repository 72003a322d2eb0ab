"""What becomes of the steps of a run that is cancelled: queued, running, delayed, backing off."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from clock import ManualClock
from faults import opened
from waiting import WAIT_S_MAX, until, until_step

import durable
from durable import Engine, Retry, RunCanceled, RunState, Step, StepState

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.both_loops

HOUR_S = 3600.0
BACKOFF_S = 5.0


class World:
    """What actions have noted, and where they wait until they may end."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()
        self.ended: list[str] = []
        self.may_end = asyncio.Event()
        self.thread_may_end = threading.Event()
        self.canceled: list[bool] = []


world = World()


@pytest.fixture(autouse=True)
def _new_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_cancel_steps.world", World())


@durable.action
async def gated(text: str) -> str:
    world.begun[text] += 1
    try:
        await world.may_end.wait()
    except asyncio.CancelledError:
        world.ended.append(f"{text} interrupted")
        raise
    world.ended.append(text)
    return text


@durable.action
async def failing_late(text: str) -> str:
    world.begun[text] += 1
    await world.may_end.wait()
    world.ended.append(text)
    raise LookupError(text)


@durable.action
def in_thread(text: str) -> str:
    world.begun[text] += 1
    assert world.thread_may_end.wait(WAIT_S_MAX)
    world.ended.append(text)
    return text


@durable.action(retry=Retry(max_attempts=3, initial_backoff=BACKOFF_S, jitter=False))
async def failing(text: str) -> str:
    world.begun[text] += 1
    raise LookupError(text)


@durable.action
async def quick(text: str) -> str:
    world.begun[text] += 1
    return text


@durable.action
async def cancel_run(run_id: str | None, interrupt: bool) -> bool:
    is_canceled = await Engine.current().cancel(
        run_id or durable.attempt().run_id, interrupt=interrupt
    )
    world.canceled.append(is_canceled)
    return is_canceled


@durable.workflow
async def waiting_for(_step: Step, texts: list[str]) -> list[str]:
    return list(await asyncio.gather(*map(gated, texts)))


@durable.workflow
async def failing_while_waited_for(_step: Step) -> str:
    return await failing_late("failing")


@durable.workflow
async def in_a_thread(_step: Step) -> str:
    return await in_thread("thread")


@durable.workflow
async def backing_off(_step: Step) -> str:
    return await failing("failing")


@durable.workflow
async def delaying(step: Step) -> str:
    return await step.run(quick("delayed"), run_after=HOUR_S / 360)


@durable.workflow
async def one(_step: Step) -> str:
    return await quick("one")


@durable.workflow
async def cleaning_up(_step: Step) -> None:
    try:
        await gated("work")
    finally:
        await quick("clean-up")


@durable.workflow
async def cancelling_itself(_step: Step, *, interrupt: bool) -> bool:
    return await cancel_run(None, interrupt)


@durable.workflow
async def cancelling(_step: Step, run_id: str) -> bool:
    return await cancel_run(run_id, interrupt=False)


async def canceled(run: durable.Run[Any]) -> list[durable.StepInfo]:
    """Wait for the run's end, check that all of it is over, and return its steps."""
    with pytest.raises(RunCanceled):
        await run.result(timeout=WAIT_S_MAX)
    assert (await run.status()).state is RunState.CANCELED
    steps = [step async for step in run.steps()]
    assert all(step.state.is_final and step.finished_at for step in steps)
    return steps


async def test_a_queued_step_never_starts(path: Path) -> None:
    async with opened(path, max_parallelism=1) as engine:
        run = await engine.start(waiting_for(["a", "b", "c"]))
        await until(lambda: engine.statistics().queued_actions == 2 and world.begun == {"a": 1})
        assert await run.cancel() is True
        assert engine.statistics().queued_actions == 0
        steps = await canceled(run)
        assert [(step.state, step.attempts) for step in steps] == [
            (StepState.CANCELED, 1),
            (StepState.CANCELED, 0),
            (StepState.CANCELED, 0),
        ]
        world.may_end.set()
        assert await engine.run(one()) == "one"
        assert world.begun == {"a": 1, "one": 1}


async def test_no_step_starts_that_waits_behind_a_paused_pool(path: Path) -> None:
    async with opened(path, max_parallelism=0) as engine:
        run = await engine.start(waiting_for(["a", "b"]))
        await until(lambda: engine.statistics().queued_actions == 2)
        assert await run.cancel() is True
        engine.set_max_parallelism(5)
        assert await engine.run(one()) == "one"
        await canceled(run)
        assert world.begun == {"one": 1}


async def test_a_running_action_finishes_and_holds_its_slot_until_then(path: Path) -> None:
    """Its result is dropped: the step stays canceled, in this life and in the next."""
    async with opened(path, max_parallelism=1) as engine:
        run = await engine.start(waiting_for(["a"]), id="it")
        await until(lambda: world.begun["a"])
        assert await run.cancel() is True
        steps = await canceled(run)
        other = await engine.start(one())
        await until(lambda: engine.statistics().queued_actions == 1)
        assert engine.statistics().running_actions == 1
        assert world.ended == []
        world.may_end.set()
        assert await other.result(timeout=WAIT_S_MAX) == "one"
        assert world.ended == ["a"]
        assert await canceled(run) == steps
        assert steps[0].result is None
        await until(lambda: engine.statistics().running_actions == 0)
        assert engine._runner is not None
        assert engine._runner.pool.is_settled
    async with opened(path) as engine:
        assert await canceled(engine.get("it")) == steps
    assert world.begun == {"a": 1, "one": 1}


async def test_an_error_of_a_running_action_is_dropped_too(path: Path) -> None:
    async with opened(path) as engine:
        run = await engine.start(failing_while_waited_for())
        await until(lambda: world.begun["failing"])
        assert await run.cancel() is True
        world.may_end.set()
        (step,) = await canceled(run)
        await until(lambda: engine.statistics().running_actions == 0)
        assert (await canceled(run)) == [step]
        assert (step.state, step.error) == (StepState.CANCELED, None)


async def test_with_interrupt_a_running_action_is_cancelled(path: Path) -> None:
    async with opened(path, max_parallelism=2) as engine:
        run = await engine.start(waiting_for(["a", "b", "c"]))
        await until(lambda: world.begun == {"a": 1, "b": 1})
        assert await run.cancel(interrupt=True) is True
        await canceled(run)
        await until(lambda: engine.statistics().running_actions == 0)
        assert sorted(world.ended) == ["a interrupted", "b interrupted"]
        assert world.begun == {"a": 1, "b": 1}


async def test_interrupt_spares_what_runs_for_the_clean_up(path: Path) -> None:
    async with opened(path, max_parallelism=1) as engine:
        run = await engine.start(cleaning_up())
        await until(lambda: world.begun["work"])
        assert await run.cancel(interrupt=True) is True
        steps = await canceled(run)
        assert [step.state for step in steps] == [StepState.CANCELED, StepState.COMPLETED]
        assert world.ended == ["work interrupted"]


async def test_a_clean_up_waits_for_the_slot_of_what_is_still_running(path: Path) -> None:
    async with opened(path, max_parallelism=1) as engine:
        run = await engine.start(cleaning_up())
        await until(lambda: world.begun["work"])
        assert await run.cancel() is True
        await until(lambda: engine.statistics().queued_actions == 1)
        assert world.begun == {"work": 1}
        world.may_end.set()
        await canceled(run)
        assert world.begun == {"work": 1, "clean-up": 1}


@pytest.mark.parametrize("interrupt", [False, True])
async def test_a_function_in_a_thread_finishes_in_any_case(path: Path, *, interrupt: bool) -> None:
    async with opened(path, max_parallelism=1) as engine:
        run = await engine.start(in_a_thread())
        await until(lambda: world.begun["thread"])
        assert await run.cancel(interrupt=interrupt) is True
        (step,) = await canceled(run)
        assert engine.statistics().running_actions == 1
        assert world.ended == []
        world.thread_may_end.set()
        await until(lambda: engine.statistics().running_actions == 0)
        assert world.ended == ["thread"]
        assert await canceled(run) == [step]


async def test_a_step_in_backoff_is_not_tried_again(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(backing_off())
        await until_step(run, failing.name, StepState.PENDING)
        await until(lambda: engine.statistics().running_actions == 0)
        assert await run.cancel() is True
        (step,) = await canceled(run)
        assert (step.state, step.attempts, step.error) == (StepState.CANCELED, 1, None)
        clock.advance(HOUR_S)
        assert await engine.run(one()) == "one"
        assert world.begun == {"failing": 1, "one": 1}


async def test_a_delayed_step_does_not_begin(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(delaying())
        await until_step(run, quick.name, StepState.PENDING)
        assert await run.cancel() is True
        (step,) = await canceled(run)
        assert (step.state, step.attempts, step.started_at) == (StepState.CANCELED, 0, None)
        clock.advance(HOUR_S)
        assert await engine.run(one()) == "one"
        assert world.begun == {"one": 1}


async def test_other_runs_are_left_alone(path: Path) -> None:
    async with opened(path) as engine:
        run = await engine.start(waiting_for(["a"]))
        other = await engine.start(waiting_for(["b"]))
        await until(lambda: world.begun == {"a": 1, "b": 1})
        assert await run.cancel(interrupt=True) is True
        await canceled(run)
        world.may_end.set()
        assert await other.result(timeout=WAIT_S_MAX) == ["b"]


# --- from an action ------------------------------------------------------------------------------


async def test_an_action_may_cancel_the_run_it_belongs_to(path: Path) -> None:
    """It finishes, as one that runs does, and it is told."""
    async with opened(path) as engine:
        run = await engine.start(cancelling_itself(interrupt=False))
        (step,) = await canceled(run)
        assert step.state is StepState.CANCELED
        await until(lambda: world.canceled == [True])
        await until(lambda: engine.statistics().running_actions == 0)


async def test_an_action_that_interrupts_its_own_run_is_cancelled_itself(path: Path) -> None:
    async with opened(path) as engine:
        run = await engine.start(cancelling_itself(interrupt=True))
        (step,) = await canceled(run)
        assert step.state is StepState.CANCELED
        await until(lambda: engine.statistics().running_actions == 0)
        assert world.canceled == []
        assert await engine.run(one()) == "one"


async def test_an_action_may_cancel_another_run(path: Path) -> None:
    async with opened(path) as engine:
        run = await engine.start(waiting_for(["a"]))
        await until(lambda: world.begun["a"])
        assert await engine.run(cancelling(run.id)) is True
        await canceled(run)
        assert await engine.run(cancelling(run.id)) is False
        with pytest.raises(durable.RunFailed) as caught:
            await engine.run(cancelling("nowhere"))
        assert "RunNotFoundError" in caught.value.error.type_name
        world.may_end.set()
