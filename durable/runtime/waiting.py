"""Who waits for what becomes of a run.

A waiter is a future. It is told a run's row, or ``None`` to look in the journal itself.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol, final

from durable.core.errors import JournalUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from durable.core.errors import JournalError
    from durable.core.records import RunRecord
    from durable.journal.base import Journal

    Waiter = asyncio.Future[RunRecord | None]


@final
class Waiters:
    """The waiters for one thing, by run, in the order in which they joined."""

    def __init__(self) -> None:
        self._by_run: dict[str, dict[Waiter, None]] = {}

    def join(self, run_id: str) -> Waiter:
        """Be among the waiters of a run. Whoever joins has to ``leave``, told or not."""
        waiter: Waiter = asyncio.get_running_loop().create_future()
        self._by_run.setdefault(run_id, {})[waiter] = None
        return waiter

    def leave(self, run_id: str, waiter: Waiter) -> None:
        """Wait no more."""
        waiter.cancel()  # Not told, it waits for nothing: whoever knows of it sees that.
        waiters = self._by_run.get(run_id)
        if waiters is not None:
            waiters.pop(waiter, None)
            if not waiters:
                del self._by_run[run_id]

    def tell(self, run_id: str, record: RunRecord | None) -> None:
        """Wake the waiters of a run."""
        for waiter in self._by_run.pop(run_id, ()):
            if not waiter.done():
                waiter.set_result(record)

    def run_ids(self) -> list[str]:
        """Return whose waiters there are."""
        return list(self._by_run)

    def tell_all_to_look(self) -> None:
        """Wake all waiters, to look in the journal."""
        for run_id in list(self._by_run):
            self.tell(run_id, None)

    def fail(self, run_id: str, make_error: Callable[[], Exception]) -> None:
        """Wake the waiters of a run with an error."""
        for waiter in self._by_run.pop(run_id, ()):
            if not waiter.done():
                waiter.set_exception(make_error())
                waiter.exception()  # Its task may be gone: nobody has to retrieve it.

    def fail_all(self, make_error: Callable[[], Exception]) -> None:
        """Wake all waiters with an error."""
        for run_id in list(self._by_run):
            self.fail(run_id, make_error)


@final
class Turns:
    """Who does something with a run's id, one after another."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._counts: dict[str, int] = {}

    @asynccontextmanager
    async def hold(self, run_id: str) -> AsyncGenerator[None]:
        """Wait for those who came before, and let the others wait."""
        lock = self._locks.setdefault(run_id, asyncio.Lock())
        self._counts[run_id] = self._counts.get(run_id, 0) + 1
        try:
            async with lock:
                yield
        finally:
            self._counts[run_id] -= 1
            if not self._counts[run_id]:
                del self._counts[run_id], self._locks[run_id]


class EndsHost(Protocol):
    """What waiting for ends asks of the runner."""

    @property
    def outage(self) -> JournalError | None:
        """Why the journal cannot be used now, if so."""
        ...

    def check_working(self) -> None:
        """Raise ``EngineClosedError`` when the engine is closing."""
        ...

    def is_here(self, run_id: str) -> bool:
        """Whether the run is in memory, or being started: its end will be told."""
        ...


@final
class Ends:
    """Who waits for the end of a run, across outages of the journal.

    Attributes:
        on_waiting: Called whenever somebody begins to wait, if given, with the run's id and what
            is done once the wait is over.
    """

    def __init__(self, journal: Journal, host: EndsHost) -> None:
        self._journal = journal
        self._host = host
        self._waiters = Waiters()
        self._expected: dict[str, int] = {}
        self._kept: dict[str, RunRecord] = {}
        self._outages_count = 0
        self.on_waiting: Callable[[str, Waiter], None] | None = None

    def expect(self, run_id: str) -> None:
        """Keep the row of that run, should it end before ``forget``."""
        self._expected[run_id] = self._expected.get(run_id, 0) + 1

    def forget(self, run_id: str) -> None:
        """Keep it no more, unless others do."""
        self._expected[run_id] -= 1
        if not self._expected[run_id]:
            del self._expected[run_id]
            self._kept.pop(run_id, None)

    async def wait(self, run_id: str) -> RunRecord | None:
        """Return the run's row once it is final; ``None`` when there is no such run."""
        while True:
            ended = self._kept.get(run_id)
            if ended is not None:
                return ended
            self._host.check_working()
            waiter = self._waiters.join(run_id)
            if self.on_waiting is not None:
                self.on_waiting(run_id, waiter)
            try:
                if not self._host.is_here(run_id):
                    is_over, record = await self._look_in_journal(run_id)
                    if is_over:
                        return record
                record = await waiter
            finally:
                self._waiters.leave(run_id, waiter)
            if record is not None:
                return record

    async def look(self, run_id: str) -> tuple[bool, RunRecord | None]:
        """Return whether there is nothing to wait for now, and the run's row."""
        self._host.check_working()
        is_over, record = await self._look_in_journal(run_id)
        # A run that is being started is not in the journal yet.
        return is_over and (record is not None or not self._host.is_here(run_id)), record

    async def _look_in_journal(self, run_id: str) -> tuple[bool, RunRecord | None]:
        """Return whether there is nothing to wait for, and the run's row; wait out an outage."""
        while True:
            outages_count = self._outages_count
            try:
                record = await self._journal.load_run(run_id)
            except JournalUnavailableError:
                if self._host.outage is not None:
                    return False, None  # The waiters are told to look when it is over.
                if self._outages_count == outages_count:
                    raise
            else:
                return record is None or record.state.is_final, record

    def tell(self, record: RunRecord) -> None:
        """A run has ended."""
        if record.run_id in self._expected:
            self._kept[record.run_id] = record
        self._waiters.tell(record.run_id, record)

    def waited_for(self) -> list[str]:
        """Return the runs whose end somebody waits for."""
        return self._waiters.run_ids()

    def tell_to_look(self, run_id: str) -> None:
        """The run has ended, or is gone: who looks in the journal will see."""
        self._waiters.tell(run_id, None)

    def fail(self, run_id: str, make_error: Callable[[], Exception]) -> None:
        """The run is not to be had: its waiters get an error."""
        self._waiters.fail(run_id, make_error)

    def on_outage(self) -> None:
        """The journal has failed."""
        self._outages_count += 1

    def on_restored(self) -> None:
        """The journal is there again: what has ended is to be read in it."""
        self._waiters.tell_all_to_look()

    def fail_all(self, make_error: Callable[[], Exception]) -> None:
        """The engine is closed: nobody will be told any more."""
        self._waiters.fail_all(make_error)
