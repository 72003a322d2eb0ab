"""Mutations, queries, and the transactions of callers: their turns between the commits.

Rules:

- A mutation is run by the writer, inside of the transaction that its step's outcome is recorded in.
  So its writes are there exactly when the step is ``completed``. Several mutations share a commit:
  one that fails, or is not wanted any more, is undone to its savepoint.
- What is undone may be run again, and is, when another one has ended the transaction they shared.
- Nothing is committed while a mutation or a caller's transaction runs, so both are bounded in time.
- A query is an attempt like an action's, without a slot, in a transaction of its own. When the
  storage fails under it, it is run again once the journal is back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol, final

import anyio

from durable.core.errors import (
    EngineClosedError,
    JournalError,
    JournalUnavailableError,
    TransactionError,
)
from durable.journal.scopes import LOST, OWN_SCOPE
from durable.runtime.attempt import CURRENT_ATTEMPT
from durable.runtime.calling import call_async
from durable.runtime.job import (
    JOB_ENDED,
    JOB_QUEUED,
    JOB_RESERVED,
    JOB_RUNNING,
    ActionWork,
    Failed,
)
from durable.runtime.settings import TRANSACTION_S_MAX

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractAsyncContextManager

    from durable.journal.base import Change, Journal
    from durable.journal.guests import Writing
    from durable.journal.scopes import Scope
    from durable.runtime.job import Job, Succeeded
    from durable.runtime.workpool import Workpool
    from durable.runtime.writer import Writer

MUTATIONS_MAX = 100
"""A commit has no more mutations: each has a savepoint in it."""

BATCH_S_MAX = 0.05
"""A transaction takes no more mutations once it has held up the other commits for so long."""

ABANDON_AFTER_S = 1.0
"""How much longer than its bound a mutation may take to end. Then it is left to itself: its ``tx``
does nothing any more, so it has no effect."""

CLEAN_UP_S_MAX = 5.0
"""How long a mutation may take to end that the end of its engine has cancelled."""


class TransactionWork(ActionWork, Protocol):
    """What a query's or a mutation's command stands for."""

    is_reading: bool

    def call_in(self, scope: Scope, args: str) -> Any:  # noqa: ANN401
        """Call the function with its transaction and recorded arguments: an awaitable."""
        ...


@final
class _Turn:
    """A caller's transaction: asked for, granted, ended by the caller, and done."""

    def __init__(self, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        self.timeout_s = timeout_s
        self.granted: asyncio.Future[Scope] = loop.create_future()
        self.ended: asyncio.Future[bool] = loop.create_future()
        self.done: asyncio.Future[None] = loop.create_future()

    def fail(self, error: Exception) -> None:
        for future in (self.granted, self.done):
            if not future.done():
                future.set_exception(error)
                future.exception()  # The caller may be gone.


@final
class Transactions:
    """The guests of one engine's writer."""

    def __init__(self, journal: Journal, writer: Writer, pool: Workpool) -> None:
        self._journal = journal
        self._writer = writer
        self._pool = pool
        self._mutations: deque[Job] = deque()
        self._turns: deque[_Turn] = deque()
        self._current: Scope | None = None
        self._abandoned: set[asyncio.Task[Any]] = set()
        self._restored = asyncio.Event()
        self._restored.set()
        self.is_paused = False
        writer.guests = self

    # --- what is asked ---------------------------------------------------------------------------

    def pause(self) -> None:
        """Let no more steps begin."""
        self.is_paused = True

    def transact(self, job: Job) -> None:
        """Run a query or a mutation, now that it is committed that it runs."""
        if job.state is not JOB_QUEUED:
            return
        work: Any = job.work
        if work.is_reading and not self._journal.is_one_connection:
            job.work = _Query(work, self)
            job.state = JOB_RESERVED
            self._pool.launch(job)
        else:
            self._mutations.append(job)
            self._writer.wake()

    def refuse_inside(self) -> None:
        """Raise ``TransactionError`` in code whose transaction would wait for what it asks."""
        scope = OWN_SCOPE.get()
        if scope is not None and scope is self._current:
            scope.refuse_waiting()

    def check_own(self, scope: Scope) -> None:
        """Raise ``TransactionError`` unless a scope is the one that this engine has open."""
        scope.check_open()
        if scope.is_reading or scope is not self._current:
            why = "only reads" if scope.is_reading else "is another engine's"
            msg = f"this `tx` {why}: nothing of this engine can be written in it"
            raise TransactionError(msg)

    @asynccontextmanager
    async def hold(self, timeout_s: float) -> AsyncGenerator[Scope]:
        """Have a writing transaction: committed at the end, or rolled back by an exception.

        Raises:
            TransactionError: It took too long, or a statement has ended it: it is rolled back.
            JournalUnavailableError: The storage failed: the outcome is unknown.
            EngineClosedError: The engine was closed meanwhile; it is rolled back.
        """
        turn = _Turn(timeout_s)
        self._turns.append(turn)
        self._writer.wake()
        try:
            scope = await turn.granted
        except asyncio.CancelledError:
            turn.granted.cancel()
            turn.ended.cancel()
            raise
        before = OWN_SCOPE.get()
        OWN_SCOPE.set(scope)
        try:
            yield scope
        except BaseException as exc:
            turn.ended.set_result(False)
            if not isinstance(exc, GeneratorExit):  # Whom nobody awaits any more.
                await asyncio.wait({turn.done})
            raise
        else:
            turn.ended.set_result(True)
            # A cancelled caller stops waiting; the commit goes on.
            await asyncio.shield(turn.done)
        finally:
            OWN_SCOPE.set(before)

    # --- turns, in the writer's task -------------------------------------------------------------

    @property
    def is_waiting(self) -> bool:
        return bool(self._mutations or self._turns)

    async def take_turn(self) -> None:
        if self._mutations:
            await _Batch(self._journal, self._mutations, self).run()
        if self._turns:
            await self._serve(self._turns.popleft())

    async def _serve(self, turn: _Turn) -> None:
        if turn.granted.done():
            return
        try:
            writing = await self._journal.begin()
        except BaseException as exc:
            turn.fail(_as_seen_by_callers(exc))
            raise
        try:
            await self._grant(turn, writing)
        except BaseException as exc:
            error = _as_seen_by_callers(exc)
            turn.fail(error)
            writing.scope.close(str(error))
            await writing.abort()
            raise
        finally:
            self._current = None

    async def _grant(self, turn: _Turn, writing: Writing) -> None:
        scope = self._current = writing.scope
        if not turn.granted.done():
            turn.granted.set_result(scope)
            await asyncio.wait({turn.ended}, timeout=turn.timeout_s)
        if not turn.ended.done():
            late = (
                f"the transaction took longer than {turn.timeout_s:g} s and was rolled back: "
                "nothing else is committed meanwhile. Do less in it, or give "
                "engine.transaction(timeout=)"
            )
            scope.close(late)
            await writing.abort()
            turn.fail(TransactionError(late))
        elif turn.ended.cancelled() or not turn.ended.result() or scope.is_lost or scope.failure:
            await writing.abort()
            if scope.failure is not None:
                raise scope.failure
            turn.fail(TransactionError(LOST))  # Who has raised does not look.
        else:
            scope.close()
            await self.commit(writing, [])
            run_effects(scope)
            turn.done.set_result(None)

    async def commit(self, writing: Writing, changes: list[Change]) -> None:
        """Commit a transaction, with ``changes``."""
        await self._journal.commit_writing(writing, changes)
        self._writer.commits_count += 1

    # --- one mutation, in a task of its own ------------------------------------------------------

    async def run_in(self, scope: Scope, job: Job) -> Succeeded | Failed | None:
        """Run a mutation to its end; ``None`` when it was cancelled.

        Raises:
            BaseException: Ctrl-C, which is the host's.
        """
        self._current = scope
        job.state = JOB_RUNNING
        task = asyncio.get_running_loop().create_task(_attempt(job, scope), name=job.work.name)
        job.task = task
        timeout_s = _bound_s(job)
        try:
            await asyncio.wait({task}, timeout=timeout_s + ABANDON_AFTER_S)
        except asyncio.CancelledError:
            task.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait({task}, timeout=CLEAN_UP_S_MAX)
            if task.done() and not task.cancelled():
                task.exception()  # Nobody else asks.
            raise
        finally:
            self._current = job.task = None
            scope.close()
        if not task.done():
            self._abandoned.add(task)
            task.add_done_callback(self._abandoned.discard)
            kind = "query" if scope.is_reading else "mutation"
            msg = f"the {kind} did not end within {timeout_s:g} s, nor when cancelled"
            return Failed(TimeoutError(msg))
        return None if task.cancelled() else task.result()

    # --- outages and the end ---------------------------------------------------------------------

    def on_outage(self, error: JournalError) -> None:
        """The journal has failed: what waited is void."""
        self._restored.clear()
        self._mutations.clear()
        self._fail_turns(lambda: unavailable(error))

    def on_restored(self) -> None:
        """The journal is there again."""
        self._restored.set()

    def fail_all(self, make_error: Callable[[], Exception]) -> None:
        """The engine is closed."""
        self._mutations.clear()
        self._fail_turns(make_error)

    def _fail_turns(self, make_error: Callable[[], Exception]) -> None:
        turns, self._turns = self._turns, deque()
        for turn in turns:
            turn.fail(make_error())

    def reading(self) -> AbstractAsyncContextManager[Scope]:
        """Return what the journal's ``reading`` does."""
        return self._journal.reading()

    async def wait_out(self, failure: JournalError, scope: Scope | None) -> None:
        """Have the journal opened again, and wait until it is."""
        # One whose connection the reopening has closed tells nothing new.
        if self._writer.outage is None and (scope is None or not scope.is_cut_off):
            self._restored.clear()
            self._writer.fail(failure)
        await self._restored.wait()


@final
class _Batch:
    """The mutations of one transaction."""

    def __init__(self, journal: Journal, queue: deque[Job], host: Transactions) -> None:
        self._journal = journal
        self._queue = queue
        self._host = host
        self._writing: Writing | None = None
        self._done: list[tuple[Job, Change, Scope]] = []
        self._is_marked = False
        """Whether the next mutation's savepoint is there already."""

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + BATCH_S_MAX
        try:
            while self._queue and len(self._done) < MUTATIONS_MAX and loop.time() < until:
                job = self._queue.popleft()
                if job.state is JOB_QUEUED:
                    await self._run(job)
            await self._finish()
        except BaseException:
            if self._writing is not None:
                await self._writing.abort()
            raise

    async def _run(self, job: Job) -> None:
        work: Any = job.work
        scope = await self._admit(is_reading=work.is_reading)
        outcome = await self._host.run_in(scope, job)
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
            self._is_marked = await self._writing.undo()
            if not self._is_marked:
                await self._begin_again()
        if change is not None:
            self._done.append((job, change, scope))

    async def _admit(self, *, is_reading: bool) -> Scope:
        if self._writing is None:
            self._writing = await self._journal.begin()
            self._is_marked = True
        is_marked, self._is_marked = self._is_marked, False
        return await self._writing.admit(is_reading=is_reading, is_marked=is_marked)

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


@final
class _Query:
    """A query's work, as the workpool calls it."""

    def __init__(self, work: TransactionWork, host: Transactions) -> None:
        self._work = work
        self._host = host
        self.name = work.name
        self.retry = work.retry
        self.is_at_most_once = work.is_at_most_once
        self.is_async = True
        self.timeout_s = work.timeout_s
        self.decode = work.decode
        self.rebuild = work.rebuild
        self.encode_result = work.encode_result

    async def call(self, args: str) -> Any:  # noqa: ANN401
        while True:
            scope: Scope | None = None
            try:
                async with self._host.reading() as opened:
                    scope = opened
                    result = await self._work.call_in(opened, args)
            except asyncio.CancelledError:
                raise
            except BaseException as exc:
                failure = scope.failure if scope is not None else _storage_error(exc)
                if failure is None:
                    raise
            else:
                failure = opened.failure
                if failure is None:
                    return result
            await self._host.wait_out(failure, scope)


def run_effects(scope: Scope) -> None:
    """Do what the commit of a scope allows."""
    for act, subject in scope.after:
        act(subject)


def _storage_error(exc: BaseException) -> JournalError | None:
    return exc if isinstance(exc, JournalError) else None


def _as_seen_by_callers(exc: BaseException) -> Exception:
    if isinstance(exc, JournalError):
        return unavailable(exc)
    error = EngineClosedError("the engine was closed; the transaction was rolled back")
    error.__cause__ = exc
    return error


def unavailable(error: JournalError) -> JournalUnavailableError:
    """Return what callers get of a failure of the journal."""
    again = JournalUnavailableError(str(error))
    again.__cause__ = error
    return again
