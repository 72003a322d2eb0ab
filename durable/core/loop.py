"""The private event loop that a workflow's body runs on.

Rules:

- It has no I/O, no threads and no clock of its own: a first-in first-out queue of handles, and
  timers, which are durable commands. So the order in which it runs things depends on nothing but
  the body's code and the order in which completions are delivered.
- It runs only while it is pumped, from a plain callback of the host's loop.
- What would make a body depend on the world raises ``NonDeterminismError``, and is remembered.
- Tasks, futures and calls made in a body hash by their creation number, so that the sets of
  ``asyncio.wait`` and ``as_completed`` are iterated in the same order on replay. The numbers start
  at a base derived from the run's id, because asyncio keeps the tasks of all loops in one set.
- A closed loop refuses commands with ``GeneratorExit``, so that a ``finally`` in a body that is
  dropped from memory cannot act.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import sys
from collections import deque
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, final

from durable.core.closing import CLOSE_ATTEMPTS_MAX, close_frames, silence
from durable.core.errors import NonDeterminismError
from durable.core.generators import BegunGenerators
from durable.core.host import CLOSED_HOST, LoopHost
from durable.core.interrupts import is_from_signal
from durable.core.makers import check_maker
from durable.core.ordering import (
    ANYIO_REDELIVERY,
    REDELIVERIES_PER_TURN_MAX,
    coroutines_of,
    given_to_as_completed,
    is_cancelled_by_anyio,
    number_of_waiter,
    order_cancelled,
)
from durable.core.refusals import TOUCHED_FROM_OUTSIDE, no_replay_of, refuse_all
from durable.core.tasks import (
    FUTURE_INIT,
    HANDLE_INIT,
    TASK_INIT,
    BodyHandle,
    CallbacksScope,
    WorkflowFuture,
    WorkflowTask,
    awaiting,
    first_number,
    is_native,
    next_child_path,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Iterable

    from durable.core.host import Guard

T = TypeVar("T")

HANDLES_PER_TURN_MAX = 1_000_000
"""A body that runs more callbacks than this without waiting for anything is taken to be caught in
an endless loop: the host's loop would hang with it."""

TIME_ROUNDING_S = 0.000_01
"""How far a due time in milliseconds and the sum of floats that it stands for can be apart."""

TASKS_KEPT_MIN = 64
"""Finished tasks are forgotten in bulk, when there are more than this."""


class TurnTooLongError(Exception):
    """The body ran ``HANDLES_PER_TURN_MAX`` callbacks without waiting for anything."""


