"""What an engine sends to its runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, overload

from durable.checks import check_id
from durable.core.errors import RunFinishedError
from durable.core.records import EventRecord
from durable.events import ANYTHING, Event, EventId, encode_sent, name_and_shape
from durable.opened import Opened
from durable.runtime.ids import new_run_id
from durable.status import run_not_found
from durable.transaction import scope_of

if TYPE_CHECKING:
    from durable.runtime.runner import Runner
    from durable.transaction import Transaction

T = TypeVar("T")


class Sending(Opened):
    """The calls of ``Engine`` that create and send events."""

    _max_payload: int

    @overload
    async def send_event(
        self, run_id: str, event: Event[T], value: T, *, tx: Transaction | None = None
    ) -> EventId: ...
    @overload
    async def send_event(
        self, run_id: str, event: Event[None], *, tx: Transaction | None = None
    ) -> EventId: ...
    @overload
    async def send_event(
        self,
        run_id: str,
        event: Event[Any],
        *,
        error: str | Exception,
        tx: Transaction | None = None,
    ) -> EventId: ...
    @overload
    async def send_event(
        self,
        run_id: str,
        event: str,
        value: Any = None,  # noqa: ANN401
        *,
        error: str | Exception | None = None,
        tx: Transaction | None = None,
    ) -> EventId: ...
    async def send_event(
        self,
        run_id: str,
        event: str | Event[Any],
        value: Any = None,
        *,
        error: str | Exception | None = None,
        tx: Transaction | None = None,
    ) -> EventId:
        """Send an event to a run; return once that is committed.

        It is kept until the body waits for one of that name, which gets them in the order of
        sending, each once.

        Args:
            run_id: The run.
            event: Its name, or an ``Event``, whose type the value is checked against.
            value: What the wait returns.
            error: Instead of a value: text or an exception, with which the wait raises
                ``EventError``.
            tx: A transaction of this engine: the event is sent by its commit, or not at all. The
                id is returned before that.

        Returns:
            Its id.

        Raises:
            ArgumentError: The value does not fit the event's type. Nothing was written.
            PayloadTooLarge: It is over ``max_payload``. Nothing was written.
            RunNotFoundError: There is no such run.
            RunFinishedError: The run is over. Nothing was written.
            TransactionError: ``tx`` is over, another engine's, or a query's; or none was given
                where one is open, whose end the sending would wait for.
            JournalUnavailableError: The storage failed: the outcome is unknown. Asking again may
                send it twice; ``create_event`` and ``send_event_id`` cannot.
            EngineClosedError: The engine is closed, or was closed meanwhile.

        Cancellation:
            Never splits it. A cancelled caller does not know its outcome.
        """
        runner, _ = self._opened("engine.send_event()")
        record = self._new_event(run_id, event, value, error, runner.clock.now_ms())
        return await store_event(runner, record, tx)

    def _new_event(
        self,
        run_id: str,
        event: str | Event[Any],
        value: object,
        error: str | Exception | None,
        now_ms: int,
    ) -> EventRecord:
        name, shape = name_and_shape(event)
        text, encoded_error = encode_sent(
            shape, value, error, what=f"event {name!r}", payload_max=self._max_payload
        )
        return EventRecord(
            event_id=new_run_id(now_ms),
            run_id=check_id(run_id),
            name=name,
            sent_at_ms=now_ms,
            value=text,
            error=encoded_error,
        )

    async def create_event(self, run_id: str, event: str | Event[Any]) -> EventId:
        """Create an event of a run, to be sent later by its id; return once that is committed.

        Args:
            run_id: The run.
            event: Its name, or an ``Event``.

        Raises:
            RunNotFoundError, RunFinishedError, JournalUnavailableError, EngineClosedError: As for
                ``send_event``.

        Cancellation:
            Never splits it.
        """
        runner, _ = self._opened("engine.create_event()")
        name, _ = name_and_shape(event)
        event_id = new_run_id(runner.clock.now_ms())
        return await store_event(
            runner, EventRecord(event_id=event_id, run_id=check_id(run_id), name=name)
        )

    async def send_event_id(
        self,
        event_id: EventId,
        value: Any = None,  # noqa: ANN401
        *,
        error: str | Exception | None = None,
    ) -> None:
        """Send an event that was created before; return once that is committed.

        Args:
            event_id: What ``create_event`` gave.
            value: What the wait returns. The id does not know of a type: the waiter's counts.
            error: As for ``send_event``.

        Raises:
            EventNotFoundError: There is no such event, or its run was removed.
            EventAlreadySentError: It was sent before. Nothing was written.
            RunFinishedError: The run is over. Nothing was written.
            JournalUnavailableError: The storage failed: the outcome is unknown. Ask again:
                ``EventAlreadySentError`` then says that it was sent.
            ArgumentError, PayloadTooLarge, EngineClosedError: As for ``send_event``.

        Cancellation:
            Never splits it.
        """
        runner, _ = self._opened("engine.send_event_id()")
        if not isinstance(event_id, EventId):
            msg = f"send_event_id() takes an EventId; EventId.parse makes one of text: {event_id!r}"
            raise TypeError(msg)
        text, encoded_error = encode_sent(
            ANYTHING, value, error, what=f"event {event_id}", payload_max=self._max_payload
        )
        sent = await runner.sends.send_created(event_id.id, text, encoded_error)
        if not sent:
            raise _run_finished(f"the run of event {event_id}")


async def store_event(
    runner: Runner, record: EventRecord, tx: Transaction | None = None
) -> EventId:
    """Send or create an event; raise what ``Sending.send_event`` does."""
    if tx is None:
        is_kept = await runner.sends.store(record)
    else:
        is_kept = await runner.sends.store_within(scope_of(tx), record)
    if is_kept is None:
        raise run_not_found(record.run_id)
    if not is_kept:
        raise _run_finished(f"run {record.run_id!r}")
    return EventId(record.event_id)


def _run_finished(what: str) -> RunFinishedError:
    return RunFinishedError(f"{what} is over: it takes no events any more. See its status.")
