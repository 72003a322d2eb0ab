"""Asking for a cancel: who may, when, how often, and what everybody is told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import test_cancel as program
from clock import ManualClock
from faults import MONTH_S, opened
from test_cancel import (
    NAP_S,
    canceled,
    cleaning_up,
    ending_late,
    gated,
    napping,
    note,
    raising_a_cancellation,
)
from waiting import WAIT_S_MAX, until, until_open, until_state, until_step

import durable
from durable import (
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
    from pathlib import Path

pytestmark = pytest.mark.both_loops

HOUR_S = 3600.0


@pytest.fixture(autouse=True)
def _new_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "world", program.World())


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
        assert all(await asyncio.gather(run.cancel(), run.cancel()))
        assert (await run.status()).state is RunState.CANCELING
        program.world.may_end.set()
        await until_step(run, "sleep", StepState.RUNNING)
        assert await run.cancel() is True
        clock.advance(NAP_S)
        await canceled(run)
        assert program.world.noted == ["except", "finally"]
        assert len([step async for step in run.steps()]) == 4
        assert await run.cancel() is False


async def test_a_run_that_is_over_cannot_be_cancelled(path: Path) -> None:
    async with opened(path) as engine:
        program.world.may_end.set()
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
        program.world.may_end.set()


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
        program.world.may_end.set()
        assert await engine.run(ending_late(), id="other") == "late"
    assert program.world.noted == ["late"], "the other one's"


async def test_a_start_that_is_under_way_can_be_cancelled(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock) as engine:
        start = asyncio.create_task(engine.start(napping(), id="it"))
        await until(lambda: engine._runner and engine._runner.is_here("it"))
        assert await engine.cancel("it") is True
        await canceled(await start)
        assert engine.statistics().live_runs == 0
        await until_state(engine.get("it"), RunState.CANCELED)
