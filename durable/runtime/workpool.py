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
from functools import partial
from typing import TYPE_CHECKING, final

import anyio

from durable.runtime.attempt import CURRENT_ATTEMPT
from durable.runtime.calling import call_async, call_sync
from durable.runtime.job import (
    JOB_DROPPED,
    JOB_ENDED,
    JOB_QUEUED,
    JOB_RESERVED,
    JOB_RUNNING,
    JOB_WITHDRAWN,
    Failed,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio.abc import TaskGroup

    from durable.runtime.job import Job, Succeeded


@final
class Workpool:
    """The slots, the queue before them, and the attempts that run."""

    def __init__(self, max_parallelism: int) -> None:
        self._max = max_parallelism
        self._used = 0
        self._queue: deque[Job] = deque()
        self._begun: dict[tuple[str, int], Job] = {}
        self._launched: list[Job] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._crashed: asyncio.Future[BaseException] | None = None
        self._threads: anyio.CapacityLimiter | None = None
        self._is_paused = False
        self._ended = asyncio.Event()

    # --- life ------------------------------------------------------------------------------------

    def open(self, group: TaskGroup) -> None:
        """Run attempts in ``group``: until it is cancelled, or one of them crashes."""
        self._loop = asyncio.get_running_loop()
        self._crashed = self._loop.create_future()
        group.start_soon(self._hold_tasks, self._crashed)
        # The slots are the bound; the limiter of anyio's default would be a second one.
        self._threads = anyio.CapacityLimiter(float("inf"))

    def pause(self) -> None:
        """Give out no more slots."""
        self._is_paused = True

    async def wait_until_idle(self) -> None:
        """Return when no function runs. No more may begin: the pool is paused."""
        while not self.is_idle:
            self._ended.clear()
            await self._ended.wait()

    @property
    def is_idle(self) -> bool:
        """Whether no function runs whose outcome is wanted."""
        return not any(job.state is JOB_RUNNING for job in self._begun.values())

    @property
    def is_settled(self) -> bool:
        """Whether each attempt that began has its outcome in the journal, or nobody wants it."""
        return not self._begun

    def drop_unlaunched(self) -> None:
        """Forget the attempts that did not begin: what is recorded of them is unknown."""
        for job in self._queue:
            job.state = JOB_WITHDRAWN
        self._queue.clear()

    @property
    def is_launching(self) -> bool:
        """Whether attempts are about to begin."""
        return bool(self._launched)

    @property
    def tasks(self) -> frozenset[asyncio.Task[None]]:
        """The tasks of the attempts that run, wanted or not."""
        return frozenset(self._tasks)

    @property
    def queued_count(self) -> int:
        """How many attempts wait for a slot."""
        return sum(job.state is JOB_QUEUED for job in self._queue)

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
        """Wait for a slot; the job's owner hears of it, maybe at once."""
        assert job.state is JOB_QUEUED
        self._queue.append(job)
        self._give_slots()

    def _give_slots(self) -> None:
        while self._queue and not self._is_paused and self._used < self._max:
            job = self._queue.popleft()
            if job.state is JOB_QUEUED:
                self._used += 1
                job.state = JOB_RESERVED
                assert job.owner is not None
                job.owner.on_slot(job)

    def _give_back(self, job: Job) -> None:
        if not job.has_slot:
            return
        self._used -= 1
        assert self._used >= 0
        if self._queue:
            self._give_slots()

    # --- attempts --------------------------------------------------------------------------------

    def launch(self, job: Job) -> None:
        """Have the function of a job started that has its slot, now that this is committed."""
        if job.state is JOB_WITHDRAWN:
            return
        assert job.state is JOB_RESERVED
        job.state = JOB_RUNNING
        self._begun[job.id] = job
        if not self._launched:
            # Soon, so that the next commit can begin before what this one allows.
            assert self._loop is not None
            self._loop.call_soon(self._start_launched)
        self._launched.append(job)

    def _start_launched(self) -> None:
        launched, self._launched = self._launched, []
        assert self._loop is not None
        if self._is_cut_off:
            return
        for job in launched:
            # Not tasks of the group, which cost more than all else that is done for a step.
            task = self._loop.create_task(self._run(job), name=job.work.name)
            if not task.done():  # The host may start its tasks eagerly.
                self._tasks[task] = None

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
        if job.state is JOB_QUEUED:
            job.state = JOB_WITHDRAWN
        elif job.state is JOB_RESERVED:
            job.state = JOB_WITHDRAWN
            self._give_back(job)
        else:
            self._forget(job)
            if job.state is JOB_RUNNING:
                job.state = JOB_DROPPED
                if job.work.is_async and job.task is not None:
                    job.task.cancel()

    def drop(self, job: Job) -> None:
        """Want the outcome of a job no more that has begun, and let it finish."""
        self._forget(job)
        if job.state is JOB_RUNNING:
            job.state = JOB_DROPPED

    @property
    def _is_cut_off(self) -> bool:
        """Whether all attempts end now: one has crashed, or the group is cancelled."""
        assert self._crashed is not None
        return self._crashed.done()

    def _forget(self, job: Job) -> None:
        if self._begun.get(job.id) is job:
            del self._begun[job.id]

    def withdraw_unless(self, is_wanted: Callable[[Job], bool]) -> None:
        """End the attempts that have begun and are not wanted any more."""
        for job in list(self._begun.values()):
            if not is_wanted(job):
                self.withdraw(job)

    def begun(self, run_id: str, number: int) -> Job | None:
        """Return the attempt of that step that began here and is not settled in the journal."""
        return self._begun.get((run_id, number))

    async def _run(self, job: Job) -> None:
        task = asyncio.current_task(self._loop)
        assert task is not None
        try:
            if job.state is JOB_RUNNING:
                job.task = task
                CURRENT_ATTEMPT.set(job.attempt)
                work = job.work
                if work.is_async:
                    outcome = await call_async(work, job.args)
                else:
                    late = partial(self._report, job)
                    outcome = await call_sync(work, job.args, self._threads, late)
                self._report(job, outcome)
        except asyncio.CancelledError as exc:
            if self._is_cut_off:
                raise
            self._report(job, Failed(exc))  # Not withdrawn? Then it has cancelled its own task.
        except BaseException as exc:  # noqa: BLE001  Ctrl-C, which is the host's
            assert self._crashed is not None
            if not self._crashed.done():
                self._crashed.set_result(exc)
        finally:
            self._tasks.pop(task, None)
            job.task = None
            job.state = JOB_ENDED
            if self._is_paused:
                self._ended.set()
            self._give_back(job)

    def _report(self, job: Job, outcome: Succeeded | Failed) -> None:
        # What they come to when they are cut off, is of their cancellation.
        if job.outcome is None and self._begun.get(job.id) is job and not self._is_cut_off:
            job.outcome = outcome
            if job.owner is not None:
                job.owner.on_outcome(job)
