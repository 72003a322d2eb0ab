"""Races decided by schedule: every order of what others do and of what the journal is asked.

See ``interleavings`` for how they are played. Each test says how many schedules there are, so that
one which has lost some of its orders fails, and which outcomes: more than one, or there is no race.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from interleavings import UNKNOWN, Act, Exploration, Stage, explore, held, quick
from waiting import WAIT_S_MAX

import durable
from durable import (
    EventId,
    RunCanceled,
    RunFailed,
    RunFinishedError,
    RunNotFinishedError,
    RunNotFoundError,
    RunState,
    RunStatus,
    Step,
    StepInfo,
    StepState,
)

pytestmark = pytest.mark.exhaustive

MEMORY, PARKED = 10.0, 86400.0
"""How long the wait is: with a run that stays in memory, and with one that leaves it."""
LONG_S = 10 * 86400.0
RUN = "run"


@pytest.fixture(autouse=True)
def _no_blocking_calls() -> None:
    """Other tests look for these: here, looking would take as long as all else."""


COMPLETED, CANCELED, FAILED = RunState.COMPLETED, RunState.CANCELED, RunState.FAILED


# --- what is raced with ---------------------------------------------------------------------------


@durable.workflow
async def working(_step: Step) -> int:
    return await held("work")


@durable.workflow
async def working_on(_step: Step) -> int:
    await held("work")
    return await quick("more")


@durable.workflow
async def cleaning_up(_step: Step) -> int:
    try:
        return await held("work")
    finally:
        await quick("clean")


@durable.workflow
async def asking(step: Step, nap_s: float) -> list[str]:
    """Wait for an event; if it is late, for as long as it takes."""
    await held("before")
    try:
        return ["in time", await step.wait_event("it", timeout=nap_s)]
    except TimeoutError:
        return ["late", await step.wait_event("it", timeout=LONG_S)]


@durable.workflow
async def asking_once(step: Step) -> str:
    try:
        return str(await step.wait_event("it", timeout=PARKED))
    except TimeoutError:
        return "late"


@durable.workflow
async def calling(_step: Step) -> int:
    return await working()


@durable.workflow
async def side_by_side(_step: Step) -> list[int]:
    return list(await asyncio.gather(held("a"), held("b"), held("c")))


# --- what has to hold in the end ------------------------------------------------------------------


async def see_end(stage: Stage, run_id: str = RUN) -> tuple[RunStatus, list[StepInfo]]:
    """Return how a run has ended and its steps, having seen that everybody is told the same."""
    stage.end_all()
    run: durable.Run[Any] = stage.engine.get(run_id)
    value, told = None, COMPLETED
    try:
        value = await run.result(timeout=WAIT_S_MAX)
    except RunCanceled:
        told = CANCELED
    except RunFailed:
        told = FAILED
    status = await run.status()
    assert (status.state, status.result) == (told, value)
    assert status.finished_at is not None
    assert not status.running
    steps = [step async for step in run.steps()]
    assert all(step.state.is_final and step.finished_at is not None for step in steps), steps
    assert await run.cancel() is False
    return status, steps


async def check_cancels(state: RunState, *cancels: Act) -> str:
    """See that who cancelled was told what became of it; return that, in words."""
    answers = [await cancel.told() for cancel in cancels]
    assert set(answers) <= {True, False, UNKNOWN}, answers
    if state is COMPLETED:
        assert True not in answers, "cancelled, but completed"
    elif UNKNOWN not in answers:
        assert True in answers, "nobody has cancelled it"
    return f"{state}, cancels: {answers}"


def nothing_begins_after(stage: Stage, asked: Act, name: str) -> Callable[[], None]:
    """Return what checks that no action of that name begins once a cancel was acknowledged."""
    counts: list[int] = []

    def watch() -> None:
        if asked.outcome is True:
            counts.append(len(stage.attempts_of(name)))
            assert counts[-1] == counts[0], f"{name} began after the cancel"

    return watch


def was_seen(found: Exploration, *outcomes: str) -> bool:
    """Return whether each of these is a part of one of the outcomes."""
    return all(any(outcome in str(each) for each in found.outcomes) for outcome in outcomes)


# --- cancel and completion ------------------------------------------------------------------------


def crash_or_cancel(stage: Stage, asked: Act, name: str, run_id: str, *, crashes: bool) -> Act:
    """Have the process die, or else that run cancelled, too; return that cancel, or the first."""
    if crashes:
        stage.act_crash()
        return asked
    return stage.act(name, lambda: stage.engine.cancel(run_id))


async def cancel_and_completion(
    stage: Stage,
    *,
    workflow: Callable[[], durable.Call[Any]],
    crashes: bool = False,
    interrupt: bool = False,
) -> str:
    engine = await stage.open()
    await engine.start(workflow(), id=RUN)
    await stage.settle()
    asked = stage.act("cancel", lambda: stage.engine.cancel(RUN, interrupt=interrupt))
    asked_again = crash_or_cancel(stage, asked, "cancel again", RUN, crashes=crashes)
    stage.act_end("work")
    stage.watchers.append(nothing_begins_after(stage, asked, "more"))
    stage.watchers.append(nothing_begins_after(stage, asked, "work"))
    await stage.interleave()

    status, steps = await see_end(stage)
    assert len(stage.attempts_of("work")) == 1 or crashes
    if status.state is COMPLETED:
        assert {step.state for step in steps} == {StepState.COMPLETED}
    answers = await check_cancels(status.state, asked, asked_again)
    if workflow is cleaning_up:
        # A cancel that comes while it cleans up after the end of its work ends that, too.
        clean = steps[-1].state is StepState.COMPLETED and bool(stage.attempts_of("clean"))
        assert clean or status.state is CANCELED
        assert len(stage.attempts_of("clean")) <= 1 or crashes
        return f"{clean} {answers}"
    return answers


@pytest.mark.slow
@pytest.mark.parametrize("interrupt", [False, True], ids=["finishing", "interrupted"])
@pytest.mark.parametrize("workflow", [working, working_on, cleaning_up], ids=lambda it: it.name)
async def test_cancel_and_completion(
    tmp_path: Path, workflow: Callable[[], durable.Call[Any]], *, interrupt: bool
) -> None:
    scenario = partial(cancel_and_completion, workflow=workflow, interrupt=interrupt)
    found = await explore(tmp_path, scenario)
    assert was_seen(found, "completed, cancels: [False, False]", "[True, False]", "[False, True]")
    assert found.schedules >= 50


@pytest.mark.slow
@pytest.mark.parametrize("workflow", [working, working_on, cleaning_up], ids=lambda it: it.name)
async def test_cancel_and_completion_and_crash(
    tmp_path: Path, workflow: Callable[[], durable.Call[Any]]
) -> None:
    scenario = partial(cancel_and_completion, workflow=workflow, crashes=True)
    found = await explore(tmp_path, scenario)
    assert was_seen(found, "completed, cancels: [False", "canceled, cancels: [True", "unknown")
    assert found.schedules >= 50


# --- event and wait and time-out and cancel -------------------------------------------------------


async def event_and_wait(
    stage: Stage,
    *,
    waits: bool = False,
    passes: bool = False,
    cancels: bool = False,
    crashes: bool = False,
    nap_s: float = MEMORY,
) -> str:
    engine = await stage.open()
    await engine.start(asking(nap_s), id=RUN)
    await stage.settle()
    if not waits:
        stage.end_all()
        await stage.settle()
    if nap_s > MEMORY:
        stage.clock.advance(60)
        await stage.settle()
        assert not stage.is_live(RUN)
    stage.act_end("before", when=lambda: stage.is_live(RUN))
    sent = stage.act("send", lambda: stage.engine.send_event(RUN, "it", "sent"))
    was_sent = False

    def let_time_pass() -> None:
        nonlocal was_sent
        was_sent = isinstance(sent.outcome, EventId)
        stage.clock.advance(nap_s)

    if passes:
        stage.act("time passes", let_time_pass, when=lambda: not stage.running("before"))
    asked = stage.act("cancel", lambda: stage.engine.cancel(RUN)) if cancels else None
    if crashes:
        stage.act_crash()
    await stage.interleave(at_once=nap_s == MEMORY and not crashes)

    answer = await sent.told()
    if answer == UNKNOWN:
        with contextlib.suppress(RunFinishedError):
            await stage.engine.send_event(RUN, "it", "again")
        status, steps = await see_end(stage)
        events = (await stage.image()).events
        assert [event.step_number for event in events] in ([steps[-1].number], [1, None], [2, None])
        return f"unknown {status.result}"
    status, steps = await see_end(stage)
    consumed = [event.step_number for event in (await stage.image()).events]
    if isinstance(answer, RunFinishedError):
        assert not consumed
        words = "refused"
    elif status.state is COMPLETED:
        words, value = status.result
        assert value == "sent"
        assert words == "in time" or not was_sent, "it was acknowledged before the time was up"
        assert consumed == [steps[-1].number]
        assert steps[-1].event_id == str(answer)
    else:
        assert isinstance(answer, EventId)
        assert consumed == [None]
        words = "kept"
    return words if asked is None else f"{words} {await check_cancels(status.state, asked)}"


@pytest.mark.slow
async def test_event_and_wait_and_timeout(tmp_path: Path) -> None:
    scenario = partial(event_and_wait, waits=True, passes=True, nap_s=MEMORY)
    found = await explore(tmp_path, scenario)
    assert was_seen(found, "in time", "late")
    assert found.schedules >= 25


@pytest.mark.slow
async def test_event_and_wait_and_cancel(tmp_path: Path) -> None:
    scenario = partial(event_and_wait, waits=True, cancels=True, nap_s=MEMORY)
    found = await explore(tmp_path, scenario)
    assert was_seen(found, "in time completed", "refused canceled", "kept canceled")
    assert found.schedules >= 200


@pytest.mark.slow
async def test_event_and_timeout_and_cancel(tmp_path: Path) -> None:
    scenario = partial(event_and_wait, passes=True, cancels=True)
    found = await explore(tmp_path, scenario)
    assert was_seen(found, "in time completed", "late completed", "refused", "kept canceled")
    assert found.schedules >= 300


@pytest.mark.slow
async def test_event_and_timeout_of_a_run_that_left_memory(tmp_path: Path) -> None:
    found = await explore(tmp_path, partial(event_and_wait, passes=True, nap_s=PARKED))
    assert was_seen(found, "in time", "late")
    assert found.schedules >= 100


@pytest.mark.slow
@pytest.mark.parametrize("first", ["send", "cancel"])
async def test_event_and_cancel_of_a_run_that_left_memory(tmp_path: Path, first: str) -> None:
    scenario = partial(event_and_wait, cancels=True, nap_s=PARKED)
    found = await explore(tmp_path, scenario, first=first)
    assert was_seen(found, "in time completed", "kept canceled")
    assert was_seen(found, "refused canceled") or first == "send"
    assert found.schedules >= {"send": 600, "cancel": 400}[first]


@pytest.mark.slow
async def test_event_and_timeout_and_crash(tmp_path: Path) -> None:
    scenario = partial(event_and_wait, passes=True, crashes=True)
    found = await explore(tmp_path, scenario)
    assert was_seen(found, "in time", "late", "unknown ['in time', 'sent']", "again")
    assert found.schedules >= 250


async def timeout_and_cancel(stage: Stage, *, crashes: bool) -> str:
    """The end of the wait is the end of the run, which is not in memory when it comes."""
    engine = await stage.open()
    await engine.start(asking_once(), id=RUN)
    await stage.settle()
    stage.clock.advance(60)
    await stage.settle()
    assert not stage.is_live(RUN)
    stage.act("time passes", partial(stage.clock.advance, PARKED))
    asked = stage.act("cancel", lambda: stage.engine.cancel(RUN))
    if crashes:
        stage.act_crash()
    await stage.interleave(at_once=not crashes)
    status, _ = await see_end(stage)
    return await check_cancels(status.state, asked)


@pytest.mark.slow
@pytest.mark.parametrize("crashes", [False, True], ids=["alive", "crashing"])
async def test_timeout_and_cancel_of_a_run_that_left_memory(
    tmp_path: Path, *, crashes: bool
) -> None:
    found = await explore(tmp_path, partial(timeout_and_cancel, crashes=crashes))
    assert was_seen(found, "completed, cancels: [False]", "canceled, cancels: [True]")
    assert found.schedules >= (250 if crashes else 35)


@pytest.mark.slow
async def test_the_schedules_that_are_left_out_come_to_nothing_else(tmp_path: Path) -> None:
    scenario = partial(timeout_and_cancel, crashes=False)
    reduced = await explore(tmp_path, scenario)
    complete = await explore(tmp_path, scenario, is_reduced=False)
    assert set(complete.outcomes) == set(reduced.outcomes)
    assert complete.schedules > reduced.schedules > 1
    assert complete.covered == 0


# --- child completion and parent cancel -----------------------------------------------------------


async def child_and_cancel(stage: Stage, *, crashes: bool = False) -> str:
    engine = await stage.open()
    await engine.start(calling(), id=RUN)
    await stage.settle()
    (call,) = (await engine.status(RUN)).running
    child_id = call.child_run_id
    assert child_id is not None
    asked = stage.act("cancel parent", lambda: stage.engine.cancel(RUN))
    child_asked = crash_or_cancel(stage, asked, "cancel child", child_id, crashes=crashes)
    stage.act_end("work")
    await stage.interleave()

    status, (call,) = await see_end(stage)
    child, (work,) = await see_end(stage, child_id)
    answers = [await asked.told(), await child_asked.told()]
    if status.state is CANCELED:
        assert answers[0] in (True, UNKNOWN)
        assert call.state is StepState.CANCELED
        assert child.state in (CANCELED, COMPLETED)
    else:
        assert answers[0] in (False, UNKNOWN)
        assert (call.state is StepState.COMPLETED) == (status.state is COMPLETED)
        assert child.state is (COMPLETED if status.state is COMPLETED else CANCELED)
        assert status.result == child.result
    if child.state is COMPLETED:
        assert work.state is StepState.COMPLETED
        assert crashes or answers[1] is False
    else:
        assert answers[1] is True or status.state is CANCELED
    return f"parent {status.state}, child {child.state}, cancels: {answers}"


@pytest.mark.slow
@pytest.mark.parametrize("is_sliced", [False, True], ids=["one slice", "slices"])
async def test_child_completion_and_parent_cancel(tmp_path: Path, *, is_sliced: bool) -> None:
    found = await explore(tmp_path, child_and_cancel, is_sliced=is_sliced)
    assert was_seen(
        found,
        "parent completed, child completed",
        "parent canceled, child completed",
        "parent canceled, child canceled",
        "parent failed, child canceled",
    )
    assert found.schedules >= (250 if is_sliced else 180)


@pytest.mark.slow
async def test_child_completion_and_parent_cancel_and_crash(tmp_path: Path) -> None:
    found = await explore(tmp_path, partial(child_and_cancel, crashes=True))
    assert was_seen(
        found,
        "parent completed, child completed",
        "parent canceled, child completed",
        "parent canceled, child canceled",
    )
    assert found.schedules >= 100


# --- restart and late result ----------------------------------------------------------------------


async def restart_and_late_result(stage: Stage, *, crashes: bool = False) -> str:
    stage.rules = None  # Attempts are counted from 1 again.
    engine = await stage.open()
    await engine.start(working(), id=RUN)
    await stage.settle()
    seen: set[str] = set()
    stage.watchers.append(lambda: seen.add("side by side" if len(stage.running()) > 1 else ""))
    asked = stage.act("cancel", lambda: stage.engine.cancel(RUN))
    again = stage.act(
        "restart",
        lambda: stage.engine.restart(RUN, from_step=0),
        when=lambda: asked.outcome is True or not crashes,
    )
    stage.act_end("work")
    if crashes:
        stage.act_crash()
    await stage.interleave(at_once=False)

    restarted = await again.told()
    status, steps = await see_end(stage)
    if isinstance(restarted, RunNotFinishedError):
        assert status.generation == 0
    elif restarted != UNKNOWN:
        assert status.generation == 1
    if status.state is COMPLETED:
        # The attempt of this generation, never the one before it.
        first = 1 if status.generation == 0 else 2
        assert first <= status.result <= (len(stage.attempts) if crashes else first)
        assert steps[-1].result == status.result
    if not crashes:
        assert len(stage.attempts) <= status.generation + 1
    words = "restarted" if status.generation else "refused"
    return f"{words} {status.state} {await asked.told()} {''.join(sorted(seen))}"


@pytest.mark.slow
async def test_restart_and_late_result(tmp_path: Path) -> None:
    found = await explore(tmp_path, restart_and_late_result)
    assert was_seen(found, "refused canceled", "restarted completed True side by side")
    assert was_seen(found, "restarted canceled", "refused completed", "restarted completed False")
    assert found.schedules >= 350


@pytest.mark.slow
async def test_restart_and_late_result_and_crash(tmp_path: Path) -> None:
    found = await explore(tmp_path, partial(restart_and_late_result, crashes=True))
    assert was_seen(found, "refused", "restarted completed True")
    assert found.schedules >= 100


# --- cleanup and late result ----------------------------------------------------------------------


async def cleanup_and_late_result(stage: Stage, *, force: bool) -> str:
    stage.rules = None  # What is removed is no witness.
    engine = await stage.open()
    run = await engine.start(working(), id=RUN)
    waiting = asyncio.create_task(run.result(timeout=WAIT_S_MAX))
    await stage.settle()
    asked = stage.act("cancel", run.cancel)
    removed = stage.act("clean up", partial(run.cleanup, force=force))
    stage.act_end("work")
    await stage.interleave()

    answers = [await asked.told(), await removed.told()]
    stage.end_all()
    await asyncio.wait([waiting])
    told = waiting.exception() or waiting.result()
    if answers[1]:
        with pytest.raises(RunNotFoundError):
            await run.status()
        image = await stage.image()
        assert not image.runs
        assert not image.steps
        words = "removed"
        assert isinstance(told, RunNotFoundError | RunCanceled) or told == 1
        assert answers[0] in (True, False) or isinstance(answers[0], RunNotFoundError)
    else:
        assert not force
        status, _ = await see_end(stage)
        assert answers[0] is (status.state is CANCELED)
        assert isinstance(told, RunCanceled) == (status.state is CANCELED)
        words = f"kept {status.state}"
    return f"{words}, cancel: {answers[0]!r:.20}, result: {told!r:.20}"


@pytest.mark.slow
@pytest.mark.parametrize("force", [False, True], ids=["finished", "forced"])
async def test_cleanup_and_late_result(tmp_path: Path, *, force: bool) -> None:
    found = await explore(tmp_path, partial(cleanup_and_late_result, force=force))
    assert was_seen(found, "removed, cancel: True", "removed, cancel: False")
    if not force:
        assert was_seen(found, "kept completed", "kept canceled")
    assert found.schedules >= (400 if force else 300)


# --- set_max_parallelism and recovery -------------------------------------------------------------


async def parallelism_and_recovery(stage: Stage, *, opened_with: int) -> str:
    engine = await stage.open(max_parallelism=2)
    await engine.start(side_by_side(), id=RUN)
    await stage.settle()
    assert [attempted.name for attempted in stage.running()] == ["a", "b"]
    await stage.crash()
    stage.hold_from_now()
    await stage.open(max_parallelism=opened_with)

    limits = [opened_with]
    begun_before = len(stage.attempts)
    used = [0]

    def set_limit(count: int) -> None:
        limits.append(count)
        stage.engine.set_max_parallelism(count)

    def watch() -> None:
        """Slots that are taken are never more than there are, unless there were more before."""
        now = stage.engine.statistics().running_actions
        assert len(stage.running()) <= now
        assert now <= max(*limits, used[0]), f"{now} run, {limits} may"
        used[0] = now
        del limits[:-1]
        names = [attempted.name for attempted in stage.attempts[begun_before:]]
        assert names == sorted(names), "not first in, first out"

    stage.watchers.append(watch)
    stage.act("set 0", partial(set_limit, 0))
    stage.act("set 3", partial(set_limit, 3))
    stage.act_end("a", nth=2)
    await stage.interleave()
    names = "".join(attempted.name for attempted in stage.attempts[begun_before:])
    words = f"at {limits[-1]}: {names}"
    if limits[-1]:
        assert names == "abc", "raised, and not woken"
    stage.engine.set_max_parallelism(25)
    await see_end(stage)
    return words


@pytest.mark.slow
@pytest.mark.parametrize("opened_with", [0, 1, 2])
async def test_parallelism_and_recovery(tmp_path: Path, opened_with: int) -> None:
    found = await explore(tmp_path, partial(parallelism_and_recovery, opened_with=opened_with))
    assert was_seen(found, "at 0: ", "at 3: abc")
    assert found.schedules >= (25 if opened_with == 0 else 60)
