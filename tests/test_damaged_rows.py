"""Rows that no engine writes, as a damaged disk leaves them: told with a type, and run by run."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
from waiting import WAIT_S_MAX, until_open, until_state, until_step

import durable
from durable import Engine, JournalCorruptError, RunFailed, RunState, Step, StepState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

STEPS_COUNT = 5
IDS = ["a", "b", "c", "d", "e"]


worked_on: set[str] = set()


@durable.action
async def echo(text: str) -> str:
    worked_on.add(durable.attempt().run_id)
    return text


@durable.workflow
async def echoing(step: Step, text: str) -> str:
    for _ in range(STEPS_COUNT):
        text = await echo(text)
    return text


@durable.workflow
async def failing(step: Step) -> None:
    raise LookupError


@pytest.fixture
def journal(path: Path) -> Path:
    """A journal with runs that have ended, a closed engine's."""

    async def fill() -> None:
        async with Engine(path) as engine:
            for run_id in IDS:
                assert await engine.run(echoing(run_id), id=run_id) == run_id

    asyncio.run(fill())
    return path


def damage(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in statements:
            assert db.execute(statement).rowcount > 0


# --- a finished run that is due ------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE durable_step SET state = 'bogus' WHERE run_id = 'a' AND number = 1",
        "UPDATE durable_step SET key = x'ff' || key WHERE run_id = 'a'",
        "DELETE FROM durable_step WHERE run_id = 'a' AND number = 1",
        "DELETE FROM durable_step WHERE run_id = 'a'",
        "UPDATE durable_run SET started_at_ms = NULL WHERE run_id = 'a'",
    ],
)
def test_a_finished_run_that_is_due_is_left_as_it_is(statement: str, journal: Path) -> None:
    """It is neither run again nor stuck, and its damage is not another run's."""
    damage(journal, statement, "UPDATE durable_run SET wake_at_ms = 0 WHERE run_id IN ('a', 'b')")

    async def live() -> None:
        worked_on.clear()
        async with Engine(journal) as engine:
            assert await engine.run(echoing("new"), id="new") == "new"
            assert worked_on == {"new"}
            for run_id in IDS:
                assert await engine.get(run_id).result(timeout=5) == run_id
                assert (await engine.status(run_id)).state is RunState.COMPLETED

    asyncio.run(live())
    with closing(sqlite3.connect(journal)) as db:
        due = "SELECT run_id FROM durable_run WHERE wake_at_ms IS NOT NULL"
        assert db.execute(due).fetchall() == [], "else each opening would stumble over it again"


# --- outcomes of steps ---------------------------------------------------------------------------


@durable.workflow
async def echoing_and_waiting(step: Step, text: str) -> str:
    return await echo(text) + str(await step.wait_event("more"))


@pytest.mark.parametrize(
    "change",
    [
        "result = '{\"no end'",
        "result = 'nothing'",
        "state = 'failed', error = 'no JSON'",
        "state = 'failed', error = NULL",
    ],
)
async def test_a_damaged_outcome_of_a_step_is_told_as_one(change: str, path: Path) -> None:
    async with Engine(path) as engine:
        for run_id in "ab":
            run = await engine.start(echoing_and_waiting(run_id), id=run_id)
            await until_open(run)
            await until_step(run, echo.name, StepState.COMPLETED)
    statement = f"UPDATE durable_step SET {change} WHERE run_id = 'a' AND number = 0"  # noqa: S608
    await asyncio.to_thread(damage, path, statement)
    async with Engine(path) as engine:
        status = await until_state(engine.get("a"), RunState.STUCK)
        assert status.error is not None
        assert status.error.type_name == "durable.JournalCorruptError"
        assert "run 'a'" in status.error.message
        assert "Restore the file from a backup" in status.error.message
        await engine.send_event("b", "more", 1)
        assert await engine.get("b").result(timeout=WAIT_S_MAX) == "b1"


# --- an end without its outcome ------------------------------------------------------------------


