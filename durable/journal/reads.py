"""What the SQLite journal reads for users, on a plain connection, in one transaction each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from durable.core.callbacks import ON_COMPLETE
from durable.core.errors import JournalCorruptError, damaged
from durable.core.histories import RecordedRun
from durable.journal.base import RunTree
from durable.journal.rows import (
    EVENT_JSON,
    OPEN_STATES,
    RUN_JSON,
    STEP_JSON,
    decode_event,
    decode_events,
    decode_row,
    decode_run,
    decode_steps,
    text,
)
from durable.journal.versions import read_versions

if TYPE_CHECKING:
    import sqlite3

    from durable.core.errors import JournalError
    from durable.core.records import EventRecord, RunRecord, StepRecord
    from durable.journal.base import RunQuery, StepQuery

RUN_BY_ID = f"SELECT CAST({RUN_JSON} AS BLOB) FROM durable_run WHERE run_id = ?"
EVENT_BY_ID = f"SELECT CAST({EVENT_JSON} AS BLOB) FROM durable_event WHERE event_id = ?"
STEPS_OF_RUN = f"""
SELECT CAST(json_group_array({STEP_JSON}) AS BLOB) FROM durable_step WHERE run_id = ?
"""
EVENTS_OF_RUN = f"""
SELECT CAST(json_group_array({EVENT_JSON}) AS BLOB) FROM durable_event WHERE run_id = ?
"""
FINISHED_RUNS = """
SELECT CAST(json_group_array(run_id) AS BLOB) FROM (
    SELECT run_id FROM durable_run WHERE finished_at_ms < ? AND parent_id IS NULL
    ORDER BY finished_at_ms LIMIT ?
)
"""
UNFINISHED_RUNS = """
SELECT seq, run_id FROM durable_run WHERE finished_at_ms IS NULL AND seq > ? ORDER BY seq LIMIT ?
"""
DRAWN_RUNS = """
SELECT run_id FROM durable_run WHERE finished_at_ms IS NULL ORDER BY random() LIMIT ?
"""
UNFINISHED_COUNTS = """
SELECT name, version, count(*) FROM durable_run WHERE finished_at_ms IS NULL
GROUP BY name, version ORDER BY name, version
"""
IDS = msgspec.json.Decoder(list[str])
RUNS_BY_ID = f"""
SELECT CAST({RUN_JSON} AS BLOB), run_id FROM durable_run
WHERE run_id IN (SELECT value FROM json_each(?))
"""
OPEN_STEPS_OF_RUNS = f"""
SELECT run_id, CAST(json_group_array({STEP_JSON}) AS BLOB) FROM durable_step
WHERE run_id IN (SELECT value FROM json_each(?)) AND state IN {OPEN_STATES}
GROUP BY run_id
"""
DESCENDANTS = """
WITH RECURSIVE tree (run_id, is_over) AS (
    SELECT run_id, finished_at_ms IS NOT NULL FROM durable_run WHERE parent_id = :run_id
    UNION
    SELECT run.run_id, run.finished_at_ms IS NOT NULL FROM durable_run AS run
    JOIN tree ON run.parent_id = tree.run_id
)
SELECT json_group_array(json_array(run_id, is_over)) FROM tree
"""
IS_OPEN = "SELECT 1 FROM durable_run WHERE run_id = ? AND finished_at_ms IS NULL"

_descendants = msgspec.json.Decoder(list[tuple[str, int]])

ASKED = "SELECT 1 FROM durable_step WHERE run_id = ? AND number = ?"
UNFINISHED = """
SELECT CAST(json_group_array(run_id) AS BLOB) FROM durable_run
WHERE run_id IN (SELECT value FROM json_each(?)) AND finished_at_ms IS NULL
"""
NEXT_WAKE = "SELECT min(wake_at_ms) FROM durable_run WHERE wake_at_ms IS NOT NULL"


def read_run(db: sqlite3.Connection, run_id: str) -> RunRecord | None:
    """Return one run."""
    row = db.execute(RUN_BY_ID, (run_id,)).fetchone()
    return None if row is None else decode_run(row[0])


def read_tree(db: sqlite3.Connection, run_id: str) -> RunTree | None:
    """Return one run, and what is under it."""
    run = read_run(db, run_id)
    if run is None:
        return None
    is_awaited = db.execute(IS_OPEN, (run.parent_id,)).fetchone() is not None
    return RunTree(run, is_awaited, read_descendants(db, run_id))


def read_descendants(db: sqlite3.Connection, run_id: str) -> dict[str, bool]:
    """Return the ids of all runs under one, and whether they are over."""
    (data,) = db.execute(DESCENDANTS, {"run_id": run_id}).fetchone()
    rows = decode_row(_descendants, data, f"the runs under run {run_id!r}")
    return {each: bool(is_over) for each, is_over in rows}


def read_event(db: sqlite3.Connection, event_id: str) -> EventRecord | None:
    """Return one event."""
    row = db.execute(EVENT_BY_ID, (event_id,)).fetchone()
    return None if row is None else decode_event(event_id, row[0])


def read_status(db: sqlite3.Connection, run_id: str) -> tuple[RunRecord, list[StepRecord]] | None:
    """Return one run and its open steps."""
    run = read_run(db, run_id)
    return None if run is None else (run, _read_open_steps(db, [run_id]).get(run_id, []))


def read_statuses(
    db: sqlite3.Connection, run_ids: list[str]
) -> dict[str, tuple[RunRecord, list[StepRecord]] | JournalError]:
    """Return those runs that there are, with their open steps, or why they cannot be read."""
    ids = text(run_ids)
    found: dict[str, tuple[RunRecord, list[StepRecord]] | JournalError] = {}
    steps = dict(db.execute(OPEN_STEPS_OF_RUNS, (ids,)).fetchall())
    for data, run_id in db.execute(RUNS_BY_ID, (ids,)).fetchall():
        try:
            found[run_id] = decode_run(data), decode_steps(run_id, steps.get(run_id, b"[]"))
        except JournalCorruptError as exc:
            found[run_id] = exc
    return found


def read_asked(db: sqlite3.Connection, run_id: str, number: int) -> bool:
    """Return whether that was asked of a run."""
    return db.execute(ASKED, (run_id, number)).fetchone() is not None


def read_over(db: sqlite3.Connection, run_ids: list[str]) -> list[str]:
    """Return those runs that have ended, or that there are not."""
    (data,) = db.execute(UNFINISHED, (text(run_ids),)).fetchone()
    unfinished = set(msgspec.json.decode(data, type=list[str]))
    return [run_id for run_id in run_ids if run_id not in unfinished]


def read_next_wake(db: sqlite3.Connection) -> int | None:
    """Return when the next run is due that nobody works on, or of which something was asked."""
    (wake_at_ms,) = db.execute(NEXT_WAKE).fetchone()
    return None if wake_at_ms is None else int(wake_at_ms)


def read_history(db: sqlite3.Connection, run_id: str) -> tuple[RunRecord, list[StepRecord]] | None:
    """Return one run and all its steps."""
    run = read_run(db, run_id)
    if run is None:
        return None
    (data,) = db.execute(STEPS_OF_RUN, (run_id,)).fetchone()
    return run, decode_steps(run_id, data)


def read_recorded(db: sqlite3.Connection, run_id: str) -> RecordedRun | None:
    """Return all that is recorded of one run."""
    found = read_history(db, run_id)
    if found is None:
        return None
    run, steps = found
    (data,) = db.execute(EVENTS_OF_RUN, (run_id,)).fetchone()
    begun_with = None if run.begun_with is None else read_versions(db).get(run.begun_with)
    return RecordedRun(run, steps, decode_events(run_id, data), begun_with)


def read_unfinished(db: sqlite3.Connection, after: int, limit: int) -> list[tuple[int, str]]:
    """Return runs that are not over, after a place in the order of their start: place and id."""
    return db.execute(UNFINISHED_RUNS, (after, limit)).fetchall()


def draw_unfinished(db: sqlite3.Connection, count: int) -> list[str]:
    """Return the ids of so many runs that are not over, drawn at random."""
    return [run_id for (run_id,) in db.execute(DRAWN_RUNS, (count,))]


def count_unfinished(db: sqlite3.Connection) -> list[tuple[str, int, int]]:
    """Return how many runs are not over, of each workflow: its name, its version, their number."""
    return db.execute(UNFINISHED_COUNTS).fetchall()


def read_finished(db: sqlite3.Connection, before_ms: int, limit: int) -> list[str]:
    """Return the ids of runs that were over before then, and have no parent."""
    (data,) = db.execute(FINISHED_RUNS, (before_ms, limit)).fetchone()
    run_ids: list[str] = decode_row(IDS, data, "the ids of runs")
    return run_ids


def read_runs(
    db: sqlite3.Connection, query: RunQuery
) -> list[tuple[int, RunRecord, list[StepRecord]]]:
    """Return a page of runs, each with its open steps."""
    where = [f"name <> '{ON_COMPLETE}'"]
    values: list[Any] = []
    for column, value in (
        ("name", query.name),
        ("state", query.state),
        ("parent_id", query.parent_id),
    ):
        if value is not None:
            where.append(f"{column} = ?")
            values.append(value)
    order, after = _keyset("seq", query.order, query.after, where, values)
    sql = f"SELECT seq, CAST({RUN_JSON} AS BLOB) FROM durable_run WHERE {after} ORDER BY {order} LIMIT ?"  # noqa: E501
    rows = db.execute(sql, [*values, query.limit]).fetchall()
    _check_order([seq for seq, _ in rows], query, "the list of runs")
    runs = [(seq, decode_run(data)) for seq, data in rows]
    steps = _read_open_steps(db, [run.run_id for _, run in runs if not run.state.is_final])
    return [(seq, run, steps.get(run.run_id, [])) for seq, run in runs]


def read_steps(db: sqlite3.Connection, query: StepQuery) -> list[StepRecord] | None:
    """Return a page of a run's steps."""
    where = ["run_id = ?", "number >= 0"]
    values: list[Any] = [query.run_id]
    order, after = _keyset("number", query.order, query.after, where, values)
    sql = f"""
    SELECT CAST(json_group_array({STEP_JSON}) AS BLOB) FROM (
        SELECT * FROM durable_step WHERE {after} ORDER BY {order} LIMIT ?
    )
    """
    (data,) = db.execute(sql, [*values, query.limit]).fetchone()
    steps = decode_steps(query.run_id, data)
    if not steps and read_run(db, query.run_id) is None:
        return None
    if query.order == "desc":
        steps.reverse()
    _check_order([step.number for step in steps], query, f"the steps of run {query.run_id!r}")
    return steps


def _read_open_steps(db: sqlite3.Connection, run_ids: list[str]) -> dict[str, list[StepRecord]]:
    rows = db.execute(OPEN_STEPS_OF_RUNS, (text(run_ids),)).fetchall()
    return {run_id: decode_steps(run_id, data) for run_id, data in rows}


def _keyset(
    column: str, order: str, after: int | None, where: list[str], values: list[Any]
) -> tuple[str, str]:
    if after is not None:
        where.append(f"{column} {'>' if order == 'asc' else '<'} ?")
        values.append(after)
    return f"{column} {'ASC' if order == 'asc' else 'DESC'}", " AND ".join(where)


def _check_order(places: list[int], query: RunQuery | StepQuery, what: str) -> None:
    """See that no damaged page leads back: who reads on would never come to the end.

    Raises:
        JournalCorruptError: It does.
    """
    if query.after is not None:
        places = [query.after, *places]
    if places != sorted(set(places), reverse=query.order == "desc"):
        raise JournalCorruptError(damaged(what, "they are not in the order of their keys"))
