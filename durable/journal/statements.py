"""The SQL of the SQLite journal, and the functions that run it on a plain connection.

Rules:

- Each function runs whole, on the connection's own thread, inside one transaction.
- Many rows go in by one statement, and come out as one JSON text: Python's sqlite3 gives up the
  interpreter lock for every row it steps through, and would wait for it again each time.
- The functions raise sqlite3's errors; their caller turns them into the journal's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from durable.core.errors import JournalCorruptError
from durable.core.records import RunRecord, StepRecord
from durable.journal.base import Change, Claim, OwnershipLostError, RunQuery, StepQuery

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from durable.core.errors import JournalError

ROWS_PER_STATEMENT = (256, 64, 16, 4, 1)
"""The sizes that bulk statements come in: few, so that sqlite3's statement cache holds them all."""

RUN_COLUMNS = RunRecord.__struct_fields__
STEP_COLUMNS = StepRecord.__struct_fields__
STEP_CHANGES = (
    "state",
    "attempts",
    "interruptions",
    "position",
    "due_at_ms",
    "started_at_ms",
    "finished_at_ms",
    "result",
    "error",
)
RUN_CHANGES = ("state", "started_at_ms", "finished_at_ms", "result", "error")

_RUN_JSON = f"json_array({', '.join(RUN_COLUMNS)})"
_STEP_JSON = f"json_array({', '.join(STEP_COLUMNS)})"

FENCE = "SELECT epoch FROM durable_owner"

NEW_EPOCH = "UPDATE durable_owner SET epoch = epoch + 1 RETURNING epoch"

# What a dead owner worked on is due at once.
RELEASE_CLAIMS = "UPDATE durable_run SET epoch = NULL, wake_at_ms = 0 WHERE epoch IS NOT NULL"

# A stuck run is tried again by each new owner: its code may have been mended.
RETRY_STUCK = "UPDATE durable_run SET wake_at_ms = 0 WHERE state = 'stuck'"

TAKEN_IDS = f"""
SELECT CAST(json_group_array({_RUN_JSON}) AS BLOB) FROM durable_run
WHERE run_id IN (SELECT value FROM json_each(?))
"""

INSERT_RUNS = f"INSERT INTO durable_run ({', '.join(RUN_COLUMNS)}, wake_at_ms, epoch) VALUES "  # noqa: S608
INSERT_STEPS = f"INSERT INTO durable_step (run_id, {', '.join(STEP_COLUMNS)}) VALUES "  # noqa: S608

# A final state is written once: a late writer changes nothing.
UPDATE_STEPS = (
    f"WITH new (run_id, number, {', '.join(STEP_CHANGES)}) AS (VALUES ",
    f""")
    UPDATE durable_step AS old SET {", ".join(f"{c} = new.{c}" for c in STEP_CHANGES)} FROM new
    WHERE old.run_id = new.run_id AND old.number = new.number
      AND (old.state IN ('pending', 'running') OR old.state = new.state AND old.position IS NULL)
    """,  # noqa: S608
)
UPDATE_RUNS = (
    f"WITH new (run_id, {', '.join(RUN_CHANGES)}) AS (VALUES ",
    f""")
    UPDATE durable_run AS old SET {", ".join(f"{c} = new.{c}" for c in RUN_CHANGES)} FROM new
    WHERE old.run_id = new.run_id AND old.finished_at_ms IS NULL
    """,  # noqa: S608
)
PARK_RUNS = (
    "WITH new (run_id, wake_at_ms) AS (VALUES ",
    """)
    UPDATE durable_run AS old SET wake_at_ms = new.wake_at_ms, epoch = NULL FROM new
    WHERE old.run_id = new.run_id
    """,
)

DUE_SEQS = """
SELECT json_group_array(seq) FROM (
    SELECT seq FROM durable_run WHERE wake_at_ms <= :now_ms ORDER BY wake_at_ms, seq LIMIT :limit
)
"""
CLAIM_SEQS = """
UPDATE durable_run SET wake_at_ms = NULL, epoch = :epoch
WHERE seq IN (SELECT value FROM json_each(:seqs))
"""
RUNS_BY_SEQ = f"""
SELECT CAST(json_group_array({_RUN_JSON}) AS BLOB) FROM durable_run
WHERE seq IN (SELECT value FROM json_each(:seqs))
"""
NEXT_WAKE = "SELECT min(wake_at_ms) FROM durable_run WHERE wake_at_ms IS NOT NULL"

