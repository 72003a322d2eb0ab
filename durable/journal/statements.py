"""The SQL of the SQLite journal, and the functions that run it on a plain connection.

Rules:

- Each function runs whole, on the connection's own thread, inside one transaction.
- Many rows go in by one statement, and come out as one JSON text: Python's sqlite3 gives up the
  interpreter lock for every row it steps through, and would wait for it again each time.
- The functions raise sqlite3's errors; their caller turns them into the journal's.
"""

from __future__ import annotations

from itertools import chain
from operator import attrgetter
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

INSERT_RUNS = f"INSERT INTO durable_run ({', '.join(RUN_COLUMNS)}, wake_at_ms, epoch) VALUES "
INSERT_STEPS = f"INSERT INTO durable_step (run_id, {', '.join(STEP_COLUMNS)}) VALUES "

# A final state is written once: a late writer changes nothing.
UPDATE_STEPS = (
    f"WITH new (run_id, number, {', '.join(STEP_CHANGES)}) AS (VALUES ",
    f""")
    UPDATE durable_step AS old SET {", ".join(f"{c} = new.{c}" for c in STEP_CHANGES)} FROM new
    WHERE old.run_id = new.run_id AND old.number = new.number
      AND (old.state IN ('pending', 'running') OR old.state = new.state AND old.position IS NULL)
    """,
)
UPDATE_RUNS = (
    f"WITH new (run_id, {', '.join(RUN_CHANGES)}) AS (VALUES ",
    f""")
    UPDATE durable_run AS old SET {", ".join(f"{c} = new.{c}" for c in RUN_CHANGES)} FROM new
    WHERE old.run_id = new.run_id AND old.finished_at_ms IS NULL
    """,
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

_row = msgspec.structs.astuple
_step_changes = attrgetter(*STEP_CHANGES)
_run_changes = attrgetter(*RUN_CHANGES)

_run = msgspec.json.Decoder(RunRecord)
_steps = msgspec.json.Decoder(list[StepRecord])
_rows = msgspec.json.Decoder(list[msgspec.Raw])


UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError)
"""What decoding damaged JSON raises."""

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
    new_steps: dict[tuple[str, int], StepRecord] = {}
    old_steps: dict[tuple[str, int], StepRecord] = {}
    parked: dict[str, int | None] = {}
    starts: dict[str, tuple[RunRecord, int | None, int | None]] = {}
    run_changes: dict[str, RunRecord] = {}
    for change in changes:
        run_id, run = change.run_id, change.run
        if change.is_start:
            assert run is not None
            if taken[run_id] is not run:
                continue
            starts[run_id] = (run, None, epoch)
        elif run is not None:
            if run_id in starts:
                starts[run_id] = (run, *starts[run_id][1:])
            else:
                run_changes[run_id] = run
        if change.parked is not None:
            if run_id in starts:
                starts[run_id] = (starts[run_id][0], change.parked.wake_at_ms, None)
            else:
                parked[run_id] = change.parked.wake_at_ms
        for step in change.issued:
            new_steps[run_id, step.number] = step
        for step in change.updated:
            where = new_steps if (run_id, step.number) in new_steps else old_steps
            where[run_id, step.number] = step
    _bulk(db, (INSERT_RUNS, ""), [(*_row(run), *claim) for run, *claim in starts.values()])
    _bulk(db, (INSERT_STEPS, ""), [(key[0], *_row(step)) for key, step in new_steps.items()])
    _bulk(db, UPDATE_STEPS, [(*key, *_step_changes(step)) for key, step in old_steps.items()])
    _bulk(db, UPDATE_RUNS, [(key, *_run_changes(run)) for key, run in run_changes.items()])
    _bulk(db, PARK_RUNS, list(parked.items()))
    return {
        change.run_id: taken[change.run_id]
        for change in changes
        if change.is_start and taken[change.run_id] is not change.run
    }


def _find_taken(db: sqlite3.Connection, changes: Sequence[Change]) -> dict[str, RunRecord]:
    """Return who has each id that this batch wants to start: an earlier run, or the first here."""
    starts = [change for change in changes if change.is_start]
    if not starts:
        return {}
    run_ids = [change.run_id for change in starts]
    (found,) = db.execute(TAKEN_IDS, (_text(run_ids),)).fetchone()
    rows = (_decode_run(row) for row in _rows.decode(found))
    owners: dict[str, RunRecord] = {run.run_id: run for run in rows}
    for change in starts:
        assert change.run is not None
        owners.setdefault(change.run_id, change.run)
    return owners


