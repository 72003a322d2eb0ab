"""What a step's record becomes when something happens to it."""

from __future__ import annotations

from msgspec.structs import replace

from durable.core.errors import OutcomeUnknown, StepInterrupted
from durable.core.records import StepKind, StepRecord, StepState, advance_step


def begin_attempt(step: StepRecord, now_ms: int) -> StepRecord:
    """An attempt begins."""
    return replace(
        step,
        state=advance_step(step.state, StepState.RUNNING),
        attempts=step.attempts + 1,
        due_at_ms=None,
        started_at_ms=step.started_at_ms or now_ms,
    )


def back_off(step: StepRecord, due_at_ms: int, error: str) -> StepRecord:
    """An attempt has failed; the next is due later."""
    pending = advance_step(step.state, StepState.PENDING)
    return replace(step, state=pending, due_at_ms=due_at_ms, error=error)


def interrupt(step: StepRecord) -> StepRecord:
    """The process died during an attempt, which is to be made again under its number."""
    pending = advance_step(step.state, StepState.PENDING)
    return replace(step, state=pending, attempts=step.attempts - 1, due_at_ms=None)


def complete(step: StepRecord, result: str | None, now_ms: int) -> StepRecord:
    """The step has its result; a timer, never before it was due."""
    if step.kind is StepKind.SLEEP:
        now_ms = max(now_ms, step.due_at_ms or 0)
    completed = advance_step(step.state, StepState.COMPLETED)
    return replace(step, state=completed, finished_at_ms=now_ms, result=result, error=None)


def fail(step: StepRecord, error: str, now_ms: int) -> StepRecord:
    """The step has failed for good."""
    failed = advance_step(step.state, StepState.FAILED)
    return replace(step, state=failed, finished_at_ms=now_ms, error=error)


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
            f"Engine(max_interruptions={interruptions_max}) allows"
        )
    return None
