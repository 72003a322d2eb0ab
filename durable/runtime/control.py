"""What callers have done to runs: cancel, resume, restart, remove.

Live ones at once, others by their rows.

Rules:

- What was asked is acknowledged once it is in the journal.
- Of cancels, the first one counts. A body that has begun is told, and may clean up; one that has
  not, or is stuck, is over at once.
- A run is removed with all that is under it: its children, and theirs. So all of that has to be
  over, too, unless the removal is forced. A run whose parent is not over is never removed: the
  parent may still wait for it, or be restarted.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Protocol, final

from durable.core.errors import EngineClosedError, JournalError
from durable.core.records import RunState, StepKind, cancel_record, recorded_cancel
from durable.core.restarts import first_dropped, first_position
from durable.core.transitions import cancel_run, withdraw
from durable.journal.base import Change, Parked, Restart
from durable.runtime.asking import Asking
from durable.runtime.waiting import Turns, Waiters

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio.abc import TaskGroup

    from durable.core.records import RunRecord, StepRecord
    from durable.journal.base import Journal
    from durable.runtime.children import Children
    from durable.runtime.clock import Clock
    from durable.runtime.live import LiveRun
    from durable.runtime.writer import Effects, Writer


TOLD_S_MAX = 1.0
"""How long who cancels a run that is not in memory waits until its body was told, once it is
recorded: the run may have a long history to replay."""


class ControlHost(Protocol):
    """What controlling runs asks of the runner."""

    children: Children
    clock: Clock
    writer: Writer

    @property
    def is_owner(self) -> bool:
        """Whether the runs are worked on here."""
        ...

    @property
    def room(self) -> int:
        """How many more runs there may be in memory."""
        ...

    def check_open(self) -> None:
        """Raise when the engine is closing, or its journal out."""
        ...

    async def wait_while_starting(self, run_id: str) -> None:
        """Return once no start of the run is under way."""
        ...

    async def wait_for_others(self) -> None:
        """Return when others may have written something."""
        ...

    def live(self, run_id: str) -> LiveRun | None:
        """Return the run, if it is in memory."""
        ...

    def on_removed(self, run_id: str) -> None:
        """There is no such run any more."""
        ...

    def on_over(self, record: RunRecord) -> None:
        """A run is over that has not ended by itself."""
        ...

    def on_committed(self, change: Change, after: Effects, taken_by: RunRecord | None) -> None:
        """A run that is not in memory is to be claimed."""
        ...


@final
class Control:
    """What is asked of runs, and not in the journal yet."""

    def __init__(self, journal: Journal, host: ControlHost) -> None:
        self._journal = journal
        self._host = host
        self._submitted: dict[str, list[Change]] = {}
        self._removing: set[str] = set()
        self._turns = Turns()
        # Not by run: several may ask different things of one at the same time.
        self._acks: dict[asyncio.Future[None], None] = {}
        self._told = Waiters()
        self._gone = Waiters()
        self._asking = Asking(journal, self, host)
        self._group: TaskGroup | None = None

    async def cancel(self, run_id: str, *, interrupt: bool) -> bool | None:
        """Have a run end; ``False`` when it is over already, ``None`` when there is none.

        Raises:
            JournalUnavailableError: The outcome is unknown.
            EngineClosedError: The engine is closing.
        """
        host = self._host
        is_asked = False
        while True:
            host.check_open()
            if not host.is_owner:
                return await self._asking.cancel(run_id, interrupt=interrupt)
            await host.wait_while_starting(run_id)
            live = host.live(run_id)
            if live is None:
                found = await self._load_status(run_id)
                if found is None:
                    return None
                record, steps = found
                if record.state.is_final:
                    return is_asked and record.state is RunState.CANCELED
                host.check_open()
                live = host.live(run_id)
                if live is None:
                    is_asked = True
                    await self._ask_and_wait(record, steps, interrupt=interrupt)
                    live = host.live(run_id)
                    if live is None:
                        return True
            if live.cancel(cancel_record(host.clock.now_ms(), interrupt=interrupt)):
                await self._wait(self._told, run_id)
                if not live.is_cancel_pending:
                    return True
            else:
                await self._wait(self._gone, run_id)

    async def _load_status(self, run_id: str) -> tuple[RunRecord, list[StepRecord]] | None:
        """Return what the journal has of a run that is not in memory, and its open steps.

        If it was there meanwhile, and has left, that may be old: the run may be over by now.
        """
        while True:
            self._host.check_open()
            gone = self._gone.join(run_id)
            try:
                found = await self._journal.load_status(run_id)
                if not gone.done():
                    return found
            finally:
                self._gone.leave(run_id, gone)

    async def resume(self, run_id: str) -> bool | None:
        """Have a stuck run tried again; ``False`` when it is not, ``None`` when there is none.

        Raises:
            JournalUnavailableError: The outcome is unknown.
            EngineClosedError: The engine is closing.
        """
        while True:
            self._host.check_open()
            if not self._host.is_owner:
                return await self._asking.resume(run_id)
            await self._host.wait_while_starting(run_id)
            record = await self._journal.load_run(run_id)
            if record is not None and record.callback_id is not None:
                return await self.resume(record.callback_id) or False
            if record is None or record.state is not RunState.STUCK:
                return None if record is None else False
            self._host.check_open()
            if self._host.live(run_id) is None:
                await self.submit(Change(run_id=run_id, parked=Parked(0)), [])
                return True
            await self._wait(self._gone, run_id)  # Attempts of it still run, or it is tried now.

    async def restart(self, run_id: str, find: Callable[[list[StepRecord]], int]) -> bool | None:
        """Have a run that is over go on; ``False`` when it is not, ``None`` when there is none.

        Args:
            run_id: The run.
            find: Says from which step, given all of them.

        Raises:
            JournalUnavailableError: The outcome is unknown.
            EngineClosedError: The engine is closing.
        """
        async with self._turns.hold(run_id):
            while True:
                self._host.check_open()
                await self._host.wait_while_starting(run_id)
                found = await self._journal.load_history(run_id)
                if found is None or not found[0].state.is_final:
                    return None if found is None else False
                self._host.check_open()
                if self._host.live(run_id) is None:
                    break
                await self._wait(self._gone, run_id)
            record, steps = found
            from_number = first_dropped(record, steps, find(steps))
            restart = Restart(
                generation=record.generation + 1,
                from_number=from_number,
                from_position=first_position(steps, from_number),
                now_ms=self._host.clock.now_ms(),
            )
            change = Change(run_id=run_id, restart=restart)
            if self._host.is_owner:
                change.parked = Parked(0)
            else:
                change.is_wake = True
            await self.submit(change, [])
            return True

    async def cleanup(self, run_id: str, *, force: bool) -> bool:
        """Remove a run and all that is under it.

        Returns:
            ``False`` when there is none, when its parent is not over, or, without ``force``, when
            it, or something under it, is not over.

        Raises:
            JournalUnavailableError: The outcome is unknown.
            EngineClosedError: The engine is closing.
        """
        return await self._remove(run_id, force=force)

    async def _remove(self, run_id: str, *, force: bool, is_asked: bool = False) -> bool:
        async with self._turns.hold(run_id):
            has_asked = False
            while True:
                self._host.check_open()
                if not self._host.is_owner:
                    is_gone = await self._asking.cleanup(run_id, force=force)
                    if is_gone is not None:
                        return is_gone
                    has_asked = True
                await self._host.wait_while_starting(run_id)
                tree = await self._journal.load_tree(run_id)
                if tree is None:
                    return has_asked
                if tree.is_awaited and not is_asked:
                    return False
                if not force and not (tree.run.state.is_final and all(tree.descendants.values())):
                    return False
                self._host.check_open()
                # Those that have begun since are in memory, or found by the commit.
                known = [run_id, *tree.descendants]
                run_ids = dict.fromkeys(known)
                for each in known:
                    run_ids.update(dict.fromkeys(self._host.children.family(each)))
                live = [run for each in run_ids if (run := self._host.live(each)) is not None]
                leaving = next((run for run in live if run.is_about_to_leave), None)
                if leaving is None:
                    break
                await self._wait(self._gone, leaving.record.run_id)
            for run in live:
                run.abandon()
            self._removing.update(run_ids)
            after: Effects = [(self._on_removed, each) for each in run_ids]
            await self.submit(Change(run_id=run_id, is_removal=True), after)
            return True

    def _on_removed(self, run_id: str) -> None:
        self._removing.discard(run_id)
        self._host.on_removed(run_id)

    async def submit(self, change: Change, after: Effects) -> None:
        """Return once a change of a run that is not in memory is committed, with its effects.

        Raises:
            JournalUnavailableError: The outcome is unknown.
            EngineClosedError: The engine is closing.
        """
        self._host.check_open()  # It may have failed since the caller looked at the journal.
        acked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._acks[acked] = None
        try:
            self._submit(change, [*after, (_acknowledge, acked)])
            await acked
        finally:
            self._acks.pop(acked, None)

    def _submit(self, change: Change, after: Effects) -> None:
        self._submitted.setdefault(change.run_id, []).append(change)
        self._host.writer.submit(change, self, after)

    async def _ask_and_wait(
        self, record: RunRecord, open_steps: list[StepRecord], *, interrupt: bool
    ) -> None:
        """Record that a run is to end that is not in memory; let it come there and hear of it.

        What its callers look at next is to be what follows from their cancel.
        """
        told = self._told.join(record.run_id)
        try:
            is_to_be_told = await self._ask_in_journal(record, open_steps, interrupt=interrupt)
            if is_to_be_told and self._host.room > 0:
                await asyncio.wait({told}, timeout=TOLD_S_MAX)
        finally:
            self._told.leave(record.run_id, told)

    async def _ask_in_journal(
        self, record: RunRecord, open_steps: list[StepRecord], *, interrupt: bool
    ) -> bool:
        """Record that a run is to end that is not in memory.

        Returns:
            Whether it is claimed to hear of it: it is neither over by that, nor in memory by now.
        """
        asked = cancel_record(self._host.clock.now_ms(), interrupt=interrupt)
        change = Change(run_id=record.run_id, asked=asked, parked=Parked(0))
        after: Effects = []
        if any(each.run is not None for each in self._submitted.get(record.run_id, ())):
            change.parked = None  # It is over by that, which is committed before this.
        elif record.state in (RunState.PENDING, RunState.STUCK):
            self._end(record, open_steps, asked, change, after)
        else:
            # What its body is going to withdraw: its children are not to go on until it is back.
            left = [withdraw(step, asked.finished_at_ms or 0) for step in open_steps]
            self._host.children.cancel(left, asked, change, after)
        await self.submit(change, after)
        return change.run is None and change.parked is not None

    def _end(
        self,
        record: RunRecord,
        open_steps: list[StepRecord],
        asked: StepRecord,
        change: Change,
        after: Effects,
    ) -> None:
        """Have a run that is not in memory ended by ``change``: nobody can be told."""
        now_ms = self._host.clock.now_ms()
        change.run = cancel_run(record, now_ms)
        self._host.children.owe(change, now_ms, after)
        change.updated += (withdraw(step, now_ms) for step in open_steps)
        change.parked = Parked(None)
        self._host.children.cancel(change.updated, asked, change, after)

    def end_if_asked(self, record: RunRecord, steps: list[StepRecord]) -> bool:
        """End a run without code that was claimed, if it was asked to; return whether it was.

        Args:
            steps: All that the journal has of them.
        """
        asked = recorded_cancel(steps)
        if asked is None:
            return False
        change, after = Change(run_id=record.run_id), list[Any]()
        self._end(record, [s for s in steps if not s.state.is_final], asked, change, after)
        self._submit(change, after)
        return True

    # --- what others have asked ------------------------------------------------------------------

    def open(self, group: TaskGroup) -> None:
        """Let what others have asked for be done in that task group."""
        self._group = group

    def remove_if_asked(self, run_id: str, steps: list[StepRecord]) -> bool:
        """Remove a run that was claimed, and what is under it, if others have asked for that.

        Args:
            steps: All that the journal has of them.

        Returns:
            Whether it was asked.
        """
        if all(step.kind is not StepKind.CLEANUP for step in steps):
            return False
        assert self._group is not None
        self._group.start_soon(self._remove_as_asked, run_id)
        return True

    async def _remove_as_asked(self, run_id: str) -> None:
        # The run is claimed, and asked to go, until it is gone: the next owner, or the same one
        # after an outage, finds that again.
        with contextlib.suppress(JournalError, EngineClosedError):
            await self._remove(run_id, force=True, is_asked=True)

    def on_committed(self, change: Change, after: Effects, taken_by: RunRecord | None) -> None:
        """What was asked of a run that was not in memory is in the journal."""
        for act, subject in after:
            act(subject)
        submitted = self._submitted.pop(change.run_id, ())
        left = [each for each in submitted if each is not change]
        if left:
            self._submitted[change.run_id] = left
        if change.run is not None:
            self.on_gone(change.run_id)  # What was read of it before is old.
            self._host.on_over(change.run)
        elif not change.is_removal:
            self._host.on_committed(change, after, taken_by)

    async def _wait(self, waiters: Waiters, run_id: str) -> None:
        waiter = waiters.join(run_id)
        try:
            await waiter
        finally:
            waiters.leave(run_id, waiter)

    def on_claimed(self, live: LiveRun) -> None:
        """A run was claimed: what was to be written for one that nobody works on is void."""
        for change in self._submitted.pop(live.record.run_id, ()):
            if change.asked is not None:
                live.cancel_recorded(change.asked)  # It is written before what the run writes.
            change.run = change.parked = None
            change.updated = []
            if change.children is not None:
                change.children.started = []  # What would be owed to an end that is void.
        record = live.record
        if record.run_id in self._removing or record.parent_id in self._removing:
            live.abandon()

    def on_canceled(self, run_id: str) -> None:
        """The cancel of a live run is in the journal."""
        self._told.tell(run_id, None)

    def on_gone(self, run_id: str) -> None:
        """A run has left memory."""
        self._told.tell(run_id, None)  # If its body has ended before it could be told.
        self._gone.tell(run_id, None)

    def fail_all(self, make_error: Callable[[], Exception]) -> None:
        """Wake all who wait for a cancel: it may be in the journal or not."""
        self._submitted.clear()
        self._removing.clear()
        for acked in list(self._acks):
            if not acked.done():
                acked.set_exception(make_error())
                acked.exception()  # Its task may be gone: nobody has to retrieve it.
        self._told.fail_all(make_error)
        self._gone.fail_all(make_error)


def _acknowledge(acked: asyncio.Future[None]) -> None:
    if not acked.done():
        acked.set_result(None)
