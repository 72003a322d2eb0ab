"""The rows of a journal's tables, as whoever reads them with nothing but ``sqlite3`` finds them."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

FINAL: Final = frozenset({"completed", "failed", "canceled"})
"""The states in which nothing more happens to a run, or to a step."""


class RunRow(NamedTuple):
    run_id: str
    name: str
    state: str
    args: str
    result: str | None
    error: str | None
    created_at_ms: int
    started_at_ms: int | None
    finished_at_ms: int | None
    wake_at_ms: int | None
    epoch: int | None
    parent_id: str | None = None
    generation: int = 0
    on_complete: str | None = None
    callback_id: str | None = None

    @property
    def is_final(self) -> bool:
        return self.state in FINAL


class StepRow(NamedTuple):
    run_id: str
    number: int
    key: str
    kind: str
    name: str
    args: str
    state: str
    attempts: int
    interruptions: int
    position: int | None
    due_at_ms: int | None
    started_at_ms: int | None
    finished_at_ms: int | None
    result: str | None
    error: str | None
    child_run_id: str | None = None
    event_id: str | None = None

    @property
    def is_final(self) -> bool:
        return self.state in FINAL


class EventRow(NamedTuple):
    """They are in the order of sending by ``seq``."""

    event_id: str
    run_id: str
    name: str
    sent_at_ms: int | None
    value: str | None
    step_number: int | None
    seq: int


def select(table: str, row: Any) -> str:  # noqa: ANN401  a class of rows
    """Return SQL for all rows."""
    return f"SELECT {', '.join(row._fields)} FROM {table}"  # noqa: S608


RUNS: Final = select("durable_run", RunRow)
STEPS: Final = select("durable_step", StepRow)
EVENTS: Final = select("durable_event", EventRow)
