"""A commit as SQL: one ``INSERT`` into a view, whose triggers write it.

Python's sqlite3 gives up the interpreter lock at every step of a statement, and has to wait for it
again, which it may do for as long as the event loop has something to do: so it is one statement,
with its rows as JSON.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from durable.core.records import CANCEL_NUMBER, TIMEOUT_KEY, RunState, StepKind
from durable.journal.base import Restart
from durable.journal.rows import EVENT_COLUMNS, OPEN_STATES, RUN_COLUMNS, STEP_COLUMNS

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

NEW_STEP_COLUMNS = STEP_COLUMNS[: STEP_COLUMNS.index("started_at_ms") + 1]
"""What a step mostly has when it is issued; the rest is ``None``."""
STEP_CHANGES = STEP_COLUMNS[STEP_COLUMNS.index("state") : STEP_COLUMNS.index("error") + 1]
"""What of a step changes."""
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
    "begun_with",
    "result",
    "error",
)


def _columns(path: str, names: Sequence[str], of: Sequence[str]) -> str:
    """Return SQL that takes columns out of a row, an array with a value for each of ``of``."""
    return ", ".join(f"json_extract(value, '{path}[{of.index(n)}]') AS {n}" for n in names)


def _insert_steps(part: str, names: Sequence[str]) -> str:
    """Return SQL that inserts steps, rows of a run's id and a record, with some of its columns."""
    return f"""
    INSERT INTO durable_step (run_id, {", ".join(names)})
    SELECT json_extract(value, '$[0]'), {_columns("$[1]", names, STEP_COLUMNS)}
    FROM json_each(NEW.{part})
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
# of earlier steps are handed to it again.
RESTART = f"""
    DELETE FROM durable_step WHERE run_id IN (
        SELECT run_id FROM ({_restarts()}) WHERE from_position IS NULL
    );
    DELETE FROM durable_step
    WHERE run_id IN (SELECT run_id FROM ({_restarts()})) AND number = {CANCEL_NUMBER};

    DELETE FROM durable_step
    WHERE run_id IN (SELECT run_id FROM ({_restarts()})) AND number >= (
        SELECT from_number FROM ({_restarts()}) AS new WHERE new.run_id = durable_step.run_id
    );

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
      AND (durable_step.state = 'canceled' OR key = '{TIMEOUT_KEY}');

    UPDATE durable_run SET
        state = 'pending', generation = new.generation, result = NULL, error = NULL,
        finished_at_ms = NULL,
        started_at_ms = iif(new.from_position IS NULL, NULL, started_at_ms),
        restarted_from = iif(new.from_position IS NULL, NULL, new.from_number),
        callback_id = NULL
    FROM ({_restarts()}) AS new WHERE durable_run.run_id = new.run_id;
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
    "CREATE TEMP VIEW durable_restarting AS SELECT NULL AS restarts",
    f"""
    CREATE TEMP TRIGGER durable_restarting_apply INSTEAD OF INSERT ON durable_restarting BEGIN
        {RESTART}
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
    INSERT INTO durable_restarting SELECT NEW.restarts WHERE NEW.restarts IS NOT NULL;

    {_insert_steps("issued", NEW_STEP_COLUMNS)};
    {_insert_steps("whole", STEP_COLUMNS)};
    {_insert_steps("asked", STEP_COLUMNS)}
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


def prepare_commits(db: sqlite3.Connection) -> None:
    """Give a connection what ``commit`` needs."""
    for statement in (*RARE_TRIGGERS, COMMIT_VIEW, COMMIT_TRIGGER):
        db.execute(statement)
