"""What becomes of work that the body does not want any more, or that ends in other odd ways."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from clock import START_MS, ManualClock
from faults import opened
from floor import (
    ACTIONS,
    all_gated,
    all_quick,
    fail_once,
    floor,
    gated,
    gated_in_thread,
    quick,
    slow_to_end,
    states_of,
)
from waiting import WAIT_S_MAX, until, until_step

import durable
from durable import Engine, Step, StepFailed, StepState


@pytest.fixture(autouse=True)
def _new_floor() -> Generator[None]:
    floor.clear()
    yield
    floor.clear()


@durable.workflow
async def giving_up(step: Step, what: list[str]) -> str:
    """Begin ``what``, give it up after ten seconds, and go on with something else."""
    tasks = [asyncio.create_task(ACTIONS[name](name)) for name in what]
    tasks.append(asyncio.create_task(step.run(quick("delayed"), run_after=20)))
    await step.sleep(10)
    for task in tasks:
        task.cancel()
    assert (await asyncio.gather(*tasks, return_exceptions=True)).count("") == 0
    return await quick("last")


async def test_a_queued_step_that_is_withdrawn_never_begins(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock, max_parallelism=1) as engine:
        front = await engine.start(all_gated(["front"]))
        await until(lambda: floor.at_work == {"front"})
        run = await engine.start(giving_up(["gated", "thread"]))
        await until_step(run, "sleep", StepState.RUNNING)
        clock.advance(10)
        await until_step(run, gated.name, StepState.CANCELED)
        floor.gates["front"].set()
        assert await run.result(timeout=WAIT_S_MAX) == "last"
        await front.result(timeout=WAIT_S_MAX)
        clock.advance(60)
        await engine.run(all_quick(["then"]))
        assert floor.begun == ["front", "last", "then"]
        assert await states_of(run) == {
            "gated": ("canceled", 0),
            "thread": ("canceled", 0),
            "delayed": ("canceled", 0),
            "sleep": ("completed", 0),
            "last": ("completed", 1),
        }
        assert all([step.finished_at async for step in run.steps()])


async def test_a_running_async_action_is_cancelled_and_its_slot_free_when_it_has_ended(
    path: Path, clock: ManualClock
) -> None:
    """It may await while it cleans up: a cancellation comes once, as asyncio has it."""
    async with opened(path, clock, max_parallelism=1) as engine:
        run = await engine.start(giving_up(["slow"]))
        await until(lambda: floor.at_work == {"slow"})
        clock.advance(10)
        await until_step(run, slow_to_end.name, StepState.CANCELED)
        await until_step(run, quick.name, StepState.PENDING)
        assert floor.begun == ["slow"]
        assert engine.statistics().running_actions == 1
        floor.gates["slow"].set()
        assert await run.result(timeout=WAIT_S_MAX) == "last"
        assert floor.at_work_max == 1
        assert (await states_of(run))["slow"] == ("canceled", 1)


async def test_what_was_withdrawn_has_ended_and_what_is_open_has_not(
    path: Path, clock: ManualClock
) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(giving_up(["slow"]))
        await until(lambda: floor.at_work == {"slow"})
        assert [step.finished_at async for step in run.steps()] == [None] * 3
        clock.advance(10)
        floor.gates["slow"].set()
        await run.result(timeout=WAIT_S_MAX)
        steps = [step async for step in run.steps()]
        withdrawn = [step.finished_at for step in steps if step.state is StepState.CANCELED]
        assert withdrawn == [datetime.fromtimestamp(START_MS / 1000 + 10, UTC)] * 2
        assert None not in [step.finished_at for step in steps]


async def test_a_running_sync_action_finishes_and_is_dropped(
    path: Path, clock: ManualClock
) -> None:
    async with opened(path, clock, max_parallelism=1) as engine:
        run = await engine.start(giving_up(["thread"]))
        await until(lambda: floor.at_work == {"thread"})
        clock.advance(10)
        await until_step(run, gated_in_thread.name, StepState.CANCELED)
        assert floor.begun == ["thread"]
        floor.thread_gates["thread"].set()
        assert await run.result(timeout=WAIT_S_MAX) == "last"
        assert floor.begun == ["thread", "last"]
        assert floor.at_work_max == 1
        assert (await states_of(run))["thread"] == ("canceled", 1)


async def test_a_step_in_back_off_that_is_withdrawn_is_not_tried_again(
    path: Path, clock: ManualClock
) -> None:
    async with opened(path, clock, max_parallelism=2) as engine:
        run = await engine.start(giving_up(["retried"]))
        await until(lambda: floor.ended == ["retried"])
        await until_step(run, fail_once.name, StepState.PENDING)
        clock.advance(10)
        assert await run.result(timeout=WAIT_S_MAX) == "last"
        clock.advance(100)
        await engine.run(all_quick(["then"]))
        assert floor.begun == ["retried", "last", "then"]


@durable.workflow
async def first_of(_: Step, names: list[str]) -> str:
    tasks = [asyncio.create_task(gated(name)) for name in names]
    done, _pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    return done.pop().result()


async def test_the_losers_of_a_race_are_withdrawn_also_when_the_body_ends(path: Path) -> None:
    """The winner is the first that ended; nobody waits for the others."""
    async with Engine(path) as engine:
        run = await engine.start(first_of(["a", "b", "c"]))
        await until(lambda: floor.at_work == {"a", "b", "c"})
        floor.gates["b"].set()
        assert await run.result(timeout=WAIT_S_MAX) == "b"
        await until(lambda: not floor.at_work)
        states = await states_of(run)
        assert states == {"a": ("canceled", 1), "b": ("completed", 1), "c": ("canceled", 1)}
        await until(lambda: engine.statistics().running_actions == 0)


# --- time-outs -----------------------------------------------------------------------------------


@durable.workflow
async def timing_out(step: Step) -> str:
    try:
        await step.run(gated_in_thread("late"), timeout=0.01)
    except TimeoutError as exc:
        return f"{exc} {await quick('next')}"
    return "in time"


async def test_a_thread_that_is_late_keeps_its_slot(path: Path) -> None:
    """It cannot be stopped: its step fails in time, but nothing else may use the slot."""
    async with Engine(path, max_parallelism=1) as engine:
        run = await engine.start(timing_out())
        await until_step(run, quick.name, StepState.PENDING)
        assert floor.at_work == {"late"}
        assert (await until_step(run, gated_in_thread.name, StepState.FAILED)).error is not None
        floor.thread_gates["late"].set()
        result = await run.result(timeout=WAIT_S_MAX)
        assert result == "the attempt took longer than its timeout of 0.01 s next"
        assert floor.at_work_max == 1


@durable.action
async def swallow_its_timeout() -> str:
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    return "late"


@durable.workflow
async def bounding(step: Step) -> str:
    try:
        return await step.run(swallow_its_timeout(), timeout=0.01)
    except TimeoutError:
        return "timed out"


async def test_an_attempt_that_swallows_its_time_out_has_timed_out_all_the_same(path: Path) -> None:
    async with Engine(path) as engine:
        run = await engine.start(bounding())
        assert await run.result(timeout=WAIT_S_MAX) == "timed out"


# --- what an action does to its own task ---------------------------------------------------------


@durable.action
async def cancel_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


@durable.workflow
async def with_self_cancelling(_: Step, count: int) -> list[str]:
    failures = await asyncio.gather(
        *(cancel_itself() for _ in range(count)), return_exceptions=True
    )
    return [str(failure) for failure in failures if isinstance(failure, StepFailed)]


@pytest.mark.parametrize("count", [1, 2])
async def test_an_action_that_cancels_its_own_task_has_failed(path: Path, count: int) -> None:
    async with Engine(path, max_parallelism=2) as engine:
        run = await engine.start(with_self_cancelling(count))
        assert len(await run.result(timeout=2)) == count
        assert await engine.run(all_quick(["after"])) == ["after"]


@durable.action
async def cancel_itself_and_end(how: str) -> str:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    if how == "raise":
        raise ValueError("after the cancel")
    return "returned"


@durable.workflow
async def ending_after_its_cancel(_: Step, how: str) -> str:
    try:
        return await cancel_itself_and_end(how)
    except ValueError as exc:
        return str(exc)


@pytest.mark.parametrize(("how", "result"), [("return", "returned"), ("raise", "after the cancel")])
async def test_how_an_action_ends_after_it_cancelled_its_own_task_is_its_outcome(
    path: Path, how: str, result: str
) -> None:
    async with Engine(path) as engine:
        for _ in range(2):
            run = await engine.start(ending_after_its_cancel(how))
            assert await run.result(timeout=WAIT_S_MAX) == result
