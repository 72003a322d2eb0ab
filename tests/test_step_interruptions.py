"""What a crash makes of the steps that ran: interrupted, and run again, or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from attempts import World
from faults import crashing
from waiting import WAIT_S_MAX, until, until_step

import durable
from durable import (
    Engine,
    OutcomeUnknown,
    Retry,
    RunFailed,
    Step,
    StepInterrupted,
    StepState,
    Transaction,
)

AT_ONCE = Retry(max_attempts=3, initial_backoff=0)


world = World()


@pytest.fixture(autouse=True)
def _new_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_step_interruptions.world", World())


@durable.action
async def hang() -> str:
    """Hang, but for when the test lets it end."""
    attempt = world.begin()
    await world.may_end.wait()
    return f"{attempt.number} {attempt.interruptions}"


@durable.action(retry=False)
async def hang_at_most_once() -> str:
    world.begin()
    await world.may_end.wait()
    return "done"


@durable.workflow
async def hanging(step: Step, *, retry: bool | None) -> str:
    try:
        return await step.run(hang(), retry=retry)
    except OutcomeUnknown as exc:
        return f"unknown: {exc}"


@durable.workflow(retry=False)
async def hanging_in_a_workflow_without_retries(_: Step) -> str:
    return await hang()


@durable.workflow
async def hanging_at_most_once(step: Step, *, retry: bool | None) -> str:
    try:
        return await step.run(hang_at_most_once(), retry=retry)
    except OutcomeUnknown:
        return "unknown"


async def crash_in(path: Path, call: durable.Call[Any], times: int = 1) -> None:
    for time in range(times):
        async with crashing(path) as engine:
            await engine.start(call, id="it")
            await until(lambda time=time: len(world.attempts) == time + 1)  # type: ignore[misc]


@pytest.mark.parametrize(
    "call", [hanging(retry=None), hanging(retry=True), hanging_in_a_workflow_without_retries()]
)
async def test_an_interrupted_attempt_is_made_again_under_its_number(
    path: Path, call: durable.Call[str]
) -> None:
    """The policy counts tries, not crashes: even where nothing is ever retried."""
    await crash_in(path, call, times=3)
    world.may_end.set()
    async with Engine(path) as engine:
        assert await engine.run(call, id="it") == "1 3"
        (info,) = [step async for step in engine.iter_steps("it")]
    assert info.attempts == 1
    assert [attempt.interruptions for attempt in world.attempts] == [0, 1, 2, 3]
    assert world.numbers == [1, 1, 1, 1]
    assert {attempt.idempotency_key for attempt in world.attempts} == {f"it:{info.key}"}
    assert {attempt.step_key for attempt in world.attempts} == {info.key}


@pytest.mark.parametrize("call", [hanging(retry=False), hanging_at_most_once(retry=None)])
async def test_at_most_once_an_interrupted_step_fails(path: Path, call: durable.Call[str]) -> None:
    await crash_in(path, call)
    world.may_end.set()
    async with Engine(path) as engine:
        assert (await engine.run(call, id="it")).startswith("unknown")
        (info,) = [step async for step in engine.iter_steps("it")]
    assert len(world.attempts) == 1
    assert info.error is not None
    assert info.error.type_name == "durable.OutcomeUnknown"


async def test_the_step_has_the_last_word_about_at_most_once(path: Path) -> None:
    await crash_in(path, hanging_at_most_once(retry=True))
    world.may_end.set()
    async with Engine(path) as engine:
        assert await engine.run(hanging_at_most_once(retry=True), id="it") == "done"
    assert len(world.attempts) == 2


async def test_at_most_once_a_step_that_was_only_queued_is_run(path: Path) -> None:
    async with crashing(path, max_parallelism=0) as engine:
        run = await engine.start(hanging_at_most_once(retry=None), id="it")
        await until_step(run, hang_at_most_once.name, StepState.PENDING)
    world.may_end.set()
    async with Engine(path) as engine:
        assert await engine.get("it").result(timeout=WAIT_S_MAX) == "done"
    assert len(world.attempts) == 1


@durable.mutation
async def hang_in_its_transaction(tx: Transaction) -> str:
    attempt = world.begin()
    await world.may_end.wait()
    return f"{attempt.number} {attempt.interruptions}"


@durable.query
async def hang_in_its_reading(tx: Transaction) -> str:
    attempt = world.begin()
    await world.may_end.wait()
    return f"{attempt.number} {attempt.interruptions}"


@durable.workflow
async def hanging_in_a_transaction(step: Step, *, is_query: bool) -> str:
    return await step.run(
        hang_in_its_reading() if is_query else hang_in_its_transaction(), retry=False
    )


@pytest.mark.parametrize("is_query", [False, True])
async def test_queries_and_mutations_are_never_at_most_once(path: Path, *, is_query: bool) -> None:
    """What they had done was rolled back, so there is no unknown outcome."""
    call = hanging_in_a_transaction(is_query=is_query)
    await crash_in(path, call)
    world.may_end.set()
    async with Engine(path) as engine:
        assert await engine.run(call, id="it") == "1 1"


async def test_a_step_that_is_interrupted_too_often_fails(path: Path) -> None:
    """A poison step would otherwise kill each process that takes the run up."""
    await crash_in(path, hanging_in_a_workflow_without_retries(), times=3)
    async with Engine(path, max_interruptions=2) as engine:
        with pytest.raises(RunFailed) as caught:
            await engine.get("it").result(timeout=WAIT_S_MAX)
    assert isinstance(caught.value.__cause__, StepInterrupted)
    assert "3 times" in str(caught.value.__cause__)
    assert len(world.attempts) == 3


@durable.workflow
async def hanging_in_the_second_attempt(step: Step) -> str:
    return await step.run(fail_then_hang(), retry=AT_ONCE)


@durable.action
async def fail_then_hang() -> str:
    attempt = world.begin()
    if attempt.number == 1:
        raise ValueError
    await world.may_end.wait()
    return f"{attempt.number} {attempt.interruptions}"


async def test_a_crash_in_a_later_attempt_keeps_its_number(path: Path) -> None:
    async with crashing(path) as engine:
        await engine.start(hanging_in_the_second_attempt(), id="it")
        await until(lambda: world.numbers == [1, 2])
    world.may_end.set()
    async with Engine(path) as engine:
        assert await engine.get("it").result(timeout=WAIT_S_MAX) == "2 1"
    assert world.numbers == [1, 2, 2]
