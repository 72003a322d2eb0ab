"""What is asked of runs by a process that does not work on them: it is written, for the owner.

Rules:

- It is acknowledged once it is in the journal, whether there is an owner at the time or not: the
  next one finds it.
- The transaction decides whether a run is over already, not what was read before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, final

from durable.core.records import CANCEL_NUMBER, RunState, cancel_record, cleanup_record
from durable.journal.base import Change

if TYPE_CHECKING:
    from durable.journal.base import Journal
    from durable.runtime.clock import Clock


class Submitting(Protocol):
    """Who has changes committed."""

    async def submit(self, change: Change) -> None:
        """Return once a change is committed."""
        ...


class AskingHost(Protocol):
    """What asking needs of the runner."""

    clock: Clock

    async def wait_for_others(self) -> None:
        """Return when others may have written something."""
        ...


@final
class Asking:
    """The calls of a guest."""

    def __init__(self, journal: Journal, submitting: Submitting, host: AskingHost) -> None:
        self._journal = journal
        self._submitting = submitting
        self._host = host

    async def cancel(self, run_id: str, *, interrupt: bool) -> bool | None:
        """Ask for a run's end; ``False`` when it is over already, ``None`` when there is none."""
        while True:
            record = await self._journal.load_run(run_id)
            if record is None or record.state.is_final:
                return None if record is None else False
            asked = cancel_record(self._host.clock.now_ms(), interrupt=interrupt)
            await self._submitting.submit(Change(run_id=run_id, asked=asked, is_wake=True))
            # Unless it has ended, or was removed, just before: then there is nothing to ask it.
            if await self._journal.is_asked(run_id, CANCEL_NUMBER):
                return True

    async def resume(self, run_id: str) -> bool | None:
        """Ask for a stuck run to be tried; ``False`` when it is not, ``None`` for none."""
        record = await self._journal.load_run(run_id)
        if record is None or record.state is not RunState.STUCK:
            return None if record is None else False
        await self._submitting.submit(Change(run_id=run_id, is_wake=True))
        return True

    async def cleanup(self, run_id: str, *, force: bool) -> bool:
        """Remove a run; ``False`` when there is none, or, without ``force``, when it is not over.

        One that the owner works on is removed by the owner: this returns when it is gone.
        """
        is_asked = False
        while True:
            record = await self._journal.load_run(run_id)
            if record is None or not (force or record.state.is_final):
                return record is None and is_asked
            change = Change(run_id=run_id, is_removal=True)
            if not record.state.is_final:
                change.asked = cleanup_record(self._host.clock.now_ms())
                change.is_wake = True
            await self._submitting.submit(change)
            if is_asked:
                await self._wait_for_owner()
            is_asked = True

    async def _wait_for_owner(self) -> None:
        if not await self._journal.release_dead_claims():
            await self._host.wait_for_others()
