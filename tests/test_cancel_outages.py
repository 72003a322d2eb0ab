"""A cancel, and a journal that fails, an engine that closes, or a caller who is cancelled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from clock import ManualClock
from cycles import WAYS, Way, sweep
from faults import Disk, Fault, each_to_fail, leaving_nothing, once_available, opened
from test_cancel_races import NAP_S, check_one_outcome, cleaning_up, napping_for_long, working
from waiting import WAIT_S_MAX, until, until_open, until_step
from world import gated, new_world, world

from durable import (
    Engine,
    EngineClosedError,
    JournalUnavailableError,
    RunCanceled,
    RunState,
    StepState,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

HOUR_S = 3600.0
CYCLES = 40
"""More cycles of the loop than a closing engine takes for a cancel."""

BOTH = pytest.mark.parametrize("fault", list(Fault))


# --- the journal fails ---------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("kind", ["live", "parked", "delayed"])
async def test_a_cancel_that_cannot_be_written_is_not_acknowledged(
    path: Path, disk: Disk, fault: Fault, kind: str
) -> None:
    """Its outcome is unknown; asking again tells. What ran goes on to its end."""
    async with opened(path, ManualClock()) as engine:
        if kind == "live":
            run = await engine.start(working(), id="it")
            await until(lambda: world.begun)
            await until_step(run, gated.name, StepState.RUNNING)
        elif kind == "parked":
            run = await engine.start(napping_for_long(), id="it")
            await until(lambda: world.begun and engine.statistics().live_runs == 0)
        else:
            run = await engine.start(working(), id="it", run_after=HOUR_S)
        disk.faults["commit", disk.calls["commit"] + 1] = fault
        with pytest.raises(JournalUnavailableError):
            await run.cancel()
        asked = await once_available(disk, run.cancel)
        assert asked or fault is Fault.KEPT
        await check_one_outcome(engine, "it", asked=None)
        assert (await run.status()).state is RunState.CANCELED
        assert world.begun in ({}, {"work": 1}) or kind == "parked"
        assert "more" not in world.begun


async def test_during_an_outage_a_cancel_is_refused_at_once(path: Path, disk: Disk) -> None:
    async with opened(path) as engine:
        run = await engine.start(working(), id="it")
        await until(lambda: world.begun)
        disk.broken = Fault.LOST
        with pytest.raises(JournalUnavailableError):
            await run.cancel()
        commits = disk.calls["commit"]
        for _ in range(3):
            with pytest.raises(JournalUnavailableError):
                await run.cancel()
        assert disk.calls["commit"] == commits
        disk.broken = None
        assert await once_available(disk, run.cancel) is True
        await check_one_outcome(engine, "it", asked=True)


@pytest.mark.slow
@BOTH
async def test_whichever_commit_of_a_clean_up_fails_it_is_done_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    for number, disk in each_to_fail(monkeypatch, 4):
        clock = ManualClock()
        async with opened(path.with_name(f"{number}.db"), clock) as engine:
            run = await engine.start(cleaning_up(), id="it")
            await until_step(run, "sleep", StepState.RUNNING)
            disk.faults["commit", disk.calls["commit"] + number] = fault
            assert await once_available(disk, run.cancel) is True
            await until(lambda: "clean" in world.begun)
            async with asyncio.timeout(WAIT_S_MAX):
                ended = asyncio.create_task(run.result())
                while not ended.done():
                    clock.advance(NAP_S)
                    await asyncio.sleep(0)
                assert isinstance(ended.exception(), RunCanceled)
            await check_one_outcome(engine, "it", asked=True)
            assert world.begun["clean"] == world.begun["clean again"] == 1


# --- the engine closes, the caller is cancelled --------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["live", "parked"])
async def test_an_engine_that_closes_meanwhile_has_cancelled_or_has_not(
    path: Path, kind: str
) -> None:
    """An acknowledged cancel holds; one that is refused may be asked again after reopening."""
    workflow = working if kind == "live" else napping_for_long
    async with leaving_nothing():
        for cycle in range(CYCLES):
            file = path.with_name(f"{cycle}.db")
            new_world()
            engine = Engine(file, drain_timeout=0)
            async with engine:
                run = await engine.start(workflow(), id="it")
                await until_open(run)
                asking = asyncio.create_task(run.cancel())
                for _ in range(cycle):
                    await asyncio.sleep(0)
            try:
                asked = await asking
            except EngineClosedError:
                asked = False
            async with opened(file) as again:
                if not asked:
                    await again.cancel("it")
                await check_one_outcome(again, "it", asked=None)
                assert (await again.status("it")).state is RunState.CANCELED


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["live", "parked", "delayed"])
async def test_a_caller_may_be_cancelled_at_any_moment(path: Path, way: Way, kind: str) -> None:
    """The run is cancelled or it is not: asking again tells, and nothing is left over."""
    async with opened(path, ManualClock()) as engine:

        async def prepare(run_id: str) -> Callable[[], Awaitable[object]]:
            new_world()
            if kind == "delayed":
                run = await engine.start(working(), id=run_id, run_after=HOUR_S)
            else:
                workflow = working if kind == "live" else napping_for_long
                run = await engine.start(workflow(), id=run_id)
                await until_open(run)
                await until(lambda: kind == "live" or engine.statistics().live_runs == 0)
            return run.cancel

        async def check(run_id: str) -> None:
            async with asyncio.timeout(WAIT_S_MAX):
                await engine.cancel(run_id)
            await check_one_outcome(engine, run_id, asked=None)
            assert (await engine.status(run_id)).state is RunState.CANCELED

        await sweep(way, prepare, check)
