"""What the SQLite journal writes: commits and claims, on a plain connection.

Rules:

- Each function runs whole, on the connection's own thread, inside one transaction.
- A commit is one statement, with its rows as JSON: Python's sqlite3 gives up the interpreter lock
  at every step of a statement and has to wait for it again, which it may do for as long as the
  event loop has something to do.
- The functions raise sqlite3's errors; their caller turns them into the journal's.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, TypeAlias

import msgspec
from msgspec.structs import astuple

from durable.core.errors import JournalCorruptError, damaged
from durable.core.nesting import is_child_started
from durable.core.records import (
    CANCEL_NUMBER,
    TIMEOUT_KEY,
    EventRecord,
    RunRecord,
    RunState,
    StepKind,
    StepRecord,
)
from durable.journal.base import Change, ChildChanges, Claim, OwnershipLostError, Restart
from durable.journal.reads import read_descendants, read_next_wake
from durable.journal.rows import (
    EVENT_COLUMNS,
    EVENT_JSON,
    OPEN_STATES,
    RAW_ROWS,
    RUN_COLUMNS,
    RUN_JSON,
    STEP_COLUMNS,
    STEP_JSON,
    decode_events,
    decode_run,
    decode_steps,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from durable.core.errors import JournalError
    from durable.journal.base import Parked

# Slices of the record, because to take them out one by one takes longer than all else.
NEW_STEP = slice(STEP_COLUMNS.index("started_at_ms") + 1)
"""What a step may have when it is issued; mostly, the rest is ``None``."""
STEP_CHANGE = slice(STEP_COLUMNS.index("state"), STEP_COLUMNS.index("error") + 1)
"""What of a step changes."""
NEW_STEP_COLUMNS = STEP_COLUMNS[NEW_STEP]
STEP_CHANGES = STEP_COLUMNS[STEP_CHANGE]
NOTHING_MORE = (None,) * (len(STEP_COLUMNS) - len(NEW_STEP_COLUMNS))
WHOLE_COLUMNS = ("run_id", *STEP_COLUMNS)
RESTART_COLUMNS = ("run_id", *Restart.__struct_fields__)
UPDATE_COLUMNS = ("run_id", "number", *STEP_CHANGES)
NEW_EVENT_COLUMNS = tuple(n for n in EVENT_COLUMNS if n not in ("step_number", "seq"))
CONSUMED_COLUMNS = ("event_id", "run_id", "number")
RUN_CHANGES = (
    "state",
    "started_at_ms",
    "finished_at_ms",
    "restarted_from",
    "callback_id",
    "result",
    "error",
)

FENCE = "SELECT epoch FROM durable_owner"

NEW_EPOCH = "UPDATE durable_owner SET epoch = epoch + 1 RETURNING epoch"

# What a dead owner worked on is due at once.
RELEASE_CLAIMS = "UPDATE durable_run SET epoch = NULL, wake_at_ms = 0 WHERE epoch IS NOT NULL"

# A stuck run is tried again by each new owner: its code may have been mended.
RETRY_STUCK = "UPDATE durable_run SET wake_at_ms = 0 WHERE state = 'stuck'"

# The epoch, too: an owner that is stopped in its tracks, and has lost the lock, is fenced.
END_OWNERSHIP = "UPDATE durable_owner SET epoch = epoch + 1"

RUNS_BY_ID = f"""
SELECT CAST(json_group_array({RUN_JSON}) AS BLOB) FROM durable_run
WHERE run_id IN (SELECT value FROM json_each(?))
"""


def _columns(path: str, names: Sequence[str], of: Sequence[str]) -> str:
    """Return SQL that takes columns out of a row, an array with a value for each of ``of``."""
    return ", ".join(f"json_extract(value, '{path}[{of.index(n)}]') AS {n}" for n in names)


def _insert_steps(part: str, names: Sequence[str]) -> str:
    """Return SQL that inserts steps, of which some columns are given."""
    return f"""
    INSERT INTO durable_step ({", ".join(names)}) SELECT {_columns("$", names, names)}
    FROM json_each(NEW.{part});
    """


def _restarts() -> str:
    """Return SQL that selects the restarts of runs that are over, and still of that generation."""
    return f"""
        SELECT asked.* FROM (
            SELECT {_columns("$", RESTART_COLUMNS, RESTART_COLUMNS)} FROM json_each(NEW.restarts)
        ) AS asked JOIN durable_run AS run ON run.run_id = asked.run_id
        WHERE run.finished_at_ms IS NOT NULL AND run.generation = asked.generation - 1
    """


def _assign(names: Sequence[str], new: str = "new") -> str:
    return ", ".join(f"{name} = {new}.{name}" for name in names)


# A commit is one INSERT into this view, of the epoch and of the rows as JSON. So it is one call
# into SQLite, and a transaction by itself.
COMMIT_PARTS = (
    "epoch",
    "starts",
    "restarts",
    "dropped",
    "issued",
    "whole",
    "asked",
    "updated",
    "runs",
    "parked",
    "canceled",
    "ended",
    "events",
    "consumed",
    "woken",
    "removed",
)
EVENTS, REMOVED = COMMIT_PARTS.index("events"), COMMIT_PARTS.index("removed")
COMMIT = f"INSERT INTO durable_commit VALUES ({', '.join('?' * len(COMMIT_PARTS))})"
COMMIT_VIEW = f"""
CREATE TEMP VIEW durable_commit AS SELECT {", ".join(f"NULL AS {part}" for part in COMMIT_PARTS)}
"""
FENCED = "durable: another owner has taken the journal over"

# An event counts as sent when it is. Before the run's own changes, so that the owner, which knows
# that a run has not ended, need not ask whether an event that it sends is kept.
SEND_EVENTS = f"""
    INSERT OR REPLACE INTO durable_event ({", ".join(NEW_EVENT_COLUMNS)})
    SELECT new.* FROM (
        SELECT {_columns("$", NEW_EVENT_COLUMNS, EVENT_COLUMNS)} FROM json_each(NEW.events)
    ) AS new
    WHERE EXISTS (
        SELECT 1 FROM durable_run AS run
        WHERE run.run_id = new.run_id AND run.finished_at_ms IS NULL
    ) AND NOT EXISTS (
        SELECT 1 FROM durable_event AS before
        WHERE before.event_id = new.event_id AND before.sent_at_ms IS NOT NULL
    );
