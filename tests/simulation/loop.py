"""The simulated machine: virtual time, and processes that each have an event loop of their own.

Rules:

- Everything runs in one real thread. Time goes on only when nothing is ready.
- Each process has an event loop, asyncio's own but for its selector: what it is given to call, it
  calls first-in first-out, as asyncio guarantees. Of several processes that have something to do,
  and of the threads' calls that are due at the same time, the seed decides which is next.
- A *thread* is a queue of calls, each of which runs whole at a time that the seed decides; its
  event loop hears of that at a later time.
- A process that is killed does nothing any more: its loop, its threads and its tasks are dropped
  where they are. One that is frozen goes on later, as after a SIGSTOP.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import random
import sys
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, final

from anyio._backends import _asyncio as anyio_backend

from durable.core.closing import silence

BASE_NS: Final = 1_767_225_600 * 1_000_000_000
"""The wall clock at the beginning."""

CLOSE_ATTEMPTS_MAX: Final = 20
STEPS_MAX: Final = 400_000
"""More than any seed takes: one that goes round in circles fails instead of hanging."""


def stream(seed: object, what: str) -> random.Random:
    """Return what decides something for a seed, whatever else is drawn."""
    return random.Random(f"{seed} {what}")  # noqa: S311  no secret


class Killed(BaseException):
    """The process that runs now is dead: raised through what of it is under way."""


class WouldBlock(BaseException):
    """A thread would wait here: its call is made again, a little later."""


class _Selector:
    """No file is ever ready; time is the machine's."""

    def select(self, _timeout: float | None) -> list[Any]:
        return []


@final
class Loop(asyncio.BaseEventLoop):
    """The event loop of one process."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process
        self._spawned: set[asyncio.Task[Any]] = set()
        self._selector = _Selector()
        self._clock_resolution = 1e-9
        self._thread_id = threading.get_ident()  # It counts as running, for all its life.
        self.set_exception_handler(process.on_loop_error)

    def time(self) -> float:
        return self.process.machine.now_s

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def next_at(self) -> float | None:
        """Return when it has something to do; ``None`` for never."""
        this: Any = self
        if this._ready:
            return 0.0
        return this._scheduled[0]._when if this._scheduled else None

    def spawn(self, coro: Coroutine[Any, Any, Any], name: str) -> None:
        """Have it run, whether or not anybody else holds it."""
        task = self.create_task(coro, name=name)
        self._spawned.add(task)
        task.add_done_callback(self._spawned.discard)

    def turn(self) -> None:
        """Call what is ready."""
        this: Any = self
        hooks = sys.get_asyncgen_hooks()
        outer = asyncio._get_running_loop()
        sys.set_asyncgen_hooks(this._asyncgen_firstiter_hook, this._asyncgen_finalizer_hook)
        asyncio._set_running_loop(self)
        try:
            this._run_once()
        finally:
            asyncio._set_running_loop(outer)
            sys.set_asyncgen_hooks(*hooks)

    def die(self) -> None:
        """Drop all tasks where they are."""
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            for task in sorted(asyncio.all_tasks(self), key=asyncio.Task.get_name):
                silence(task)
                coro: Any = task.get_coro()
                for _ in range(CLOSE_ATTEMPTS_MAX):
                    with contextlib.suppress(BaseException):  # It may answer with another await.
                        coro.close()
                        break
                # anyio has it until it is done, and by it all that was in the process's memory.
                anyio_backend._task_states.pop(task, None)
        finally:
            asyncio._set_running_loop(outer)
        self._thread_id = None  # type: ignore[assignment]
        self.close()


@final
class Thread:
    """A thread of a process: calls, one after another. Also a queue as aiosqlite's is."""

    daemon = False

    def __init__(self, process: Process, delay: Callable[[], float]) -> None:
        self._process = process
        self._delay = delay
        self._queue: deque[tuple[asyncio.Future[Any] | None, Callable[[], Any]]] = deque()
        self._told_at = 0.0

    def start(self) -> None:
        """Do nothing: it begins with its first call."""

    def put_nowait(self, call: tuple[asyncio.Future[Any] | None, Callable[[], Any]]) -> None:
        self._queue.append(call)
        if len(self._queue) == 1:
            self._process.after(self._delay(), self._work)

    def _work(self) -> None:
        future, function = self._queue[0]
        try:
            tell = partial(_set_result, future, function())
        except WouldBlock:
            self._process.after(0.001 + self._delay(), self._work)
            return
        except Killed:
            return
        except BaseException as exc:  # noqa: BLE001  as aiosqlite's thread does
            tell = partial(_set_exception, future, exc)
        if not self._process.is_alive:
            return
        machine = self._process.machine
        self._told_at = max(machine.now_s + self._delay(), self._told_at)
        self._process.after(self._told_at - machine.now_s, partial(self._process.wake, tell))
        self._queue.popleft()
        if self._queue:
            self._process.after(self._delay(), self._work)


