"""Bounded parallelism: at every instant at most ``max_parallelism`` actions run.

Rules:

- A *slot* is taken before the journal says that an attempt runs, and given back when its function
  has really ended. A function starts only after that commit.
- Who finds no slot waits first-in first-out. Waiting for anything but a slot holds none.
- Withdrawing an attempt: a queued one never starts, a running async one is cancelled, a running
  sync one finishes and is dropped.
- The outcome of an attempt is kept until it is committed, so that a failing journal loses none.
"""

from __future__ import annotations

import asyncio
from collections import deque
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, final

import anyio
import anyio.to_thread

from durable.core.codec import safe_text
from durable.core.errors import NonRetryable, PayloadTooLarge, ReturnTypeError
from durable.core.failures import encode_exception
from durable.core.interrupts import is_from_signal
from durable.runtime.attempt import CURRENT_ATTEMPT, Attempt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskGroup

    from durable.core.retry import Retry

FINAL_ERRORS = (NonRetryable, ReturnTypeError, PayloadTooLarge)
"""Trying again would not help, or is not wanted."""


class ActionWork(Protocol):
    """What an action's command stands for."""

    retry: Retry | None
    is_at_most_once: bool
    is_async: bool
    timeout_s: float | None

    def decode(self, text: str) -> object:
        """Return the result that JSON text stands for."""
        ...

    def rebuild(self, error: str) -> BaseException:
        """Return the exception that a stored error stands for."""
        ...

    def call(self, args: str) -> Any:  # noqa: ANN401
        """Call the function with recorded arguments: an awaitable, or a sync function's result."""
        ...

    def encode_result(self, result: object) -> tuple[str, object]:
        """Return the result as JSON text, and what that decodes to."""
        ...


@final
class Succeeded:
    """An attempt returned: its result as JSON, and what that decodes to."""

    __slots__ = ("text", "value")

    def __init__(self, text: str, value: object) -> None:
        self.text = text
        self.value = value


@final
class Failed:
    """An attempt raised."""

    __slots__ = ("error", "is_final")

    def __init__(self, exc: BaseException) -> None:
        # Not isinstance: that asks the exception, whose __getattribute__ may raise anything.
        self.is_final = issubclass(type(exc), FINAL_ERRORS)
        if issubclass(type(exc), NonRetryable) and exc.__cause__ is not None and not exc.args:
            exc.args = (safe_text(exc.__cause__),)  # ``raise NonRetryable from exc`` says no more.
        self.error = encode_exception(exc)


class JobState(Enum):
    """Where an attempt stands in the pool."""

    QUEUED = auto()
    RESERVED = auto()
    RUNNING = auto()
    ENDED = auto()
    WITHDRAWN = auto()
    """It never ran, and never will."""
    DROPPED = auto()
    """It runs, and nobody wants its outcome any more."""


@final
class Job:
    """One attempt that is to be made, or is under way.

    Attributes:
        id: Which step it is: the run's id, and the step's number.
    """

    __slots__ = ("args", "attempt", "id", "number", "outcome", "state", "task", "work")

    def __init__(self, attempt: Attempt, number: int, work: ActionWork, args: str) -> None:
        self.attempt = attempt
        self.number = number
        self.id = (attempt.run_id, number)
        self.work = work
        self.args = args
        self.state = JobState.QUEUED
        self.task: asyncio.Task[Any] | None = None
        self.outcome: Succeeded | Failed | None = None


class WorkpoolHost(Protocol):
    """What the pool tells the runner."""

    def on_slot(self, job: Job) -> None:
        """A queued job has its slot: record that it runs, then launch it."""
        ...

    def on_outcome(self, job: Job) -> None:
        """A job has its outcome."""
        ...


