"""Claims: which runs are due, and all that is needed to go on with them, in one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from durable.core.errors import JournalCorruptError, damaged
from durable.core.nesting import is_child_started
from durable.journal.base import Claim
from durable.journal.reads import read_next_wake
from durable.journal.rows import (
    EVENT_JSON,
    RAW_ROWS,
    RUN_JSON,
    STEP_JSON,
    decode_events,
    decode_run,
    decode_steps,
    text,
)

if TYPE_CHECKING:
    import sqlite3

    from durable.core.errors import JournalError
    from durable.core.records import EventRecord, RunRecord, StepRecord

# Of a run that this owner works on, others have asked something: it needs no room in memory.
DUE_SEQS = """
SELECT json_group_array(seq) FROM (
    SELECT seq FROM durable_run WHERE epoch = :epoch AND wake_at_ms <= :now_ms
    UNION SELECT * FROM (
        SELECT seq FROM durable_run
        WHERE wake_at_ms <= :now_ms ORDER BY wake_at_ms, seq LIMIT :limit
    )
)
"""
CLAIM_SEQS = """
UPDATE durable_run SET wake_at_ms = NULL, epoch = :epoch
WHERE seq IN (SELECT value FROM json_each(:seqs))
"""
RUNS_BY_SEQ = f"""
SELECT CAST(json_group_array({RUN_JSON}) AS BLOB) FROM durable_run
WHERE seq IN (SELECT value FROM json_each(:seqs))
"""
STEPS_OF_RUNS = f"""
SELECT run_id, CAST(json_group_array({STEP_JSON}) AS BLOB) FROM durable_step
WHERE run_id IN (SELECT value FROM json_each(?)) GROUP BY run_id
"""

# Of each child that is over, its row.
AWAITED_CHILDREN = f"""
SELECT run_id, CASE WHEN finished_at_ms IS NOT NULL THEN CAST({RUN_JSON} AS BLOB) END
FROM durable_run WHERE run_id IN (SELECT value FROM json_each(?))
"""

EVENTS_OF_RUNS = f"""
SELECT run_id, CAST(json_group_array({EVENT_JSON}) AS BLOB) FROM durable_event
WHERE run_id IN (SELECT value FROM json_each(?)) AND step_number IS NULL AND sent_at_ms IS NOT NULL
GROUP BY run_id
"""


def claim_due(db: sqlite3.Connection, now_ms: int, limit: int, epoch: int) -> Claim:
    """Claim the runs that are due, oldest first, and read their steps.

    Up to ``limit``, and those that this owner works on, of which something was asked.
    """
    due = {"now_ms": now_ms, "limit": limit, "epoch": epoch}
    (seqs,) = db.execute(DUE_SEQS, due).fetchone()
    db.execute(CLAIM_SEQS, {"epoch": epoch, "seqs": seqs})
    (data,) = db.execute(RUNS_BY_SEQ, {"seqs": seqs}).fetchone()
    next_wake_at_ms = read_next_wake(db)
    errors: list[tuple[RunRecord | None, JournalError]] = []
    runs: list[RunRecord] = []
    for row in RAW_ROWS.decode(data):
        try:
            runs.append(decode_run(row))
        except JournalCorruptError as exc:
            errors.append((None, exc))
    # Those too that have not begun: they may have been asked to end.
    run_ids = text([run.run_id for run in runs])
    steps = dict(db.execute(STEPS_OF_RUNS, (run_ids,)).fetchall() if runs else ())
    sent = dict(db.execute(EVENTS_OF_RUNS, (run_ids,)).fetchall() if runs else ())
    events: dict[str, list[EventRecord]] = {}
    claimed: list[tuple[RunRecord, list[StepRecord]]] = []
    for run in runs:
        try:
            if run.run_id in sent:
                events[run.run_id] = decode_events(run.run_id, sent[run.run_id])
            claimed.append((run, _decode_history(run, steps.get(run.run_id, b"[]"))))
        except JournalCorruptError as exc:
            errors.append((run, exc))
    ended = _read_ended(db, claimed, errors)
    return Claim(claimed, next_wake_at_ms, errors, ended, events)


def _read_ended(
    db: sqlite3.Connection,
    claimed: list[tuple[RunRecord, list[StepRecord]]],
    errors: list[tuple[RunRecord | None, JournalError]],
) -> dict[str, list[RunRecord]]:
    """Return which of the children are over that the claimed runs wait for, by their parents' ids.

    A run whose child cannot be read, or is not there, goes from ``claimed`` to ``errors``.
    """
    awaited = {
        step.child_run_id: run
        for run, steps in claimed
        for step in steps
        if step.child_run_id is not None and is_child_started(step)
    }
    if not awaited:
        return {}
    ended: dict[str, list[RunRecord]] = {}
    damages: dict[str, JournalError] = {}
    children = dict(db.execute(AWAITED_CHILDREN, (text(list(awaited)),)).fetchall())
    for child_id, run in awaited.items():
        try:
            if child_id not in children:
                why = f"it waits for run {child_id!r}, which is not there"
                raise JournalCorruptError(damaged(f"run {run.run_id!r}", why))  # noqa: TRY301  with all other damages
            if children[child_id] is not None:
                ended.setdefault(run.run_id, []).append(decode_run(children[child_id]))
        except JournalCorruptError as exc:
            damages[run.run_id] = exc
    if damages:
        errors += [(run, damages[run.run_id]) for run, _ in claimed if run.run_id in damages]
        claimed[:] = [each for each in claimed if each[0].run_id not in damages]
    return ended


def _decode_history(run: RunRecord, data: bytes) -> list[StepRecord]:
    steps = decode_steps(run.run_id, data)
    if run.started_at_ms is None and any(step.number >= 0 for step in steps):
        why = "it has steps, but no time at which it was started"
        raise JournalCorruptError(damaged(f"run {run.run_id!r}", why))
    return steps
