"""One owner at a time; and what happens when somebody else holds SQLite's own lock."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio.to_thread
import pytest
from faults import Disk, once_available
from killing import start_worker
from world import echoing

from durable import Engine, JournalUnavailableError
from durable.journal import sqlite, writelock
from durable.journal.writelock import WriteLock


async def _owns(path: Path) -> bool:
    """Open the journal; return whether its runs would be worked on here."""
    async with Engine(path) as engine:
        assert engine._journal is not None
        return engine._journal.is_owner


async def test_a_second_engine_in_the_process_does_not_own_the_journal(path: Path) -> None:
    async with Engine(path) as engine:
        assert not await _owns(path)
        assert Engine.current() is engine
        assert await engine.run(echoing("a")) == "a"
    assert await _owns(path)


async def _keep(path: Path) -> str:
    async with Engine(path) as engine:
        return await engine.run(echoing("kept"), id="r")


@pytest.mark.slow
def test_a_journal_of_another_process_is_not_owned_until_that_dies(path: Path) -> None:
    assert asyncio.run(_keep(path)) == "kept"
    with start_worker(path.parent) as holder:
        for _ in range(2):
            assert not asyncio.run(_owns(path))
        holder.kill()
        assert asyncio.run(_owns(path))
        assert asyncio.run(_keep(path)) == "kept"


@asynccontextmanager
async def locked_by_an_outsider(path: Path) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Hold SQLite's own write lock, as a backup or somebody's shell does; yield what ends it."""
    db = await anyio.to_thread.run_sync(_lock, path)

    async def unlock() -> None:
        await anyio.to_thread.run_sync(db.close)

    try:
        yield unlock
    finally:
        await unlock()


def _lock(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    db.execute("BEGIN EXCLUSIVE")
    return db


async def test_a_commit_outwaits_somebody_elses_lock(path: Path) -> None:
    async with Engine(path) as engine, locked_by_an_outsider(path) as unlock:
        start = asyncio.create_task(engine.start(echoing("a"), id="r"))
        for _ in range(5):
            assert [run async for run in engine.iter_runs()] == []
            assert not start.done()
        await unlock()
        run = await start
        assert await run.result(timeout=5) == "a"


@pytest.mark.slow
async def test_a_lock_that_is_held_too_long_is_an_unknown_outcome(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.05)
    disk = Disk()
    disk.install(monkeypatch)
    async with Engine(path) as engine, locked_by_an_outsider(path) as unlock:
        with pytest.raises(JournalUnavailableError, match=r"locked .*ask again with the same id"):
            await engine.start(echoing("a"), id="r")
        await unlock()
        again = partial(engine.run, echoing("a"), id="r")
        assert await once_available(disk, again) == "a"


async def test_opening_a_locked_file_fails_and_can_be_tried_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.05)
    engine = Engine(path)
    async with locked_by_an_outsider(path):
        with pytest.raises(JournalUnavailableError, match=r"cannot open .* keeps it locked"):
            await engine.__aenter__()
    async with engine:
        assert await engine.run(echoing("a")) == "a"


class HeldTime:
    """A clock that stands still but for sleeps, in which somebody else acts."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.now_s = 0.0
        self.slept_s: list[float] = []
        self._act = act

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds
        self._act()


def test_who_has_written_for_long_lets_others_go_first(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no queue: without it, one who writes all the time would keep the others out."""
    first, second = (WriteLock(path, 10, lambda: "") for _ in range(2))
    wrote: list[float] = []

    def write() -> None:
        with second:
            wrote.append(held.now_s)

    held = HeldTime(write)
    monkeypatch.setattr(writelock, "time", held)
    first.be_guest()
    second.be_guest()
    with first:
        held.now_s += 1
    with first:
        assert wrote == [pytest.approx(1 + writelock.OTHERS_FIRST_S)]
    with first:
        pass
    assert held.slept_s == [pytest.approx(writelock.OTHERS_FIRST_S)]
    first.close()
    second.close()
