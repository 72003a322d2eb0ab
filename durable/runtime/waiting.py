"""Who waits for what becomes of a run.

A waiter is a future. It is told a run's row, or ``None`` to look in the journal itself.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from durable.core.records import RunRecord

    Waiter = asyncio.Future[RunRecord | None]


@final
class Waiters:
    """The waiters for one thing, by run."""

    def __init__(self) -> None:
        self._by_run: dict[str, set[Waiter]] = {}

    @contextmanager
    def join(self, run_id: str) -> Generator[Waiter]:
        """Be among the waiters of a run; a cancelled one leaves nothing behind."""
        waiter: Waiter = asyncio.get_running_loop().create_future()
        waiters: set[Waiter] = self._by_run.setdefault(run_id, set())
        waiters.add(waiter)
        try:
            yield waiter
        finally:
            waiters.discard(waiter)
            if not waiters and self._by_run.get(run_id) is waiters:
                del self._by_run[run_id]

    def tell(self, run_id: str, record: RunRecord | None) -> None:
        """Wake the waiters of a run."""
        for waiter in self._by_run.pop(run_id, ()):
            if not waiter.done():
                waiter.set_result(record)

    def tell_all_to_look(self) -> None:
        """Wake all waiters, to look in the journal."""
        for run_id in list(self._by_run):
            self.tell(run_id, None)

    def fail_all(self, make_error: Callable[[], Exception]) -> None:
        """Wake all waiters with an error."""
        everybody, self._by_run = self._by_run, {}
        for waiters in everybody.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(make_error())
                    waiter.exception()  # Its task may be gone: nobody has to retrieve it.


@final
class Expected:
    """Rows of runs that have ended, kept for callers who will ask for them."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._ended: dict[str, RunRecord] = {}

    @contextmanager
    def keep(self, run_id: str) -> Generator[None]:
        """Keep the row of that run, should it end meanwhile."""
        self._counts[run_id] = self._counts.get(run_id, 0) + 1
        try:
            yield
        finally:
            self._counts[run_id] -= 1
            if not self._counts[run_id]:
                del self._counts[run_id]
                self._ended.pop(run_id, None)

    def add(self, record: RunRecord) -> None:
        """A run has ended."""
        if record.run_id in self._counts:
            self._ended[record.run_id] = record

    def get(self, run_id: str) -> RunRecord | None:
        """Return the row of a run that has ended, if it was kept."""
        return self._ended.get(run_id)
