"""From which step a run goes on that is restarted, and what is kept of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from durable.core.records import CANCEL_NUMBER, TIMEOUT_KEY, StepState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from durable.core.records import RunRecord, StepRecord


def last_unsuccessful(steps: Sequence[StepRecord]) -> int:
    """Return the number of the last step that failed, else of the last that was cancelled.

    When all have succeeded, the number after the last: the body alone runs again.
    """
    for state in (StepState.FAILED, StepState.CANCELED):
        numbers = [step.number for step in steps if step.number >= 0 and step.state is state]
        if numbers:
            return max(numbers)
    return max((step.number for step in steps), default=-1) + 1


def last_that(is_meant: Callable[[StepRecord], bool], steps: Sequence[StepRecord]) -> int | None:
    """Return the number of the last step that is meant, if there is one."""
    numbers = [step.number for step in steps if step.number >= 0 and is_meant(step)]
    return max(numbers, default=None)


def first_dropped(run: RunRecord, steps: Sequence[StepRecord], from_number: int) -> int:
    """Return from which step on nothing can be kept, so that this one runs again."""
    numbers = [from_number]
    if run.restarted_from is not None:
        numbers.append(run.restarted_from)  # It has not come so far again.
    # What was issued after a cancel, to clean up, is not issued again without it.
    numbers += (int(step.result or 0) for step in steps if _is_delivered_end(step))
    return min(numbers)


def first_position(steps: Sequence[StepRecord], from_number: int) -> int | None:
    """Return from which delivery on they are made again; ``None`` when none can be kept.

    The last one always is: in its turn the body has ended, and is to end again.
    """
    delivered = [step.position for step in steps if step.position is not None]
    if from_number == 0 or not delivered:
        return None
    dropped = [
        step.position
        for step in steps
        if step.position is not None
        and (
            step.number >= from_number
            or step.number == CANCEL_NUMBER
            or step.key == TIMEOUT_KEY  # The time begins again.
        )
    ]
    return min(dropped, default=max(delivered))


def _is_delivered_end(step: StepRecord) -> bool:
    """Whether it is a cancel, or the run's time-out, that the body was told of."""
    is_end = step.number == CANCEL_NUMBER or step.key == TIMEOUT_KEY
    return is_end and step.position is not None
