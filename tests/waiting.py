"""What tests wait with: for something to be so, never for a time, and never without a bound."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from clock import ManualClock

    from durable import Engine, Run, RunState, RunStatus, StepInfo, StepState

WAIT_S_MAX = 10
"""No wait of a test takes longer than this."""


async def until(condition: Callable[[], object]) -> None:
    """Let the event loop go on until the condition holds."""
    async with asyncio.timeout(WAIT_S_MAX):
        while not condition():  # noqa: ASYNC110  it is any condition, and has no event
            await asyncio.sleep(0)


async def until_step(run: Run[Any], name: str, state: StepState) -> StepInfo:
    """Wait until the run's latest step of that name is in that state, as committed."""
    async with asyncio.timeout(WAIT_S_MAX):
        while True:
            steps = [step async for step in run.steps() if step.name == name]
            if steps and steps[-1].state is state:
                return steps[-1]
            await asyncio.sleep(0)


async def until_open(run: Run[Any]) -> None:
    """Wait until the run has a step that has not ended, as committed."""
    async with asyncio.timeout(WAIT_S_MAX):
        while not (await run.status()).running:
            pass


async def until_written(engine: Engine) -> None:
    """Wait until nothing is on its way to the journal, nor was in it without being heard of."""
    assert engine._runner is not None
    async with asyncio.timeout(WAIT_S_MAX):
        await engine._runner.writer.wait_until_idle()


async def until_parked(engine: Engine, clock: ManualClock | None = None) -> None:
    """Wait until no run is in memory; if need be, let time pass until none is."""
    async with asyncio.timeout(WAIT_S_MAX):
        while engine.statistics().live_runs:
            if clock is not None:
                clock.advance(1)
            await asyncio.sleep(0)


async def until_state(run: Run[Any], state: RunState) -> RunStatus:
    """Wait until the run is in that state, as committed."""
    async with asyncio.timeout(WAIT_S_MAX):
        while (status := await run.status()).state is not state:
            pass
    return status


async def until_waiting(run: Run[Any], number: int) -> None:
    """Wait until the run's first open step is the one of that number, as committed."""
    async with asyncio.timeout(WAIT_S_MAX):
        while [step.number for step in (await run.status()).running][:1] != [number]:
            pass
