"""Executing a run's body again over what is recorded of it: nothing else happens by it.

No step of it is executed, and nothing is written. What differs is raised as ``Stuck``.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from durable.core.codec import DecodeError
from durable.core.commands import Raised, Stuck
from durable.core.diff import shorten_pair
from durable.core.execution import Execution
from durable.core.failures import decode_error, type_name_of
from durable.core.records import RunState

if TYPE_CHECKING:
    from collections.abc import Collection

    from durable.core.commands import Returned
    from durable.core.execution import WorkflowSpec
    from durable.core.host import Guard
    from durable.core.records import RunRecord, StepRecord

DELIVERIES_PER_SLICE = 10_000

DAMAGED = "what is damaged in the journal"
"""What is said of a recorded error that cannot be read."""


def replay_run(
    run: RunRecord,
    steps: Collection[StepRecord],
    spec: WorkflowSpec,
    *,
    guard: Guard | None = None,
) -> None:
    """Execute a run's body over all that is recorded, to where it stands or to its end.

    Args:
        run: The run; one that is over has to end as it did.
        steps: All that is recorded of it.
        spec: The code.
        guard: What watches the body, if anything.

    Raises:
        Stuck: The body does not do what is recorded.
    """
    execution = Execution(run, steps, started_at_ms=run.started_at_ms or 0, guard=guard)
    try:
        if run.started_at_ms is None:
            spec.check_arguments(execution)
            return
        execution.begin(spec.open)
        while execution.replay(DELIVERIES_PER_SLICE):
            pass
        check_outcome(execution, spec)
    finally:
        execution.close()


def check_outcome(execution: Execution, spec: WorkflowSpec) -> None:
    """Check that a body which was executed again has ended as its run did, if that is over.

    Of an exception it is the class that counts: its text may tell of lines, or of addresses.

    Raises:
        Stuck: It has ended in another way.
    """
    run, end = execution.run, execution.early_end
    if not run.state.is_final:
        return
    if end is None:
        if run.state is not RunState.CANCELED:  # Its body may have been dropped where it waited.
            raise _another_end(_recorded_end(run), "waits")
        return
    is_cancel = isinstance(end, Raised) and isinstance(end.error, asyncio.CancelledError)
    if execution.is_canceled and is_cancel:
        if run.state is not RunState.CANCELED:
            raise _another_end(_recorded_end(run), "ends canceled")
        return
    now, error = _end_of(end, spec)
    if run.state is RunState.COMPLETED and now is not None:
        recorded = run.result or "null"
        if not spec.is_same_result(now, recorded):
            before, after = shorten_pair(recorded, now)
            raise _another_end(f"returned {before}", f"returns {after}")
        return
    if run.state is RunState.FAILED and error is not None:
        if error != _error_name(run):
            raise _another_end(_recorded_end(run), f"raises {error}")
        return
    how = f"raises {error}" if now is None else f"returns {now}"
    raise _another_end(_recorded_end(run), how)


def _end_of(end: Returned | Raised, spec: WorkflowSpec) -> tuple[str | None, str | None]:
    """Return a body's result as JSON, or the name of the exception that it ends with."""
    if isinstance(end, Raised):
        return None, type_name_of(type(end.error))
    try:
        return spec.encode_result(end.value), None
    except Exception as exc:  # noqa: BLE001  a user's encoding hook may raise anything
        return None, type_name_of(type(exc))


def _recorded_end(run: RunRecord) -> str:
    if run.state is RunState.CANCELED:
        return "ended canceled"
    if run.state is RunState.FAILED:
        return f"raised {_error_name(run)}"
    return f"returned {run.result or 'null'}"


def _error_name(run: RunRecord) -> str:
    try:
        return decode_error(run.error or "").type_name
    except DecodeError:
        return DAMAGED


def _another_end(recorded: str, now: str) -> Stuck:
    stuck = Stuck(f"the journal says that the body {recorded}; the code now {now}.")
    stuck.diff = f"  - {recorded}\n  + {now}"
    return stuck
