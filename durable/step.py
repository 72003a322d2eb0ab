"""``Step``: what a workflow's body can do besides calling; and how calls become commands.

Rules:

- A command's options are resolved when it is issued; on replay what the journal has stands.
- Arguments are checked when a step is issued for the first time, never again.
- All of it works only while its own body runs.
"""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, final

from durable.core.codec import (
    DecodeError,
    decode_error,
    encode_canonical,
    rebuild_error,
    type_name_of,
)
from durable.core.errors import ArgumentError, NotInWorkflowError
from durable.core.execution import DUE_MS_MAX, Command, Execution, Stuck
from durable.core.loop import WorkflowLoop
from durable.core.records import StepKind
from durable.core.retry import resolve_retry, seconds
from durable.definitions import Action, Call, Workflow, check_name, check_retry, check_timeout
from durable.parameters import globals_of
from durable.runtime.instrumentation import body_logger
from durable.status import to_datetime

if TYPE_CHECKING:
    import random
    from collections.abc import Coroutine

    from durable.core.execution import CommandFuture
    from durable.core.retry import Retry

T = TypeVar("T")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Defaults(NamedTuple):
    """An engine's settings that decide about steps."""

    retry: Retry
    retry_actions_by_default: bool
    payload_max: int


class _Options(NamedTuple):
    """The options of ``step.run``."""

    name: str | None = None
    retry: Retry | bool | None = None
    timeout_s: float | None = None
    delay_s: float | None = None
    at_ms: int | None = None
    unstable_args: bool = False


