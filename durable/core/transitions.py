"""What a run's or a step's record becomes when something happens to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from durable.core.errors import OutcomeUnknown, StepInterrupted
from durable.core.failures import encode_exception
from durable.core.records import (
    RunRecord,
    RunState,
    StepKind,
    StepRecord,
    StepState,
    advance_run,
    advance_step,
)

if TYPE_CHECKING:
    from durable.core.commands import Command

# By themselves: before Python 3.12 each mention of a member by its class is a slow lookup.
RUNNING = StepState.RUNNING
COMPLETED = StepState.COMPLETED
SLEEP = StepKind.SLEEP

# --- runs ----------------------------------------------------------------------------------------


def begin_run(record: RunRecord, started_at_ms: int, begun_with: int | None) -> RunRecord:
    """The body begins, with those versions."""
    running = advance_run(record.state, RunState.RUNNING)
    return replace(
        record, state=running, started_at_ms=started_at_ms, begun_with=begun_with, error=None
    )


def continue_run(record: RunRecord, *, is_canceled: bool) -> RunRecord:
    """The body goes on: with code that fits again, or after a restart."""
    state = RunState.CANCELING if is_canceled else RunState.RUNNING
    return replace(record, state=advance_run(record.state, state), restarted_from=None, error=None)


def begin_cancel(record: RunRecord) -> RunRecord:
    """The body was cancelled, and cleans up."""
    return replace(record, state=advance_run(record.state, RunState.CANCELING))


def cancel_run(record: RunRecord, now_ms: int) -> RunRecord:
    """The run has ended, because it was cancelled."""
    canceled = advance_run(record.state, RunState.CANCELED)
    return replace(record, state=canceled, error=None, finished_at_ms=now_ms)


def end_run(
    record: RunRecord, *, result: str | None, error: BaseException | None, now_ms: int
) -> RunRecord:
    """The body has ended: with an error, or else with its result as JSON."""
    state = RunState.COMPLETED if error is None else RunState.FAILED
    return replace(
        record,
        state=advance_run(record.state, state),
        result=result,
        error=None if error is None else encode_exception(error),
        finished_at_ms=now_ms,
    )


def make_stuck(record: RunRecord, error: BaseException) -> RunRecord:
    """The body cannot go on with the code as it is."""
    stuck = advance_run(record.state, RunState.STUCK)
    return replace(record, state=stuck, error=encode_exception(error))


# --- steps ---------------------------------------------------------------------------------------


def new_step(command: Command) -> StepRecord:
    """The body has issued a command."""
    return StepRecord(
        number=command.number,
        key=command.key,
        kind=command.kind,
        name=command.name,
        args=command.args,
        due_at_ms=command.due_ms,
    )


def start_timer(step: StepRecord, now_ms: int) -> StepRecord:
    """A timer, or a wait for an event, runs from its issue on."""
    running = advance_step(step.state, RUNNING)
    return replace(step, state=running, started_at_ms=now_ms)


def start_child(step: StepRecord, now_ms: int) -> StepRecord:
    """The step's child is due: it runs until its end."""
    running = advance_step(step.state, RUNNING)
    return replace(step, state=running, due_at_ms=None, started_at_ms=now_ms)


def begin_attempt(step: StepRecord, now_ms: int) -> StepRecord:
    """An attempt begins."""
    return replace(
        step,
        state=advance_step(step.state, RUNNING),
        attempts=step.attempts + 1,
        due_at_ms=None,
        started_at_ms=step.started_at_ms or now_ms,
    )


def back_off(step: StepRecord, due_at_ms: int, error: str) -> StepRecord:
    """An attempt has failed; the next is due later."""
    pending = advance_step(step.state, StepState.PENDING)
    return replace(step, state=pending, due_at_ms=due_at_ms, error=error)


def count_interruption(step: StepRecord) -> StepRecord:
    """The process died during an attempt: one more time."""
    return replace(step, interruptions=step.interruptions + 1)


def interrupt(step: StepRecord) -> StepRecord:
    """An attempt was interrupted, and is to be made again under its number."""
    pending = advance_step(step.state, StepState.PENDING)
    return replace(step, state=pending, attempts=step.attempts - 1, due_at_ms=None)


def complete(step: StepRecord, result: str | None, now_ms: int) -> StepRecord:
    """The step has its result; a timer, never before it was due."""
    if step.kind is SLEEP:
        now_ms = max(now_ms, step.due_at_ms or 0)
    completed = advance_step(step.state, COMPLETED)
    return replace(step, state=completed, finished_at_ms=now_ms, result=result, error=None)


def fail(step: StepRecord, error: str, now_ms: int) -> StepRecord:
    """The step has failed for good."""
    failed = advance_step(step.state, StepState.FAILED)
    return replace(step, state=failed, finished_at_ms=now_ms, error=error)


def time_out(step: StepRecord, now_ms: int) -> StepRecord:
    """A wait has come to its due time, never before, and nothing was sent."""
    error = TimeoutError(f"no event came in time for the wait {step.args}")
    return fail(step, encode_exception(error), max(now_ms, step.due_at_ms or 0))


def withdraw(step: StepRecord, now_ms: int) -> StepRecord:
    """The body does not wait for the step any more.

    An outcome that waited in memory for its delivery is not recorded yet, and dropped. One that is
    recorded stays: the journal refuses to change it.
    """
    return replace(step, state=StepState.CANCELED, finished_at_ms=now_ms, result=None, error=None)


def interruption_error(
    step: StepRecord, interruptions_max: int, *, is_at_most_once: bool
) -> Exception | None:
    """Return what an interrupted step fails with, if it is not to be run again."""
    if is_at_most_once:
        return OutcomeUnknown(
            f"the process died while step {step.name!r} ran, which is at most once (retry=False): "
            "it may have had its effect or not. Find out in the outside world, and go on."
        )
    if step.interruptions > interruptions_max:
        return StepInterrupted(
            f"the process died {step.interruptions} times while step {step.name!r} ran, more than "
            f"Engine(max_interruptions={interruptions_max}) allows. If the step is what kills it, "
            "mend its action; if it died of something else, raise max_interruptions."
        )
    return None
