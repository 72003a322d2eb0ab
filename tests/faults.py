"""A disk that fails on demand, a stop that is as good as a crash, and what tests wait with."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, final

from durable import Engine, JournalUnavailableError
from durable.journal.sqlite import SqliteJournal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    import pytest

    from clock import ManualClock
    from durable import Run, StepInfo, StepState
    from durable.core.records import RunRecord, StepRecord
    from durable.journal.base import Change, Claim, RunQuery, StepQuery

T = TypeVar("T")

WAIT_S_MAX = 10
"""No wait of a test takes longer than this."""


class Fault(Enum):
    """What becomes of a write that is reported as failed."""

    LOST = auto()
    KEPT = auto()


class Disk:
    """The storage under the journals of one test.

    Attributes:
        faults: Which writes fail: by ``commit`` or ``claim``, and the how-manieth, from 1.
        broken: While it is set, every write and every reopening fails, with this fault.
        reopen_failures: How many of the next reopenings fail.
        calls: How many ``commit``, ``claim`` and ``reopen`` there were.
        outages: How many writes failed.
        runs: The runs that are in the journal.
        settled: The steps, by run and key, whose outcome is in the journal.
        ended: The runs whose end is in the journal.
    """

    def __init__(self) -> None:
        self.faults: dict[tuple[str, int], Fault] = {}
        self.broken: Fault | None = None
        self.reopen_failures = 0
        self.calls: Counter[str] = Counter()
        self.outages = 0
        self.runs: set[str] = set()
        self.settled: set[tuple[str, str]] = set()
        self.ended: set[str] = set()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the journals that are opened from now on be on this disk, and reopen in no time."""
        monkeypatch.setattr("durable.journal.sqlite.SqliteJournal", partial(FaultyJournal, self))
        monkeypatch.setattr("durable.runtime.writer.REOPEN_DELAY_MIN_S", 0.001)

    async def write(self, what: str, work: Callable[[], Awaitable[T]]) -> T:
        self.calls[what] += 1
        fault = self.broken or self.faults.get((what, self.calls[what]))
        if fault is None:
            return await work()
        self.outages += 1
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
            for step in change.updated:
                if step.state.is_final:
                    self.settled.add((change.run_id, step.key))

    def check_reopen(self) -> None:
        self.calls["reopen"] += 1
        if self.reopen_failures or self.broken is not None:
            self.reopen_failures = max(0, self.reopen_failures - 1)
            msg = "the disk is not there"
            raise JournalUnavailableError(msg)


@final
class FaultyJournal:
    """A journal in SQLite on a ``Disk``."""

    def __init__(self, disk: Disk, path: Path | None) -> None:
        self.disk = disk
        self.inner = SqliteJournal(path)

    async def open(self) -> None:
        await self.inner.open()

    async def reopen(self) -> None:
        self.disk.check_reopen()
        await self.inner.reopen()

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

    async def load_status(self, run_id: str) -> tuple[RunRecord, list[StepRecord]] | None:
        return await self.inner.load_status(run_id)

    async def list_runs(self, query: RunQuery) -> list[tuple[int, RunRecord, list[StepRecord]]]:
        return await self.inner.list_runs(query)

    async def list_steps(self, query: StepQuery) -> list[StepRecord] | None:
        return await self.inner.list_steps(query)


# --- stopping, waiting ---------------------------------------------------------------------------


@asynccontextmanager
async def crashing(
    path: Path,
    clock: ManualClock | None = None,
    **options: Any,  # noqa: ANN401  the engine's
) -> AsyncIterator[Engine]:
    """Open an engine whose end is as good as a crash: nothing is drained, what runs is cut off."""
    engine = Engine(path, drain_timeout=0, **options)
    if clock is not None:
        clock.install(engine)
    async with engine:
        yield engine


async def until(condition: Callable[[], object]) -> None:
    """Let the event loop go on until the condition holds."""
    async with asyncio.timeout(WAIT_S_MAX):
        while not condition():
            await asyncio.sleep(0)


async def until_step(run: Run[Any], name: str, state: StepState) -> StepInfo:
    """Wait until the run's latest step of that name is in that state, as committed."""
    async with asyncio.timeout(WAIT_S_MAX):
        while True:
            steps = [step async for step in run.steps() if step.name == name]
            if steps and steps[-1].state is state:
                return steps[-1]
            await asyncio.sleep(0)
