"""One contract, every store: what is read, also of a damaged journal, and what a file keeps."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import anyio
import anyio.to_thread
import pytest
from journals import (
    NOW_MS,
    a_run,
    a_start,
    a_step,
    all_runs,
    claimed_ids,
    execute,
    execute_outside,
    opened,
    steps_of,
)

from durable import JournalCorruptError, JournalUnavailableError, RunState, StepState
from durable.journal.base import Change, Parked, RunQuery, StepQuery
from durable.journal.sqlite import SqliteJournal


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, path: Path) -> Path | None:
    """Where the journal of a test is: in memory, or in a file."""
    return path if request.param == "file" else None


# --- reading -------------------------------------------------------------------------------------


async def test_what_is_not_there(store: Path | None) -> None:
    async with opened(store) as journal:
        assert await journal.load_run("r") is None
        assert await journal.load_status("r") is None
        assert await steps_of(journal, "r") is None
        assert await all_runs(journal) == []
        await journal.commit([a_start("r")])
        assert await steps_of(journal, "r") == []


async def test_a_status_has_the_open_steps_in_order(store: Path | None) -> None:
    steps = [
        a_step(2, state=StepState.RUNNING),
        a_step(10),
        *(a_step(number, state=state) for number, state in enumerate(StepState, 20)),
    ]
    still_open = [steps[0], steps[1], a_step(20), a_step(21, state=StepState.RUNNING)]
    async with opened(store) as journal:
        await journal.commit([a_start("r", *reversed(steps)), a_start("none")])
        assert await journal.load_status("r") == (a_run("r"), still_open)
        assert await journal.load_status("none") == (a_run("none"), [])
        listed = await journal.list_runs(RunQuery(limit=10))
        assert [(run.run_id, shown) for _, run, shown in listed] == [
            ("r", still_open),
            ("none", []),
        ]


async def _page_through(
    journal: SqliteJournal, order: Literal["asc", "desc"], between: Sequence[Change]
) -> list[str]:
    """Read all runs in pages of two; write one change after each page."""
    found: list[str] = []
    after: int | None = None
    changes = iter(between)
    while True:
        page = await journal.list_runs(RunQuery(order=order, limit=2, after=after))
        found += [run.run_id for _, run, _ in page]
        if len(page) < 2:
            return found
        after = page[-1][0]
        if (change := next(changes, None)) is not None:
            await journal.commit([change])


async def test_pages_stay_right_while_runs_are_added(store: Path | None) -> None:
    """Nobody is shown twice or skipped, as with OFFSET; whoever comes meanwhile is newer."""
    old = [f"old{number}" for number in range(7)]
    new = [f"new{number}" for number in range(3)]
    newer = [f"newer{number}" for number in range(3)]
    async with opened(store) as journal:
        for run_id in old:
            await journal.commit([a_start(run_id)])
        assert await _page_through(journal, "asc", [a_start(run_id) for run_id in new]) == old + new
        backwards = await _page_through(journal, "desc", [a_start(run_id) for run_id in newer])
        assert backwards == (old + new)[::-1]


async def test_runs_are_found_by_name_state_and_parent(store: Path | None) -> None:
    async with opened(store) as journal:
        await journal.commit(
            [
                a_start("1", name="a"),
                a_start("2", name="b", state=RunState.FAILED),
                a_start("3", name="a", state=RunState.FAILED, parent_id="1"),
                a_start("4", name="a", parent_id="1"),
            ]
        )

        async def found(order: Literal["asc", "desc"] = "asc", **query: Any) -> str:  # noqa: ANN401
            listed = await journal.list_runs(RunQuery(order=order, limit=10, **query))
            return " ".join(run.run_id for _, run, _ in listed)

        assert await found(name="a") == "1 3 4"
        assert await found(name="a", order="desc") == "4 3 1"
        assert await found(state=RunState.FAILED) == "2 3"
        assert await found(parent_id="1") == "3 4"
        assert await found(name="a", state=RunState.FAILED, parent_id="1") == "3"
        assert await found(name="none") == ""


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_steps_are_paged_by_number(store: Path | None, order: Literal["asc", "desc"]) -> None:
    async with opened(store) as journal:
        await journal.commit([a_start("r", *(a_step(number) for number in range(12)))])
        await journal.commit([a_start("other", a_step(0))])
        numbers: list[int] = []
        while page := await journal.list_steps(
            StepQuery(run_id="r", order=order, limit=5, after=numbers[-1] if numbers else None)
        ):
            numbers += [step.number for step in page]
        assert numbers == (list(range(12)) if order == "asc" else list(range(12))[::-1])


# --- damage --------------------------------------------------------------------------------------

INVALID_UTF_8 = "CAST(x'ff' AS TEXT)"


@pytest.mark.parametrize(
    "damage",
    ["state = 'bogus'", f"name = {INVALID_UTF_8}", f"args = {INVALID_UTF_8}"],
)
async def test_a_damaged_run_is_named_and_harms_no_other(store: Path | None, damage: str) -> None:
    async with opened(store) as journal:
        runs = [a_start(f"r-{number}", parked=Parked(0)) for number in range(3)]
        await journal.commit(runs)
        await execute(journal, f"UPDATE durable_run SET {damage} WHERE run_id = 'r-1'")  # noqa: S608  it stands above
        for read in (journal.load_run, journal.load_status):
            with pytest.raises(JournalCorruptError, match=r"r-1.* from a backup"):
                await read("r-1")
        with pytest.raises(JournalCorruptError, match="r-1"):
            await all_runs(journal)
        claim = await journal.claim(NOW_MS, 10)
        assert [run.run_id for run, _ in claim.runs] == ["r-0", "r-2"]
        ((run, error),) = claim.errors
        assert run is None
        assert isinstance(error, JournalCorruptError)
        assert "r-1" in str(error)


@pytest.mark.parametrize(
    "damage",
    ["state = 'bogus'", "kind = ''", f"key = {INVALID_UTF_8}", f"result = {INVALID_UTF_8}"],
)
async def test_a_damaged_step_is_told_of_its_run_and_harms_no_other(
    store: Path | None, damage: str
) -> None:
    async with opened(store) as journal:
        await journal.commit(
            [a_start(f"r-{number}", a_step(0), parked=Parked(0)) for number in range(3)]
        )
        await execute(journal, f"UPDATE durable_step SET {damage} WHERE run_id = 'r-1'")  # noqa: S608  it stands above
        with pytest.raises(JournalCorruptError, match=r"r-1.* from a backup"):
            await steps_of(journal, "r-1")
        assert await steps_of(journal, "r-2") == [a_step(0)]
        claim = await journal.claim(NOW_MS, 10)
        assert [run.run_id for run, _ in claim.runs] == ["r-0", "r-2"]
        ((run, error),) = claim.errors
        assert run == a_run("r-1")
        assert "r-1" in str(error)


async def test_a_lost_owner_row_is_damage(store: Path | None) -> None:
    async with opened(store) as journal:
        await execute(journal, "DELETE FROM durable_owner")
        with pytest.raises(JournalCorruptError, match="durable_owner"):
            await journal.reopen()


# --- life ----------------------------------------------------------------------------------------


async def test_a_closed_journal_says_so(store: Path | None) -> None:
    journal = SqliteJournal(store)
    with pytest.raises(JournalUnavailableError, match="not open"):
        await journal.load_run("r")
    await journal.open()
    await journal.close()
    await journal.close()
    with pytest.raises(JournalUnavailableError, match="not open"):
        await journal.commit([a_start("r")])


async def test_a_file_keeps_what_was_committed(path: Path) -> None:
    async with opened(path) as journal:
        await journal.commit([a_start("r", a_step(0))])
    async with opened(path) as journal:
        assert await journal.load_status("r") == (a_run("r"), [a_step(0)])
        assert await claimed_ids(journal) == ["r"]
        assert await execute(journal, "SELECT epoch FROM durable_owner") == [(2,)]


async def test_a_file_is_written_as_safely_as_sqlite_can(path: Path) -> None:
    """Anything less than WAL with FULL loses acknowledged commits in a power cut."""
    async with opened(path) as journal:
        assert await execute(journal, "PRAGMA journal_mode") == [("wal",)]
        assert await execute(journal, "PRAGMA synchronous") == [(2,)]
        await journal.reopen()
        assert await execute(journal, "PRAGMA synchronous") == [(2,)]
        assert await execute(journal, "PRAGMA user_version") == [(1,)]


async def test_the_reading_connection_cannot_write(path: Path) -> None:
    async with opened(path) as journal:
        with pytest.raises(JournalUnavailableError, match="readonly"):
            await journal._call(journal._reader, lambda db: db.execute("DELETE FROM durable_run"))


async def test_a_journal_lives_beside_the_tables_of_an_application(path: Path) -> None:
    await anyio.to_thread.run_sync(execute_outside, path, "CREATE TABLE users (name TEXT)")
    await anyio.to_thread.run_sync(execute_outside, path, "INSERT INTO users VALUES ('ada')")
    async with opened(path) as journal:
        await journal.commit([a_start("r")])
        assert await execute(journal, "SELECT name FROM users") == [("ada",)]


async def test_a_reopening_that_is_cancelled_leaves_no_connection_behind(path: Path) -> None:
    """An engine that is closed while its journal is opened again does that. A connection that is
    left open keeps its thread, and so the interpreter, alive."""

    def threads() -> set[threading.Thread]:
        return {t for t in threading.enumerate() if "_connection_worker" in t.name}

    before = threads()
    async with opened(path) as journal:
        connections = threads() - before
        with anyio.CancelScope() as scope:
            scope.cancel()
            await journal.reopen()
            await anyio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        connections |= threads() - before
    assert len(connections) >= 2
    for thread in connections:
        await anyio.to_thread.run_sync(thread.join, 5)
        assert not thread.is_alive()
