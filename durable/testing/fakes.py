"""What a test puts in the place of steps' functions, and sees of their calls.

Rules:

- All of it is one environment's: no definition is changed, and no other engine knows.
- What stands in for a function, fails or delays it, is asked at each attempt. So it may be changed
  between attempts, and holds for steps that were issued before.
- A function that is not steered is called as in production: a plain one in a thread.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, final

import anyio.to_thread

from durable.definitions import Action, Definition, Mutation, Query
from durable.issue import recorded_arguments
from durable.runtime.attempt import CURRENT_ATTEMPT
from durable.runtime.calling import timed_out
from durable.status import to_datetime

if TYPE_CHECKING:
    import random
    from collections.abc import Coroutine, Generator, Iterable

    from durable.definitions import Workflow
    from durable.issue import ActionStep, TransactionStep
    from durable.journal.scopes import Scope
    from durable.runtime.attempt import Attempt
    from durable.runtime.clock import Alarms
    from durable.step import Step
    from durable.testing.clock import VirtualClock
    from durable.testing.journals import Traffic

REAL: Final[Any] = object()
"""Stands for a definition's own function."""


@final
@dataclass
class StepCall:
    """One attempt of a step, as a test sees it.

    Attributes:
        run_id: The run.
        step_key: The step: ``StepInfo.key``.
        args: The arguments by parameter name, as the function got them.
        attempt: The number of the attempt, from 1. One that a crash has interrupted is made again
            under its number.
        began_at: When it began, in the test's time.
        is_over: Whether it has ended.
        result: What it returned.
        error: What it raised.
    """

    run_id: str
    step_key: str
    args: dict[str, Any]
    attempt: int
    began_at: datetime
    is_over: bool = False
    result: Any = None
    error: BaseException | None = None


@final
@dataclass
class Steering:
    """What a test wants of one definition's calls.

    Attributes:
        fake: What stands in for its function, or ``REAL``.
        failures: What attempts raise, by number.
        delays_ms: How long attempts take before they begin, by number; ``None``: all others.
    """

    fake: Any = REAL
    failures: dict[int, BaseException | type[BaseException]] = field(
        default_factory=dict[int, "BaseException | type[BaseException]"]
    )
    delays_ms: dict[int | None, int] = field(default_factory=dict["int | None", int])

    def copy(self) -> Steering:
        return Steering(self.fake, dict(self.failures), dict(self.delays_ms))


@final
class Replacement:
    """What ``Environment.replace`` has put in place. As a context manager, it takes it back."""

    def __init__(self, steering: Steering, before: object) -> None:
        self._steering = steering
        self._before = before

    def __enter__(self) -> None:
        """Nothing more: it is in place already."""

    def __exit__(self, *_: object) -> None:
        self._steering.fake = self._before


