"""``Step``: what a workflow's body can do besides calling. It works only while its body runs."""

from __future__ import annotations

import asyncio
import uuid
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar, final, overload

from durable.call import Call
from durable.checks import (
    check_delay,
    check_flag,
    check_name,
    check_retry,
    check_timeout,
    milliseconds,
    time_ms,
)
from durable.core.codec import encode_canonical
from durable.core.commands import DUE_MS_MAX, Command
from durable.core.errors import NotInWorkflowError
from durable.core.execution import Execution
from durable.core.records import StepKind
from durable.core.retry import seconds
from durable.definitions import Workflow
from durable.events import EventId, EventWait, Typed
from durable.issue import Environment, StepOptions
from durable.runtime.instrumentation import body_logger
from durable.status import to_datetime

if TYPE_CHECKING:
    import random

    from durable.core.retry import Retry

T = TypeVar("T")


@final
class Step:
    """The first parameter of every workflow: the run's own clock, randomness, timers and log."""

    def __init__(self, execution: Execution, workflow: Workflow[Any, Any]) -> None:
        self._execution = execution
        self._workflow = workflow
        self._random: random.Random | None = None
        self._uuids: random.Random | None = None
        self._log: Any = None

    def __repr__(self) -> str:
        return f"<Step of run {self.run_id!r} of {self.workflow!r}>"

    # --- who am I --------------------------------------------------------------------------------

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self._execution.run.run_id

    @property
    def workflow(self) -> str:
        """The workflow's name."""
        return self._execution.run.name

    @property
    def generation(self) -> int:
        """How often the run was restarted."""
        return self._execution.run.generation

    @property
    def parent_id(self) -> str | None:
        """The run that this one is a child of."""
        return self._execution.run.parent_id

    # --- changed code ----------------------------------------------------------------------------

    def patched(self, change_id: str) -> bool:
        """Guard changed code, so that runs that began with the old code go on with it.

        Args:
            change_id: What the change is called: one name for one change of one workflow.

        Returns:
            ``True`` when the body comes here for the first time, or where it goes on after a
            restart, which is recorded, and from then on; ``False`` for ever in a run that has come
            past this point without it.

        Raises:
            NotInWorkflowError: It is not called by the step's own body.
        """
        name = check_name(change_id, "change_id")
        if name is None:
            msg = "change_id is text, and not empty; it is None"
            raise TypeError(msg)
        return self._in_body().patched(name)

    # --- time and randomness ---------------------------------------------------------------------

    def now(self) -> datetime:
        """Return the run's time, in UTC: that of its latest completed step or timer.

        It is the same on replay, and constant between awaits.
        """
        return to_datetime(self._execution.time_ms())

    @property
    def random(self) -> random.Random:
        """Random numbers seeded by the run's id: the same on replay; not for secrets."""
        if self._random is None:
            import random  # noqa: PLC0415  late: few bodies want it

            self._random = random.Random(self.run_id)  # noqa: S311
        return self._random

    def uuid4(self) -> uuid.UUID:
        """Return a random UUID, the same on replay; not for secrets."""
        if self._uuids is None:
            import random  # noqa: PLC0415  late: few bodies want it

            self._uuids = random.Random(f"uuid4 {self.run_id}")  # noqa: S311
        return uuid.UUID(int=self._uuids.getrandbits(128), version=4)

    @property
    def log(self) -> Any:  # noqa: ANN401  structlog's own type is a proxy
        """A structlog logger bound to ``run_id`` and ``workflow``; silent during replay.

        And while the body is closed, because its run leaves memory: it goes on later.
        """
        if self._log is None:
            execution = self._execution
            self._log = body_logger(
                lambda: execution.is_replaying or execution.loop.is_closed(),
                run_id=self.run_id,
                workflow=self.workflow,
            )
        return self._log

    # --- steps -----------------------------------------------------------------------------------

    async def run(
        self,
        call: Call[T],
        *,
        name: str | None = None,
        retry: Retry | bool | None = None,
        timeout: float | timedelta | None = None,  # noqa: ASYNC109  it bounds an attempt
        run_after: float | timedelta | None = None,
        run_at: datetime | None = None,
        unstable_args: bool = False,
    ) -> T:
        """Run a call as a step, with options.

        Args:
            call: A call of an action, a query or a mutation; or a workflow's, which is a run of its
                own: a child of this one.
            name: The step's name, instead of the definition's. A child keeps its workflow's name.
            retry: As for ``action``; stands over it. Without effect on queries and mutations. Not
                for a child.
            timeout: The bound of one attempt, in seconds; stands over the action's, and over the
                10 seconds of a mutation. Not for a child: await that in ``asyncio.timeout``.
            run_after: The delay before the first attempt, or before the child begins, in seconds.
            run_at: When the first attempt is made, or the child begins: an aware datetime.
            unstable_args: Leave the arguments out of the replay check.

        Raises:
            TypeError: An option is not valid, or not for this call.
            ArgumentError: An argument does not fit its annotation. Nothing was written.
            PayloadTooLarge: The arguments, or the result, are over ``Engine(max_payload=)``.
            StepFailed: The action raised what cannot be rebuilt; else what it raised.
            TimeoutError: The last attempt took longer than its bound.
            ReturnTypeError: The result does not fit the action's annotation.
            RunFailed: The child failed; ``run_id`` is its id, ``__cause__`` what it raised.
            RunCanceled: The child was cancelled, and this run was not.
            OutcomeUnknown: The process died during an at-most-once step.
            StepInterrupted: It died more often than ``Engine(max_interruptions=)`` allows.

        Cancellation:
            Withdraws the step: queued, it never starts; running, its result is dropped. A child is
            cancelled.
        """
        if not isinstance(call, Call):
            msg = f"step.run() takes a call, such as charge('o-1'), not {call!r}"
            raise TypeError(msg)
        options = StepOptions(
            check_name(name, "a step's name"),
            check_retry(retry),
            check_timeout(timeout),
            *check_delay(run_after, run_at),
            check_flag(unstable_args, "unstable_args="),
        )
        execution = self._in_body()
        environment = execution.environment
        assert isinstance(environment, Environment)
        result: T = await environment.issue(execution, call, options)
        return result

    async def sleep(self, delay: float | timedelta, *, name: str | None = None) -> None:
        """Wait durably.

        Args:
            delay: In seconds; the due time is fixed when the sleep is first reached.
            name: What the step is called; ``sleep`` by default.
        """
        delay_s = max(seconds(delay, "delay"), 0.0)
        due_ms = self._execution.time_ms() + milliseconds(delay_s)
        await self._sleep(due_ms, name, {"seconds": delay_s}, is_absolute=False)

    async def sleep_until(self, when: datetime, *, name: str | None = None) -> None:
        """Wait durably until a time.

        Args:
            when: An aware datetime; one in the past is due at once.
            name: What the step is called; ``sleep`` by default.
        """
        await self._sleep(time_ms(when, "when"), name, {"until": when}, is_absolute=True)

    async def _sleep(
        self, due_ms: int, name: str | None, args: dict[str, object], *, is_absolute: bool
    ) -> None:
        execution = self._in_body()
        command = Command(
            StepKind.SLEEP,
            check_name(name, "a step's name") or "sleep",
            execution.next_key(),
            args=encode_canonical(args),
            # The due time was fixed: a changed delay concerns the sleeps to come.
            compares_args=False,
            due_ms=min(due_ms, DUE_MS_MAX),
            is_absolute=is_absolute,
        )
        await execution.issue(command)

    @overload
    async def wait_event(
        self,
        event: Typed[T],
        *,
        timeout: float | timedelta | None = None,  # noqa: ASYNC109  a durable timer
    ) -> T: ...
    @overload
    async def wait_event(
        self,
        event: str | EventId,
        *,
        timeout: float | timedelta | None = None,  # noqa: ASYNC109
    ) -> Any: ...  # noqa: ANN401
    async def wait_event(
        self,
        event: str | Typed[Any] | EventId,
        *,
        timeout: float | timedelta | None = None,  # noqa: ASYNC109
    ) -> Any:
        """Wait durably for an event that is sent to the run, and consume it.

        What was sent before is there already. Events of one name are consumed in the order of
        sending, by waits in the order of issue, each by one; an id waits for just that event.

        Args:
            event: Its name, an ``Event``, whose type the value is checked against, or an id.
            timeout: In seconds, by default for ever; the due time is fixed when the wait is first
                reached. 0 takes what is there.

        Returns:
            The value that was sent.

        Raises:
            EventError: An error was sent.
            EventTypeError: The value does not fit the event's type. The event is consumed.
            EventNotFoundError: The run has no event of that id.
            EventConsumedError: The event of that id was consumed before, or is being awaited.
            TimeoutError: None was sent in time. What is sent later is kept for other waits.

        Cancellation:
            Withdraws the wait, which then consumes nothing.
        """
        execution = self._in_body()
        work = EventWait(event)
        due_ms = None
        if timeout is not None:
            timeout_s = max(seconds(timeout, "timeout="), 0.0)
            due_ms = min(execution.time_ms() + milliseconds(timeout_s), DUE_MS_MAX)
        key = execution.next_key()
        args = encode_canonical(work.args)
        return await execution.issue(
            Command(StepKind.EVENT, work.step_name, key, args=args, due_ms=due_ms, work=work)
        )

    def _in_body(self) -> Execution:
        if asyncio._get_running_loop() is not self._execution.loop:  # noqa: SLF001
            msg = (
                "this step works only in its own workflow's body: hand values to other code, not "
                "the step"
            )
            raise NotInWorkflowError(msg)
        self._execution.loop.refuse_when_closed()
        return self._execution
