"""What a journal's file holds at one moment, read with nothing but ``sqlite3``."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, final

FINAL_RUN = frozenset({"completed", "failed", "canceled"})
FINAL_STEP = frozenset({"completed", "failed", "canceled"})


@final
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

    @property
    def is_final(self) -> bool:
        return self.state in FINAL_RUN


@final
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
        return self.state in FINAL_STEP


@final
class EventRow(NamedTuple):
    """In a table, they are in the order of sending."""

    event_id: str
    run_id: str
    name: str
    sent_at_ms: int | None
    step_number: int | None


@final
class Image:
    """All rows, by run's id, and steps by run's id and key too.

    Attributes:
        epoch: The last owner's; 0 before the first.
        events: In the order of sending.
    """

    def __init__(
        self,
        epoch: int = 0,
        runs: tuple[RunRow, ...] = (),
        steps: tuple[StepRow, ...] = (),
        events: tuple[EventRow, ...] = (),
    ) -> None:
        self.epoch = epoch
        self.events = events
        self.runs = {run.run_id: run for run in runs}
        self.steps = {(step.run_id, step.key): step for step in steps}
        self.steps_of: defaultdict[str, list[StepRow]] = defaultdict(list)
        for step in sorted(steps):
            self.steps_of[step.run_id].append(step)


def read_image(journal: Path) -> Image:
    """Read a copy, so that the file's next owner finds what a kill has left, its log included."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory, journal.name)
        for suffix in ("", "-wal"):
            part = journal.with_name(journal.name + suffix)
            if part.exists():
                shutil.copyfile(part, copy.with_name(part.name))
        return read_file(copy)


def read_file(journal: Path) -> Image:
    """Read the file itself, as one more that has it open."""
    with closing(sqlite3.connect(journal)) as db:
        return _read(db)


def _read(db: sqlite3.Connection) -> Image:
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'durable_owner'").fetchone() is None:
        return Image()  # Killed before the schema was committed.
    (epoch,) = db.execute("SELECT epoch FROM durable_owner").fetchone()
    runs = db.execute(f"SELECT {', '.join(RunRow._fields)} FROM durable_run")  # noqa: S608
    steps = db.execute(f"SELECT {', '.join(StepRow._fields)} FROM durable_step")  # noqa: S608
    events = db.execute(f"SELECT {', '.join(EventRow._fields)} FROM durable_event ORDER BY seq")  # noqa: S608
    return Image(
        epoch,
        tuple(map(RunRow._make, runs)),
        tuple(map(StepRow._make, steps)),
        tuple(map(EventRow._make, events)),
    )