@final
class Workpool:
    """The slots, the queue before them, and the attempts that run."""

    def __init__(self, host: WorkpoolHost, max_parallelism: int) -> None:
        self._host = host
        self._max = max_parallelism
        self._used = 0
        self._queue: deque[Job] = deque()
        self._begun: dict[tuple[str, int], Job] = {}
        self._launched: list[Job] = []
        self._group: TaskGroup | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._crashed: asyncio.Future[BaseException] | None = None
        self._threads: anyio.CapacityLimiter | None = None
        self._is_paused = False
        self._ended = asyncio.Event()

    # --- life ------------------------------------------------------------------------------------

    def open(self, group: TaskGroup) -> None:
        """Run attempts in ``group``: until it is cancelled, or one of them crashes."""
        self._group = group
        self._loop = asyncio.get_running_loop()
        self._crashed = self._loop.create_future()
        group.start_soon(self._hold_tasks, self._crashed)
        # The slots are the bound; the limiter of anyio's default would be a second one.
        self._threads = anyio.CapacityLimiter(float("inf"))

    def pause(self) -> None:
        """Give out no more slots."""
        self._is_paused = True

    async def wait_until_idle(self) -> None:
        """Return when no function runs."""
        while not self.is_idle:
            self._ended.clear()
            await self._ended.wait()

    @property
    def is_idle(self) -> bool:
        """Whether no function runs whose outcome is wanted."""
        return not any(job.state is JobState.RUNNING for job in self._begun.values())

    @property
    def is_settled(self) -> bool:
        """Whether each attempt that began has its outcome in the journal, or nobody wants it."""
        return not self._begun

    def drop_unlaunched(self) -> None:
        """Forget the attempts that did not begin: what is recorded of them is unknown."""
        for job in self._queue:
            job.state = JobState.WITHDRAWN
        self._queue.clear()

    @property
    def queued_count(self) -> int:
        """How many attempts wait for a slot."""
        return sum(job.state is JobState.QUEUED for job in self._queue)

    @property
    def running_count(self) -> int:
        """How many slots are taken."""
        return self._used

    def set_max_parallelism(self, count: int) -> None:
        """Change the number of slots. Fewer than are taken ends nothing."""
        self._max = count
        self._give_slots()

    # --- slots -----------------------------------------------------------------------------------

    def reserve(self) -> bool:
        """Take a slot, if one is free and nobody waits for it."""
        if self._is_paused or self._used >= self._max or self._queue:
            return False
        self._used += 1
        return True

    def enqueue(self, job: Job) -> None:
        """Wait for a slot; ``on_slot`` is called, maybe at once."""
        assert job.state is JobState.QUEUED
        self._queue.append(job)
        self._give_slots()

    def _give_slots(self) -> None:
        while self._queue and not self._is_paused and self._used < self._max:
            job = self._queue.popleft()
            if job.state is JobState.QUEUED:
                self._used += 1
                job.state = JobState.RESERVED
                self._host.on_slot(job)

    def _give_back(self) -> None:
        self._used -= 1
        assert self._used >= 0
        if self._queue:
            self._give_slots()

    # --- attempts --------------------------------------------------------------------------------

    def launch(self, job: Job) -> None:
        """Have the function of a job started that has its slot, now that this is committed."""
        if job.state is JobState.WITHDRAWN:
            return
        assert job.state is JobState.RESERVED
        job.state = JobState.RUNNING
        self._begun[job.id] = job
        if not self._launched:
            # Soon, so that the next commit can begin before what this one allows.
            assert self._loop is not None
            self._loop.call_soon(self._start_launched)
        self._launched.append(job)

    def _start_launched(self) -> None:
        launched, self._launched = self._launched, []
        assert self._loop is not None
        assert self._group is not None
        if self._group.cancel_scope.cancel_called:
            return
        for job in launched:
            # Not tasks of the group, which cost more than all else that is done for a step.
            self._tasks.add(self._loop.create_task(self._run(job)))

    async def _hold_tasks(self, crashed: asyncio.Future[BaseException]) -> None:
        """Be the group's task for all attempts: end with the first that crashes, end them all."""
        try:
            raise await crashed
        finally:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.gather(*tasks, return_exceptions=True)

    def withdraw(self, job: Job) -> None:
        """End a job whose outcome nobody waits for any more."""
        if job.state is JobState.QUEUED:
            job.state = JobState.WITHDRAWN
        elif job.state is JobState.RESERVED:
            job.state = JobState.WITHDRAWN
            self._give_back()
        else:
            self.forget(job)
            if job.state is JobState.RUNNING:
                job.state = JobState.DROPPED
                if job.work.is_async and job.task is not None:
                    job.task.cancel()

    def withdraw_unless(self, is_wanted: Callable[[Job], bool]) -> None:
        """End the attempts that have begun and are not wanted any more."""
        for job in list(self._begun.values()):
            if not is_wanted(job):
                self.withdraw(job)

    def begun(self, run_id: str, number: int) -> Job | None:
        """Return the attempt of that step that began here and is not settled in the journal."""
        return self._begun.get((run_id, number))

    def forget(self, job: Job) -> None:
        """Drop a job whose outcome is committed, or not wanted."""
        if self._begun.get(job.id) is job:
            del self._begun[job.id]

    async def _run(self, job: Job) -> None:
        task = asyncio.current_task(self._loop)
        assert task is not None
        try:
            if job.state is JobState.RUNNING:
                job.task = task
                CURRENT_ATTEMPT.set(job.attempt)
                outcome = await (self._run_async(job) if job.work.is_async else self._run_sync(job))
                self._report(job, outcome)
        except asyncio.CancelledError as exc:
            assert self._group is not None
            if self._group.cancel_scope.cancel_called:
                raise
            self._report(job, Failed(exc))  # Not withdrawn? Then it has cancelled its own task.
        except BaseException as exc:  # noqa: BLE001  Ctrl-C, which is the host's
            assert self._crashed is not None
            if not self._crashed.done():
                self._crashed.set_result(exc)
        finally:
            self._tasks.discard(task)
            job.task = None
            job.state = JobState.ENDED
            self._ended.set()
            self._give_back()

    def _report(self, job: Job, outcome: Succeeded | Failed) -> None:
        if job.outcome is None and self._begun.get(job.id) is job:
            job.outcome = outcome
            self._host.on_outcome(job)

    async def _run_async(self, job: Job) -> Succeeded | Failed:
        work = job.work
        try:
            if work.timeout_s is None:
                result = await work.call(job.args)
            else:
                result = await _bounded_by(work.timeout_s, partial(work.call, job.args))
            return Succeeded(*work.encode_result(result))
        except BaseException as exc:  # noqa: BLE001  an action may raise anything
            return self._failed(exc)

    async def _run_sync(self, job: Job) -> Succeeded | Failed:
        work = job.work
        timer: asyncio.TimerHandle | None = None
        if work.timeout_s is not None:
            # A thread cannot be stopped: its time-out is reported, and the slot stays taken.
            late = Failed(_timed_out(work.timeout_s))
            timer = asyncio.get_running_loop().call_later(work.timeout_s, self._report, job, late)
        try:
            result = await anyio.to_thread.run_sync(
                partial(_call_caught, work, job.args), limiter=self._threads, abandon_on_cancel=True
            )
            if isinstance(result, _Caught):
                return self._failed(result.exc)
            return Succeeded(*work.encode_result(result))
        except BaseException as exc:  # noqa: BLE001  an action may raise anything
            return self._failed(exc)
        finally:
            if timer is not None:
                timer.cancel()

    def _failed(self, exc: BaseException) -> Failed:
        task = asyncio.current_task()
        assert task is not None
        if issubclass(type(exc), asyncio.CancelledError) and task.cancelling() > 0:
            raise exc  # The pool or the host cancels; one that the action raised is its outcome.
        if issubclass(type(exc), KeyboardInterrupt) and is_from_signal(exc):
            raise exc
        return Failed(exc)


@final
class _Caught:
    """An exception out of a worker thread: some, such as StopIteration, no future can carry."""

    def __init__(self, exc: BaseException) -> None:
        self.exc = exc


def _call_caught(work: ActionWork, args: str) -> object:
    try:
        return work.call(args)
    except BaseException as exc:  # noqa: BLE001  an action may raise anything
        return _Caught(exc)


async def _bounded_by(timeout_s: float, call: Callable[[], Awaitable[object]]) -> object:
    # Not anyio's: it cancels again at each await, so that nothing could be cleaned up.
    bound = asyncio.timeout(timeout_s)
    try:
        async with bound:
            result = await call()
    except BaseException:
        if bound.expired() and not _is_cancelled():
            raise _timed_out(timeout_s) from None
        raise
    if bound.expired():  # It swallowed the cancellation: late is late.
        raise _timed_out(timeout_s)
    return result


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _timed_out(timeout_s: float) -> TimeoutError:
    return TimeoutError(f"the attempt took longer than its timeout of {timeout_s:g} s")
