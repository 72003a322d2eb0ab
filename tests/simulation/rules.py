"""What must hold of a journal's rows: of each, of how it changes, and of those of one run.

Each check gives what is wrong, beginning with the name of the invariant.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import rows
from rows import EVENTS, RUNS, STEPS, EventRow, RunRow, select

CALLBACK: Final = "durable.on_complete"


class StepRow(rows.StepRow):
    """One of the program."""

    @property
    def label(self) -> str:
        """What the program calls it."""
        return str(json.loads(self.args).get("label", self.name))

    @property
    def serial(self) -> int | None:
        """Which execution its result is of."""
        value = json.loads(self.result) if self.result is not None else None
        if isinstance(value, str) and "#" in value:
            return int(value.rpartition("#")[2])
        return None


class EntryRow(NamedTuple):
    """What a mutation has written."""

    run_id: str
    key: str
    label: str
    serial: int


class ToldRow(NamedTuple):
    """What an ``on_complete`` has written."""

    run_id: str
    outcome: str
    value: str


TABLES: Final = """
CREATE TABLE entry (id INTEGER PRIMARY KEY, run_id TEXT, key TEXT, label TEXT, serial INTEGER);
CREATE TABLE told (id INTEGER PRIMARY KEY, run_id TEXT, outcome TEXT, value TEXT);
"""
ENTRIES: Final = select("entry", EntryRow)
TOLD: Final = select("told", ToldRow)
STEP_BY_KEY: Final = f"{STEPS} WHERE run_id = ? AND key = ?"


@dataclass
class Rows:
    """All that is committed, at one moment."""

    runs: dict[str, RunRow] = field(default_factory=dict[str, RunRow])
    steps: dict[tuple[str, int], StepRow] = field(default_factory=dict[tuple[str, int], StepRow])
    events: dict[str, EventRow] = field(default_factory=dict[str, EventRow])
    entries: list[EntryRow] = field(default_factory=list[EntryRow])
    epoch: int = 0

    def steps_of(self, run_id: str) -> list[StepRow]:
        return [step for step in self.steps.values() if step.run_id == run_id]

    def line_of(self, run_id: str) -> list[str]:
        """Return a run, its parent, and so on."""
        line: list[str] = []
        while (run := self.runs.get(run_id)) is not None:
            line.append(run_id)
            run_id = run.parent_id or ""
        return line

    def available(self) -> set[tuple[tuple[str, int], str]]:
        """Return the open waits that an event is there for, each with all that are."""
        return {
            (step_id, event.event_id)
            for step_id, step in self.steps.items()
            for event in self.events.values()
            if step.kind == "event" and not step.is_final and is_for(event, step)
        }

    def is_restart(self, before: Rows, run_id: str) -> bool:
        """Whether a run has another generation than before."""
        old, new = before.runs.get(run_id), self.runs.get(run_id)
        return old is not None and new is not None and old.generation != new.generation


def read(db: sqlite3.Connection) -> Rows:
    """Return what is committed."""
    db.execute("BEGIN")
    runs = map(RunRow._make, db.execute(RUNS).fetchall())
    steps = map(StepRow._make, db.execute(STEPS).fetchall())
    events = map(EventRow._make, db.execute(EVENTS).fetchall())
    entries = map(EntryRow._make, db.execute(ENTRIES).fetchall())
    (epoch,) = db.execute("SELECT epoch FROM durable_owner").fetchone()
    db.execute("COMMIT")
    return Rows(
        {run.run_id: run for run in runs},
        {(step.run_id, step.number): step for step in steps},
        {event.event_id: event for event in events},
        list(entries),
        epoch,
    )


# --- how a row changes ---------------------------------------------------------------------------


def check_run(old: RunRow | None, run: RunRow) -> Iterator[str]:
    """A run's start is kept, its end is final, and it fits its code."""
    if run.state == "stuck":
        yield "I13: stuck, and its code has not changed"
    if run.state == "failed" and ("bug of durable" in run.error or "Deadlock" in run.error):  # type: ignore[operator]
        yield "I17: it has failed in a way that no program here does"
    if old is None:
        return
    if (old.name, old.args, old.created_at_ms) != (run.name, run.args, run.created_at_ms):
        yield f"I1: it was {old}"
    if run.generation not in (old.generation, old.generation + 1):
        yield f"I4: its generation was {old.generation}"
    is_restart = run.generation != old.generation
    if is_restart and not old.is_final:
        yield f"I4: it is restarted, and was not over: {old}"
    if old.is_final and not is_restart and old != run:
        yield f"I4: it was over: {old}"
    if old.started_at_ms not in (None, run.started_at_ms) and not is_restart:
        yield f"I7: it has begun again: {old}"


