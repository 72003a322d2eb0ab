-- The journal's schema, version 1. Times are milliseconds since the epoch, UTC; values are JSON.
-- The tables may live beside the application's own in one database file.

-- One row: the present owner's fencing token. Each owner adds 1; a commit under an older one is void.
-- journal_id: tells this journal from others that may come to be at its path.
CREATE TABLE durable_owner (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    epoch      INTEGER NOT NULL,
    journal_id TEXT    NOT NULL
) STRICT;

INSERT INTO durable_owner (id, epoch, journal_id) VALUES (1, 0, lower(hex(randomblob(16))));

-- One row for each set of versions that runs were begun with.
CREATE TABLE durable_versions (
    id      INTEGER PRIMARY KEY,
    python  TEXT NOT NULL,
    durable TEXT NOT NULL,
    UNIQUE (python, durable)
) STRICT;

-- One row a run. wake_at_ms: from when on an owner has to work on it; NULL while one does (then
-- epoch is that owner's) or while it waits for something to be sent.
CREATE TABLE durable_run (
    seq            INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id         TEXT    NOT NULL UNIQUE,
    name           TEXT    NOT NULL,
    version        INTEGER NOT NULL,
    state          TEXT    NOT NULL,
    generation     INTEGER NOT NULL,
    parent_id      TEXT,
    args           TEXT    NOT NULL,
    result         TEXT,
    error          TEXT,
    context        TEXT,
    created_at_ms  INTEGER NOT NULL,
    started_at_ms  INTEGER,
    finished_at_ms INTEGER,
    restarted_from INTEGER,
    on_complete    TEXT,
    callback_id    TEXT,
    begun_with     INTEGER,
    wake_at_ms     INTEGER,
    epoch          INTEGER
) STRICT;

CREATE INDEX durable_run_due      ON durable_run (wake_at_ms)        WHERE wake_at_ms IS NOT NULL;
CREATE INDEX durable_run_claimed  ON durable_run (epoch, wake_at_ms) WHERE epoch IS NOT NULL;
CREATE INDEX durable_run_name     ON durable_run (name);
CREATE INDEX durable_run_state    ON durable_run (state);
CREATE INDEX durable_run_finished ON durable_run (finished_at_ms)
    WHERE finished_at_ms IS NOT NULL AND parent_id IS NULL;
CREATE INDEX durable_run_children ON durable_run (parent_id)         WHERE parent_id IS NOT NULL;

-- One row a step, from its issue on. position: the place of its outcome among the deliveries to the
-- body; NULL until it was delivered.
CREATE TABLE durable_step (
    run_id         TEXT    NOT NULL,
    number         INTEGER NOT NULL,
    key            TEXT    NOT NULL,
    kind           TEXT    NOT NULL,
    name           TEXT    NOT NULL,
    args           TEXT    NOT NULL,
    state          TEXT    NOT NULL,
    attempts       INTEGER NOT NULL,
    interruptions  INTEGER NOT NULL,
    position       INTEGER,
    due_at_ms      INTEGER,
    started_at_ms  INTEGER,
    finished_at_ms INTEGER,
    result         TEXT,
    error          TEXT,
    child_run_id   TEXT,
    event_id       TEXT,
    PRIMARY KEY (run_id, number)
) STRICT, WITHOUT ROWID;

CREATE INDEX durable_step_child ON durable_step (child_run_id) WHERE child_run_id IS NOT NULL;

-- One row an event: sent when it is created or later, and consumed by one wait at most, which
-- step_number names. seq: the order of sending; an event that was created before gets a new one.
CREATE TABLE durable_event (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id    TEXT    NOT NULL UNIQUE,
    run_id      TEXT    NOT NULL,
    name        TEXT    NOT NULL,
    sent_at_ms  INTEGER,
    value       TEXT,
    error       TEXT,
    step_number INTEGER
) STRICT;

CREATE INDEX durable_event_run ON durable_event (run_id, step_number);
