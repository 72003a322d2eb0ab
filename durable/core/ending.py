"""What the end of a body is to its run: a result, an error, or a cancel."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from durable.core.commands import Raised, Returned
from durable.core.transitions import cancel_run, end_run

if TYPE_CHECKING:
    from durable.core.execution import WorkflowSpec
    from durable.core.records import RunRecord


def end_by(
    record: RunRecord,
    end: Returned | Raised,
    spec: WorkflowSpec,
    *,
    is_canceled: bool,
    now_ms: int,
) -> RunRecord:
    """Return the record of a run whose body has ended.

    Args:
        record: As it was.
        end: How the body has ended.
        spec: Its code.
        is_canceled: Whether it was cancelled.
        now_ms: The time of its end.
    """
    if is_canceled and is_cancellation(end):
        return cancel_run(record, now_ms)
    result, error = outcome_of(end, spec)
    return end_run(record, result=result, error=error, now_ms=now_ms)


def is_cancellation(end: Returned | Raised) -> bool:
    """Whether a body has ended by a cancellation: the run's, or its own."""
    return isinstance(end, Raised) and isinstance(end.error, asyncio.CancelledError)


def outcome_of(
    end: Returned | Raised, spec: WorkflowSpec
) -> tuple[str | None, BaseException | None]:
    """Return a body's result as JSON, or what its run fails with: be it because of the result."""
    if isinstance(end, Raised):
        return None, end.error
    try:
        return spec.encode_result(end.value), None
    except Exception as exc:  # noqa: BLE001  a user's encoding hook may raise anything
        return None, exc
