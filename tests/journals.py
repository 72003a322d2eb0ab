"""Journals to test, and what to write into them."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio.to_thread

from durable import RunState, StepKind
from durable.core.records import RunRecord, StepRecord
from durable.journal.base import Change, Parked, RunQuery, StepQuery
from durable.journal.sqlite import SqliteJournal

NOW_MS = 1_000_000


@asynccontextmanager
async def opened(store: Path | None) -> AsyncIterator[SqliteJournal]:
    journal = SqliteJournal(store)
    await journal.open()
    try:
        yield journal
    finally:
        await journal.close()


async def execute(journal: SqliteJournal, sql: str, *values: object) -> list[Any]:
    """Run a statement behind the journal's back."""
    return await journal._call(journal._writer, lambda db: db.execute(sql, values).fetchall())


async def replace_owner(journal: SqliteJournal) -> None:
    """Do what a second owner does when it takes the journal over."""
    sql = "UPDATE durable_owner SET epoch = epoch + 1"
    if journal.path is None:
        await execute(journal, sql)
    else:
        await anyio.to_thread.run_sync(execute_outside, journal.path, sql)


def execute_outside(path: Path, sql: str) -> None:
    """Run a statement on a connection of its own."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute(sql)
    db.close()


def a_run(run_id: str, **fields: Any) -> RunRecord:  # noqa: ANN401  of any column
    defaults: dict[str, Any] = {"name": "wf", "state": RunState.RUNNING, "started_at_ms": 1}
    if "state" in fields and fields["state"].is_final:
        defaults["finished_at_ms"] = 2
    return RunRecord(run_id=run_id, **(defaults | fields))


def a_step(number: int, **fields: Any) -> StepRecord:  # noqa: ANN401  of any column
    defaults: dict[str, Any] = {"key": f"0:{number}", "kind": StepKind.ACTION, "name": "act"}
    return StepRecord(number=number, **(defaults | fields))


def a_start(run_id: str, *issued: StepRecord, parked: Parked | None = None, **run: Any) -> Change:  # noqa: ANN401
    return Change(
        run_id=run_id, run=a_run(run_id, **run), is_start=True, issued=list(issued), parked=parked
    )


async def steps_of(journal: SqliteJournal, run_id: str) -> list[StepRecord] | None:
    return await journal.list_steps(StepQuery(run_id=run_id, limit=10_000))


async def all_runs(journal: SqliteJournal) -> list[RunRecord]:
    return [run for _, run, _ in await journal.list_runs(RunQuery(limit=10_000))]


async def claimed_ids(journal: SqliteJournal, now_ms: int = NOW_MS, limit: int = 100) -> list[str]:
    return [run.run_id for run, _ in (await journal.claim(now_ms, limit)).runs]