def check_step(old: StepRow, step: StepRow) -> Iterator[str]:
    """A step's outcome is final, its due time is fixed, and it stays the step that it is."""
    if old[:6] != step[:6] and step.kind != "cancel":
        yield f"I4: it was {old}"
    if old.is_final:
        is_late = old.position is None and step.position is not None
        is_kept = old._replace(position=step.position) == step
        if step.kind == "cancel":  # Another one may have asked, which the body was told first.
            told = old._replace(result=step.result, args=step.args, position=step.position)
            is_kept = told._replace(finished_at_ms=step.finished_at_ms) == step
        if not (is_late and is_kept):
            yield f"I4: it was settled: {old}"
    if step.kind in ("sleep", "event") and old.due_at_ms != step.due_at_ms:
        yield f"I7: it was due at another time: {old}"
    if step.kind not in ("action", "mutation", "query"):
        return
    tries = step.attempts + step.interruptions - old.attempts - old.interruptions
    if step.interruptions < old.interruptions or step.attempts < old.attempts - 1 or tries > 1:
        yield f"I2: attempts were forgotten, or made up: {old}"
    waits = (old.state, step.state) == ("pending", "pending")
    if waits and old.attempts == step.attempts and old.due_at_ms != step.due_at_ms:
        yield f"I7: it was due at another time: {old}"


def check_attempts(step: StepRow) -> Iterator[str]:
    """No step has more attempts than its policy, which is in its label."""
    _, _, most = step.label.partition("x")
    if most and step.attempts > max(int(most), 1):
        yield "I2: more attempts than its policy"


def check_events(before: Rows, after: Rows) -> Iterator[str]:
    """An event is consumed once, by a wait that says so, in the order of sending."""
    for event_id, event in after.events.items():
        old = before.events.get(event_id)
        if old == event:
            continue
        if old is not None and old.sent_at_ms is not None and old[:5] != event[:5]:
            yield f"I6: {old} has become {event}"
        was_consumed = old is not None and old.step_number is not None
        if not was_consumed and event.step_number is not None:
            yield from _check_consumed(event, after)
        elif was_consumed and old != event and not after.is_restart(before, event.run_id):
            yield f"I6: {old} was consumed, and is now {event}"
    consumed = {(event.run_id, event.step_number) for event in after.events.values()}
    for step_id, step in after.steps.items():
        if step.kind == "event" and step.state == "completed" and step_id not in consumed:
            yield f"I11: no event was consumed by {step}"


def _check_consumed(event: EventRow, after: Rows) -> Iterator[str]:
    wait = after.steps.get((event.run_id, event.step_number or 0))
    if wait is None or not wait.is_final or wait.position is None:
        yield f"I11: {event} was consumed by {wait}"
        return
    if wait.event_id != event.event_id:
        yield f"I6: {event} was consumed by {wait}"
    for other in after.events.values():
        is_before = other.sent_at_ms is not None and other.seq < event.seq
        is_same = (other.run_id, other.name) == (event.run_id, event.name)
        if is_before and is_same and other.step_number is None and event.name != "made":
            yield f"I6: {event} was consumed before {other}"


def check_entries(before: Rows, after: Rows) -> Iterator[str]:
    """What a mutation has written is there exactly when its step is completed."""
    steps = {(step.run_id, step.key): step for step in after.steps.values()}
    for entry in after.entries[len(before.entries) :]:
        step = steps.get((entry.run_id, entry.key))
        if step is None or step.state != "completed" or step.serial != entry.serial:
            yield f"I11: {entry} is there, and its step is {step}"
    serials = {entry.serial for entry in after.entries}
    for step in after.steps.values():
        if step.name == "deposit" and step.state == "completed" and step.serial not in serials:
            yield f"I11: nothing is there of {step}"


