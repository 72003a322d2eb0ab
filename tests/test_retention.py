"""``Engine(retention=)``: runs that have been over for long are removed."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from clock import ManualClock
from faults import opened
from waiting import WAIT_S_MAX, until_state

import durable
from durable import Engine, RunNotFoundError, RunState, Step

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DAY_S = 86_400.0


@durable.action
async def act(text: str) -> str:
    if text == "bad":
        raise ValueError(text)
    return text


@durable.workflow
async def acting(_step: Step, text: str) -> str:
    return await act(text)


@durable.workflow
async def sleeping(step: Step) -> None:
    await step.sleep(100 * DAY_S)


async def until_gone(
    engine: Engine, run_id: str, meanwhile: Callable[[], None] = lambda: None
) -> None:
    async with asyncio.timeout(WAIT_S_MAX):
        while True:
            try:
                await engine.status(run_id)
            except RunNotFoundError:
                return
            meanwhile()


async def ids(engine: Engine) -> list[str]:
    return [status.id async for status in engine.iter_runs()]


async def test_what_was_over_for_long_is_removed_at_the_opening(
    path: Path, clock: ManualClock
) -> None:
    async with opened(path, clock) as engine:
        await engine.run(acting("a"), id="old")
        with pytest.raises(durable.RunFailed):
            await engine.run(acting("bad"), id="old failed")
        await (await engine.start(sleeping(), id="canceled")).cancel()
        await until_state(engine.get("canceled"), RunState.CANCELED)
        await engine.start(sleeping(), id="unfinished")
        clock.advance(DAY_S)
        await engine.run(acting("a"), id="young")
        clock.advance(DAY_S)
    async with opened(path, clock, retention=1.5 * DAY_S) as engine:
        for run_id in ("old", "old failed", "canceled"):
            await until_gone(engine, run_id)
        assert await ids(engine) == ["unfinished", "young"]
        with pytest.raises(RunNotFoundError):
            await engine.list_steps("old")


async def test_then_once_a_minute(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock, retention=timedelta(days=1)) as engine:
        await engine.run(acting("a"), id="a")
        clock.advance(DAY_S - 1)
        await engine.run(acting("b"), id="b")
        assert await ids(engine) == ["a", "b"]
        await until_gone(engine, "a", lambda: clock.advance(30))
        assert (await ids(engine))[:1] != ["a"]
        await until_gone(engine, "b", lambda: clock.advance(30))


async def test_many_are_removed_in_few_commits(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock) as engine:
        async with asyncio.TaskGroup() as runs:
            for number in range(250):
                runs.create_task(engine.run(acting("a"), id=f"run {number}"))
        clock.advance(DAY_S)
    async with opened(path, clock, retention=1) as engine:
        async with asyncio.timeout(WAIT_S_MAX):
            while await ids(engine):
                pass
        assert engine.statistics().commits < 50


async def test_by_default_runs_are_kept(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock) as engine:
        await engine.run(acting("a"), id="a")
    clock.advance(10_000 * DAY_S)
    async with opened(path, clock) as engine:
        clock.advance(120)
        await engine.run(acting("a"), id="b")
        assert await ids(engine) == ["a", "b"]


async def test_a_restarted_run_is_kept(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock, retention=DAY_S) as engine:
        await engine.run(acting("a"), id="a")
        clock.advance(DAY_S - 1)
        await engine.restart("a")
        await engine.get("a").result(timeout=WAIT_S_MAX)
        await engine.run(acting("a"), id="marker")
        clock.advance(61)
        await engine.run(acting("a"), id="another")
        assert await ids(engine) == ["a", "marker", "another"]


@pytest.mark.parametrize(("retention", "error"), [(-1, ValueError), ("1d", TypeError)])
def test_a_retention_is_a_time(
    path: Path,
    retention: Any,  # noqa: ANN401  anything
    error: type[Exception],
) -> None:
    with pytest.raises(error, match="retention"):
        Engine(path, retention=retention)