"""

CONSUME_EVENTS = f"""
    UPDATE durable_event SET step_number = new.number FROM (
        SELECT {_columns("$", CONSUMED_COLUMNS, CONSUMED_COLUMNS)} FROM json_each(NEW.consumed)
    ) AS new
    WHERE durable_event.event_id = new.event_id AND durable_event.step_number IS NULL;

    UPDATE durable_step SET event_id = new.event_id FROM (
        SELECT {_columns("$", CONSUMED_COLUMNS, CONSUMED_COLUMNS)} FROM json_each(NEW.consumed)
    ) AS new
    WHERE durable_step.run_id = new.run_id AND durable_step.number = new.number;
"""

# Whoever is first, the one who parks a run or the one who sends to it: the later one finds both
# the wait and the event here. CROSS JOIN: most runs have no event, many have thousands of steps.
WAKE_WAITING = f"""
    UPDATE durable_run SET wake_at_ms = 0
    WHERE run_id IN (
        SELECT json_extract(value, '$[0]') FROM json_each(NEW.parked)
        UNION ALL
        SELECT json_extract(value, '$[{EVENT_COLUMNS.index("run_id")}]') FROM json_each(NEW.events)
    ) AND epoch IS NULL AND state IN ('{RunState.RUNNING}', '{RunState.CANCELING}') AND EXISTS (
        SELECT 1 FROM durable_event AS sent CROSS JOIN durable_step AS wait
        WHERE sent.run_id = durable_run.run_id AND sent.step_number IS NULL
          AND sent.sent_at_ms IS NOT NULL AND wait.run_id = durable_run.run_id
          AND wait.kind = '{StepKind.EVENT}' AND wait.state IN {OPEN_STATES}
          AND (wait.event_id = sent.event_id OR wait.event_id IS NULL AND wait.name = sent.name)
    );
"""

# The owner does not know of what a guest has sent to a run that it works on.
WAKE_WORKED_ON = f"""
    UPDATE durable_run SET wake_at_ms = 0
    WHERE NEW.epoch IS NULL AND epoch IS NOT NULL AND finished_at_ms IS NULL AND run_id IN (
        SELECT json_extract(value, '$[{EVENT_COLUMNS.index("run_id")}]') FROM json_each(NEW.events)
        WHERE json_extract(value, '$[{EVENT_COLUMNS.index("sent_at_ms")}]') IS NOT NULL
    );