RUN_BY_ID = f"SELECT CAST({_RUN_JSON} AS BLOB) FROM durable_run WHERE run_id = ?"
STEPS_OF_RUNS = f"""
SELECT run_id, CAST(json_group_array({_STEP_JSON}) AS BLOB) FROM durable_step
WHERE run_id IN (SELECT value FROM json_each(?)) GROUP BY run_id
"""
OPEN_STEPS_OF_RUNS = f"""
SELECT run_id, CAST(json_group_array({_STEP_JSON}) AS BLOB) FROM durable_step
WHERE run_id IN (SELECT value FROM json_each(?)) AND state IN ('pending', 'running')
GROUP BY run_id
"""

_run = msgspec.json.Decoder(RunRecord)
_steps = msgspec.json.Decoder(list[StepRecord])
_rows = msgspec.json.Decoder(list[msgspec.Raw])


# --- writing -------------------------------------------------------------------------------------


def check_fence(db: sqlite3.Connection, epoch: int) -> None:
    """Raise ``OwnershipLostError`` unless ``epoch`` is the present owner's."""
    (present,) = db.execute(FENCE).fetchone()
    if present != epoch:
        msg = f"another owner has taken the journal over (epoch {present}, not {epoch})"
        raise OwnershipLostError(msg)


def apply_changes(
    db: sqlite3.Connection, changes: Sequence[Change], epoch: int
) -> dict[str, RunRecord]:
    """Write ``changes``; return the runs that took the ids of those which could not start."""
    taken = _find_taken(db, changes)
    run_rows: list[Any] = []
    step_rows: list[Any] = []
    step_changes: list[Any] = []
    run_changes: list[Any] = []
    parked: list[Any] = []
    for change in changes:
        run_id, run = change.run_id, change.run
        if change.is_start:
            assert run is not None
            if taken.get(run_id, run) is not run:
                continue
            if change.parked is None:
                run_rows += (*msgspec.structs.astuple(run), None, epoch)
            else:
                run_rows += (*msgspec.structs.astuple(run), change.parked.wake_at_ms, None)
        else:
            if run is not None:
                run_changes.append(run_id)
                run_changes += [getattr(run, column) for column in RUN_CHANGES]
            if change.parked is not None:
                parked += (run_id, change.parked.wake_at_ms)
        for step in change.issued:
            step_rows.append(run_id)
            step_rows += msgspec.structs.astuple(step)
        for step in change.updated:
            step_changes += (run_id, step.number)
            step_changes += [getattr(step, column) for column in STEP_CHANGES]
    _bulk(db, (INSERT_RUNS, ""), run_rows, len(RUN_COLUMNS) + 2)
    _bulk(db, (INSERT_STEPS, ""), step_rows, len(STEP_COLUMNS) + 1)
    _bulk(db, UPDATE_STEPS, step_changes, len(STEP_CHANGES) + 2)
    _bulk(db, UPDATE_RUNS, run_changes, len(RUN_CHANGES) + 1)
    _bulk(db, PARK_RUNS, parked, 2)
    started = {change.run_id: change.run for change in changes if change.is_start}
    return {run_id: run for run_id, run in taken.items() if run is not started[run_id]}


def _find_taken(db: sqlite3.Connection, changes: Sequence[Change]) -> dict[str, RunRecord]:
    """Return who has each id that this batch wants to start: an earlier run, or the first here."""
    starts = [change for change in changes if change.is_start]
    if not starts:
        return {}
    run_ids = [change.run_id for change in starts]
    (found,) = db.execute(TAKEN_IDS, (_text(run_ids),)).fetchone()
    rows = (decode_row(_run, row, "durable_run") for row in _rows.decode(found))
    owners: dict[str, RunRecord] = {run.run_id: run for run in rows}
    for change in starts:
        assert change.run is not None
        owners.setdefault(change.run_id, change.run)
    return owners


def _bulk(db: sqlite3.Connection, sql: tuple[str, str], values: list[Any], width: int) -> None:
    """Run a statement over all rows of ``values``, in as few executions as can be."""
    done = 0
    rows_left = len(values) // width
    for rows in ROWS_PER_STATEMENT:
        while rows_left >= rows:
            end = done + rows * width
            db.execute(_bulk_sql(sql, rows, width), values[done:end])
            done = end
            rows_left -= rows


_bulk_texts: dict[tuple[tuple[str, str], int], str] = {}


def _bulk_sql(sql: tuple[str, str], rows: int, width: int) -> str:
    text = _bulk_texts.get((sql, rows))
    if text is None:
        row = f"({', '.join('?' * width)})"
        text = _bulk_texts[sql, rows] = sql[0] + ", ".join([row] * rows) + sql[1]
    return text


# --- reading -------------------------------------------------------------------------------------


