"""Removing runs that have been over for long.

Rules:

- Only the runs that nobody is a parent of are looked for; a run goes with all its children.
- A sweep is many small transactions, so that it holds up nobody for long.
- What fails is tried again at the next sweep.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol, final

from durable.core.errors import EngineClosedError, JournalError

if TYPE_CHECKING:
    from durable.journal.base import Journal
    from durable.runtime.clock import Alarms, Clock

SWEEP_EVERY_MS: Final = 60_000
"""The wait between two sweeps."""

REMOVED_AT_ONCE_MAX: Final = 100
"""How many runs are removed in one transaction."""


class Remover(Protocol):
    """Who removes runs."""

    async def cleanup(self, run_id: str, *, force: bool) -> bool:
        """Remove a run, if it is over."""
        ...


@final
class Retention:
    """Removes runs from a journal once they have been over for so long."""

    def __init__(
        self, journal: Journal, remover: Remover, clock: Clock, alarms: Alarms, keep_ms: int
    ) -> None:
        self._journal = journal
        self._remover = remover
        self._clock = clock
        self._alarms = alarms
        self._keep_ms = keep_ms

    async def serve(self) -> None:
        """Sweep at once, and then once a minute, until the engine closes."""
        while True:
            try:
                await self._sweep()
            except EngineClosedError:
                return
            except JournalError:
                pass  # Whoever writes says so.
            await self._wait()

    async def _sweep(self) -> None:
        if not self._journal.is_owner:  # Whoever owns the journal does it.
            return
        finished_before_ms = self._clock.now_ms() - self._keep_ms
        while True:
            run_ids = await self._journal.list_finished(finished_before_ms, REMOVED_AT_ONCE_MAX)
            removals = (self._remover.cleanup(run_id, force=False) for run_id in run_ids)
            removed = await asyncio.gather(*removals)
            if len(run_ids) < REMOVED_AT_ONCE_MAX or not any(removed):
                return

    async def _wait(self) -> None:
        rung = asyncio.Event()
        due_ms = self._clock.now_ms() + SWEEP_EVERY_MS
        alarm = self._alarms.set(due_ms, rung.set, is_background=True)
        try:
            await rung.wait()
        finally:
            self._alarms.cancel(alarm)
