"""The SQL of the SQLite journal, and the functions that run it on a plain connection.

Rules:

- Each function runs whole, on the connection's own thread, inside one transaction.
- A commit is one statement, and rows go in and come out as JSON: Python's sqlite3 gives up the
  interpreter lock at every step of a statement and has to wait for it again, which it may do for
  as long as the event loop has something to do.
- The functions raise sqlite3's errors; their caller turns them into the journal's.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from durable.core.errors import JournalCorruptError, damaged
from durable.core.records import RunRecord, RunState, StepRecord
from durable.journal.base import Change, Claim, OwnershipLostError, RunQuery, StepQuery

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from durable.core.errors import JournalError

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

RUNS_BY_ID = f"""
SELECT CAST(json_group_array({_RUN_JSON}) AS BLOB) FROM durable_run
WHERE run_id IN (SELECT value FROM json_each(?))
"""


def _columns(source: str, path: str, names: Sequence[str], of: Sequence[str]) -> str:
    """Return SQL that takes columns out of a JSON array with a value for each of ``of``."""
    return ", ".join(f"json_extract({source}, '{path}[{of.index(n)}]') AS {n}" for n in names)


def _assign(names: Sequence[str]) -> str:
    return ", ".join(f"{name} = new.{name}" for name in names)


# A commit is one INSERT into this view, of the epoch and of the rows as JSON. So it is one call
# into SQLite, and a transaction by itself.
COMMIT_PARTS = ("epoch", "starts", "issued", "updated", "runs", "parked")
COMMIT = f"INSERT INTO durable_commit VALUES ({', '.join('?' * len(COMMIT_PARTS))})"
COMMIT_VIEW = f"""
CREATE TEMP VIEW durable_commit AS SELECT {", ".join(f"NULL AS {part}" for part in COMMIT_PARTS)}
"""
FENCED = "durable: another owner has taken the journal over"

# A final state is written once: a late writer changes nothing.
COMMIT_TRIGGER = f"""
CREATE TEMP TRIGGER durable_commit_apply INSTEAD OF INSERT ON durable_commit BEGIN
    SELECT RAISE(ABORT, '{FENCED}') WHERE NEW.epoch IS NOT (SELECT epoch FROM durable_owner);

    INSERT INTO durable_run ({", ".join(RUN_COLUMNS)}, wake_at_ms, epoch)
    SELECT {_columns("value", "$[0]", RUN_COLUMNS, RUN_COLUMNS)},
           json_extract(value, '$[1]'), json_extract(value, '$[2]')
    FROM json_each(NEW.starts);

    INSERT INTO durable_step (run_id, {", ".join(STEP_COLUMNS)})
    SELECT json_extract(value, '$[0]'), {_columns("value", "$[1]", STEP_COLUMNS, STEP_COLUMNS)}
    FROM json_each(NEW.issued);

    UPDATE durable_step SET {_assign(STEP_CHANGES)} FROM (
        SELECT json_extract(value, '$[0]') AS run_id,
               {_columns("value", "$[1]", ("number", *STEP_CHANGES), STEP_COLUMNS)}
        FROM json_each(NEW.updated)
    ) AS new
    WHERE durable_step.run_id = new.run_id AND durable_step.number = new.number
      AND (durable_step.state IN ('pending', 'running')
           OR durable_step.state = new.state AND durable_step.position IS NULL);

    UPDATE durable_run SET {_assign(RUN_CHANGES)} FROM (
        SELECT {_columns("value", "$", ("run_id", *RUN_CHANGES), RUN_COLUMNS)}
        FROM json_each(NEW.runs)
    ) AS new
    WHERE durable_run.run_id = new.run_id AND durable_run.finished_at_ms IS NULL;

    UPDATE durable_run SET wake_at_ms = new.wake_at_ms, epoch = NULL FROM (
        SELECT json_extract(value, '$[0]') AS run_id, json_extract(value, '$[1]') AS wake_at_ms
        FROM json_each(NEW.parked)
    ) AS new
    WHERE durable_run.run_id = new.run_id;
END
"""

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


UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError)
"""What decoding damaged JSON raises."""

# --- writing -------------------------------------------------------------------------------------


CommitRows: TypeAlias = "tuple[int | str | None, ...]"
"""What is bound to ``COMMIT``: the epoch, and the rows of each part as JSON."""


def prepare_commits(db: sqlite3.Connection) -> None:
    """Give a connection what ``commit`` needs."""
    db.execute(COMMIT_VIEW)
    db.execute(COMMIT_TRIGGER)


def check_fence(db: sqlite3.Connection, epoch: int) -> None:
    """Raise ``OwnershipLostError`` unless ``epoch`` is the present owner's."""
    (present,) = db.execute(FENCE).fetchone()
    if present != epoch:
        raise ownership_lost(present, epoch)


