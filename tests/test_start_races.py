"""Starts with one id, at one time."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from waiting import WAIT_S_MAX

import durable
from durable import Engine, Run, RunConflictError, Step
from durable.core.records import RunRecord

STARTS = 50

begun: Counter[str] = Counter()


@durable.action
async def reserve(item: str, left: int) -> int:
    return left - len(item)


@durable.workflow
async def ordering(step: Step, item: str, left: int = 5) -> int:
    begun[step.run_id] += 1
    return await reserve(item, left)


async def test_starts_at_one_time_with_one_id_are_one_run(path: Path) -> None:
    async with Engine(path) as engine:
        starts = [engine.start(ordering("a"), id="once") for _ in range(STARTS)]
        runs = await asyncio.gather(*starts)
        assert {run.id for run in runs} == {"once"}
        assert [await run.result(timeout=5) for run in runs] == [4] * STARTS
        assert len([status async for status in engine.iter_runs()]) == 1
        assert begun["once"] == 1


async def test_a_start_that_looked_before_another_was_committed_does_not_start_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it read in the journal, that there is no such run, comes when the run is over."""
    async with Engine(path) as engine:
        journal = engine._journal
        assert journal is not None
        load_run = journal.load_run
        looked = 0
        is_over = asyncio.Event()

        async def load_slowly(run_id: str) -> RunRecord | None:
            nonlocal looked
            looked += 1
            is_late = looked == 2
            found = await load_run(run_id)
            if is_late:
                await is_over.wait()
            return found

        monkeypatch.setattr(journal, "load_run", load_slowly)
        first = asyncio.create_task(engine.start(ordering("a"), id="late"))
        second = asyncio.create_task(engine.start(ordering("a"), id="late"))
        assert await (await first).result(timeout=WAIT_S_MAX) == 4
        is_over.set()
        assert await (await second).result(timeout=WAIT_S_MAX) == 4
        assert begun["late"] == 1
        assert engine.statistics().live_runs == 0


async def test_of_starts_at_one_time_that_differ_one_kind_wins(path: Path) -> None:
    async with Engine(path) as engine:
        starts = [engine.start(ordering("ab"[n % 2]), id="contested") for n in range(STARTS)]
        outcomes = await asyncio.gather(*starts, return_exceptions=True)
        winners = [isinstance(outcome, Run) for outcome in outcomes]
        conflicts = [isinstance(outcome, RunConflictError) for outcome in outcomes]
        assert winners == [n % 2 == 0 for n in range(STARTS)]
        assert conflicts == [n % 2 == 1 for n in range(STARTS)]
        assert (await engine.status("contested")).args == {"item": "a"}
