"""Mutations: functions that run inside of the transaction that their steps' outcomes are in.

Rules:

- A mutation's writes are there exactly when its step is ``completed``. Several share a commit: one
  that fails, or is not wanted any more, is undone to its savepoint.
- What is undone may be run again, and is, when another one has ended the transaction they shared.
- Nothing else is committed while one runs, so it is bounded in time, with what it leaves behind.
- A failing storage fails no mutation: it is run again. Unless it is alone, again and again, when
  the storage fails: then that is its own doing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, final

import anyio

from durable.core.errors import JournalError, JournalUnavailableError, TransactionError
from durable.journal.scopes import LOST, OWN_SCOPE
from durable.runtime.attempt import CURRENT_ATTEMPT
from durable.runtime.calling import call_async
from durable.runtime.job import JOB_ENDED, JOB_QUEUED, JOB_RUNNING, Failed
from durable.runtime.settings import TRANSACTION_S_MAX

if TYPE_CHECKING:
    from durable.journal.base import Change, Journal
    from durable.journal.connections import Writing
    from durable.journal.scopes import Scope
    from durable.runtime.job import Job, Succeeded

MUTATIONS_MAX = 100
"""A commit has no more mutations: each has a savepoint in it."""

FAILURES_MAX = 4
"""How often in a row the storage may fail while a mutation runs, before that is taken for its
doing. The first time others may have been in the same transaction; then it is alone in one."""

SUSPECTS_MAX = 1_000
"""How many mutations are remembered that the storage has failed by."""

BATCH_S_MAX = 0.05
"""A transaction takes no more mutations once it has held up the other commits for so long."""

ABANDON_AFTER_S = 1.0
"""How much longer than its bound a mutation may take to end. Then it is left to itself: its ``tx``
does nothing any more, so it has no effect."""

CLEAN_UP_S_MAX = 5.0
"""How long a mutation may take to end that the end of its engine has cancelled."""


class MutationsHost(Protocol):
    """What mutations need of the transactions that they are a part of."""

    current: Scope | None
    """The part of a transaction that is open now."""

    async def commit(self, writing: Writing, changes: list[Change]) -> None:
        """Commit a transaction, with ``changes``."""
        ...


@final
class Mutations:
    """The mutations of one engine that wait for their turns."""

    def __init__(self, journal: Journal, host: MutationsHost) -> None:
        self._journal = journal
        self._host = host
        self._queue: deque[Job] = deque()
        self._abandoned: set[asyncio.Task[Any]] = set()
        # Those that the storage has failed by, with how often and how, the latest last.
        self._suspects: dict[tuple[str, int], tuple[int, JournalError]] = {}

    def __bool__(self) -> bool:
        return bool(self._queue)

    def add(self, job: Job) -> None:
        """Have a mutation run, now that it is committed that it does."""
        self._queue.append(job)

    def clear(self) -> None:
        """The journal has failed, or the engine is closed: what waits is void."""
        self._queue.clear()

    async def take_turn(self) -> None:
        """Run some, in one transaction, in the writer's task.

        Raises:
            JournalError: The storage failed.
            BaseException: Ctrl-C, which is the host's.
        """
        await _Batch(self._journal, self._queue, self, self._host).run()

    # --- one mutation, in a task of its own ------------------------------------------------------

    async def run_in(self, scope: Scope, job: Job) -> Succeeded | Failed | None:
        """Run a mutation to its end; ``None`` when it was cancelled.

        Raises:
            BaseException: Ctrl-C, which is the host's.
        """
        self._host.current = scope
        job.state = JOB_RUNNING
        task = asyncio.get_running_loop().create_task(_attempt(job, scope), name=job.work.name)
        job.task = task
        timeout_s = _bound_s(job)
        loop = asyncio.get_running_loop()
        until_s = loop.time() + timeout_s + ABANDON_AFTER_S
        try:
            await asyncio.wait({task}, timeout=until_s - loop.time())
        except asyncio.CancelledError:
            task.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait({task}, timeout=CLEAN_UP_S_MAX)
            if task.done() and not task.cancelled():
                task.exception()  # Nobody else asks.
            raise
        finally:
            self._host.current = job.task = None
            scope.close()
        kind = "query" if scope.is_reading else "mutation"
        if not task.done():
            self._abandoned.add(task)
            task.add_done_callback(self._abandoned.discard)
            msg = f"the {kind} did not end within {timeout_s:g} s, nor when cancelled"
            return Failed(TimeoutError(msg))
        if not await scope.settle(until_s - loop.time()):
            msg = f"a statement that the {kind} has left to itself took longer than {timeout_s:g} s"
            return Failed(TimeoutError(msg))
        return None if task.cancelled() else task.result()

    # --- mutations that the storage fails by ---------------------------------------------------

    def is_suspect(self, job: Job) -> bool:
        """Whether the storage has failed while that mutation ran, the last time it did."""
        return job.id in self._suspects

    def verdict(self, job: Job) -> Failed | None:
        """Return what a mutation fails with that the storage always fails by."""
        count, error = self._suspects.get(job.id, (0, None))
        if count < FAILURES_MAX:
            return None
        msg = f"the storage failed {count} times in a row while this mutation ran: {error}"
        return Failed(JournalUnavailableError(msg))

    def suspect(self, jobs: list[Job], error: JournalError) -> None:
        """The storage has failed while these mutations were in a transaction."""
        for job in jobs:
            count, _ = self._suspects.pop(job.id, (0, None))
            self._suspects[job.id] = count + 1, error
        while len(self._suspects) > SUSPECTS_MAX:
            del self._suspects[next(iter(self._suspects))]

    def clear_of_suspicion(self, job: Job) -> None:
        """That mutation is committed, or has failed by itself."""
        self._suspects.pop(job.id, None)


@final
class _Batch:
    """The mutations of one transaction."""

    def __init__(
        self, journal: Journal, queue: deque[Job], mutations: Mutations, host: MutationsHost
    ) -> None:
        self._journal = journal
        self._queue = queue
        self._mutations = mutations
        self._host = host
        self._writing: Writing | None = None
        self._done: list[tuple[Job, Change, Scope]] = []
        self._running: list[Job] = []
        """The one that runs, if one does."""

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + BATCH_S_MAX
        is_alone = False
        try:
            while self._queue and len(self._done) < MUTATIONS_MAX and loop.time() < until:
                job = self._queue[0]
                if self._done and (is_alone or self._mutations.is_suspect(job)):
                    break
                self._queue.popleft()
                is_alone = self._mutations.is_suspect(job)
                if job.state is JOB_QUEUED:
                    await self._run(job)
            await self._finish()
        except JournalError as exc:
            self._mutations.suspect([*self._running, *(job for job, _, _ in self._done)], exc)
            await self._abort()
            raise
        except BaseException:
            await self._abort()
            raise

    async def _abort(self) -> None:
        if self._writing is not None:
            await self._writing.abort()

    async def _run(self, job: Job) -> None:
        work: Any = job.work
        scope = await self._admit(is_reading=work.is_reading)
        self._running = [job]
        verdict = self._mutations.verdict(job)
        if verdict is None:
            outcome = await self._mutations.run_in(scope, job)
        else:
            job.state, outcome = JOB_RUNNING, verdict
        if scope.failure is not None:
            raise scope.failure
        if scope.is_lost and not isinstance(outcome, Failed):
            outcome = Failed(TransactionError(LOST))
        change = None
        if outcome is not None and job.state is JOB_RUNNING and job.owner is not None:
            job.outcome = outcome
            change = job.owner.outcome_change(job)
        if change is None or isinstance(outcome, Failed):
            assert self._writing is not None
            scope.after.clear()
            if not await self._writing.undo():
                await self._begin_again()
        self._running = []
        if change is not None:
            self._done.append((job, change, scope))

    async def _admit(self, *, is_reading: bool) -> Scope:
        if self._writing is None:
            self._writing = await self._journal.begin()
        return self._writing.admit(is_reading=is_reading)

    async def _begin_again(self) -> None:
        """The transaction is gone, and with it what was done before: do that once more."""
        assert self._writing is not None
        await self._writing.abort()
        self._writing = None
        done, self._done = self._done, []
        for job, _, _ in reversed(done):
            if job.state is JOB_RUNNING:
                job.state = JOB_QUEUED
                job.outcome = None
                self._queue.appendleft(job)

    async def _finish(self) -> None:
        if not self._done:
            if self._writing is not None:
                await self._writing.abort()
            return
        if self._writing is None:
            self._writing = await self._journal.begin()
        self._writing.scope.close()
        await self._host.commit(self._writing, [change for _, change, _ in self._done])
        self._writing = None
        for job, change, scope in self._done:
            self._mutations.clear_of_suspicion(job)
            run_effects(scope)
            job.state = JOB_ENDED
            if job.owner is not None:
                job.owner.on_recorded(job, change)


@final
class _InScope:
    """A mutation's work, with the transaction that it is called with."""

    def __init__(self, work: Any, scope: Scope, timeout_s: float) -> None:  # noqa: ANN401
        self._work = work
        self._scope = scope
        self.timeout_s = timeout_s
        self.encode_result = work.encode_result

    def call(self, args: str) -> Any:  # noqa: ANN401
        return self._work.call_in(self._scope, args)


async def _attempt(job: Job, scope: Scope) -> Succeeded | Failed:
    CURRENT_ATTEMPT.set(job.attempt)
    OWN_SCOPE.set(scope)
    work: Any = _InScope(job.work, scope, _bound_s(job))
    return await call_async(work, job.args)


def _bound_s(job: Job) -> float:
    """Return how long it may hold up all commits, in seconds."""
    return TRANSACTION_S_MAX if job.work.timeout_s is None else job.work.timeout_s


def run_effects(scope: Scope) -> None:
    """Do what the commit of a scope allows."""
    for act, subject in scope.after:
        act(subject)
