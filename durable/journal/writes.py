"""What the SQLite journal writes: changes become the rows of one commit, on a plain connection.

Rules:

- Each function runs whole, on the connection's own thread, inside one transaction.
- The functions raise sqlite3's errors; their caller turns them into the journal's.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, TypeAlias

import msgspec
from msgspec.structs import astuple

from durable.core.records import RunRecord, StepRecord
from durable.journal.base import Change, ChildChanges
from durable.journal.commits import COMMIT, EVENTS, REMOVED
from durable.journal.fence import check_fence
from durable.journal.reads import read_descendants
from durable.journal.rows import RAW_ROWS, RUN_JSON, decode_run, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from durable.journal.base import Parked

RUNS_BY_ID = f"""
SELECT CAST(json_group_array({RUN_JSON}) AS BLOB) FROM durable_run
WHERE run_id IN (SELECT value FROM json_each(?))
"""

WORKED_ON = """
SELECT 1 FROM durable_run
WHERE epoch IS NOT NULL AND run_id IN (SELECT value FROM json_each(?)) LIMIT 1
"""

UNHEARD = """
SELECT run_id FROM durable_run
WHERE epoch IS NOT NULL AND wake_at_ms IS NOT NULL AND run_id IN (SELECT value FROM json_each(?))
"""

SENT = """
SELECT event_id FROM durable_event
WHERE sent_at_ms IS NOT NULL AND event_id IN (SELECT value FROM json_each(?))
"""

CommitRows: TypeAlias = "tuple[int | str | None, ...]"
"""What is bound to ``COMMIT``: the epoch, and the rows of each part as JSON."""


def rows_of(changes: Sequence[Change], epoch: int | None) -> CommitRows:
    """Return the parts of ``COMMIT``: of each row, the last that is to be written.

    Without an epoch it is a guest who writes.
    """
    changes = _one_of_each_run(changes)
    starts = [change for change in changes if change.is_start]
    families = [change.children for change in changes if change.children is not None]
    others = [change for change in changes if not change.is_start] if starts else changes
    issued: list[tuple[str, StepRecord]] = []
    whole: list[tuple[str, StepRecord]] = []
    updated: list[tuple[object, ...]] = []
    for change in changes:
        run_id = change.run_id
        for step in change.issued:
            (issued if _is_only_issued(step) else whole).append((run_id, step))
        for step in change.updated:
            updated.append(_update_row(run_id, step))  # noqa: PERF401
    return (
        epoch,
        _json_rows(
            [_start_row(change.run, change.parked, epoch) for change in starts]
            + [_start_row(*start, epoch) for family in families for start in family.started]
        ),
        _json_rows([(each.run_id, *astuple(each.restart)) for each in changes if each.restart]),
        _json_rows(issued),
        _json_rows(whole),
        # What a run has written of itself stands: it may have been told to its body already.
        _json_rows(
            [(change.run_id, change.asked) for change in changes if change.asked]
            + [canceled for family in families for canceled in family.canceled]
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


def _is_only_issued(step: StepRecord) -> bool:
    """Whether a new step has no more than ``NEW_STEP_COLUMNS``."""
    return (
        step.finished_at_ms is None
        and step.result is None
        and step.child_run_id is None
        and step.event_id is None
        and step.position is None
        and step.error is None
    )


def _update_row(run_id: str, step: StepRecord) -> tuple[object, ...]:
    """Return a row of ``UPDATE_COLUMNS``: one by one, which is faster than any slice of them."""
    return (
        run_id,
        step.number,
        step.state,
        step.attempts,
        step.interruptions,
        step.due_at_ms,
        step.started_at_ms,
        step.position,
        step.finished_at_ms,
        step.result,
        step.error,
    )


def _is_end_of_child(run: RunRecord | None) -> bool:
    return run is not None and run.finished_at_ms is not None and run.parent_id is not None


def _one_of_each_run(changes: Sequence[Change]) -> Sequence[Change]:
    """Merge the changes of each run: of a row that several write, the last counts."""
    if len({change.run_id for change in changes}) == len(changes):
        return changes
    by_run: dict[str, list[Change]] = {}
    for change in changes:
        by_run.setdefault(change.run_id, []).append(change)
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
        _look_at_events(db, changes, is_owner=epoch is not None)
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


def _look_at_events(db: sqlite3.Connection, changes: Sequence[Change], *, is_owner: bool) -> None:
    """Note which events of ``changes`` were sent before, and what the owner has not heard of.

    Nobody sends anything in between: this process holds the lock on writing.
    """
    sending = [change for change in changes if change.events]
    ids = text([event.event_id for change in sending for event in change.events])
    before = {event_id for (event_id,) in db.execute(SENT, (ids,))}
    if before:
        for change in sending:
            ids_of_change = (event.event_id for event in change.events)
            change.sent_before = tuple(event_id for event_id in ids_of_change if event_id in before)
    if is_owner:
        run_ids = text([change.run_id for change in sending])
        unheard = {run_id for (run_id,) in db.execute(UNHEARD, (run_ids,))}
        for change in sending:
            change.is_behind = change.run_id in unheard


def _find_taken(db: sqlite3.Connection, changes: Sequence[Change]) -> dict[str, RunRecord]:
    run_ids = [change.run_id for change in changes if change.is_start]
    (found,) = db.execute(RUNS_BY_ID, (text(run_ids),)).fetchone()
    return {run.run_id: run for run in map(decode_run, RAW_ROWS.decode(found))}
