"""What callers send to runs: into the journal first, then to the run, if it is in memory.

Rules:

- The journal decides: an event is kept unless its run is over, and one that was created is sent
  once. A run that nobody works on is made due in the same commit, if it waits for the event.
- What is in the journal is handed to a run that is in memory; one that is being claimed reads it.
  So does one that others have sent something to, which comes first.
- Who sends to a run that is in memory and goes on knows that it is kept. Anyone else looks.
- Of several processes that send what was created before, the commit tells each if it was late.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Protocol, final

import anyio
from msgspec.structs import replace

from durable.core.errors import (
    EventAlreadySentError,
    EventNotFoundError,
    JournalCorruptError,
    JournalError,
)
from durable.journal.base import Change
from durable.runtime.waiting import Turns, Waiters

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio.abc import TaskGroup

    from durable.core.records import EventRecord, RunRecord
    from durable.journal.base import Journal
    from durable.journal.scopes import Scope
    from durable.runtime.clock import Clock
    from durable.runtime.live import LiveRun
    from durable.runtime.mailbox import Lookup
    from durable.runtime.transactions import Transactions
    from durable.runtime.writer import Effects, Writer

LOOK_AGAIN_S = 1.0
"""The wait before an event is read again, when the journal could not be read."""


class SendsHost(Protocol):
    """What sending asks of the runner."""

    clock: Clock
    writer: Writer
    transactions: Transactions

    def check_open(self) -> None:
        """Raise when the engine is closing, or its journal out."""
        ...

    async def wait_while_starting(self, run_id: str) -> None:
        """Return once no start of the run is under way."""
        ...

    def live(self, run_id: str) -> LiveRun | None:
        """Return the run, if it is in memory."""
        ...


@final
class Sends:
    """Events on their way to the journal, and to the runs."""

    def __init__(self, journal: Journal, host: SendsHost) -> None:
        self._journal = journal
        self._host = host
        self._group: TaskGroup | None = None
        self._submitted: set[str] = set()
        self._acks = Waiters()
        self._ids = Turns()

    def open(self, group: TaskGroup) -> None:
        """Let look-ups run in that task group."""
        self._group = group

    async def store(self, event: EventRecord) -> bool | None:
        """Keep an event; ``False`` when its run is over, ``None`` when there is no such run.

        Raises:
            EventAlreadySentError: It was.
            JournalUnavailableError: The outcome is unknown.
            EngineClosedError: The engine is closing.
        """
        host, run_id = self._host, event.run_id
        while True:
            host.check_open()
            await host.wait_while_starting(run_id)
            live = host.live(run_id)
            if live is None or not live.goes_on:
                run = await self._journal.load_run(run_id)
                if run is None or run.state.is_final:
                    return None if run is None else False
                live = host.live(run_id)
            host.check_open()
            is_certain = live is not None and live.goes_on
            await self._submit(event)
            if is_certain or await self._is_kept(event):
                return True

    async def store_within(self, scope: Scope, event: EventRecord) -> bool | None:
        """Make an event a part of a caller's transaction; return what ``store`` does.

        No run's end is committed before the transaction is over, which decides what is kept.

        Raises:
            TransactionError: The transaction is over, another engine's, or a query's.
            JournalUnavailableError: The storage failed; nothing of the transaction is committed.
        """
        self._host.transactions.check_own(scope)
        run = await self._journal.read_within(scope, event.run_id)
        if run is None or run.state.is_final:
            return None if run is None else False
        change = Change(run_id=event.run_id, events=(event,))
        await self._journal.write_within(scope, change)
        scope.after.append((self._hand_over, change))
        return True

    async def _is_kept(self, event: EventRecord) -> bool:
        found = await self._journal.load_event(event.event_id)
        return found is not None and found.sent_at_ms == event.sent_at_ms

    async def send_created(self, event_id: str, value: str | None, error: str | None) -> bool:
        """Send an event that was created before; ``False`` when its run is over.

        Raises:
            EventNotFoundError: There is none.
            EventAlreadySentError: It was sent before.
            JournalUnavailableError, EngineClosedError: As for ``store``.
        """
        # One after another: two must not both find it unsent.
        async with self._ids.hold(event_id):
            while event_id in self._submitted:  # By one who was cancelled.
                await self._wait(event_id)
            self._host.check_open()
            event = await self._journal.load_event(event_id)
            if event is None:
                msg = (
                    f"the journal has no event {event_id}: check the id, and which journal it is of"
                )
                raise EventNotFoundError(msg)
            if event.sent_at_ms is not None:
                raise _sent_before(event)
            now_ms = self._host.clock.now_ms()
            event = replace(event, sent_at_ms=now_ms, value=value, error=error)
            is_kept = await self.store(event)
            if is_kept is None:
                msg = f"the run of event {event_id} was removed from the journal"
                raise EventNotFoundError(msg)
            return is_kept

    async def _submit(self, event: EventRecord) -> None:
        self._submitted.add(event.event_id)
        self._host.writer.submit(Change(run_id=event.run_id, events=(event,)), self, [])
        await self._wait(event.event_id)

    async def _wait(self, event_id: str) -> None:
        waiter = self._acks.join(event_id)
        try:
            await waiter
        finally:
            self._acks.leave(event_id, waiter)

    def on_committed(self, change: Change, after: Effects, taken_by: RunRecord | None) -> None:  # noqa: ARG002
        """An event is in the journal, unless its run is over."""
        (event,) = change.events
        self._submitted.discard(event.event_id)
        if event.event_id in change.sent_before:  # By another process, just now.
            self._acks.fail(event.event_id, partial(_sent_before, event))
            return
        if event.sent_at_ms is not None:
            self._hand_over(change)
        self._acks.tell(event.event_id, None)

    def _hand_over(self, change: Change) -> None:
        """Give the run what was sent to it and is in the journal."""
        live = self._host.live(change.run_id)
        if live is None or change.is_behind:
            self._host.writer.ask_claim()  # That shows all that was sent, in order.
        else:
            live.take_event(change.events[0])

    def look_up(self, lookup: Lookup) -> None:
        """Read an event in the journal for a run that waits for it by its id."""
        assert self._group is not None
        self._group.start_soon(self._look_up, lookup)

    async def _look_up(self, lookup: Lookup) -> None:
        while lookup.is_wanted:
            try:
                found: EventRecord | JournalError | None
                found = await self._journal.load_event(lookup.event_id)
            except JournalCorruptError as exc:
                found = exc
            except JournalError:  # After an outage nobody wants it any more.
                await anyio.sleep(LOOK_AGAIN_S)
                continue
            lookup.mailbox.on_looked_up(lookup, found)

    def fail_all(self, make_error: Callable[[], Exception]) -> None:
        """Wake all who wait for a commit: it may be in the journal or not."""
        self._submitted.clear()
        self._acks.fail_all(make_error)


def _sent_before(event: EventRecord) -> EventAlreadySentError:
    msg = f"event {event.event_id} ({event.name!r} of run {event.run_id!r}) was sent before"
    return EventAlreadySentError(msg)
