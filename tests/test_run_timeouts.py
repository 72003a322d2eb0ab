"""``workflow(timeout=)``: how long a run may take."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from clock import ManualClock
from faults import MONTH_S, crashing, opened
from waiting import WAIT_S_MAX, until_parked, until_state, until_step

import durable
from durable import RunCanceled, RunFailed, RunState, RunTimeout, Step, StepState

if TYPE_CHECKING:
    from pathlib import Path

HOUR_S = 3_600.0
noted: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_noted() -> None:
    noted.clear()


@durable.action
async def note(text: str) -> str:
    noted.append(text)
    return text


@durable.workflow(timeout=HOUR_S)
async def slow(step: Step, sleep_s: float) -> str:
    await note("begin")
    try:
        await step.sleep(sleep_s)
    finally:
        await note("clean")
    return await note("end")


async def fails_by_timeout(run: durable.Run[Any]) -> None:
    with pytest.raises(RunFailed) as caught:
        await run.result(timeout=WAIT_S_MAX)
    assert caught.value.error.type_name == "durable.RunTimeout"
    assert isinstance(caught.value.__cause__, RunTimeout)
    assert (await run.status()).state is RunState.FAILED


@pytest.mark.parametrize("sleep_s", [2 * HOUR_S, MONTH_S])
async def test_a_run_that_takes_longer_is_cancelled_and_fails(
    path: Path, clock: ManualClock, sleep_s: float
) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(slow(sleep_s))
        await until_step(run, "sleep", StepState.RUNNING)
        clock.advance(HOUR_S)
        await fails_by_timeout(run)
        assert noted == ["begin", "clean"]


async def test_a_run_that_is_quick_enough_is_none_the_worse(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(slow(HOUR_S / 2))
        await until_step(run, "sleep", StepState.RUNNING)
        clock.advance(HOUR_S / 2)
        assert await run.result(timeout=WAIT_S_MAX) == "end"
        clock.advance(HOUR_S)
        assert noted == ["begin", "clean", "end"]
        assert (await run.status()).state is RunState.COMPLETED


async def test_the_time_begins_with_the_first_turn_and_outlives_the_process(
    path: Path, clock: ManualClock
) -> None:
    async with opened(path, clock) as engine:
        run_id = (await engine.start(slow(MONTH_S), run_after=10 * HOUR_S)).id
        clock.advance(10 * HOUR_S)
        await until_step(engine.get(run_id), "sleep", StepState.RUNNING)
        clock.advance(HOUR_S / 2)
    async with crashing(path, clock) as engine:
        assert (await engine.status(run_id)).state is RunState.RUNNING
        clock.advance(HOUR_S / 4)
    clock.advance(HOUR_S / 4)
    async with opened(path, clock) as engine:
        await fails_by_timeout(engine.get(run_id))
        assert noted == ["begin", "clean"]


@durable.workflow(timeout=timedelta(hours=1))
async def stubborn(step: Step) -> str:
    try:
        await step.sleep(MONTH_S)
    except asyncio.CancelledError:
        return "late"
    return "never"


async def test_a_body_that_swallows_it_has_taken_too_long_all_the_same(
    path: Path, clock: ManualClock
) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(stubborn())
        await until_step(run, "sleep", StepState.RUNNING)
        clock.advance(HOUR_S)
        await fails_by_timeout(run)


@durable.workflow(timeout=HOUR_S)
async def clumsy(step: Step) -> None:
    try:
        await step.sleep(MONTH_S)
    finally:
        raise ValueError("in the clean-up")


async def test_an_error_in_the_clean_up_is_the_run_s(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(clumsy())
        await until_step(run, "sleep", StepState.RUNNING)
        clock.advance(HOUR_S)
        with pytest.raises(RunFailed, match="in the clean-up"):
            await run.result(timeout=WAIT_S_MAX)


@durable.workflow(timeout=HOUR_S)
async def many(step: Step) -> None:
    async with asyncio.TaskGroup() as tasks:
        for number in range(10):
            tasks.create_task(step.sleep(MONTH_S + number))


async def test_all_that_the_body_waits_for_is_withdrawn(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(many())
        await until_parked(engine)
        clock.advance(HOUR_S)
        await fails_by_timeout(run)
        states = [step.state async for step in run.steps() if step.name == "sleep"]
        assert states == [StepState.CANCELED] * 10


async def test_a_cancelled_run_is_cancelled(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(slow(MONTH_S))
        await until_step(run, "sleep", StepState.RUNNING)
        assert await run.cancel()
        with pytest.raises(RunCanceled):
            await run.result(timeout=WAIT_S_MAX)
        assert noted == ["begin", "clean"]


async def test_a_restart_gives_it_the_whole_time_again(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(slow(2 * HOUR_S))
        await until_step(run, "sleep", StepState.RUNNING)
        clock.advance(HOUR_S)
        await fails_by_timeout(run)
        clock.advance(HOUR_S)
        await run.restart(from_step="sleep")
        await until_state(run, RunState.RUNNING)
        clock.advance(HOUR_S / 2)
        assert (await run.status()).state is RunState.RUNNING
        clock.advance(HOUR_S / 2)
        await fails_by_timeout(run)
        assert noted == ["begin", "clean", "clean"]


@pytest.mark.parametrize("timeout", [0, -1, "1h", True])
def test_a_timeout_is_a_positive_time(timeout: Any) -> None:  # noqa: ANN401
    with pytest.raises((TypeError, ValueError), match="timeout"):

        @durable.workflow(name="with a timeout that is none", timeout=timeout)
        async def _bad(step: Step) -> None:
            pass
