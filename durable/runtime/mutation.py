"""One mutation: its function, called in a task of its own with its part of a transaction.

Rules:

- It is bounded in time, with what it leaves behind: nothing else is committed meanwhile.
- One that does not end is left to itself; its ``tx`` does nothing any more.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, final

import anyio

from durable.journal.scopes import OWN_SCOPE
from durable.runtime.attempt import CURRENT_ATTEMPT
from durable.runtime.calling import call_async
from durable.runtime.job import JOB_QUEUED, JOB_RUNNING, Failed
from durable.runtime.settings import TRANSACTION_S_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable

    from durable.journal.scopes import Scope
    from durable.runtime.job import Job, Succeeded

ABANDON_AFTER_S = 1.0
"""How much longer than its bound a mutation may take to end. Then it is left to itself: its ``tx``
does nothing any more, so it has no effect."""

CLEAN_UP_S_MAX = 5.0
"""How long a mutation may take to end that the end of its engine has cancelled."""


@final
class MutationCalls:
    """The functions of mutations that are under way.

    Attributes:
        scopes: The parts of a transaction that are open now.
    """

    def __init__(self) -> None:
        self._abandoned: set[asyncio.Task[Any]] = set()
        self.scopes: set[Scope] = set()

    async def run(self, job: Job, scope: Scope) -> Succeeded | Failed | None:
        """Run a mutation to its end; ``None`` when it was cancelled.

        Raises:
            BaseException: Ctrl-C, which is the host's.
        """
        timeout_s = bound_s(job)
        loop = asyncio.get_running_loop()
        job.state = JOB_RUNNING
        self.scopes.add(scope)
        task = loop.create_task(_attempt(job, scope, timeout_s), name=job.work.name)
        job.task = scope.task = task
        until_s = loop.time() + timeout_s + ABANDON_AFTER_S
        try:
            await asyncio.wait({task}, timeout=until_s - loop.time())
        except asyncio.CancelledError:
            await self._cancel(task)
            raise
        finally:
            scope.close()
            self.scopes.discard(scope)
            job.task = scope.task = None
        kind = "query" if scope.is_reading else "mutation"
        if not task.done():
            self._abandon(task)
            msg = f"the {kind} did not end within {timeout_s:g} s, nor when cancelled"
            return Failed(TimeoutError(msg))
        if not await scope.settle(until_s - loop.time()):
            msg = f"a statement that the {kind} has left to itself took longer than {timeout_s:g} s"
            return Failed(TimeoutError(msg))
        return None if task.cancelled() else task.result()

    async def _cancel(self, task: asyncio.Task[Any]) -> None:
        """End a function with its engine; leave it to itself when it does not end in time."""
        task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait({task}, timeout=CLEAN_UP_S_MAX)
        if not task.done():
            self._abandon(task)
        elif not task.cancelled():
            task.exception()  # Nobody else asks.

    def _abandon(self, task: asyncio.Task[Any]) -> None:
        self._abandoned.add(task)
        task.add_done_callback(self._abandoned.discard)


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


async def _attempt(job: Job, scope: Scope, timeout_s: float) -> Succeeded | Failed:
    enter(job, scope)
    work: Any = _InScope(job.work, scope, timeout_s)
    return await call_async(work, job.args)


def enter(job: Job, scope: Scope) -> None:
    """Let the code of a mutation's task know where it is."""
    CURRENT_ATTEMPT.set(job.attempt)
    OWN_SCOPE.set(scope)


def bound_s(job: Job) -> float:
    """Return how long a mutation may hold up all commits, in seconds."""
    return TRANSACTION_S_MAX if job.work.timeout_s is None else job.work.timeout_s


def put_back(jobs: Iterable[Job]) -> list[Job]:
    """Return those mutations that are to be called again, their effect being undone."""
    again = [job for job in jobs if is_wanted(job)]
    for job in again:
        job.state = JOB_QUEUED
        job.outcome = None
    return again


def is_wanted(job: Job) -> bool:
    """Whether the outcome of a mutation is wanted that was called."""
    return job.state is JOB_RUNNING and job.owner is not None and job.owner.wants(job)