@pytest.mark.parametrize("error", ["NULL", "''", "'{'", "'[]'", "'null'", "'{}'"])
def test_a_failed_run_without_its_error_is_told(error: str, journal: Path) -> None:
    statement = f"UPDATE durable_run SET state = 'failed', error = {error}"  # noqa: S608  ours
    damage(journal, f"{statement} WHERE run_id = 'a'")

    async def live() -> None:
        async with Engine(journal) as engine:
            with pytest.raises(JournalCorruptError, match=r"the outcome of run 'a' .* damaged"):
                await engine.get("a").result(timeout=5)
            with pytest.raises(JournalCorruptError, match="the outcome of run 'a'"):
                await engine.run(echoing("a"), id="a")
            assert await engine.get("b").result(timeout=5) == "b"
            assert await engine.run(echoing("new")) == "new"
            with pytest.raises(RunFailed):
                await engine.run(failing())

    asyncio.run(live())


# --- a tree out of order -------------------------------------------------------------------------


def reorder(path: Path, table: str, new_order: Callable[[list[bytes]], list[bytes]]) -> None:
    """Change the order of the rows in a table's only page: in the file, behind SQLite's back."""
    with closing(sqlite3.connect(path)) as db:
        (root,) = db.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)
        ).fetchone()
        (page_size,) = db.execute("PRAGMA page_size").fetchone()
    content = bytearray(path.read_bytes())
    start = (root - 1) * page_size
    assert content[start] in {0x0A, 0x0D}, "a leaf: the table has one page"
    cells_count = int.from_bytes(content[start + 3 : start + 5], "big")
    places = [start + 8 + 2 * n for n in range(cells_count)]
    pointers = new_order([bytes(content[place : place + 2]) for place in places])
    for place, pointer in zip(places, pointers, strict=True):
        content[place : place + 2] = pointer
    path.write_bytes(content)


ORDERS: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "repeated": lambda cells: cells[:2] + cells[1:-1],
    "all the same": lambda cells: [cells[0]] * len(cells),
    "begins again": lambda cells: cells[:3] + cells[: len(cells) - 3],
}


async def _count(items: AsyncIterator[object]) -> None:
    async with asyncio.timeout(WAIT_S_MAX):
        async for _ in items:
            pass


@pytest.mark.parametrize("order", [*ORDERS, "reversed"])
@pytest.mark.parametrize("direction", ["asc", "desc"])
def test_runs_out_of_order_are_told_and_not_listed_for_ever(
    direction: Literal["asc", "desc"], order: str, journal: Path
) -> None:
    reorder(journal, "durable_run", ORDERS.get(order, lambda cells: cells[::-1]))

    async def live() -> None:
        async with Engine(journal, drain_timeout=0) as engine:
            with pytest.raises(JournalCorruptError, match=r"list of runs: .* order of their keys"):
                await engine.list_runs(order=direction)
            with pytest.raises(JournalCorruptError, match="order of their keys"):
                await _count(engine.iter_runs(order=direction))

    asyncio.run(live())


@pytest.mark.parametrize("order", ORDERS)
def test_steps_out_of_order_are_told(order: str, path: Path) -> None:
    async def life(new: bool) -> None:
        async with Engine(path, drain_timeout=0) as engine:
            if new:
                await engine.run(echoing("a"), id="a")
                return
            with pytest.raises(JournalCorruptError, match=r"steps of run 'a': .* order of their"):
                await engine.list_steps("a")
            with pytest.raises(JournalCorruptError, match="order of their keys"):
                await _count(engine.iter_steps("a"))

    asyncio.run(life(new=True))
    reorder(path, "durable_step", ORDERS[order])
    asyncio.run(life(new=False))


async def test_a_state_that_its_end_belies_is_told(path: Path) -> None:
    """A final row is never written again: such a run would go on, and its end be lost."""
    async with Engine(path) as engine:
        assert await engine.run(echoing("a"), id="a") == "a"
    statement = "UPDATE durable_run SET state = 'running', wake_at_ms = 0"
    await asyncio.to_thread(damage, path, statement)
    async with Engine(path) as engine:
        for ask in (engine.status("a"), engine.get("a").result(), engine.list_runs()):
            with pytest.raises(JournalCorruptError, match="'a': its state is running"):
                await ask