def _bulk(db: sqlite3.Connection, sql: tuple[str, str], rows: Sequence[Sequence[Any]]) -> None:
    """Run a statement over all rows, in as few executions as can be."""
    done = 0
    for count in ROWS_PER_STATEMENT:
        while len(rows) - done >= count:
            chunk = rows[done : done + count]
            db.execute(_bulk_sql(sql, count, len(chunk[0])), list(chain.from_iterable(chunk)))
            done += count


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
    errors: list[tuple[RunRecord | None, JournalError]] = []
    runs: list[RunRecord] = []
    for row in _rows.decode(data):
        try:
            runs.append(_decode_run(row))
        except JournalCorruptError as exc:
            errors.append((None, exc))
    begun = [run.run_id for run in runs if run.started_at_ms is not None]
    steps = dict(db.execute(STEPS_OF_RUNS, (_text(begun),)).fetchall() if begun else ())
    claimed: list[tuple[RunRecord, list[StepRecord]]] = []
    for run in runs:
        try:
            claimed.append((run, _decode_steps(run.run_id, steps.get(run.run_id, b"[]"))))
        except JournalCorruptError as exc:
            errors.append((run, exc))
    return Claim(claimed, next_wake_at_ms, errors)


def read_run(db: sqlite3.Connection, run_id: str) -> RunRecord | None:
    """Return one run."""
    row = db.execute(RUN_BY_ID, (run_id,)).fetchone()
    return None if row is None else _decode_run(row[0])


def read_status(db: sqlite3.Connection, run_id: str) -> tuple[RunRecord, list[StepRecord]] | None:
    """Return one run and its open steps."""
    run = read_run(db, run_id)
    return None if run is None else (run, _read_open_steps(db, [run_id]).get(run_id, []))


def read_runs(
    db: sqlite3.Connection, query: RunQuery
) -> list[tuple[int, RunRecord, list[StepRecord]]]:
    """Return a page of runs, each with its open steps."""
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
    sql = f"SELECT seq, CAST({_RUN_JSON} AS BLOB) FROM durable_run WHERE {after} ORDER BY {order} LIMIT ?"  # noqa: E501
    rows = db.execute(sql, [*values, query.limit]).fetchall()
    runs = [(seq, _decode_run(data)) for seq, data in rows]
    steps = _read_open_steps(db, [run.run_id for _, run in runs if not run.state.is_final])
    return [(seq, run, steps.get(run.run_id, [])) for seq, run in runs]


def read_steps(db: sqlite3.Connection, query: StepQuery) -> list[StepRecord] | None:
    """Return a page of a run's steps."""
    where = ["run_id = ?"]
    values: list[Any] = [query.run_id]
    order, after = _keyset("number", query.order, query.after, where, values)
    sql = f"""
    SELECT CAST(json_group_array({_STEP_JSON}) AS BLOB) FROM (
        SELECT * FROM durable_step WHERE {after} ORDER BY {order} LIMIT ?
    )
    """
    (data,) = db.execute(sql, [*values, query.limit]).fetchone()
    steps = _decode_steps(query.run_id, data)
    if not steps and read_run(db, query.run_id) is None:
        return None
    return steps if query.order == "asc" else steps[::-1]


def _read_open_steps(db: sqlite3.Connection, run_ids: list[str]) -> dict[str, list[StepRecord]]:
    rows = db.execute(OPEN_STEPS_OF_RUNS, (_text(run_ids),)).fetchall()
    return {run_id: _decode_steps(run_id, data) for run_id, data in rows}


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


def _decode_run(data: Any) -> RunRecord:  # noqa: ANN401
    """Decode a row of durable_run.

    Raises:
        JournalCorruptError: It is damaged; the message names the run.
    """
    try:
        return _run.decode(data)
    except UNREADABLE:
        run_id = bytes(_rows.decode(data)[0]).decode("utf-8", "backslashreplace")
        run: RunRecord = decode_row(_run, data, f"run {run_id}")
        return run


def decode_row(decoder: msgspec.json.Decoder[Any], data: Any, what: str) -> Any:  # noqa: ANN401
    """Decode what was read as JSON.

    Raises:
        JournalCorruptError: It is damaged; the message says which.
    """
    try:
        return decoder.decode(data)
    except UNREADABLE as exc:
        msg = f"damaged row in the journal, {what}: {exc}. Restore the file from a backup."
        raise JournalCorruptError(msg) from exc


def probes() -> list[str]:
    """Return statements that fail unless the tables are those of this schema."""
    wanted = {
        "durable_run": (*RUN_COLUMNS, "seq", "wake_at_ms", "epoch"),
        "durable_step": ("run_id", *STEP_COLUMNS),
        "durable_owner": ("id", "epoch"),
    }
    return [
        f"SELECT {', '.join(columns)} FROM {table} LIMIT 0" for table, columns in wanted.items()
    ]
