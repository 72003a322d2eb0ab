"""Mutations, queries, and the transactions of callers: their turns between the commits.

Rules:

- Mutations and callers' transactions are run by the writer, between its commits: nothing else is
  committed meanwhile, so both are bounded in time.
- A query is an attempt like an action's, without a slot, in a transaction of its own. When the
  storage fails under it, it is run again once the journal is back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol, final

from durable.core.errors import (
    EngineClosedError,
    JournalError,
    JournalUnavailableError,
    TransactionError,
)
from durable.journal.scopes import LOST, OWN_SCOPE
from durable.runtime.job import (
    JOB_QUEUED,
    JOB_RESERVED,
    ActionWork,
)
from durable.runtime.mutations import Mutations
from durable.runtime.writer import Joining

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractAsyncContextManager

    from durable.journal.base import Journal
    from durable.journal.connections import Writing
    from durable.journal.scopes import Scope
    from durable.runtime.job import Job
    from durable.runtime.pump import Pump
    from durable.runtime.workpool import Workpool
    from durable.runtime.writer import Writer


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
    """Who writes between the commits of one engine's writer."""

    def __init__(self, journal: Journal, writer: Writer, pool: Workpool, pump: Pump) -> None:
        self._journal = journal
        self._writer = writer
        self._pool = pool
        self._pump = pump
        self.mutations = Mutations(journal, self)
        self._turns: deque[_Turn] = deque()
        self._held: Scope | None = None
        self._restored = asyncio.Event()
        self._restored.set()
        self.is_paused = False
        writer.others = self

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
            self.mutations.add(job)
            self._writer.wake()

    def refuse_inside(self) -> None:
        """Raise ``TransactionError`` in code whose transaction would wait for what it asks."""
        scope = OWN_SCOPE.get()
        if scope is not None and self._is_own(scope):
            scope.refuse_waiting()

    def check_own(self, scope: Scope) -> None:
        """Raise ``TransactionError`` unless a scope is the one that this engine has open."""
        scope.check_open()
        if scope.is_reading or not self._is_own(scope):
            why = "only reads" if scope.is_reading else "is another engine's"
            msg = f"this `tx` {why}: nothing of this engine can be written in it"
            raise TransactionError(msg)

    def _is_own(self, scope: Scope) -> bool:
        return scope is self._held or scope in self.mutations.calls.scopes

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
        return bool(self.mutations or self._turns)

    async def take_turn(self) -> None:
        if self.mutations:
            await self.mutations.take_turn()
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
            self._held = None

    async def _grant(self, turn: _Turn, writing: Writing) -> None:
        scope = self._held = writing.scope
        loop = asyncio.get_running_loop()
        until_s = loop.time() + turn.timeout_s
        if not turn.granted.done():
            turn.granted.set_result(scope)
            await asyncio.wait({turn.ended}, timeout=turn.timeout_s)
        is_in_time = turn.ended.done()
        if is_in_time and _is_wanted(turn, scope):
            scope.close()
            is_in_time = await scope.settle(until_s - loop.time())
        if not is_in_time:
            late = (
                f"the transaction took longer than {turn.timeout_s:g} s and was rolled back: "
                "nothing else is committed meanwhile. Do less in it, or give "
                "engine.transaction(timeout=)"
            )
            scope.close(late)
            await writing.abort()
            turn.fail(TransactionError(late))
        elif not _is_wanted(turn, scope):
            await writing.abort()
            if scope.failure is not None:
                raise scope.failure
            turn.fail(TransactionError(LOST))  # Who has raised does not look.
        else:
            joining = self.join(writing)
            await joining.commit(joining.take(), scope.after)
            turn.done.set_result(None)

    # --- for the mutations -----------------------------------------------------------------------

    @property
    def is_alone(self) -> bool:
        return not self._turns and not self._writer.is_claim_asked

    @property
    def are_bodies_settled(self) -> bool:
        return self._pump.is_idle

    @property
    def pending_count(self) -> int:
        return self._writer.pending_count

    def join(self, writing: Writing) -> Joining:
        return Joining(self._writer, self._journal, writing)

    # --- outages and the end ---------------------------------------------------------------------

    def on_outage(self, error: JournalError) -> None:
        """The journal has failed: what waited is void."""
        self._restored.clear()
        self.mutations.clear()
        self._fail_turns(lambda: unavailable(error))

    def on_restored(self) -> None:
        """The journal is there again."""
        self._restored.set()

    def fail_all(self, make_error: Callable[[], Exception]) -> None:
        """The engine is closed."""
        self.mutations.clear()
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
class _Query:
    """A query's work, as the workpool calls it."""

    def __init__(self, work: TransactionWork, host: Transactions) -> None:
        self._work = work
        self._host = host
        self.name = work.name
        self.retry = work.retry
        self.is_owed = work.is_owed
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


def _is_wanted(turn: _Turn, scope: Scope) -> bool:
    """Whether a transaction that has come to its end is to be committed."""
    is_wanted = not turn.ended.cancelled() and turn.ended.result()
    return is_wanted and not scope.is_lost and scope.failure is None


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