def claim_due(db: sqlite3.Connection, now_ms: int, limit: int, epoch: int) -> Claim:
    """Claim the runs that are due, oldest first, and read their steps."""
    (seqs,) = db.execute(DUE_SEQS, {"now_ms": now_ms, "limit": limit}).fetchone()
    db.execute(CLAIM_SEQS, {"epoch": epoch, "seqs": seqs})
    (data,) = db.execute(RUNS_BY_SEQ, {"seqs": seqs}).fetchone()
    (next_wake_at_ms,) = db.execute(NEXT_WAKE).fetchone()
    errors: list[JournalError] = []
    runs: list[RunRecord] = []
    for row in _rows.decode(data):
        try:
            runs.append(decode_row(_run, row, "durable_run"))
        except JournalCorruptError as exc:
            errors.append(exc)
    begun = [run.run_id for run in runs if run.started_at_ms is not None]
    steps = dict(db.execute(STEPS_OF_RUNS, (_text(begun),)).fetchall() if begun else ())
    claimed: list[tuple[RunRecord, list[StepRecord]]] = []
    for run in runs:
        try:
            claimed.append((run, _decode_steps(run.run_id, steps.get(run.run_id, b"[]"))))
        except JournalCorruptError as exc:
            errors.append(exc)
    return Claim(claimed, next_wake_at_ms, errors)


def read_open_steps(db: sqlite3.Connection, run_ids: Sequence[str]) -> dict[str, list[StepRecord]]:
    """Return the unsettled steps of these runs."""
    rows = db.execute(OPEN_STEPS_OF_RUNS, (_text(run_ids),)).fetchall()
    return {run_id: _decode_steps(run_id, text) for run_id, text in rows}


def read_run(db: sqlite3.Connection, run_id: str) -> RunRecord | None:
    """Return one run."""
    row = db.execute(RUN_BY_ID, (run_id,)).fetchone()
    return None if row is None else decode_row(_run, row[0], f"run {run_id!r}")


def read_runs(db: sqlite3.Connection, query: RunQuery) -> list[tuple[int, RunRecord]]:
    """Return a page of runs."""
    where = ["1"]
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
    sql = (
        f"SELECT seq, CAST({_RUN_JSON} AS BLOB) FROM durable_run WHERE {after} ORDER BY {order} LIMIT ?"  # noqa: S608
    )
    rows = db.execute(sql, [*values, query.limit]).fetchall()
    return [(seq, decode_row(_run, data, f"durable_run, seq {seq}")) for seq, data in rows]


def read_steps(db: sqlite3.Connection, query: StepQuery) -> list[StepRecord]:
    """Return a page of a run's steps."""
    where = ["run_id = ?"]
    values: list[Any] = [query.run_id]
    if query.only_open:
        where.append("state IN ('pending', 'running')")
    order, after = _keyset("number", query.order, query.after, where, values)
    sql = f"""
    SELECT CAST(json_group_array({_STEP_JSON}) AS BLOB) FROM (
        SELECT * FROM durable_step WHERE {after} ORDER BY {order} LIMIT ?
    )
    """  # noqa: S608
    (data,) = db.execute(sql, [*values, query.limit]).fetchone()
    steps = _decode_steps(query.run_id, data)
    return steps if query.order == "asc" else steps[::-1]


def _keyset(
    column: str, order: str, after: int | None, where: list[str], values: list[Any]
) -> tuple[str, str]:
    if after is not None:
        where.append(f"{column} {'>' if order == 'asc' else '<'} ?")
        values.append(after)
    return f"{column} {'ASC' if order == 'asc' else 'DESC'}", " AND ".join(where)


def _text(values: Sequence[str]) -> str:
    return msgspec.json.encode(values).decode()


def _decode_steps(run_id: str, data: bytes) -> list[StepRecord]:
    steps: list[StepRecord] = decode_row(_steps, data, f"the steps of run {run_id!r}")
    steps.sort(key=lambda step: step.number)
    return steps


def decode_row(decoder: msgspec.json.Decoder[Any], data: Any, what: str) -> Any:  # noqa: ANN401
    """Decode what was read as JSON.

    Raises:
        JournalCorruptError: It is damaged; the message says which.
    """
    try:
        return decoder.decode(data)
    except msgspec.DecodeError as exc:
        msg = f"damaged row in the journal, {what}: {exc}. Restore the file from a backup."
        raise JournalCorruptError(msg) from exc


def probes() -> list[str]:
    """Return statements that fail unless the tables are those of this schema."""
    wanted = {
        "durable_run": (*RUN_COLUMNS, "seq", "wake_at_ms", "epoch"),
        "durable_step": ("run_id", *STEP_COLUMNS),
        "durable_owner": ("id", "epoch"),
    }
    return [f"SELECT {', '.join(columns)} FROM {table} LIMIT 0" for table, columns in wanted.items()]  # noqa: S608