"""

# Of a restart from a step, what the body did until that step first mattered is kept. Later outcomes
# of earlier steps are handed to it again; later steps are found to be left over when the body has
# gone as far, and dropped then.
RESTART = f"""
    DELETE FROM durable_step WHERE run_id IN (
        SELECT run_id FROM ({_restarts()}) WHERE from_position IS NULL
    );
    DELETE FROM durable_step
    WHERE run_id IN (SELECT run_id FROM ({_restarts()})) AND number = {CANCEL_NUMBER};

    UPDATE durable_step SET position = NULL FROM ({_restarts()}) AS new
    WHERE durable_step.run_id = new.run_id AND position >= new.from_position;

    UPDATE durable_event SET step_number = NULL FROM ({_restarts()}) AS new
    WHERE durable_event.run_id = new.run_id
      AND (new.from_position IS NULL OR step_number >= new.from_number);

    UPDATE durable_step SET
        state = iif(kind IN ('sleep', 'event'), 'running', 'pending'),
        attempts = 0, interruptions = 0, result = NULL, error = NULL, finished_at_ms = NULL,
        started_at_ms = iif(kind IN ('sleep', 'event'), new.now_ms, NULL),
        event_id = iif(kind = 'event', json_extract(args, '$.event_id'), NULL),
        due_at_ms = CASE
            WHEN kind NOT IN ('sleep', 'event') THEN NULL
            WHEN json_extract(args, '$.until') IS NULL THEN new.now_ms + due_at_ms - started_at_ms
            ELSE due_at_ms
        END,
        -- Another child than before, which is started when the body is found to wait for it.
        child_run_id = iif(
            kind = 'workflow',
            printf('%012x', new.now_ms) || lower(hex(randomblob(10))),
            child_run_id
        )
    FROM ({_restarts()}) AS new
    WHERE durable_step.run_id = new.run_id AND number >= 0 AND position IS NULL
      AND (
          number >= new.from_number OR durable_step.state = 'canceled' OR key = '{TIMEOUT_KEY}'
      );

    UPDATE durable_run SET
        state = 'pending', generation = new.generation, result = NULL, error = NULL,
        finished_at_ms = NULL,
        started_at_ms = iif(new.from_position IS NULL, NULL, started_at_ms),
        restarted_from = iif(new.from_position IS NULL, NULL, new.from_number),
        callback_id = NULL
    FROM ({_restarts()}) AS new WHERE durable_run.run_id = new.run_id;
"""

DROP_STEPS = """
    DELETE FROM durable_step
    WHERE run_id IN (SELECT json_extract(value, '$[0]') FROM json_each(NEW.dropped))
      AND number >= (
        SELECT json_extract(value, '$[1]') FROM json_each(NEW.dropped)
        WHERE json_extract(value, '$[0]') = durable_step.run_id
      );
