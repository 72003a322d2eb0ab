"""What a journal's file holds at one moment, read with nothing but ``sqlite3``."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import final

from rows import EVENTS, RUNS, STEPS, EventRow, RunRow, StepRow


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
    return Image(
        epoch,
        tuple(map(RunRow._make, db.execute(RUNS))),
        tuple(map(StepRow._make, db.execute(STEPS))),
        tuple(map(EventRow._make, db.execute(f"{EVENTS} ORDER BY seq"))),
    )