def _set_result(future: asyncio.Future[Any] | None, result: object) -> None:
    if future is not None and not future.done():
        future.set_result(result)


def _set_exception(future: asyncio.Future[Any] | None, exc: BaseException) -> None:
    if future is not None and not future.done():
        future.set_exception(exc)


@final
class Process:
    """A process of the machine.

    Attributes:
        is_alive: Whether it was not killed, and has not ended.
        frozen_until_s: It does nothing before that time.
        is_robbed: Whether it has lost a lock without knowing.
    """

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine = machine
        self.name = name
        self.is_alive = True
        self.is_robbed = False
        self.frozen_until_s = 0.0
        self.on_death: list[Callable[[], None]] = []
        self.loop = Loop(self)

    def __repr__(self) -> str:
        return self.name

    def after(self, delay_s: float, act: Callable[[], None]) -> None:
        """Do something later, unless the process is dead then."""
        self.machine.at(self.machine.now_s + delay_s, act, self)

    def wake(self, act: Callable[[], None]) -> None:
        """Have its event loop do something, as from another thread."""
        self.loop.call_soon_threadsafe(act)

    def spawn(self, coro: Coroutine[Any, Any, Any], name: str) -> None:
        """Run a task in it."""
        self.wake(lambda: self.loop.spawn(coro, name))

    def thread(self) -> Thread:
        """Start a thread."""
        return Thread(self, self.machine.io_delay)

    def kill(self) -> None:
        """End it, as SIGKILL does."""
        if self.is_alive:
            self.machine.note(self.name, "dies")
            self.end()

    def end(self) -> None:
        """Let it do nothing any more."""
        self.is_alive = False
        for act in self.on_death:
            act()
        self.on_death.clear()
        self.machine.dying.append(self)

    def on_loop_error(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Take what asyncio says that nobody has caught."""
        exc = context.get("exception")
        if self.is_alive and not isinstance(exc, Killed):
            self.machine.fail(f"I17: {context.get('message')}: {exc!r}")


@final
class Machine:
    """All processes, the time, and what the seed decides of their order.

    Attributes:
        now_s: Virtual time since the beginning.
        wall_ahead_ns: By how much the wall clock was set forward, or back.
        trace: What happened, for people and for comparing.
        violations: What must not be, and was.
        is_slow: Whether the storage is, now.
    """

    def __init__(self, seed: str) -> None:
        self.random = stream(seed, "order")
        self.now_s = 0.0
        self.wall_ahead_ns = 0
        self.processes: list[Process] = []
        self.dying: list[Process] = []
        self.running: Process | None = None
        self.trace: list[str] = []
        self.violations: list[str] = []
        self.is_slow = False
        self._events: list[tuple[float, float, int, Process | None, Callable[[], None]]] = []
        self._events_count = self._steps_count = 0

    def note(self, who: object, what: str) -> None:
        """Take a line into the trace."""
        self.trace.append(f"{self.now_s:10.4f} {who}: {what}")

    def fail(self, what: str) -> None:
        """Take note of something that must not be."""
        self.note("VIOLATION", what)
        self.violations.append(what)

    # --- time ------------------------------------------------------------------------------------

    def wall_ns(self) -> int:
        """Return the wall clock."""
        return BASE_NS + int(self.now_s * 1e9) + self.wall_ahead_ns

    def monotonic_ns(self) -> int:
        """Return the clock that is never set."""
        return int(self.now_s * 1e9)

    def io_delay(self) -> float:
        """Return how long a thread takes to begin something, or its loop to hear of it."""
        draw = self.random.random()
        if self.is_slow:
            return draw * 0.3
        return draw * 0.0005 if draw < 0.95 else draw * 0.02

    def at(self, when_s: float, act: Callable[[], None], process: Process | None = None) -> None:
        """Do something at a time; of a process, unless that is dead then."""
        self._events_count += 1
        tie = self.random.random()
        heapq.heappush(self._events, (when_s, tie, self._events_count, process, act))

    # --- running ---------------------------------------------------------------------------------

    def start(self, name: str) -> Process:
        """Begin a process."""
        process = Process(self, name)
        self.processes.append(process)
        return process

    def run(self, is_over: Callable[[], bool], until_s: float) -> bool:
        """Let things happen until something is so, or until a time; return whether it is so."""
        while not is_over():
            if self.violations or not self._step(until_s):
                return is_over()
        return True

    def _step(self, until_s: float) -> bool:
        self._steps_count += 1
        if self._steps_count > STEPS_MAX:
            self.fail("I12: it goes round in circles")
            return False
        ready: list[Process | None] = []
        next_s = self._events[0][0] if self._events else float("inf")
        if next_s <= self.now_s:
            ready.append(None)
        for process in self.processes:
            at_s = process.loop.next_at()
            if at_s is not None:
                at_s = max(at_s, process.frozen_until_s)
                next_s = min(next_s, at_s)
                if at_s <= self.now_s:
                    ready.append(process)
        if ready:
            chosen = ready[0] if len(ready) == 1 else self.random.choice(ready)
            self._act(chosen)
        elif next_s > until_s:
            self.now_s = max(self.now_s, min(until_s, next_s))
            return False
        else:
            self.now_s = next_s
        return True

    def _act(self, process: Process | None) -> None:
        if process is not None:
            self._within(process, process.loop.turn)
        else:
            at_s, tie, number, process, act = heapq.heappop(self._events)
            if process is None:
                act()
            elif process.is_alive and process.frozen_until_s > self.now_s:
                later = max(at_s, process.frozen_until_s)
                heapq.heappush(self._events, (later, tie, number, process, act))
            elif process.is_alive:
                self._within(process, act)
        while self.dying:
            self._bury(self.dying.pop())

    def _within(self, process: Process, act: Callable[[], None]) -> None:
        self.running = process
        try:
            act()
        except Killed:
            pass
        finally:
            self.running = None

    def _bury(self, process: Process) -> None:
        self.processes.remove(process)
        process.loop.die()

    def close(self) -> None:
        """Drop everything."""
        for process in list(self.processes):
            process.is_alive = False
            for act in process.on_death:
                act()
            self._bury(process)
        self._events.clear()

    # --- threads of anyio's ----------------------------------------------------------------------

    async def run_sync(
        self,
        function: Callable[..., Any],
        *args: object,
        abandon_on_cancel: bool = False,
        limiter: object = None,  # noqa: ARG002
    ) -> Any:  # noqa: ANN401
        """Stand in for ``anyio.to_thread.run_sync``."""
        loop: Any = asyncio.get_running_loop()
        process: Process = loop.process
        future = loop.create_future()
        future.add_done_callback(_forget)
        context = contextvars.copy_context()
        process.thread().put_nowait((future, partial(context.run, function, *args)))
        if abandon_on_cancel:
            return await future
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({future})
            raise


def _forget(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
