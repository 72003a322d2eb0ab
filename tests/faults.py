"""A disk that fails on demand, who asks again after it, and a stop that is as good as a crash."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import Counter
from contextlib import asynccontextmanager
from enum import Enum, auto
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar, final

from clock import ManualClock
from msgspec.structs import replace
from waiting import WAIT_S_MAX, until, until_parked
from world import new_world

from durable import Engine, JournalUnavailableError, StepState
from durable.journal.sqlite import SqliteJournal
from durable.journal.whole import to_its_end
from durable.runtime.settings import LIVE_RUNS_MAX

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    import pytest

    from durable import Call, JournalError, Run
    from durable.core.records import EventRecord, RunRecord, StepRecord
    from durable.journal.base import Change, Claim, RunQuery, RunTree, StepQuery
    from durable.journal.connections import Writing
    from durable.journal.rounds import StatementRound
    from durable.journal.scopes import Scope

T = TypeVar("T")

MONTH_S = 30 * 86400.0
"""Who sleeps that long leaves memory."""


class Fault(Enum):
    """What becomes of a write that is reported as failed."""

    LOST = auto()
    KEPT = auto()


class Disk:
    """The storage under the journals of one test.

    Attributes:
        faults: Which writes fail: by ``commit``, ``claim`` or ``begin``, and the how-manieth of
            them, from 1.
        broken: While it is set, every write and every reopening fails, with this fault.
        answers: While it is cleared, writes wait.
        reopen_failures: How many of the next reopenings fail.
        calls: How many ``commit``, ``claim`` and ``reopen`` there were.
        outages: How many writes failed.
        reopened: Set while a journal has been opened again after the latest of them.
        runs: The runs that are in the journal.
        begun: The attempts, by run, key and number, that are in the journal as running.
        settled: The steps, by run and key, whose outcome is in the journal.
        ended: The runs whose end is in the journal.
    """

    def __init__(self) -> None:
        self.faults: dict[tuple[str, int], Fault] = {}
        self.broken: Fault | None = None
        self.answers = asyncio.Event()
        self.answers.set()
        self.reopen_failures = 0
        self.calls: Counter[str] = Counter()
        self.outages = 0
        self.reopened = asyncio.Event()
        self.runs: set[str] = set()
        self.begun: set[tuple[str, str, int]] = set()
        self.settled: set[tuple[str, str]] = set()
        self.ended: set[str] = set()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the journals that are opened from now on be on this disk, and reopen in no time."""
        monkeypatch.setattr("durable.journal.sqlite.SqliteJournal", partial(FaultyJournal, self))
        monkeypatch.setattr("durable.runtime.writer.REOPEN_DELAY_MIN_S", 0.001)
        monkeypatch.setattr("durable.runtime.writer.REOPEN_DELAY_MAX_S", 0.01)

    async def write(self, what: str, work: Callable[[], Awaitable[T]]) -> T:
        self.calls[what] += 1
        await self.answers.wait()
        try:
            return await self._try(what, work)
        except JournalUnavailableError:  # The test's, or a true one.
            self.outages += 1
            self.reopened.clear()
            raise

    async def _try(self, what: str, work: Callable[[], Awaitable[T]]) -> T:
        fault = self.broken or self.faults.get((what, self.calls[what]))
        if fault is None:
            return await work()
        if fault is Fault.KEPT:
            await work()
        msg = f"{what} {self.calls[what]} failed as the test wants it"
        raise JournalUnavailableError(msg)

    def note(self, changes: Sequence[Change]) -> None:
        """Take note of what has been written."""
        for change in changes:
            run = change.run
            if change.is_start:
                self.runs.add(change.run_id)
            if run is not None and run.state.is_final:
                self.ended.add(change.run_id)
            for step in [*change.issued, *change.updated]:
                if step.state is StepState.RUNNING:
                    self.begun.add((change.run_id, step.key, step.attempts))
                elif step.state.is_final:
                    self.settled.add((change.run_id, step.key))

    def is_there(self) -> bool:
        """Whether a journal can be opened again now."""
        self.calls["reopen"] += 1
        self.reopen_failures -= 1
        return self.broken is None and self.reopen_failures < 0


