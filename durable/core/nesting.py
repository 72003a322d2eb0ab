"""What a run's end is to the run that has called it: the outcome of a step.

Rules:

- A workflow's call that a body awaits is a step, and a run of its own: the *child* of that run. The
  step has the child's id, and copies its outcome: the parent's journal is complete by itself.
- A child that failed is a ``RunFailed`` of its parent's step; one that was cancelled, but not by
  its parent, a ``RunCanceled``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import asdict

from durable.core.codec import DecodeError
from durable.core.errors import RunCanceled, RunFailed
from durable.core.failures import (
    decode_error,
    encode_error,
    encode_exception,
    rebuild_error,
    type_name_of,
)
from durable.core.records import RunRecord, RunState, StepRecord, StepState, StoredError
from durable.core.transitions import complete, fail

if TYPE_CHECKING:
    from collections.abc import Mapping

CANCELED_TYPE = type_name_of(RunCanceled)


def is_child_started(step: StepRecord) -> bool:
    """Whether an open step has its child, be it a delayed one.

    After a restart it has the id of a child that is still to be started.
    """
    if step.state is StepState.PENDING:
        return step.due_at_ms is not None
    return not step.state.is_final


def settle_by(step: StepRecord, child: RunRecord, now_ms: int) -> StepRecord:
    """The step's child is over."""
    assert child.state.is_final
    if child.state is RunState.COMPLETED:
        return complete(step, child.result, now_ms)
    return fail(step, _error_of(child), now_ms)


def _error_of(child: RunRecord) -> str:
    if child.state is RunState.CANCELED:
        return encode_exception(RunCanceled(child.run_id))
    text = child.error or ""
    try:
        error = decode_error(text)
    except DecodeError:
        return text  # Damaged: whoever is to get it says so.
    failed = RunFailed(child.run_id, error.info)
    return encode_error(
        StoredError(
            type_name=type_name_of(RunFailed),
            message=str(failed),
            traceback=error.traceback,
            args=[str(failed)],
            attributes={"run_id": child.run_id, "error": asdict(error)},
        )
    )


def rebuild_outcome(text: str, known: Mapping[str, object]) -> Exception:
    """Make the exception that a body gets of a child that failed, or was cancelled.

    Args:
        text: The step's error.
        known: The classes that the child's own exception may be of, besides builtins and durable's.

    Raises:
        DecodeError, msgspec.ValidationError: It is damaged.
    """
    stored = decode_error(text)
    run_id = str(stored.attributes.get("run_id"))
    if stored.type_name == CANCELED_TYPE:
        return RunCanceled(run_id)
    error = msgspec.convert(stored.attributes.get("error"), StoredError)
    failed = RunFailed(run_id, error.info)
    failed.__cause__ = rebuild_error(error, known)
    return failed