"""

# Apart: most commits have nothing to do with these, and each statement costs, even with no rows.
RARE_TRIGGERS = (
    "CREATE TEMP VIEW durable_sending AS SELECT NULL AS epoch, NULL AS events",
    f"""
    CREATE TEMP TRIGGER durable_sending_apply INSTEAD OF INSERT ON durable_sending BEGIN
        {SEND_EVENTS}
        {WAKE_WORKED_ON}
    END
    """,
    "CREATE TEMP VIEW durable_waking AS SELECT NULL AS events, NULL AS consumed, NULL AS parked",
    f"""
    CREATE TEMP TRIGGER durable_waking_apply INSTEAD OF INSERT ON durable_waking BEGIN
        {CONSUME_EVENTS}
        {WAKE_WAITING}
    END
    """,
    "CREATE TEMP VIEW durable_restarting AS SELECT NULL AS restarts, NULL AS dropped",
    f"""
    CREATE TEMP TRIGGER durable_restarting_apply INSTEAD OF INSERT ON durable_restarting BEGIN
        {RESTART}
        {DROP_STEPS}
    END
    """,
    "CREATE TEMP VIEW durable_asking AS SELECT NULL AS woken",
    """
    CREATE TEMP TRIGGER durable_asking_apply INSTEAD OF INSERT ON durable_asking BEGIN
        UPDATE durable_run SET wake_at_ms = 0
        WHERE run_id IN (SELECT value FROM json_each(NEW.woken)) AND finished_at_ms IS NULL;
    END
    """,
    "CREATE TEMP VIEW durable_removing AS SELECT NULL AS removed",
    """
    CREATE TEMP TRIGGER durable_removing_apply INSTEAD OF INSERT ON durable_removing BEGIN
        DELETE FROM durable_event WHERE run_id IN (SELECT value FROM json_each(NEW.removed));
        DELETE FROM durable_step WHERE run_id IN (SELECT value FROM json_each(NEW.removed));
        DELETE FROM durable_run WHERE run_id IN (SELECT value FROM json_each(NEW.removed));
    END
    """,
)

# A final state is written once: a late writer changes nothing. Without an epoch it is a guest's.
# What was asked is kept as it was first; but what was handed to the body counts more than what was
# asked at the same time and was not. Who parks a run does not know what was asked of it meanwhile:
# the earlier wake time stays. Whether children are concerned is asked first: a commit without them
# must not pay for the tables that an IN is made with.
COMMIT_TRIGGER = f"""
CREATE TEMP TRIGGER durable_commit_apply INSTEAD OF INSERT ON durable_commit BEGIN
    SELECT RAISE(ABORT, '{FENCED}')
    WHERE NEW.epoch IS NOT NULL AND NEW.epoch IS NOT (SELECT epoch FROM durable_owner);

    INSERT INTO durable_run ({", ".join(RUN_COLUMNS)}, wake_at_ms, epoch)
    SELECT {_columns("$[0]", RUN_COLUMNS, RUN_COLUMNS)},
           json_extract(value, '$[1]'), json_extract(value, '$[2]')
    FROM json_each(NEW.starts);

    INSERT INTO durable_sending SELECT NEW.epoch, NEW.events WHERE NEW.events IS NOT NULL;
    INSERT INTO durable_restarting SELECT NEW.restarts, NEW.dropped
    WHERE coalesce(NEW.restarts, NEW.dropped) IS NOT NULL;

    {_insert_steps("issued", ("run_id", *NEW_STEP_COLUMNS))}
    {_insert_steps("whole", WHOLE_COLUMNS)}

    INSERT INTO durable_step ({", ".join(WHOLE_COLUMNS)})
    SELECT {_columns("$", WHOLE_COLUMNS, WHOLE_COLUMNS)} FROM json_each(NEW.asked)
    WHERE EXISTS (
        SELECT 1 FROM durable_run
        WHERE run_id = json_extract(value, '$[0]') AND finished_at_ms IS NULL
    )
    ON CONFLICT DO UPDATE SET args = excluded.args, {_assign(STEP_CHANGES, "excluded")}
    WHERE durable_step.position IS NULL AND excluded.position IS NOT NULL;

    UPDATE durable_step SET {_assign(STEP_CHANGES)} FROM (
        SELECT {_columns("$", UPDATE_COLUMNS, UPDATE_COLUMNS)} FROM json_each(NEW.updated)
    ) AS new
    WHERE durable_step.run_id = new.run_id AND durable_step.number = new.number
      AND (durable_step.state IN {OPEN_STATES}
           OR durable_step.state = new.state AND durable_step.position IS NULL);

    UPDATE durable_run SET {_assign(RUN_CHANGES)} FROM (
        SELECT {_columns("$", ("run_id", *RUN_CHANGES), RUN_COLUMNS)}
        FROM json_each(NEW.runs)
    ) AS new
    WHERE durable_run.run_id = new.run_id AND durable_run.finished_at_ms IS NULL;

    UPDATE durable_run SET epoch = NULL, wake_at_ms = CASE
        WHEN finished_at_ms IS NOT NULL THEN new.wake_at_ms
        ELSE coalesce(min(durable_run.wake_at_ms, new.wake_at_ms), durable_run.wake_at_ms,
                      new.wake_at_ms)
    END FROM (
        SELECT json_extract(value, '$[0]') AS run_id, json_extract(value, '$[1]') AS wake_at_ms
        FROM json_each(NEW.parked)
    ) AS new
    WHERE durable_run.run_id = new.run_id;

    UPDATE durable_run SET wake_at_ms = 0
    WHERE NEW.canceled IS NOT NULL AND run_id IN (SELECT value FROM json_each(NEW.canceled))
      AND epoch IS NULL AND finished_at_ms IS NULL;

    UPDATE durable_run SET wake_at_ms = 0
    WHERE NEW.ended IS NOT NULL AND run_id IN (
        SELECT run_id FROM durable_step
        WHERE child_run_id IN (SELECT value FROM json_each(NEW.ended)) AND state IN {OPEN_STATES}
    ) AND epoch IS NULL AND finished_at_ms IS NULL AND state <> 'stuck';

    INSERT INTO durable_waking SELECT NEW.events, NEW.consumed, NEW.parked
    WHERE coalesce(NEW.events, NEW.consumed, NEW.parked) IS NOT NULL;

    INSERT INTO durable_asking SELECT NEW.woken WHERE NEW.woken IS NOT NULL;

    INSERT INTO durable_removing SELECT NEW.removed WHERE NEW.removed IS NOT NULL;
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