@final
class FaultyJournal:
    """A journal in SQLite on a ``Disk``."""

    def __init__(self, disk: Disk, path: Path | None) -> None:
        self.disk = disk
        self.inner = SqliteJournal(path)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  what does not go to the disk
        return getattr(self.inner, name)

    async def open(self) -> None:
        await self.inner.open()

    async def reopen(self) -> None:
        if not self.disk.is_there():
            # As a reopening does that then fails.
            await to_its_end(self.inner._disconnect())
            msg = "the disk is not there"
            raise JournalUnavailableError(msg)
        await self.inner.reopen()
        self.disk.reopened.set()

    async def close(self) -> None:
        await self.inner.close()

    async def commit(self, changes: Sequence[Change]) -> dict[str, RunRecord]:
        async def work() -> dict[str, RunRecord]:
            taken = await self.inner.commit(changes)
            self.disk.note(changes)
            return taken

        return await self.disk.write("commit", work)

    async def claim(self, now_ms: int, limit: int) -> Claim:
        return await self.disk.write("claim", partial(self.inner.claim, now_ms, limit))

    async def load_run(self, run_id: str) -> RunRecord | None:
        return await self.inner.load_run(run_id)

    async def load_tree(self, run_id: str) -> RunTree | None:
        return await self.inner.load_tree(run_id)

    async def load_history(self, run_id: str) -> tuple[RunRecord, list[StepRecord]] | None:
        return await self.inner.load_history(run_id)

    async def load_status(self, run_id: str) -> tuple[RunRecord, list[StepRecord]] | None:
        return await self.inner.load_status(run_id)

    async def load_event(self, event_id: str) -> EventRecord | None:
        return await self.inner.load_event(event_id)

    async def list_finished(self, before_ms: int, limit: int) -> list[str]:
        return await self.inner.list_finished(before_ms, limit)

    async def load_statuses(
        self, run_ids: list[str]
    ) -> dict[str, tuple[RunRecord, list[StepRecord]] | JournalError]:
        return await self.inner.load_statuses(run_ids)

    async def list_runs(self, query: RunQuery) -> list[tuple[int, RunRecord, list[StepRecord]]]:
        return await self.inner.list_runs(query)

    async def list_steps(self, query: StepQuery) -> list[StepRecord] | None:
        return await self.inner.list_steps(query)

    @property
    def is_one_connection(self) -> bool:
        return self.inner.is_one_connection

    async def begin(self) -> Writing:
        return await self.disk.write("begin", self.inner.begin)

    def new_round(self) -> StatementRound:
        return self.inner.new_round()

    async def commit_writing(
        self, writing: Writing, changes: Sequence[Change]
    ) -> dict[str, RunRecord]:
        async def work() -> dict[str, RunRecord]:
            taken = await self.inner.commit_writing(writing, changes)
            self.disk.note(changes)
            return taken

        return await self.disk.write("commit", work)

    async def write_within(self, scope: Scope, change: Change) -> RunRecord | None:
        return await self.inner.write_within(scope, change)

    def reading(self) -> AbstractAsyncContextManager[Scope]:
        return self.inner.reading()


async def once_available(disk: Disk, ask: Callable[[], Awaitable[T]]) -> T:
    """Do what a user has to in an outage: ask again, with the same id, once the disk is back."""
    outages = 0
    async with asyncio.timeout(WAIT_S_MAX):
        while True:
            try:
                return await ask()
            except JournalUnavailableError:
                assert disk.outages > outages, "refused, though nothing failed since it was back"
                outages = disk.outages
                await disk.reopened.wait()


def each_to_fail(monkeypatch: pytest.MonkeyPatch, least: int) -> Iterator[tuple[int, Disk]]:
    """Give a new disk and world for each write, counted from 1, that is to fail.

    The last is one that the test comes to its end without. A sweep that is over sooner than at
    ``least`` shows nothing.
    """
    number = 0
    for number in count(1):
        disk = Disk()
        disk.install(monkeypatch)
        new_world()
        yield number, disk
        if not disk.outages:
            break
    assert number >= least


async def cancel_while_claiming(
    engine: Engine, clock: ManualClock, disk: Disk, run: Run[Any]
) -> bool:
    """Ask for a run's cancel while what is due in a month is being claimed; return the answer."""
    claims = disk.calls["claim"]
    disk.answers.clear()
    clock.advance(MONTH_S)
    await until(lambda: disk.calls["claim"] > claims)
    asking = asyncio.create_task(run.cancel())
    assert engine._runner is not None
    writer = engine._runner.writer
    await until(lambda: writer.pending_count)
    disk.answers.set()
    async with asyncio.timeout(WAIT_S_MAX):
        return await asking


# --- stopping ------------------------------------------------------------------------------------


@asynccontextmanager
async def opened(
    path: Path,
    clock: ManualClock | None = None,
    live_runs_max: int = LIVE_RUNS_MAX,
    **options: Any,  # noqa: ANN401  the engine's
) -> AsyncGenerator[Engine]:
    """Open an engine, maybe one whose time the test holds, or with room for few runs."""
    engine = Engine(path, **options)
    engine._settings = replace(engine._settings, live_runs_max=live_runs_max)
    if clock is not None:
        clock.install(engine)
    async with engine:
        yield engine


crashing = partial(opened, drain_timeout=0)
"""Open an engine whose end is as good as a crash: nothing is drained, what runs is cut off."""


async def live_and_replayed(
    path: Path,
    call: Call[Any],
    seen: list[Any],
) -> tuple[Any, Any]:
    """Return what a body appends to ``seen``, and then once more.

    It has to sleep for a month after that: then it leaves memory, and is replayed when it is back.
    """
    seen.clear()
    clock = ManualClock()
    async with opened(path, clock) as engine:
        run = await engine.start(call)
        await until(lambda: seen)
        await until_parked(engine)
        clock.advance(MONTH_S)
        await run.result(timeout=WAIT_S_MAX)
    live, replayed = seen
    return live, replayed


# --- what is left over ---------------------------------------------------------------------------


def workers() -> set[threading.Thread]:
    """Return the threads, but for those that anyio and the loops keep for the next call."""
    kept = ("AnyIO worker", "asyncio_", "uvloop_")
    return {thread for thread in threading.enumerate() if not thread.name.startswith(kept)}


@asynccontextmanager
async def leaving_nothing() -> AsyncGenerator[None]:
    """Check that no task and no thread is left, and that nobody had to be told of anything."""
    tasks, threads = asyncio.all_tasks(), workers()
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, said: complaints.append(said))
    yield
    await until(lambda: asyncio.all_tasks() <= tasks and workers() <= threads)
    gc.collect()
    assert complaints == []