# --- the rows of one run -------------------------------------------------------------------------


def check_whole(run: RunRow, rows: Rows) -> Iterator[str]:
    """A run is whole: its deliveries, its steps, its children and what is owed its end."""
    steps = rows.steps_of(run.run_id)
    positions = sorted(step.position for step in steps if step.position is not None)
    if positions != list(range(len(positions))) and not run.generation:
        yield f"I11: positions are not contiguous: {positions}"
    numbers = sorted(step.number for step in steps if step.number >= 0)
    if numbers != list(range(len(numbers))):
        yield f"I11: numbers are not contiguous: {numbers}"
    for step in steps:
        yield from _check_its_step(run, step, rows)
    if run.parent_id is not None and run.parent_id not in rows.runs:
        yield "I10: its parent is gone"
    if run.is_final:
        yield from _check_ended(run)
    elif run.finished_at_ms is not None:
        yield "I11: half of an end"
    elif run.epoch is None and run.wake_at_ms is None:
        yield from _check_unattended(run, steps, rows)


def _check_its_step(run: RunRow, step: StepRow, rows: Rows) -> Iterator[str]:
    if step.is_final != (step.finished_at_ms is not None):
        yield f"I11: half of an end: {step}"
    if run.is_final and not step.is_final:
        yield f"I11: it is over, and not its step {step}"
    if step.child_run_id is not None:
        yield from _check_child(run, step, rows)


def _check_ended(run: RunRow) -> Iterator[str]:
    if run.finished_at_ms is None:
        yield "I11: half of an end"
    if run.epoch is not None or run.wake_at_ms is not None:
        yield "I12: it is over, and due, or somebody works on it"
    if (run.on_complete is None) != (run.callback_id is None):
        yield "I5: what is owed its end is not there"


def _check_unattended(run: RunRow, steps: list[StepRow], rows: Rows) -> Iterator[str]:
    """Who is in nobody's memory, and not to be woken, waits for what others do."""
    waits = [step for step in steps if not step.is_final]
    if not waits or any(step.kind not in ("event", "workflow") for step in waits):
        yield f"I12: nobody works on it, and it is not due: {waits}"
    for step in waits:
        if step.due_at_ms is not None:
            yield f"I12: nobody wakes it for {step}"
        child = rows.runs.get(step.child_run_id or "")
        if child is not None and child.is_final:
            yield f"I12: nobody tells it of the end of {child}"
        for event in rows.events.values():
            if step.kind == "event" and is_for(event, step):
                yield f"I12: nobody hands it {event}"


def is_for(event: EventRow, step: StepRow) -> bool:
    """Whether a wait may get an event."""
    is_sent = event.sent_at_ms is not None and event.step_number is None
    is_its = event.event_id == step.event_id or (step.event_id is None and event.name == step.name)
    return is_sent and is_its and event.run_id == step.run_id


def _check_child(run: RunRow, step: StepRow, rows: Rows) -> Iterator[str]:
    child = rows.runs.get(step.child_run_id or "")
    if child is None:
        is_to_start = run.generation and not step.is_final
        if not (run.is_final or is_to_start or step.is_final):
            yield f"I10: it has no child: {step}"
        return
    if child.parent_id != run.run_id:
        yield f"I10: it is another's child: {child}"
    if child.generation:
        return  # It has an end of its own.
    is_other = (child.state, child.result) != ("completed", step.result)
    if step.state == "completed" and is_other:
        yield f"I10: {step} has another outcome than {child}"
    if step.state == "failed" and child.state not in ("failed", "canceled"):
        yield f"I10: {step} has another outcome than {child}"
    if step.state == "canceled" and not child.is_final:
        asked = [each for each in rows.steps_of(child.run_id) if each.kind == "cancel"]
        if not asked:
            yield f"I10: {step} is withdrawn, and {child} goes on"
