"""Rows of the SQLite journal: their columns, and how they come out, as JSON.

Python's sqlite3 gives up the interpreter lock at every row that it steps to, and has to wait for it
again: what is read comes as one value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from durable.core.errors import JournalCorruptError, damaged
from durable.core.records import EventRecord, RunRecord, StepRecord, StepState

if TYPE_CHECKING:
    from collections.abc import Sequence

RUN_COLUMNS = tuple(name for name in RunRecord.__struct_fields__ if name != "callback_error")
STEP_COLUMNS = StepRecord.__struct_fields__
EVENT_COLUMNS = EventRecord.__struct_fields__
OPEN_STATES = f"({', '.join(repr(str(state)) for state in StepState if not state.is_final)})"
"""The states of steps that the body may still wait for, as SQL."""

# Of the run that an ``on_complete`` is called by, while it has not succeeded.
CALLBACK_ERROR = """
CASE WHEN callback_id IS NOT NULL THEN (
    SELECT coalesce(callback.error, (
        SELECT error FROM durable_step AS step
        WHERE step.run_id = callback.run_id AND error IS NOT NULL ORDER BY number DESC LIMIT 1
    ))
    FROM durable_run AS callback
    WHERE callback.run_id = durable_run.callback_id AND callback.state <> 'completed'
) END
"""
RUN_JSON = f"json_array({', '.join(RUN_COLUMNS)}, {CALLBACK_ERROR})"
STEP_JSON = f"json_array({', '.join(STEP_COLUMNS)})"
EVENT_JSON = f"json_array({', '.join(EVENT_COLUMNS)})"


_run = msgspec.json.Decoder(RunRecord)
_steps = msgspec.json.Decoder(list[StepRecord])
_event = msgspec.json.Decoder(EventRecord)
_events = msgspec.json.Decoder(list[EventRecord])
RAW_ROWS = msgspec.json.Decoder(list[msgspec.Raw])


UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError)
"""What decoding damaged JSON raises."""


def text(values: Sequence[str]) -> str:
    return msgspec.json.encode(values).decode()


def decode_steps(run_id: str, data: bytes) -> list[StepRecord]:
    steps: list[StepRecord] = decode_row(_steps, data, f"the steps of run {run_id!r}")
    steps.sort(key=lambda step: step.number)
    return steps


def decode_event(event_id: str, data: Any) -> EventRecord:  # noqa: ANN401
    event: EventRecord = decode_row(_event, data, f"event {event_id!r}")
    return event


def decode_events(run_id: str, data: bytes) -> list[EventRecord]:
    """Decode what a run has of events, into the order of sending."""
    events: list[EventRecord] = decode_row(_events, data, f"the events of run {run_id!r}")
    events.sort(key=lambda event: event.seq)
    return events


def decode_run(data: Any) -> RunRecord:  # noqa: ANN401
    """Decode a row of durable_run.

    Raises:
        JournalCorruptError: It is damaged; the message names the run.
    """
    try:
        run = _run.decode(data)
    except UNREADABLE:
        run_id = bytes(RAW_ROWS.decode(data)[0]).decode("utf-8", "backslashreplace")
        run = decode_row(_run, data, f"run {run_id}")
    if run.state.is_final is (run.finished_at_ms is None):
        why = f"its state is {run.state}, and its time of finishing {run.finished_at_ms}"
        raise JournalCorruptError(damaged(f"run {run.run_id!r}", why))
    return run


def decode_row(decoder: msgspec.json.Decoder[Any], data: Any, what: str) -> Any:  # noqa: ANN401
    """Decode what was read as JSON.

    Raises:
        JournalCorruptError: It is damaged; the message says which.
    """
    try:
        return decoder.decode(data)
    except UNREADABLE as exc:
        raise JournalCorruptError(damaged(what, exc)) from exc


def probes() -> list[str]:
    """Return statements that fail unless the tables are those of this schema."""
    wanted = {
        "durable_run": (*RUN_COLUMNS, "seq", "wake_at_ms", "epoch"),
        "durable_step": ("run_id", *STEP_COLUMNS),
        "durable_event": EVENT_COLUMNS,
        "durable_owner": ("id", "epoch", "journal_id"),
        "durable_versions": ("id", "python", "durable"),
    }
    return [
        f"SELECT {', '.join(columns)} FROM {table} LIMIT 0" for table, columns in wanted.items()
    ]
