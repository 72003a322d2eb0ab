"""A cancel and something else at the same time: one outcome, which everybody is told."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from clock import ManualClock
from cycles import at_cycle
from faults import MONTH_S, Disk, cancel_while_claiming, opened
from waiting import WAIT_S_MAX, until, until_open, until_parked, until_state, until_step
from world import echo, gated, new_world, world

import durable
from durable import (
    Engine,
    Retry,
    RunCanceled,
    RunState,
    Step,
    StepState,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

HOUR_S = 3600.0
NAP_S = 10.0
CYCLES = 40
"""More cycles of the loop than any of these takes from its beginning to its end."""

ACTS_IN_CYCLE = 2
"""When what races with the cancel happens."""


@durable.action(retry=Retry(max_attempts=3, initial_backoff=0, jitter=False))
async def failing_twice(text: str) -> str:
    world.begun[text] += 1
    await world.may_end.wait()
    if durable.attempt().number < 3:
        raise LookupError(text)
    return text


@durable.workflow
async def working(_step: Step) -> str:
    return await gated("work")


@durable.workflow
async def working_on(_step: Step) -> str:
    await gated("work")
    return await echo("more")


@durable.workflow
async def retrying(_step: Step) -> str:
    return await failing_twice("work")


@durable.workflow
async def napping(step: Step) -> str:
    world.begun["work"] += 1
    await step.sleep(NAP_S)
    return await echo("more")


@durable.workflow
async def napping_for_long(step: Step) -> str:
    world.begun["work"] += 1
    await step.sleep(MONTH_S)
    return await echo("more")


@durable.workflow
async def cleaning_up(step: Step) -> None:
    world.begun["work"] += 1
    try:
        await step.sleep(NAP_S)
    finally:
        await echo("clean")
        await step.sleep(NAP_S)
        await echo("clean again")


async def check_one_outcome(engine: Engine, run_id: str, asked: object) -> RunState:
    """Check that everybody is told the same, that it is what the journal has, and that it is all.

    Args:
        asked: What the cancel came to; ``None`` when nobody knows.
    """
    run = engine.get(run_id)
    try:
        await run.result(timeout=WAIT_S_MAX)
    except RunCanceled:
        told = RunState.CANCELED
    else:
        told = RunState.COMPLETED
    assert (await run.status()).state is told
    if asked is not None:
        assert told is (RunState.CANCELED if asked else RunState.COMPLETED), asked
    steps = [step async for step in run.steps()]
    assert all(step.state.is_final and step.finished_at is not None for step in steps), steps
    if told is RunState.COMPLETED:
        assert {step.state for step in steps} == {StepState.COMPLETED}
    assert await run.cancel() is False
    world.may_end.set()
    await check_nothing_is_left(engine)
    return told


async def check_nothing_is_left(engine: Engine) -> None:
    runner = engine._runner
    assert runner is not None
    await until(lambda: runner.pool.is_settled and runner.live_runs_count == 0)
    await until(lambda: runner.pool.running_count == 0)
    assert engine.statistics().queued_actions == 0
    control = runner.control
    assert not control._acks
    assert control._told._by_run == control._gone._by_run == {}
    assert runner.ends._waiters._by_run == {}


@contextmanager
def cancelling_at(
    cycle: int, run: durable.Run[Any]
) -> Generator[list[asyncio.Task[bool]], None, None]:
    """Ask for a cancel in that cycle of the loop from here; what is yielded then has its task."""
    asking: list[asyncio.Task[bool]] = []
    with at_cycle(cycle, lambda: asking.append(asyncio.create_task(run.cancel()))):
        yield asking


# --- something happens to the run ----------------------------------------------------------------


def end_the_action(_clock: ManualClock) -> None:
    world.may_end.set()


def let_time_pass(clock: ManualClock) -> None:
    clock.advance(NAP_S)


RACES: list[tuple[Callable[[], durable.Call[str]], Callable[[ManualClock], None]]] = [
    (working, end_the_action),
    (working_on, end_the_action),
    (retrying, end_the_action),
    (napping, let_time_pass),
]


@pytest.mark.slow
@pytest.mark.both_loops
@pytest.mark.parametrize(
    ("workflow", "act"),
    RACES,
    ids=lambda item: getattr(item, "__name__", str(item).split(":")[-1].removesuffix("'>")),
)
async def test_whoever_comes_first_decides(
    path: Path, workflow: Callable[[], durable.Call[str]], act: Callable[[ManualClock], None]
) -> None:
    """The cancel is asked in each cycle of the loop, from before the other comes to its end."""
    clock = ManualClock()
    told: list[RunState] = []
    async with opened(path, clock) as engine:
        for cycle in count():
            new_world()
            run = await engine.start(workflow(), id=f"{cycle}")
            await until(lambda: world.begun)
            await until_open(run)
            with cancelling_at(cycle, run) as asking:
                for _ in range(ACTS_IN_CYCLE):
                    await asyncio.sleep(0)
                act(clock)
                result = asyncio.create_task(run.result())
                await asyncio.wait([result], timeout=WAIT_S_MAX)
                assert result.done()
                result.exception()
            if not asking:
                break
            async with asyncio.timeout(WAIT_S_MAX):
                asked = await asking[0]
            told.append(await check_one_outcome(engine, run.id, asked))
        assert told[:ACTS_IN_CYCLE] == [RunState.CANCELED] * ACTS_IN_CYCLE
        assert told[-1] is RunState.COMPLETED


@pytest.mark.slow
@pytest.mark.both_loops
async def test_a_second_cancel_does_nothing_at_any_moment_of_a_reopening(path: Path) -> None:
    """While the journal is read, while the run is replayed, and once its clean-up goes on."""
    for cycle in range(CYCLES):
        clock = ManualClock()
        new_world()
        file = path.with_name(f"{cycle}.db")
        async with opened(file, clock) as engine:
            run = await engine.start(cleaning_up(), id="it")
            await until_step(run, "sleep", StepState.RUNNING)
            assert await run.cancel()
            await until_step(run, "sleep", StepState.RUNNING)
        engine = Engine(file)
        clock.install(engine)
        async with engine:
            with cancelling_at(cycle, engine.get("it")) as asking:
                while not asking:  # noqa: ASYNC110  so many cycles
                    await asyncio.sleep(0)
            async with asyncio.timeout(WAIT_S_MAX):
                assert await asking[0] is True
            await until_state(engine.get("it"), RunState.CANCELING)
            await until_step(engine.get("it"), "sleep", StepState.RUNNING)
            clock.advance(NAP_S)
            with pytest.raises(RunCanceled):
                await engine.get("it").result(timeout=WAIT_S_MAX)
            assert world.begun["clean"] == world.begun["clean again"] == 1
            await check_nothing_is_left(engine)


@durable.action
async def owed(_completion: durable.Completion) -> None:
    world.begun["owed"] += 1


# --- the run comes from the journal, or goes there -----------------------------------------------


@pytest.mark.parametrize("kind", ["parked", "delayed"])
async def test_a_cancel_that_meets_a_claim_is_told_to_the_body_or_ends_it(
    path: Path, disk: Disk, kind: str
) -> None:
    """It was asked while the run was in the journal, and is written when the run is in memory."""
    clock = ManualClock()
    async with opened(path, clock) as engine:
        if kind == "parked":
            run = await engine.start(napping_for_long(), id="it")
            await until(lambda: world.begun)
            await until_parked(engine)
        else:
            run = await engine.start(working(), id="it", run_after=MONTH_S, on_complete=owed)
        asked = await cancel_while_claiming(engine, clock, disk, run)
        await check_one_outcome(engine, "it", asked)
        assert "more" not in world.begun
        if kind == "delayed":
            await until(lambda: world.begun)
            await until_parked(engine)
            assert world.begun == {"owed": 1}, "once, though the run was about to be ended twice"
            assert [step async for step in run.steps()] == []


@pytest.mark.slow
@pytest.mark.parametrize("workflow", [napping_for_long, napping])
async def test_a_cancel_finds_a_run_that_is_about_to_leave_memory(
    path: Path, workflow: Callable[[], durable.Call[str]]
) -> None:
    """It is asked in each cycle from the start on: first it is in memory, then in the journal."""
    async with opened(path, ManualClock()) as engine:
        for cycle in range(CYCLES):
            new_world()
            run_id = f"{workflow().definition.name}-{cycle}"
            run = await engine.start(workflow(), id=run_id)
            with cancelling_at(cycle, run) as asking:
                while not asking:  # noqa: ASYNC110  so many cycles
                    await asyncio.sleep(0)
            async with asyncio.timeout(WAIT_S_MAX):
                assert await asking[0] is True
            await check_one_outcome(engine, run_id, asked=True)


@durable.workflow
async def answering(step: Step) -> object:
    return await step.wait_event("it")


async def test_a_cancel_that_has_read_what_is_old_by_now_reads_again(path: Path) -> None:
    """The run was asleep; before the read is answered it has come back, and has ended."""
    clock, may_answer = ManualClock(), asyncio.Event()
    async with opened(path, clock) as engine:
        run = await engine.start(answering())
        await until_open(run)
        clock.advance(MONTH_S)
        await until_parked(engine)
        journal: Any = engine._journal
        load, found = journal.load_status, list[Any]()

        async def load_slowly(run_id: str) -> Any:  # noqa: ANN401
            found.append(await load(run_id))
            await may_answer.wait()
            return found[0]

        journal.load_status = load_slowly
        canceling = asyncio.create_task(run.cancel())
        await until(lambda: found)
        await run.send_event("it", "answer")
        assert await run.result(timeout=WAIT_S_MAX) == "answer"
        await until_parked(engine)
        journal.load_status = load
        may_answer.set()
        assert await canceling is False
        status = await run.status()
        assert (status.state, status.result) == (RunState.COMPLETED, "answer")
        assert [step.name async for step in run.steps()] == ["it"]


async def test_a_removal_is_not_acknowledged_by_the_commit_of_a_cancel(path: Path) -> None:
    """Both were asked of one run at the same time, and are written one after the other."""
    clock, turns = ManualClock(), asyncio.Semaphore(0)
    async with opened(path, clock) as engine:
        run = await engine.start(napping_for_long())
        await until(lambda: world.begun)
        await until_parked(engine)
        journal: Any = engine._journal
        commit, committing = journal.commit, list[Any]()

        async def commit_in_turn(changes: Any) -> Any:  # noqa: ANN401
            committing.append(changes)
            await turns.acquire()
            return await commit(changes)

        journal.commit = commit_in_turn
        canceling = asyncio.create_task(run.cancel())
        await until(lambda: len(committing) == 1)
        removing = asyncio.create_task(run.cleanup(force=True))
        assert engine._runner is not None
        writer = engine._runner.writer
        await until(lambda: bool(writer._pending))
        turns.release()
        assert await canceling is True
        await until(lambda: len(committing) == 2)
        for _ in range(CYCLES):
            await asyncio.sleep(0)
        assert not removing.done()
        journal.commit = commit
        turns.release()
        assert await removing is True
        assert await engine.get(run.id).cleanup() is False, "there is none any more"