@final
class Steps:
    """The steps of one environment: how they are steered, and what became of them.

    Attributes:
        traffic: The journal's, which knows what is recorded.
        shuffler: What chooses the order of completions; ``None``: they come as they come.
        asleep: The tasks of attempts that wait for the test's time, or for their turn to complete.
        under_way: The attempts whose function is called now.
        begun_again: Names of steps whose function has begun though their outcome was recorded.
    """

    def __init__(self, clock: VirtualClock, alarms: Alarms, traffic: Traffic) -> None:
        self._clock = clock
        self._alarms = alarms
        self._steering: dict[Definition[Any, Any], Steering] = {}
        self._calls: dict[Definition[Any, Any], list[StepCall]] = {}
        self.traffic = traffic
        self.shuffler: random.Random | None = None
        self.asleep: set[asyncio.Task[Any] | None] = set()
        self.under_way: set[Attempt | None] = set()
        self.begun_again: list[str] = []
        self._held: dict[int, _Nap] = {}
        self._begun_count = 0

    def steer(self, definition: Definition[Any, Any]) -> Steering:
        """Return how a definition is steered.

        Raises:
            TypeError: It is none that a step calls.
        """
        check_steered(definition)
        return self.stand_in(definition)

    def stand_in(self, definition: Definition[Any, Any]) -> Steering:
        """Return what stands in for a definition, which may be a workflow.

        Raises:
            TypeError: It is no definition.
        """
        if not isinstance(definition, Definition):
            msg = f"{definition!r} is no action, query, mutation or workflow"
            raise TypeError(msg)
        return self._steering.setdefault(definition, Steering())

    def body_of(self, workflow: Workflow[Any, Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
        """Return what is executed as a workflow's body."""
        steering = self._steering.get(workflow)
        if steering is None or steering.fake is REAL:
            return workflow.fn
        return partial(_fake_body, steering.fake)

    def is_steered(self, definition: Definition[Any, Any]) -> bool:
        """Whether anything is to be done but call the function."""
        return self.shuffler is not None or definition in self._steering

    def calls(self, definition: Definition[Any, Any]) -> list[StepCall]:
        """Return the attempts that were made, in order of their beginning."""
        return self._calls.setdefault(definition, [])

    def take_over(self, other: Steps) -> None:
        """Steer as another environment does."""
        self._steering = {definition: each.copy() for definition, each in other._steering.items()}

    def wrap(
        self, definition: Definition[Any, Any], step: ActionStep | TransactionStep
    ) -> WatchedStep:
        """Return what stands for a step."""
        return WatchedStep(definition, step, self)

    # --- calls -----------------------------------------------------------------------------------

    def begin(self, definition: Definition[Any, Any], args: dict[str, Any]) -> StepCall:
        """Take note that an attempt has begun."""
        attempt = CURRENT_ATTEMPT.get()
        if self.traffic.ledger.has(attempt.run_id, attempt.step_key):
            self.begun_again.append(f"step {definition.name!r} (key {attempt.step_key})")
        call = StepCall(
            attempt.run_id,
            attempt.step_key,
            args,
            attempt.number,
            to_datetime(self._clock.now_ms()),
        )
        self.calls(definition).append(call)
        return call

    async def steered(
        self,
        definition: Definition[Any, Any],
        timeout_s: float | None,
        args: tuple[list[Any], dict[str, Any]],
        call_real: Callable[[], Coroutine[Any, Any, Any]],
    ) -> Any:  # noqa: ANN401  what the function returns
        """Do what the test wants of an attempt, in the task of the attempt."""
        self._begun_count += 1
        serial = self._begun_count
        steering = self._steering.get(definition) or Steering()
        number = CURRENT_ATTEMPT.get().number
        delay_ms = steering.delays_ms.get(number, steering.delays_ms.get(None, 0))
        if timeout_s is not None and delay_ms > timeout_s * 1000:
            await self.sleep(round(timeout_s * 1000))
            raise timed_out(timeout_s)
        if delay_ms:
            await self.sleep(delay_ms)
        if number in steering.failures:
            raise steering.failures[number]
        try:
            if steering.fake is REAL:
                return await call_real()
            return await _call_fake(steering.fake, *args)
        finally:
            if self.shuffler is not None and definition.kind == Action.kind:
                await self._hold(serial)

    # --- the test's time -------------------------------------------------------------------------

    async def sleep(self, delay_ms: int) -> None:
        """Wait until so much of the test's time has passed."""
        nap = _Nap(self)
        alarm = self._alarms.set(self._clock.now_ms() + delay_ms, nap.end)
        try:
            await nap.sleep()
        finally:
            self._alarms.cancel(alarm)

    # --- the order of completions ----------------------------------------------------------------

    async def _hold(self, serial: int) -> None:
        """Complete when it is chosen."""
        nap = self._held[serial] = _Nap(self)
        try:
            await nap.sleep()
        finally:
            self._held.pop(serial, None)

    def complete_any(self) -> bool:
        """Let one of the attempts complete that are held; return whether there is one."""
        if self.shuffler is None or not self._held:
            return False
        # By the order of their beginning: threads end in any order.
        self._held.pop(self.shuffler.choice(sorted(self._held))).end()
        return True


@final
class _Nap:
    """An attempt's wait for something that the test's time brings about, and not the real one."""

    def __init__(self, steps: Steps) -> None:
        self._asleep = steps.asleep
        self._changed = steps.traffic.changed
        self._task = asyncio.current_task()
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def sleep(self) -> None:
        self._asleep.add(self._task)
        self._changed.set()
        try:
            await self._over
        finally:
            self._asleep.discard(self._task)

    def end(self) -> None:
        # At once: from here on the attempt is at work.
        self._asleep.discard(self._task)
        if not self._over.done():
            self._over.set_result(None)


@final
class WatchedStep:
    """A step whose attempts a test sees, and may steer: what stands for it in the workpool."""

    def __init__(
        self,
        definition: Definition[Any, Any],
        step: Any,  # noqa: ANN401  an action's, a query's or a mutation's
        steps: Steps,
    ) -> None:
        self._definition = definition
        self._step = step
        self._steps = steps
        self.name: str = step.name
        self.retry = step.retry
        self.is_at_most_once: bool = step.is_at_most_once
        self.is_owed: bool = step.is_owed
        self.timeout_s: float | None = step.timeout_s
        self.is_reading: bool = getattr(step, "is_reading", False)
        self.encode_result = step.encode_result
        self.decode = step.decode
        self.rebuild = step.rebuild

    @property
    def is_async(self) -> bool:
        """Whether it is called on the event loop: whatever is steered is."""
        return self._step.is_async or self._steps.is_steered(self._definition)

    def call(self, args: str) -> Any:  # noqa: ANN401
        """Call an action with recorded arguments."""
        call_real = partial(self._step.call, args)
        if not self._step.is_async:
            if not self._steps.is_steered(self._definition):
                return self._noted_in_thread(args, call_real)
            call_real = partial(anyio.to_thread.run_sync, call_real)
        return self._noted(args, call_real)

    def call_in(self, scope: Scope, args: str) -> Any:  # noqa: ANN401
        """Call a query or a mutation with its transaction and recorded arguments."""
        return self._noted(args, partial(self._step.call_in, scope, args))

    @contextmanager
    def _begin(self, arguments: tuple[list[Any], dict[str, Any]]) -> Generator[StepCall]:
        """Take note of an attempt, from its beginning to its end."""
        positional, keyword = arguments
        named = self._definition.parameters.bind(tuple(positional), keyword)
        call = self._steps.begin(self._definition, named)
        attempt = CURRENT_ATTEMPT.get()
        self._steps.under_way.add(attempt)
        try:
            yield call
        except BaseException as exc:
            call.error = exc
            raise
        finally:
            call.is_over = True
            self._steps.under_way.discard(attempt)

    def _noted_in_thread(self, args: str, call_real: Callable[[], Any]) -> Any:  # noqa: ANN401
        with self._begin(recorded_arguments(self._definition, args)) as call:
            call.result = call_real()
        return call.result

    async def _noted(self, args: str, call_real: Callable[[], Any]) -> Any:  # noqa: ANN401
        arguments = recorded_arguments(self._definition, args)
        with self._begin(arguments) as call:
            call.result = await self._steps.steered(
                self._definition, self.timeout_s, arguments, call_real
            )
        return call.result


async def _fake_body(fake: Any, _step: Step, /, *positional: Any, **keyword: Any) -> Any:  # noqa: ANN401
    return await _call_fake(fake, positional, keyword)


async def _call_fake(fake: Any, positional: Iterable[Any], keyword: dict[str, Any]) -> Any:  # noqa: ANN401
    if is_error(fake):
        raise fake
    if not callable(fake):
        return fake
    result: Any = fake(*positional, **keyword)
    return await result if inspect.isawaitable(result) else result


def is_error(fake: object) -> bool:
    """Whether it can be raised."""
    is_class = isinstance(fake, type) and issubclass(fake, BaseException)
    return is_class or isinstance(fake, BaseException)


def check_steered(definition: object) -> None:
    """Raise ``TypeError`` unless it is a definition whose calls are steps with a function."""
    if not isinstance(definition, (Action, Query, Mutation)):
        msg = (
            f"{definition!r} is no action, query or mutation. A workflow can be replaced, by an "
            "exception or a function that takes its time, too: env.replace(child, fake)"
        )
        raise TypeError(msg)
