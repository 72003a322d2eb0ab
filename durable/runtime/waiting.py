"""Who waits for what becomes of a run.

A waiter is a future. It is told a run's row, or ``None`` to look in the journal itself.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Callable

    from durable.core.records import RunRecord

    Waiter = asyncio.Future[RunRecord | None]


@final
class Waiters:
    """The waiters for one thing, by run."""

    def __init__(self) -> None:
        self._by_run: dict[str, set[Waiter]] = {}

    def join(self, run_id: str) -> Waiter:
        """Be among the waiters of a run. Whoever joins has to ``leave``, told or not."""
        waiter: Waiter = asyncio.get_running_loop().create_future()
        self._by_run.setdefault(run_id, set()).add(waiter)
        return waiter

    def leave(self, run_id: str, waiter: Waiter) -> None:
        """Wait no more."""
        waiters = self._by_run.get(run_id)
        if waiters is not None:
            waiters.discard(waiter)
            if not waiters:
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

    def keep(self, run_id: str) -> None:
        """Keep the row of that run, should it end before ``release``."""
        self._counts[run_id] = self._counts.get(run_id, 0) + 1

    def release(self, run_id: str) -> None:
        """Keep it no more, unless others do."""
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