_NO_OPTIONS = _Options()


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
            import random  # noqa: PLC0415

            self._uuids = random.Random(f"uuid4 {self.run_id}")  # noqa: S311
        return uuid.UUID(int=self._uuids.getrandbits(128), version=4)

    @property
    def log(self) -> Any:  # noqa: ANN401  structlog's own type is a proxy
        """A structlog logger bound to ``run_id`` and ``workflow``; silent during replay."""
        if self._log is None:
            execution = self._execution
            self._log = body_logger(
                lambda: execution.is_replaying, run_id=self.run_id, workflow=self.workflow
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
            call: An action's call.
            name: The step's name, instead of the definition's.
            retry: As for ``action``; stands over it.
            timeout: The bound of one attempt, in seconds; stands over the action's.
            run_after: The delay before the first attempt, in seconds.
            run_at: When the first attempt is made: an aware datetime.
            unstable_args: Leave the arguments out of the replay check.

        Raises:
            ArgumentError: An argument does not fit its annotation. Nothing was written.
            PayloadTooLarge: The arguments, or the result, are over ``Engine(max_payload=)``.
            StepFailed: The action raised what cannot be rebuilt; else what it raised.
            OutcomeUnknown: The process died during an at-most-once step.

        Cancellation:
            Withdraws the step: queued, it never starts; running, its result is dropped.
        """
        if not isinstance(call, Call):
            msg = f"step.run() takes a call, such as charge('o-1'), not {call!r}"
            raise TypeError(msg)
        options = _Options(
            check_name(name, "a step's name"),
            check_retry(retry),
            check_timeout(timeout),
            *check_delay(run_after, run_at),
            unstable_args,
        )
        result: T = await _issue(self._in_body(), call, options)
        return result

    async def sleep(self, delay: float | timedelta, *, name: str | None = None) -> None:
        """Wait durably.

        Args:
            delay: In seconds; the due time is fixed when the sleep is first reached.
            name: What the step is called; ``sleep`` by default.
        """
        delay_s = max(seconds(delay, "delay"), 0.0)
        due_ms = self._execution.time_ms() + _milliseconds(delay_s)
        await self._sleep(due_ms, name, {"seconds": delay_s})

    async def sleep_until(self, when: datetime, *, name: str | None = None) -> None:
        """Wait durably until a time.

        Args:
            when: An aware datetime; one in the past is due at once.
            name: What the step is called; ``sleep`` by default.
        """
        await self._sleep(_time_ms(when, "when"), name, {"until": when})

    async def _sleep(self, due_ms: int, name: str | None, args: dict[str, object]) -> None:
        execution = self._in_body()
        command = Command(
            StepKind.SLEEP,
            check_name(name, "a step's name") or "sleep",
            execution.next_key(),
            args=encode_canonical(args),
            # The due time was fixed: a changed delay concerns the sleeps to come.
            compares_args=False,
            due_ms=min(due_ms, DUE_MS_MAX),
        )
        await execution.issue(command)

    def _in_body(self) -> Execution:
        if asyncio._get_running_loop() is not self._execution.loop:  # noqa: SLF001
            msg = "this step belongs to a workflow's body and works only there"
            raise NotInWorkflowError(msg)
        return self._execution


@final
class BoundWorkflow:
    """A workflow and an engine's defaults: what the runtime opens bodies with."""

    def __init__(self, definition: Workflow[Any, Any], defaults: Defaults) -> None:
        self.definition = definition
        self.defaults = defaults
        self._plain_steps: dict[Action[Any, Any], ActionStep] = {}

    def plain_step(self, action: Action[Any, Any]) -> ActionStep:
        """Return what an action is as a step without options: the same for all of them."""
        step = self._plain_steps.get(action)
        if step is None:
            step = self._plain_steps[action] = ActionStep(action, self, _NO_OPTIONS)
        return step

    def open(self, execution: Execution) -> Coroutine[Any, Any, object]:
        try:
            args, kwargs = self.definition.parameters.decode(execution.run.args)
        except (DecodeError, TypeError) as exc:
            msg = (
                f"the recorded arguments of the run do not fit {self.definition.name!r} any more: "
                f"{exc}. Make it accept both, or give it a new version."
            )
            raise Stuck(msg) from exc
        execution.environment = self
        coroutine: Coroutine[Any, Any, object] = self.definition.fn(
            Step(execution, self.definition), *args, **kwargs
        )
        return coroutine

    def encode_result(self, value: object) -> str:
        return self.definition.parameters.encode_result(value, self.defaults.payload_max)[0]


@final
class ActionStep:
    """An action as one step of one run: what the workpool calls, what the body gets of it."""

    def __init__(self, action: Action[Any, Any], bound: BoundWorkflow, options: _Options) -> None:
        workflow, defaults = bound.definition, bound.defaults
        by_default = workflow.retry_actions_by_default
        if by_default is None:
            by_default = defaults.retry_actions_by_default
        self.retry, self.is_at_most_once = resolve_retry(
            options.retry, action.retry, workflow.retry, defaults.retry, by_default=by_default
        )
        self.timeout_s = action.timeout_s if options.timeout_s is None else options.timeout_s
        self.is_async = action.is_async
        self._action = action
        self._workflow = workflow
        self._payload_max = defaults.payload_max

    def call(self, args: str) -> Any:  # noqa: ANN401
        try:
            positional, keyword = self._action.parameters.decode(args)
        except DecodeError as exc:
            msg = f"the recorded arguments do not fit {self._action.name} any more: {exc}"
            raise ArgumentError(msg) from exc
        return self._action.fn(*positional, **keyword)

    def encode_result(self, result: object) -> tuple[str, object]:
        return self._action.parameters.encode_result(result, self._payload_max)

    def decode(self, text: str) -> object:
        return self._action.parameters.decode_result(text)

    def rebuild(self, error: str) -> BaseException:
        known = known_errors(self._action, self._workflow)
        return rebuild_error(decode_error(error), known)


def known_errors(*definitions: Action[Any, Any] | Workflow[Any, Any]) -> dict[str, object]:
    """Return the exception classes that may be rebuilt, by the name they are stored under."""
    known: dict[str, object] = {}
    for definition in definitions:
        named = list(globals_of(definition.fn).values())
        if isinstance(definition, Action):
            named += definition.raises
        for value in named:
            if isinstance(value, type) and issubclass(value, BaseException):
                known[type_name_of(value)] = value
    return known


def issue_call(loop: WorkflowLoop, call: Call[Any]) -> CommandFuture:
    """Make a step of a call that a body awaits."""
    execution = loop.host
    assert isinstance(execution, Execution)
    return _issue(execution, call, _NO_OPTIONS)


def _issue(execution: Execution, call: Call[Any], options: _Options) -> CommandFuture:
    action = call.definition
    bound = execution.environment
    assert isinstance(bound, BoundWorkflow)
    if not isinstance(action, Action):
        msg = (
            f"a call of {action!r} cannot be a step: await an action's call, or start the run "
            "from an action with Engine.current().start(...)"
        )
        raise TypeError(msg)
    key = execution.next_key()
    if execution.recorded(key) is None:
        args = action.parameters.encode(call.arguments, bound.defaults.payload_max)
    else:
        args = action.parameters.encode_unchecked(call.arguments)
    due_ms = options.at_ms
    if options.delay_s is not None:
        due_ms = execution.time_ms() + _milliseconds(options.delay_s)
    command = Command(
        action.kind,
        options.name or action.name,
        key,
        args=args,
        compares_args=not options.unstable_args,
        due_ms=due_ms,
        work=bound.plain_step(action)
        if options is _NO_OPTIONS
        else ActionStep(action, bound, options),
    )
    return execution.issue(command)


# --- times of the public API ---------------------------------------------------------------------


def check_delay(
    run_after: float | timedelta | None, run_at: datetime | None
) -> tuple[float | None, int | None]:
    """Return a start's delay in seconds, or its time in milliseconds; at most one is given.

    Raises:
        ValueError: Both are given, or the time is naive.
        TypeError: One is of another type.
    """
    if run_after is not None and run_at is not None:
        msg = "give run_after= or run_at=, not both"
        raise ValueError(msg)
    if run_after is not None:
        return max(seconds(run_after, "run_after="), 0.0), None
    if run_at is not None:
        return None, min(_time_ms(run_at, "run_at="), DUE_MS_MAX)
    return None, None


def _milliseconds(delay_s: float) -> int:
    return round(delay_s * 1000)


def _time_ms(when: datetime, what: str) -> int:
    if not isinstance(when, datetime):
        msg = f"{what} is a datetime, not {when!r}"
        raise TypeError(msg)
    if when.tzinfo is None:
        msg = f"{what} is an aware datetime: {when!r} has no time zone (datetime.now(UTC) has)"
        raise ValueError(msg)
    return -((_EPOCH - when) // timedelta(milliseconds=1))  # Rounded up: nothing is due early.
