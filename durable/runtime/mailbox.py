"""What was sent to a run that is in memory, and which of its waits gets it.

Rules:

- Events of a name are consumed in the order of sending, by waits in the order of issue. An event
  that a wait by id is open for is kept for that wait.
- Which event a wait gets is decided when it is handed to the body, in the turn whose commit
  records both: until then the event stays in its place. So a wait that is withdrawn, or times out,
  takes none, and nothing has to be given back.
- A wait that an event is there for is *announced*: it is in the queue of deliveries. There are no
  more of a name than there are events.
- A wait for an id that is not here is looked up in the journal, after the commit of the wait: the
  event may have been consumed, be another run's, or not be sent yet.
"""

from __future__ import annotations

from collections import OrderedDict
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, Protocol, final

from msgspec.structs import replace

from durable.core.codec import DecodeError, one_line
from durable.core.commands import UNSET, Work
from durable.core.errors import EventConsumedError, EventNotFoundError, EventTypeError
from durable.core.failures import encode_exception
from durable.core.transitions import complete, fail
from durable.runtime.settings import PARK_AFTER_CROWDED_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from durable.core.errors import JournalError
    from durable.core.records import EventRecord, StepRecord
    from durable.runtime.clock import Alarm, Alarms, Clock


class EventWork(Work, Protocol):
    """What a wait's command stands for."""

    event_id: str | None


class MailboxHost(Protocol):
    """What the mailboxes of all runs share."""

    clock: Clock
    alarms: Alarms

    def park_after_ms(self) -> int:
        """Return how long a run may wait in memory."""
        ...

    def look_up_event(self, lookup: Lookup, /) -> None:
        """Have an event read in the journal, and ``lookup.mailbox`` told, as an effect."""
        ...


class MailboxOwner(Protocol):
    """The run that events are sent to."""

    def work(self, number: int) -> Any:  # noqa: ANN401  an EventWork, which the core does not know
        """Return what the open step of that number stands for."""
        ...

    def settle(self, step: StepRecord, value: object) -> None:
        """Take a wait's failure, or, of a wait that is open, that there is an event for it."""
        ...

    def park_if_idle(self) -> None:
        """Leave memory, if there is nothing to do for long."""
        ...


@final
class Lookup:
    """An event that is to be read in the journal, and for which wait."""

    __slots__ = ("event_id", "mailbox", "number")

    def __init__(self, mailbox: Mailbox, number: int, event_id: str) -> None:
        self.mailbox = mailbox
        self.number = number
        self.event_id = event_id

    @property
    def is_wanted(self) -> bool:
        """Whether the body still waits."""
        return self.mailbox.is_looking(self.number)


@final
class _Queue:
    """The events of one name, and the waits for the next of them.

    Attributes:
        events: Not consumed, in the order of sending.
        reserved: How many of them an open wait by id is for.
        waiting: A heap of the waits, by number, that no event is there for; withdrawn ones too.
        announced: The waits that an event is there for.
    """

    __slots__ = ("announced", "events", "reserved", "waiting")

    def __init__(self) -> None:
        self.events: OrderedDict[str, EventRecord] = OrderedDict()
        self.reserved = 0
        self.waiting: list[int] = []
        self.announced: set[int] = set()