@final
class WorkflowLoop(asyncio.AbstractEventLoop):  # type: ignore[misc]  # what is refused is below
    """The deterministic event loop of one execution of one body."""

    def __init__(self, host: LoopHost, run_id: str, guard: Guard | None = None) -> None:
        self.host: LoopHost = host
        self._guard = guard
        self._ready: deque[asyncio.Handle] = deque()
        self._redeliveries: list[asyncio.Handle] = []
        self._cancelled_by_anyio: list[tuple[int, asyncio.Handle]] = []
        self._tasks: list[WorkflowTask[Any]] = []
        self._tasks_kept = TASKS_KEPT_MIN
        self._siblings: dict[Any, WorkflowTask[Any]] = {}
        self._generators: BegunGenerators | None = None
        self._callbacks_scope: CallbacksScope | None = None
        self._closed = False
        self._refusals_left = CLOSE_ATTEMPTS_MAX
        self._pumping = self._in_body = False
        self._fired_at = 0.0
        self.context = contextvars.Context()
        self._number = first_number(run_id)

    # --- pumping ---------------------------------------------------------------------------------

    def next_number(self) -> int:
        """Return a creation number, for a hash that is the same on replay."""
        self._number += 1
        return self._number

    def spawn_root(self, body: Coroutine[Any, Any, T]) -> WorkflowTask[T]:
        """Make the body's own task. It runs at the next pump."""
        assert not self._tasks
        self._pumping = True
        try:
            return self._spawn(body, "0", None, self.context)
        finally:
            self._pumping = False

    def pump(self, first: Callable[..., object] | None = None, *args: object) -> None:
        """Run what is ready, and what that makes ready, until nothing is.

        Args:
            first: What to do before, as a part of it: hand over a completion, cancel tasks.
            args: What ``first`` is called with.

        Raises:
            TurnTooLongError: The bound on callbacks was reached.
            KeyboardInterrupt: Ctrl-C came while the body ran. The turn is void.
        """
        assert not self._closed
        outer_loop = asyncio._get_running_loop()  # noqa: SLF001  the documented hook for loops
        outer_hooks = sys.get_asyncgen_hooks()
        asyncio._set_running_loop(self)  # noqa: SLF001
        sys.set_asyncgen_hooks(self._on_generator_begun, self._on_generator_dropped)
        self._pumping = True
        try:
            if first is not None:
                first(*args)
            self._in_body = True
            if self._guard is None:
                self._run_ready()
            else:
                self._guard(self._run_ready, self.refuse)
        finally:
            self._pumping = self._in_body = False
            sys.set_asyncgen_hooks(*outer_hooks)
            asyncio._set_running_loop(outer_loop)  # noqa: SLF001

    def _run_ready(self) -> None:
        ready = self._ready
        left = HANDLES_PER_TURN_MAX
        cycles = redeliveries = 0
        while ready or (self._redeliveries and redeliveries < REDELIVERIES_PER_TURN_MAX):
            cycles += 1
            if self._redeliveries and (
                redeliveries < REDELIVERIES_PER_TURN_MAX or cycles % REDELIVERIES_PER_TURN_MAX == 0
            ):
                redeliveries += 1
                ready.extend(self._redeliveries)
                self._redeliveries.clear()
            # As in asyncio's loops: what a cycle makes ready is of the next one.
            for _ in range(len(ready)):
                handle = ready.popleft()
                if not handle._cancelled:  # noqa: SLF001  as asyncio's own loops do
                    try:
                        handle._run()  # noqa: SLF001  as asyncio's own loops do
                    except (SystemExit, KeyboardInterrupt) as exc:
                        # The body's own is its task's result; that decides about the run.
                        if is_from_signal(exc):
                            raise
                    if self._cancelled_by_anyio:
                        order_cancelled(ready, self._cancelled_by_anyio)
                left -= 1
                if left == 0:
                    raise TurnTooLongError

    def fire(self, handle: asyncio.TimerHandle) -> None:
        """Run a timer's handle at the next pump, not a hair before its time.

        Due times are whole milliseconds. Who compares the time with a deadline, as anyio does,
        would set the timer again.
        """
        if handle.when() - self.time() < TIME_ROUNDING_S:
            self._fired_at = handle.when()
        self._ready.append(handle)

    # --- ending ----------------------------------------------------------------------------------

    def unfinished_tasks(self) -> list[WorkflowTask[Any]]:
        """Return the tasks that have not ended, in creation order."""
        return [task for task in self._tasks if not task.done()]

    def open_generators(self) -> list[Any]:
        """Return the async generators that were begun and still exist, in that order."""
        return [] if self._generators is None else self._generators.existing()

    def close(self) -> None:
        """Drop the body from memory: its frames are closed, and whatever they try is refused."""
        if self._closed:
            return
        self._closed = True
        left = self.unfinished_tasks()
        if left and self._guard is None:
            close_frames(left, self)
        elif left and self._guard is not None:
            self._guard(partial(close_frames, left, self), self.refuse)
        self._ready.clear()
        self._redeliveries.clear()
        self._tasks.clear()
        self._generators = None
        # Host and loop refer to each other: free them without the collector.
        self.host = CLOSED_HOST

    def refuse_when_closed(self) -> None:
        """Raise ``GeneratorExit`` when the body was dropped: no ``finally`` in it may act.

        Not for ever: a loop in the body that swallows it would never come to an end. In the end
        such a body waits for what never comes, and is left so.
        """
        if self._closed and self._refusals_left > 0:
            self._refusals_left -= 1
            raise GeneratorExit

    # --- asyncio: what bodies may do -------------------------------------------------------------

    def get_debug(self) -> bool:
        # Every future and handle asks, while it is made: the moment to look at who makes it.
        frame = sys._getframe(1)  # noqa: SLF001
        code = frame.f_code
        if code is not HANDLE_INIT and code is not FUTURE_INIT and code is not TASK_INIT:
            check_maker(self, frame)
        return False

    def is_running(self) -> bool:
        return self._pumping

    def is_closed(self) -> bool:
        return self._closed

    def time(self) -> float:
        now = self.host.time_ms() / 1000
        # Only that hair: the clock may have been set back between two lives.
        return self._fired_at if 0 < self._fired_at - now < TIME_ROUNDING_S else now

    def scope(self) -> WorkflowTask[Any] | CallbacksScope:
        """Return the task that runs now, or what stands for it in a callback."""
        task = asyncio.current_task(self)
        if isinstance(task, WorkflowTask):
            return task  # pyright: ignore[reportUnknownVariableType]
        if self._callbacks_scope is None:
            self._callbacks_scope = CallbacksScope("*")
        return self._callbacks_scope

    def create_future(self) -> WorkflowFuture[Any]:
        return WorkflowFuture(self)

    def create_task(
        self,
        coro: Coroutine[Any, Any, T] | Generator[Any, None, T],
        *,
        name: object = None,
        context: contextvars.Context | None = None,
        eager_start: bool | None = None,
    ) -> WorkflowTask[T]:
        if self._closed:
            coro.close()
        self.refuse_when_closed()
        if eager_start:
            self.refuse("an eagerly started task", "create the task without eager_start")
        given = given_to_as_completed(sys._getframe(1))  # noqa: SLF001
        if given is not None:
            return self._spawn_given(coro, given)
        return self._spawn_child(coro, None if name is None else str(name), context)

    def _spawn_given(
        self, coro: Coroutine[Any, Any, T] | Generator[Any, None, T], given: Iterable[object]
    ) -> WorkflowTask[T]:
        """Return the task of ``coro``; make all of as_completed's when it asks for the first."""
        if coro not in self._siblings:
            coros = coroutines_of(given)
            if coro in coros:
                self._siblings = {each: self._spawn_child(each, None, None) for each in coros}
            elif is_native(coro):
                self.refuse(
                    "as_completed() with coroutines of an iterator or a set",
                    "give it a list of coroutines, or tasks",
                )
        return self._siblings.pop(coro, None) or self._spawn_child(coro, None, None)

    def _spawn_child(
        self,
        coro: Coroutine[Any, Any, T] | Generator[Any, None, T],
        name: str | None,
        context: contextvars.Context | None,
    ) -> WorkflowTask[T]:
        scope = self.scope()
        path = next_child_path(scope)
        native: Any = coro if is_native(coro) else awaiting(coro)  # type: ignore[arg-type]
        return self._spawn(native, path, name, context)

    def _spawn(
        self,
        coro: Coroutine[Any, Any, T],
        path: str,
        name: str | None,
        context: contextvars.Context | None,
    ) -> WorkflowTask[T]:
        task = WorkflowTask(coro, loop=self, path=path, name=name, context=context)
        if self._closed:
            silence(task)
            coro.close()
            return task
        # Strong references: a task that only its own waiting holds must not be collected.
        self._tasks.append(task)
        if len(self._tasks) > self._tasks_kept:
            self._tasks = self.unfinished_tasks()
            self._tasks_kept = 2 * len(self._tasks) + TASKS_KEPT_MIN
        return task

    def get_task_factory(self) -> None:
        return None

    def call_soon(  # type: ignore[override]
        self,
        callback: Callable[..., object],
        *args: Any,  # noqa: ANN401  as asyncio has it
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        handle = BodyHandle(callback, args, self, context)
        if self._pumping:
            if type(callback) is MethodType and callback.__name__ == ANYIO_REDELIVERY:
                self._redeliveries.append(handle)
                return handle
            self._ready.append(handle)
            if self._in_body and is_cancelled_by_anyio(sys._getframe(1)):  # noqa: SLF001
                self._cancelled_by_anyio.append((number_of_waiter(callback, args), handle))
        elif not self._closed:
            raise NonDeterminismError(TOUCHED_FROM_OUTSIDE)
        return handle

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,  # noqa: ANN401  as asyncio has it
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,  # noqa: ANN401  as asyncio has it
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        self.refuse_when_closed()
        if math.isnan(when):
            msg = "a timer's time is not a number"
            raise ValueError(msg)
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        if self._closed:
            return handle
        if when <= self.time():
            self._ready.append(handle)
        else:
            self.host.start_timer(handle, when)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        # TimerHandle.cancel() tells its loop by this name.
        if not self._closed:
            self.host.cancel_timer(handle)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self._closed:
            self.host.report_exception(context)

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)

    def get_exception_handler(self) -> None:
        return None

    def _on_generator_begun(self, generator: Any) -> None:  # noqa: ANN401  of anything
        if self._generators is None:
            self._generators = BegunGenerators()
        self._generators.add(generator)

    def _on_generator_dropped(self, generator: Any) -> None:  # noqa: ANN401  of anything
        # Dropped by the body: as asyncio, close it in a task. At any other time: forget it.
        if self._closed or self._generators is None:
            return
        if self._generators.drop(generator) and self._pumping:
            self.create_task(generator.aclose(), context=self.context)

    # --- what bodies may not do ------------------------------------------------------------------

    def refuse(self, what: str, instead: str = "put it in an action") -> NoReturn:
        """Refuse what a body tried: raise ``NonDeterminismError`` and remember it."""
        self.refuse_when_closed()
        error = NonDeterminismError(no_replay_of(what, instead))
        if asyncio._get_running_loop() is self and not self._closed:  # noqa: SLF001  this thread's
            self.host.report_refusal(error)
        raise error


def body_loop() -> WorkflowLoop | None:
    """Return the loop of the body whose code this is, or ``None`` outside of any body."""
    # A body's own loop is the running one while the body's code runs, and only then. To ask asyncio
    # is the fastest way to know, and this function of it does not raise where no loop runs.
    loop = asyncio._get_running_loop()  # noqa: SLF001  the documented hook for loops
    return loop if type(loop) is WorkflowLoop else None


refuse_all(WorkflowLoop)
