"""Runs whose workflow the code does not have: they wait, say so, and go on when it comes."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from clock import ManualClock
from waiting import until_open, until_state

import durable
from durable import Engine, RunState, Step, StepState, registry
from durable.core.records import RunRecord
from durable.journal.base import Change
from durable.journal.sqlite import SqliteJournal


@durable.action
async def echo(value: object) -> object:
    return value


@durable.workflow
async def fine(_step: Step) -> object:
    return await echo("fine")


@durable.workflow
async def napping(step: Step, text: str) -> str:
    await step.sleep(60)
    return text


@durable.workflow(name="test_missing_code:napping", version=1)
async def napping_v1(step: Step, text: str) -> str:
    await step.sleep(60)
    return text + " v1"


Forget = Callable[[Any], None]


@pytest.mark.parametrize("workflow", [napping, napping_v1])
@pytest.mark.parametrize("defined", ["while open", "in a thread", "before the next opening"])
@pytest.mark.parametrize("delayed", [False, True])
async def test_a_run_without_its_code_waits_and_says_so(
    workflow: Any,  # noqa: ANN401
    defined: str,
    delayed: bool,
    path: Path,
    forget: Forget,
) -> None:
    clock, engine = ManualClock(), Engine(path)
    clock.install(engine)
    async with engine:
        run = await engine.start(workflow("slept"), id="r", run_after=60 if delayed else None)
        if not delayed:
            await until_open(run)
    forget(workflow)
    clock.advance(60)
    async with engine:
        status = await until_state(run, RunState.STUCK)
        assert status.error is not None
        assert "the code has no workflow 'test_missing_code:napping'" in status.error.message
        assert ("version 1" in status.error.message) == (workflow is napping_v1)
        assert "Import the module that defines it; the run then goes on" in status.error.message
        assert await engine.run(fine()) == "fine"
        waiter = asyncio.create_task(run.result())
        if defined == "while open":
            registry.register(workflow)
        elif defined == "in a thread":
            await asyncio.to_thread(registry.register, workflow)
        else:
            waiter.cancel()
        if not waiter.cancelling():
            if delayed:
                await until_open(run)
                clock.advance(60)
            assert await asyncio.wait_for(waiter, 5) == workflow_result(workflow)
    if defined == "before the next opening":
        async with engine:
            await until_state(run, RunState.STUCK)
        registry.register(workflow)
        async with engine:
            if delayed:
                await until_open(run)
                clock.advance(60)
            assert await run.result(timeout=5) == workflow_result(workflow)
    async with engine:
        status = await run.status()
        assert (status.state, status.error) == (RunState.COMPLETED, None)
        assert [step.state async for step in run.steps()] == [StepState.COMPLETED]


def workflow_result(workflow: Any) -> str:  # noqa: ANN401
    return "slept v1" if workflow is napping_v1 else "slept"


async def test_a_run_interrupted_in_its_work_waits_for_its_code_too(
    path: Path, forget: Forget
) -> None:
    async with Engine(path, max_parallelism=0) as engine:
        run = await engine.start(fine(), id="r")
    forget(fine)
    async with Engine(path) as engine:
        run = engine.get("r")
        await until_state(run, RunState.STUCK)
        registry.register(fine)
        assert await run.result(timeout=5) == "fine"


async def test_code_that_comes_while_its_absence_is_committed_is_not_missed(
    path: Path, forget: Forget, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Engine(path, max_parallelism=0) as engine:
        await engine.start(fine(), id="r")
    forget(fine)
    commit = SqliteJournal.commit

    async def commit_and_define(
        journal: SqliteJournal, changes: Sequence[Change]
    ) -> dict[str, RunRecord]:
        taken = await commit(journal, changes)
        if any(change.run and change.run.state is RunState.STUCK for change in changes):
            registry.register(fine)
            await asyncio.sleep(0)  # The engine hears of it before it hears of the commit.
        return taken

    monkeypatch.setattr(SqliteJournal, "commit", commit_and_define)
    async with Engine(path) as engine:
        assert await engine.get("r").result(timeout=5) == "fine"
