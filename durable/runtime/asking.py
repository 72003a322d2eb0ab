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
    from durable.journal.base import Journal, RunTree
    from durable.runtime.clock import Clock
    from durable.runtime.open_steps import Effects


class Submitting(Protocol):
    """Who has changes committed."""

    async def submit(self, change: Change, after: Effects) -> None:
        """Return once a change is committed, with its effects."""
        ...


class AskingHost(Protocol):
    """What asking needs of the runner."""

    clock: Clock

    @property
    def is_owner(self) -> bool:
        """Whether the runs are worked on here: a guest may become the owner at any time."""
        ...

    def on_removed(self, run_id: str) -> None:
        """There may be no such run any more."""
        ...

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
            await self._submitting.submit(Change(run_id=run_id, asked=asked, is_wake=True), [])
            # Unless it has ended, or was removed, just before: then there is nothing to ask it.
            if await self._journal.is_asked(run_id, CANCEL_NUMBER):
                return True

    async def resume(self, run_id: str) -> bool | None:
        """Ask for a stuck run to be tried; ``False`` when it is not, ``None`` for none."""
        record = await self._journal.load_run(run_id)
        if record is not None and record.callback_id is not None:
            return await self.resume(record.callback_id) or False
        if record is None or record.state is not RunState.STUCK:
            return None if record is None else False
        await self._submitting.submit(Change(run_id=run_id, is_wake=True), [])
        return True

    async def cleanup(self, run_id: str, *, force: bool) -> bool | None:
        """Remove a run and all that is under it, as ``Control.cleanup`` does.

        What the owner works on is removed by the owner: this returns when all is gone; or ``None``
        when this process has become the owner, and all is asked that it is to do.
        """
        is_asked = False
        while not (is_asked and self._host.is_owner):
            tree = await self._journal.load_tree(run_id)
            if tree is None:
                return is_asked
            is_over = tree.run.state.is_final and all(tree.descendants.values())
            if tree.is_awaited or not (force or is_over):
                return False
            for each in await self._find_open(tree):
                asked = cleanup_record(self._host.clock.now_ms())
                await self._submitting.submit(Change(run_id=each, asked=asked, is_wake=True), [])
            removal = Change(run_id=run_id, is_removal=True, is_gentle=True)
            await self._submitting.submit(removal, [(self._host.on_removed, run_id)])
            if is_asked:
                await self._wait_for_owner()
            is_asked = True
        return None

    async def _find_open(self, tree: RunTree) -> list[str]:
        """Return those of a tree that the owner may work on, without what is under them."""
        if not tree.run.state.is_final:
            return [tree.run.run_id]
        found: list[str] = []
        for run_id, is_over in tree.descendants.items():
            if not is_over:
                under = await self._journal.load_tree(run_id)
                if under is not None and not under.is_awaited:
                    found.append(run_id)
        return found

    async def _wait_for_owner(self) -> None:
        if not await self._journal.release_dead_claims():
            await self._host.wait_for_others()