@final
class Mailbox:
    """The events of one run that were not consumed, and its open waits."""

    def __init__(self, run_id: str, host: MailboxHost, owner: MailboxOwner) -> None:
        self._run_id = run_id
        self._host = host
        self._owner = owner
        self._queues: dict[str, _Queue] = {}
        self._names: dict[str, str] = {}
        self._waits: dict[int, StepRecord] = {}
        self._by_id: dict[str, int] = {}
        self._looking: set[int] = set()
        self._in_hand: EventRecord | None = None
        self._taken: set[str] = set()
        self._used_at_ms = 0
        self._is_idle = False
        self._alarm: Alarm | None = None

    def __repr__(self) -> str:
        return f"<Mailbox of {self._run_id!r} events={len(self._names)} waits={len(self._waits)}>"

    # --- events ----------------------------------------------------------------------------------

    def add(self, event: EventRecord) -> None:
        """An event was sent, and is in the journal. Each is added once, in the order of sending."""
        self._names[event.event_id] = event.name
        queue = self._queue(event.name)
        queue.events[event.event_id] = event
        number = self._by_id.get(event.event_id)
        if number is None:
            self._announce(queue)
        else:
            queue.reserved += 1
            self._looking.discard(number)
            self._owner.settle(self._waits[number], UNSET)

    def hear(self, sent: Iterable[EventRecord]) -> None:
        """Take what the journal has of events that were not consumed, in the order of sending.

        Those that are here get their places in that order, too: others may have sent some before
        them. What the body has got already, though that is not committed, stays consumed.
        """
        for event in sent:
            name = self._names.get(event.event_id)
            if name is not None:
                self._queues[name].events.move_to_end(event.event_id)
            elif event.event_id not in self._taken:
                self.add(event)

    def has_one_for(self, step: StepRecord, sent_until_ms: int) -> bool:
        """Whether an event was sent by then that the wait may get."""
        if step.event_id is not None:
            name = self._names.get(step.event_id)
            found = None if name is None else self._queues[name].events[step.event_id]
        else:
            queue = self._queues.get(step.name)
            found = None if queue is None else self._next_of(queue)
        return found is not None and (found.sent_at_ms or 0) <= sent_until_ms

    def _queue(self, name: str) -> _Queue:
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = _Queue()
        return queue

    def _next_of(self, queue: _Queue) -> EventRecord | None:
        by_id = self._by_id
        return next((e for event_id, e in queue.events.items() if event_id not in by_id), None)

    # --- waits -----------------------------------------------------------------------------------

    def wait(self, step: StepRecord, after: list[tuple[Callable[[Any], None], Any]]) -> None:
        """The body waits; who replays it calls ``announce`` when all waits are known."""
        number, event_id = step.number, step.event_id
        self._waits[number] = step
        self._linger()
        if event_id is None:
            heappush(self._queue(step.name).waiting, number)
        elif event_id in self._by_id:
            msg = f"the body waits for event {event_id} already: await that wait's task instead"
            self._fail(step, EventConsumedError(msg))
        else:
            self._by_id[event_id] = number
            if event_id in self._names:
                self._queues[self._names[event_id]].reserved += 1
            else:
                self._looking.add(number)
                after.append((self._host.look_up_event, Lookup(self, number, event_id)))

    def announce(self, step: StepRecord | None = None) -> None:
        """Have the wait delivered, or all of them, that an event is there for."""
        for each in list(self._waits.values()) if step is None else (step,):
            if each.event_id is None:
                self._announce(self._queue(each.name))
            elif each.event_id in self._names and self._by_id.get(each.event_id) == each.number:
                self._owner.settle(each, UNSET)

    def _announce(self, queue: _Queue) -> None:
        free = len(queue.events) - queue.reserved - len(queue.announced)
        while free > 0 and queue.waiting:
            step = self._waits.get(heappop(queue.waiting))
            if step is not None:
                queue.announced.add(step.number)
                self._owner.settle(step, UNSET)
                free -= 1

    def receive(self, step: StepRecord) -> tuple[StepRecord, object] | None:
        """Take the event that an announced wait gets now; return the settled wait and the value.

        Returns:
            ``None`` when there is none for it any more: it goes on waiting.
        """
        event = self._take(step)
        self._in_hand = event
        if event is None:
            return None
        now_ms = self._host.clock.now_ms()
        step = replace(step, event_id=event.event_id)
        if event.error is not None:
            return fail(step, event.error, now_ms), UNSET
        text = event.value or "null"
        try:
            value = self._owner.work(step.number).decode(text)
        except DecodeError as exc:
            msg = (
                f"the value of event {event.name!r} ({event.event_id}) does not fit what the body "
                f"waits for: {one_line(exc)}. The event is consumed; have the right one sent."
            )
            return fail(step, encode_exception(EventTypeError(msg)), now_ms), UNSET
        return complete(step, text, now_ms), value

    def _take(self, step: StepRecord) -> EventRecord | None:
        name = step.name if step.event_id is None else self._names[step.event_id]
        queue = self._queues[name]
        if step.event_id is not None:
            event: EventRecord | None = queue.events[step.event_id]
            queue.reserved -= 1
        else:
            event = self._next_of(queue)
            if event is None:
                # A wait by id that was issued meanwhile is for it.
                queue.announced.discard(step.number)
                heappush(queue.waiting, step.number)
                return None
        assert event is not None
        del queue.events[event.event_id], self._names[event.event_id]
        self._drop_if_unused(event.name)
        return event

    def consumed(self, number: int) -> tuple[tuple[str, int], ...]:
        """Return what the turn that was just taken has consumed, for its commit."""
        event, self._in_hand = self._in_hand, None
        if event is None:
            return ()
        self._taken.add(event.event_id)
        return ((event.event_id, number),)

    def on_consumed(self, consumed: tuple[tuple[str, int], ...]) -> None:
        """What a turn has consumed is committed: the journal does not show it any more."""
        self._taken.difference_update(event_id for event_id, _ in consumed)

    def forget(self, number: int) -> None:
        """A wait was delivered or withdrawn."""
        step = self._waits.pop(number, None)
        if step is None:
            return
        self._looking.discard(number)
        name: str | None = step.name
        if step.event_id is not None:
            if self._by_id.get(step.event_id) != number:
                return
            del self._by_id[step.event_id]
            name = self._names.get(step.event_id)
            if name is None:
                return
            self._queues[name].reserved -= 1
        assert name is not None
        queue = self._queues[name]
        queue.announced.discard(number)
        self._announce(queue)
        self._drop_if_unused(name)

    def _drop_if_unused(self, name: str) -> None:
        queue = self._queues[name]
        while queue.waiting and queue.waiting[0] not in self._waits:
            heappop(queue.waiting)
        if not (queue.events or queue.announced or queue.waiting):
            del self._queues[name]

    def clear(self) -> None:
        """The run leaves memory."""
        self._waits.clear()
        self._looking.clear()
        if self._alarm is not None:
            self._host.alarms.cancel(self._alarm)
            self._alarm = None
        del self._owner  # They refer to each other: free them without the collector.

    def _fail(self, step: StepRecord, error: Exception) -> None:
        now_ms = self._host.clock.now_ms()
        self._owner.settle(fail(step, encode_exception(error), now_ms), UNSET)

    # --- what is not here ------------------------------------------------------------------------

    def is_looking(self, number: int) -> bool:
        """Whether the wait is open, and nothing is known of its event."""
        return number in self._looking

    def on_looked_up(self, lookup: Lookup, found: EventRecord | JournalError | None) -> None:
        """Take what the journal has of an event: one that was sent meanwhile is on its way here."""
        if not lookup.is_wanted:
            return
        self._looking.discard(lookup.number)
        step = self._waits[lookup.number]
        if isinstance(found, Exception):
            self._fail(step, found)
        elif found is None or found.run_id != self._run_id:
            msg = f"run {self._run_id!r} has no event {lookup.event_id}: another run's cannot come"
            self._fail(step, EventNotFoundError(msg))
        elif found.step_number is not None:
            msg = (
                f"event {lookup.event_id} ({found.name!r}) was consumed by step {found.step_number}"
            )
            self._fail(step, EventConsumedError(msg))
        else:
            self._linger()  # It may have come to its idle time during the look-up.

    # --- staying in memory -----------------------------------------------------------------------

    @property
    def keeps_in_memory(self) -> bool:
        """Whether the run is to stay, because something may be sent soon, or is being looked up."""
        return bool(self._looking) or (bool(self._waits) and not self._is_idle)

    def _linger(self) -> None:
        """Stay for a while: what is sent often would else be replayed often."""
        self._used_at_ms = self._host.clock.now_ms()
        self._is_idle = False
        if self._alarm is None:
            due_ms = self._used_at_ms + PARK_AFTER_CROWDED_MS
            self._alarm = self._host.alarms.set(due_ms, self._look_if_idle, is_background=True)

    def _look_if_idle(self) -> None:
        self._alarm = None
        if not self._waits:
            return
        now_ms = self._host.clock.now_ms()
        idle_ms = now_ms - self._used_at_ms
        if idle_ms >= self._host.park_after_ms():
            self._is_idle = True
            self._owner.park_if_idle()
        else:
            # After as long again: it may get crowded meanwhile.
            due_ms = now_ms + max(idle_ms, PARK_AFTER_CROWDED_MS)
            self._alarm = self._host.alarms.set(due_ms, self._look_if_idle, is_background=True)
