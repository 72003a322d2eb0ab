"""What users see of runs and steps: frozen, with aware times and plain JSON values."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final

import msgspec

from durable.core.codec import DecodeError, decode_plain
from durable.core.errors import JournalCorruptError, RunNotFoundError, damaged
from durable.core.failures import decode_error
from durable.core.records import ErrorInfo, RunState, StepKind, StepState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from durable.core.records import RunRecord, StepRecord

T = TypeVar("T")


@final
class StepInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a run.

    Attributes:
        number: The order of issue in the run, from 0.
        key: Which task of the body issued it, and the how-manieth of that task.
        name: The name given to ``step.run``, else the definition's; ``timer`` for asyncio's own.
        args: By parameter name, as plain JSON values.
        result: As a plain JSON value.
        error: Why it failed, or why its last attempt did.
        state: ``pending`` is queued, delayed or backing off.
        attempts: How many attempts have begun.
        started_at: When its first attempt began.
        finished_at: When it completed, failed or was withdrawn.
        child_run_id: The run that a workflow's call was, as a step.
        event_id: Of a wait, the event that it has consumed, or that it is for: ``EventId.parse``.
    """

    number: int
    key: str
    name: str
    kind: StepKind
    args: dict[str, Any]
    result: Any
    error: ErrorInfo | None
    state: StepState
    attempts: int
    started_at: datetime | None
    finished_at: datetime | None
    child_run_id: str | None
    event_id: str | None


@final
class RunStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One run.

    Attributes:
        args: By parameter name, as plain JSON values: what the start was given.
        result: As a plain JSON value, when it completed.
        error: Why it failed, or why it is stuck.
        running: The open steps, in order of issue.
        created_at: When its start was committed.
        started_at: When its body first ran.
        finished_at: When it ended.
        parent_id: The run that it is a child of: one of whose steps it is.
        callback_error: Why its ``on_complete``, which is still owed, did not succeed the last time.
    """

    id: str
    name: str
    version: int
    state: RunState
    args: dict[str, Any]
    result: Any
    error: ErrorInfo | None
    context: Any
    running: list[StepInfo]
    parent_id: str | None
    generation: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    callback_error: ErrorInfo | None = None


@final
class Page(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """A page of a list.

    Attributes:
        cursor: What the next page is asked for with; ``None`` at the end.
    """

    items: list[T]
    cursor: str | None


@final
class EngineStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine is doing at this moment.

    Attributes:
        live_runs: Runs in memory; sleeping ones mostly are not.
        running_actions: Slots taken.
        queued_actions: Attempts that wait for a slot.
        commits: Transactions that were committed since the engine was opened.
    """

    live_runs: int
    running_actions: int
    queued_actions: int
    commits: int


def run_status(record: RunRecord, open_steps: Iterable[StepRecord]) -> RunStatus:
    """Show a run.

    Raises:
        JournalCorruptError: A value of it is damaged.
    """
    where = f"run {record.run_id!r}"
    return RunStatus(
        id=record.run_id,
        name=record.name,
        version=record.version,
        state=record.state,
        args=_plain(record.args, where) or {},
        result=_plain(record.result, where),
        error=_error(record.error, where),
        context=_plain(record.context, where),
        running=[step_info(record.run_id, step) for step in open_steps],
        parent_id=record.parent_id,
        generation=record.generation,
        callback_error=_error(record.callback_error, where),
        created_at=_time(record.created_at_ms, where),
        started_at=_datetime(record.started_at_ms, where),
        finished_at=_datetime(record.finished_at_ms, where),
    )


def step_info(run_id: str, record: StepRecord) -> StepInfo:
    """Show a step.

    Raises:
        JournalCorruptError: A value of it is damaged.
    """
    where = f"step {record.number} of run {run_id!r}"
    return StepInfo(
        number=record.number,
        key=record.key,
        name=record.name,
        kind=record.kind,
        args=_plain(record.args, where) or {},
        result=_plain(record.result, where),
        error=_error(record.error, where),
        state=record.state,
        attempts=record.attempts,
        started_at=_datetime(record.started_at_ms, where),
        finished_at=_datetime(record.finished_at_ms, where),
        child_run_id=record.child_run_id,
        event_id=record.event_id,
    )


def to_datetime(time_ms: int) -> datetime:
    """Return a time of the journal as an aware datetime."""
    return datetime.fromtimestamp(time_ms / 1000, UTC)


def _datetime(time_ms: int | None, where: str) -> datetime | None:
    return None if time_ms is None else _time(time_ms, where)


def _time(time_ms: int, where: str) -> datetime:
    try:
        return to_datetime(time_ms)
    except (ValueError, OverflowError, OSError) as exc:
        raise _damaged(where, exc) from exc


def _plain(text: str | None, where: str) -> Any:  # noqa: ANN401
    if text is None:
        return None
    try:
        return decode_plain(text)
    except DecodeError as exc:
        raise _damaged(where, exc) from exc


def _error(text: str | None, where: str) -> ErrorInfo | None:
    if text is None:
        return None
    try:
        return decode_error(text).info
    except DecodeError as exc:
        raise _damaged(where, exc) from exc


def _damaged(where: str, exc: Exception) -> JournalCorruptError:
    return JournalCorruptError(damaged(where, exc))


def run_not_found(run_id: str) -> RunNotFoundError:
    """Return the error that says so."""
    msg = f"the journal has no run {run_id!r}: check the id, and which journal it was started in"
    return RunNotFoundError(msg)