WORKED_ON = """
SELECT 1 FROM durable_run
WHERE epoch IS NOT NULL AND run_id IN (SELECT value FROM json_each(?)) LIMIT 1
"""

SENT = """
SELECT event_id FROM durable_event
WHERE sent_at_ms IS NOT NULL AND event_id IN (SELECT value FROM json_each(?))
"""

CommitRows: TypeAlias = "tuple[int | str | None, ...]"
"""What is bound to ``COMMIT``: the epoch, and the rows of each part as JSON."""


def prepare_commits(db: sqlite3.Connection) -> None:
    """Give a connection what ``commit`` needs."""
    for statement in (*RARE_TRIGGERS, COMMIT_VIEW, COMMIT_TRIGGER):
        db.execute(statement)


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


def end_ownership(db: sqlite3.Connection) -> None:
    """Have nobody own the journal, and nobody work on its runs."""
    db.execute(END_OWNERSHIP)
    db.execute(RELEASE_CLAIMS)


def ownership_lost(present: int, epoch: int) -> OwnershipLostError:
    """Return the error that says so."""
    msg = (
        f"another owner has taken the journal over (epoch {present}, not {epoch}). This engine "
        "writes nothing any more: close it."
    )
    return OwnershipLostError(msg)


def rows_of(changes: Sequence[Change], epoch: int | None) -> CommitRows:
    """Return the parts of ``COMMIT``: of each row, the last that is to be written.

    Without an epoch it is a guest who writes.
    """
    changes = _one_of_each_run(changes)
    starts = [change for change in changes if change.is_start]
    families = [change.children for change in changes if change.children is not None]
    others = [change for change in changes if not change.is_start] if starts else changes
    issued: list[tuple[object, ...]] = []
    whole: list[tuple[object, ...]] = []
    updated: list[tuple[object, ...]] = []
    for change in changes:
        run_id = change.run_id
        for step in change.issued:
            values = astuple(step)
            if values[NEW_STEP.stop :] == NOTHING_MORE:
                issued.append((run_id, *values[NEW_STEP]))
            else:
                whole.append((run_id, *values))
        for step in change.updated:
            updated.append((run_id, step.number, *astuple(step)[STEP_CHANGE]))  # noqa: PERF401
    return (
        epoch,
        _json_rows(
            [_start_row(change.run, change.parked, epoch) for change in starts]
            + [_start_row(*start, epoch) for family in families for start in family.started]
        ),
        _json_rows([(each.run_id, *astuple(each.restart)) for each in changes if each.restart]),
        _json_rows(
            [
                (change.run_id, change.dropped_from)
                for change in changes
                if change.dropped_from is not None
            ]
        ),
        _json_rows(issued),
        _json_rows(whole),
        # What a run has written of itself stands: it may have been told to its body already.
        _json_rows(
            [(each.run_id, *astuple(each.asked)) for each in changes if each.asked]
            + [(run_id, *astuple(asked)) for each in families for run_id, asked in each.canceled]
        ),
        _json_rows(updated),
        _json_rows([change.run for change in others if change.run is not None]),
        _json_rows(
            [
                (change.run_id, change.parked.wake_at_ms)
                for change in others
                if change.parked is not None
            ]
        ),
        _json_rows([run_id for family in families for run_id, _ in family.canceled]),
        _json_rows([change.run_id for change in others if _is_end_of_child(change.run)]),
        _json_rows([event for change in changes for event in change.events]),
        _json_rows(
            [
                (event_id, change.run_id, number)
                for change in changes
                for event_id, number in change.consumed
            ]
        ),
        _json_rows([change.run_id for change in changes if change.is_wake]),
        _json_rows([change.run_id for change in changes if change.is_removal]),
    )


def _start_row(
    run: RunRecord | None, parked: Parked | None, epoch: int | None
) -> tuple[RunRecord | None, int | None, int | None]:
    if parked is None:
        assert epoch is not None
        return run, None, epoch
    return run, parked.wake_at_ms, None


def _is_end_of_child(run: RunRecord | None) -> bool:
    return run is not None and run.finished_at_ms is not None and run.parent_id is not None


def _one_of_each_run(changes: Sequence[Change]) -> Sequence[Change]:
    """Merge the changes of each run: of a row that several write, the last counts."""
    by_run: dict[str, list[Change]] = {}
    for change in changes:
        by_run.setdefault(change.run_id, []).append(change)
    if len(by_run) == len(changes):
        return changes
    return [group[0] if len(group) == 1 else _merge(group) for group in by_run.values()]