def new_epoch(db: sqlite3.Connection, epoch: int) -> int:
    """Become the owner, again if ``epoch`` is not 0; return the new epoch.

    Raises:
        OwnershipLostError: Another one has become the owner since.
        JournalCorruptError: The row with the epoch is gone.
    """
    owner = db.execute(NEW_EPOCH).fetchone()
    if owner is None:
        msg = "the journal has lost the row of durable_owner. Restore it from a backup."
        raise JournalCorruptError(msg)
    # The own last one, or, where the outcome of writing it was unknown, the one before.
    if 0 < epoch < owner[0] - 1:
        raise ownership_lost(owner[0] - 1, epoch)
    return int(owner[0])


def ownership_lost(present: int, epoch: int) -> OwnershipLostError:
    """Return the error that says so."""
    msg = (
        f"another owner has taken the journal over (epoch {present}, not {epoch}). This engine "
        "writes nothing any more: close it."
    )
    return OwnershipLostError(msg)


def rows_of(changes: Sequence[Change], epoch: int) -> CommitRows:
    """Return the parts of ``COMMIT``: of each row, the last that is to be written."""
    issued: dict[tuple[str, int], tuple[str, StepRecord]] = {}
    updated: dict[tuple[str, int], tuple[str, StepRecord]] = {}
    parked: dict[str, int | None] = {}
    starts: dict[str, tuple[RunRecord, int | None, int | None]] = {}
    runs: dict[str, RunRecord] = {}
    for change in changes:
        run_id, run = change.run_id, change.run
        if change.is_start:
            assert run is not None
            assert run_id not in starts
            starts[run_id] = (run, None, epoch)
        elif run is not None:
            if run_id in starts:
                starts[run_id] = (run, *starts[run_id][1:])
            else:
                runs[run_id] = run
        if change.parked is not None:
            if run_id in starts:
                starts[run_id] = (starts[run_id][0], change.parked.wake_at_ms, None)
            else:
                parked[run_id] = change.parked.wake_at_ms
        for step in change.issued:
            issued[run_id, step.number] = (run_id, step)
        for step in change.updated:
            where = issued if issued and (run_id, step.number) in issued else updated
            where[run_id, step.number] = (run_id, step)
    return (
        epoch,
        _json_rows(starts.values()),
        _json_rows(issued.values()),
        _json_rows(updated.values()),
        _json_rows(runs.values()),
        _json_rows(parked.items()),
    )


def _json_rows(rows: Collection[object]) -> str | None:
    return msgspec.json.encode(list(rows)).decode() if rows else None


def commit(
    db: sqlite3.Connection, changes: Sequence[Change], rows: CommitRows, epoch: int
) -> dict[str, RunRecord]:
    """Write ``changes``, whose rows are ``rows``.

    Returns:
        The runs that are there already, of the starts whose id is taken.
    """
    try:
        db.execute(COMMIT, rows)
    except sqlite3.IntegrityError:
        # Nothing was written. It is another owner's, or ids are taken; both are rare.
        check_fence(db, epoch)
        taken = _find_taken(db, changes)
        if not taken:
            raise
        rest = [change for change in changes if not (change.is_start and change.run_id in taken)]
        db.execute(COMMIT, rows_of(rest, epoch))
        return taken
    return {}


def _find_taken(db: sqlite3.Connection, changes: Sequence[Change]) -> dict[str, RunRecord]:
    run_ids = [change.run_id for change in changes if change.is_start]
    (found,) = db.execute(RUNS_BY_ID, (_text(run_ids),)).fetchone()
    return {run.run_id: run for run in map(_decode_run, _rows.decode(found))}


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
    begun = [run.run_id for run in runs if run.state is not RunState.PENDING]
    steps = dict(db.execute(STEPS_OF_RUNS, (_text(begun),)).fetchall() if begun else ())
    claimed: list[tuple[RunRecord, list[StepRecord]]] = []
    for run in runs:
        try:
            claimed.append((run, _decode_history(run, steps.get(run.run_id, b"[]"))))
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
    _check_order([seq for seq, _ in rows], query.order, "the list of runs")
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
    _check_order([step.number for step in steps], "asc", f"the steps of run {query.run_id!r}")
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


def _check_order(places: list[int], order: str, what: str) -> None:
    """See that no damaged page leads back: who reads on would never come to the end.

    Raises:
        JournalCorruptError: It does.
    """
    in_order = sorted(set(places), reverse=order == "desc")
    if places != in_order:
        raise JournalCorruptError(damaged(what, "they are not in the order of their keys"))


def _text(values: Sequence[str]) -> str:
    return msgspec.json.encode(values).decode()


def _decode_history(run: RunRecord, data: bytes) -> list[StepRecord]:
    steps = _decode_steps(run.run_id, data)
    if steps and run.started_at_ms is None:
        why = "it has steps, but no time at which it was started"
        raise JournalCorruptError(damaged(f"run {run.run_id!r}", why))
    return steps


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
        raise JournalCorruptError(damaged(what, exc)) from exc


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
