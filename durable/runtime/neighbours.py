"""What the other processes that use the journal do: the owner hears of what was asked of it, the
others of what it did, and a standby of its death.

Rules:

- The journal tells when others may have written. Then what is waited for is looked at, in one read
  for all: what is due, which runs have ended, what has become of those that are watched.
- An outage ends all looking; when it is over, everything is looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Protocol, final

from durable.core.errors import JournalError
from durable.journal.base import OwnershipLostError

if TYPE_CHECKING:
    from durable.journal.base import Journal
    from durable.runtime.clock import Clock, EarliestAlarm
    from durable.runtime.instrumentation import EngineLog
    from durable.runtime.waiting import Ends
    from durable.runtime.watching import Watching
    from durable.runtime.writer import Writer


class NeighboursHost(Protocol):
    """What looking at the others asks of the runner."""

    clock: Clock
    log: EngineLog
    writer: Writer
    watching: Watching
    ends: Ends
    wake: EarliestAlarm

    @property
    def outage(self) -> JournalError | None:
        """Why the journal cannot be used now, if so."""
        ...

    @property
    def is_owner(self) -> bool:
        """Whether the runs are worked on here."""
        ...

    def is_here(self, run_id: str) -> bool:
        """Whether the run is in memory, or being started."""
        ...


@final
class Neighbours:
    """The others, as one engine sees them."""

    def __init__(self, journal: Journal, host: NeighboursHost) -> None:
        self._journal = journal
        self._host = host
        self._wake = asyncio.Event()
        self._looked = asyncio.Event()

    def look_again(self) -> None:
        """Look at what others have written, soon."""
        self._wake.set()

    async def wait(self) -> None:
        """Return when others may have written something."""
        await self._looked.wait()

    def stop(self) -> None:
        """Wake those who wait: nothing will be looked at any more."""
        self._looked.set()

    async def serve(self) -> None:
        """Look, whenever the journal tells, for ever."""
        loop = asyncio.get_running_loop()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # The loop was closed without the engine.
                loop.call_soon_threadsafe(self._wake.set)

        self._journal.watch(tell)
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._host.outage is None:
                # Who needs what cannot be read gets the error elsewhere. The journal tells again.
                with contextlib.suppress(JournalError):
                    await self._take_over()
                    await self._look()

    async def _take_over(self) -> None:
        if self._host.is_owner:
            return
        try:
            is_owner = await self._journal.take_over()
        except JournalError as exc:
            reason = str(exc)
            self._host.log.error("durable.takeover_failed", reason=reason)  # noqa: TRY400
            raise
        if is_owner:
            self._host.log.warning("durable.took_over")
            self._host.writer.ask_claim()

    async def _look(self) -> None:
        host = self._host
        if host.is_owner:
            await self._look_for_what_is_due()
        run_ids = [run_id for run_id in host.ends.waited_for() if not host.is_here(run_id)]
        if run_ids:
            for run_id in await self._journal.find_over(run_ids):
                host.ends.tell_to_look(run_id)
        host.watching.look_again(host.is_here)
        looked, self._looked = self._looked, asyncio.Event()
        looked.set()

    async def _look_for_what_is_due(self) -> None:
        host = self._host
        try:
            wake_at_ms = await self._journal.next_wake_at_ms()
        except OwnershipLostError:
            wake_at_ms = 0  # The claim comes to the same, and ends the engine.
        if wake_at_ms is not None and wake_at_ms <= host.clock.now_ms():
            host.writer.ask_claim()
        elif wake_at_ms is not None:
            host.wake.set(wake_at_ms)