def _merge(changes: list[Change]) -> Change:
    """Return what changes of one run, in this order, lead to."""
    merged = Change(run_id=changes[0].run_id)
    issued: dict[int, StepRecord] = {}
    updated: dict[int, StepRecord] = {}
    for change in changes:
        # A start after the removal of the run that has its id finds the id taken.
        merged.is_start = merged.is_start or change.is_start
        merged.is_wake = merged.is_wake or change.is_wake
        merged.is_removal = merged.is_removal or change.is_removal
        merged.asked = merged.asked or change.asked
        merged.restart = merged.restart or change.restart
        if change.dropped_from is not None:
            merged.dropped_from = change.dropped_from
        merged.run = change.run or merged.run
        merged.parked = change.parked or merged.parked
        if change.children is not None:
            merged.children = merged.children or ChildChanges()
            merged.children.started += change.children.started
            merged.children.canceled += change.children.canceled
        merged.events += change.events
        merged.consumed += change.consumed
        issued.update((step.number, step) for step in change.issued)
        for step in change.updated:
            (issued if step.number in issued else updated)[step.number] = step
    merged.issued += issued.values()
    merged.updated += updated.values()
    return merged


def _json_rows(rows: Sequence[object]) -> str | None:
    return msgspec.json.encode(rows).decode() if rows else None


def commit(
    db: sqlite3.Connection, changes: Sequence[Change], rows: CommitRows, epoch: int | None
) -> dict[str, RunRecord]:
    """Write ``changes``, whose rows are ``rows``.

    Returns:
        The runs that are there already, of the starts whose id is taken.
    """
    if rows[EVENTS] is not None:
        _find_sent_before(db, changes)
    try:
        db.execute(COMMIT, _with_descendants(db, changes, rows))
    except sqlite3.IntegrityError:
        # Nothing was written. It is another owner's, or ids are taken; both are rare.
        if epoch is not None:
            check_fence(db, epoch)
        taken = _find_taken(db, changes)
        if not taken:
            raise
        rest = [change for change in changes if not (change.is_start and change.run_id in taken)]
        db.execute(COMMIT, _with_descendants(db, rest, rows_of(rest, epoch)))
        return taken
    return {}


def _with_descendants(
    db: sqlite3.Connection, changes: Sequence[Change], rows: CommitRows
) -> CommitRows:
    """Let all go that is under the runs that are to be no more. Only the owner starts children."""
    if rows[REMOVED] is None:
        return rows
    removed: set[str] = set()
    for change in changes:
        if change.is_removal:
            tree = {change.run_id, *read_descendants(db, change.run_id)}
            if not (change.is_gentle and _is_worked_on(db, tree)):
                removed |= tree
    started = (child for each in changes if each.children for child, _ in each.children.started)
    removed.update([child.run_id for child in started if child.parent_id in removed])
    return (*rows[:REMOVED], _json_rows(sorted(removed)))


def _is_worked_on(db: sqlite3.Connection, run_ids: set[str]) -> bool:
    return db.execute(WORKED_ON, (text(sorted(run_ids)),)).fetchone() is not None


def _find_sent_before(db: sqlite3.Connection, changes: Sequence[Change]) -> None:
    """Note which events of ``changes`` are not kept, because they were sent before.

    Nobody sends them in between: this process holds the lock on writing.
    """
    sending = [change for change in changes if change.events]
    ids = text([event.event_id for change in sending for event in change.events])
    before = {event_id for (event_id,) in db.execute(SENT, (ids,))}
    for change in sending:
        ids_of_change = (event.event_id for event in change.events)
        change.sent_before = tuple(event_id for event_id in ids_of_change if event_id in before)


def _find_taken(db: sqlite3.Connection, changes: Sequence[Change]) -> dict[str, RunRecord]:
    run_ids = [change.run_id for change in changes if change.is_start]
    (found,) = db.execute(RUNS_BY_ID, (text(run_ids),)).fetchone()
    return {run.run_id: run for run in map(decode_run, RAW_ROWS.decode(found))}


def claim_due(db: sqlite3.Connection, now_ms: int, limit: int, epoch: int) -> Claim:
    """Claim the runs that are due, oldest first, and read their steps."""
    (seqs,) = db.execute(DUE_SEQS, {"now_ms": now_ms, "limit": limit}).fetchone()
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
