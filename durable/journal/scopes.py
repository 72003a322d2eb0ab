"""Transactions whose statements come one by one, from the application's own code.

Rules:

- The journal begins and ends them. A *scope* is one caller's part in between: a mutation, a query,
  or the whole of ``engine.transaction()``. Nothing is done for a scope that is closed.
- Statements run on the connection's thread in the order in which they were asked for. A caller who
  is cancelled does not know whether the last one was done; the end of the scope comes after it.
- A failing storage fails the transaction, whatever the caller makes of the error. So does a
  statement that ended the transaction, such as ``INSERT OR ROLLBACK``.
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, final

from durable.core.errors import (
    JournalCorruptError,
    JournalError,
    TransactionError,
)
from durable.core.row import Row, places_of
from durable.journal import writes
from durable.journal.guard import Guard

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence

    import aiosqlite

    from durable.core.records import RunRecord
    from durable.journal.base import Change

T = TypeVar("T")

Params: TypeAlias = "Sequence[Any] | Mapping[str, Any]"
"""The values of a statement, by place or by name."""

Opening: TypeAlias = "Callable[[sqlite3.Connection, Guard], None]"

OWN_SCOPE: ContextVar[Scope | None] = ContextVar("durable_scope", default=None)
"""The writing transaction that the running code is in, if it is open: the commit of anything else
waits for its end."""


def refuse_in_transaction(journal: object) -> None:
    """Raise ``TransactionError`` where that journal's transaction would wait for itself."""
    scope = OWN_SCOPE.get()
    if scope is not None and scope.is_open_in(journal):
        scope.refuse_waiting()


class ScopeConnection(Protocol):
    """What a scope's statements run on."""

    @property
    def connection(self) -> aiosqlite.Connection:
        """The driver's own connection."""
        ...

    @property
    def is_closed(self) -> bool:
        """Whether it cannot be used any more."""
        ...

    def run(self, work: Callable[[sqlite3.Connection, Guard], T]) -> Awaitable[T]:
        """Run ``work`` whole on the connection's thread."""
        ...

    def post(self, work: Callable[[sqlite3.Connection, Guard], object]) -> object:
        """Run ``work`` before what is asked for later; return what has to be kept until then."""
        ...

    def interrupt(self) -> None:
        """Have the statement fail that runs now."""
        ...


@final
class Scope:
    """One caller's part in a transaction.

    Attributes:
        is_reading: Whether it can only read.
        failure: How the storage failed; nothing of the transaction counts then.
        is_lost: A statement has ended the transaction; nothing of it counts either.
        after: What is to be called once the transaction is committed.
        task: Whose it is, if that is one task's.

    Args:
        opening: What is done on the connection's thread before its first statement, if it has one.
    """

    def __init__(
        self,
        app: ScopeConnection,
        owner: object,
        *,
        is_reading: bool,
        opening: Opening | None = None,
    ) -> None:
        self._app = app
        self._owner = owner
        self._opening = opening
        self._posted: object = None
        self._end: str | None = None
        self._is_void = self._is_shared = False
        self._asked_count = self._done_count = 0
        self.is_reading = is_reading
        self.failure: JournalError | None = None
        self.is_lost = False
        self.after: list[tuple[Callable[[Any], None], Any]] = []
        self.task: asyncio.Task[Any] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether one statement, at most, is all that was asked for in it, by its own task."""
        return self._asked_count <= 1 and not self._is_shared

    @property
    def is_cut_off(self) -> bool:
        """Whether its connection was closed."""
        return self._app.is_closed

    # --- for its caller --------------------------------------------------------------------------

    @property
    def connection(self) -> aiosqlite.Connection:
        """The driver's own connection, which shows only what the scope may do."""
        self.check_open()
        self._is_shared = True
        if self._opening is not None and self._posted is None:
            self._posted = self._app.post(self._open)
        return self._app.connection

    @property
    def is_open(self) -> bool:
        """Whether it is not over."""
        return self._end is None

    def check_open(self) -> None:
        """Raise ``TransactionError`` when it is over."""
        if self._end is not None:
            raise TransactionError(self._end)

    def refuse_waiting(self) -> None:
        """Raise ``TransactionError`` while it is open: what is asked would wait for its end."""
        if self._end is None:
            raise TransactionError(WAITS_FOR_ITSELF)

    def is_open_in(self, journal: object) -> bool:
        """Whether it is a part of that journal's transaction, and not over."""
        return self._end is None and self._owner is journal

    def execute(self, statement: str, params: Params) -> Coroutine[Any, Any, int]:
        """Return how many rows a statement has changed."""
        return self._ask(_execute, statement, params)

    def execute_many(self, statement: str, params: Iterable[Params]) -> Coroutine[Any, Any, int]:
        """Run a statement once for each of ``params``; return how many rows were changed."""
        rows = list(params)  # Here, not in the connection's thread: it is the caller's.
        return self._ask(_execute_many, statement, rows)

    def fetch(
        self, statement: str, params: Params, limit: int | None
    ) -> Coroutine[Any, Any, list[Row]]:
        """Return the rows of a statement, the first ones up to ``limit``."""
        return self._ask(_fetch, statement, params, limit)

    async def write(self, change: Change, epoch: int | None) -> RunRecord | None:
        """Write a change of the journal as a part of the transaction; return who has the id."""

        def write(db: sqlite3.Connection) -> RunRecord | None:
            rows = writes.rows_of([change], epoch)
            return writes.commit(db, [change], rows, epoch).get(change.run_id)

        return await self.as_journal(write)

    async def as_journal(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do what the application's own statements may not, on its connection: use the journal's
        tables, as the transaction sees them."""

        return await self._ask(_own, work)

    async def _ask(self, work: Callable[..., T], *args: Any) -> T:  # noqa: ANN401
        """Have ``work`` done on the connection's thread, given that, its guard, and ``args``."""
        self.check_open()
        self._asked_count += 1
        if self.task is not None and self.task is not asyncio.current_task():
            self._is_shared = True
        try:
            return await self._app.run(_Asked(self, work, args))
        except JournalCorruptError:
            raise  # Opening the journal again would not mend the application's table.
        except JournalError as exc:
            self.failure = self.failure or exc
            raise

    def do(
        self,
        work: Callable[..., T],
        args: tuple[Any, ...],
        db: sqlite3.Connection,
        guard: Guard,
    ) -> T:
        """Do what was asked, on the connection's thread."""
        guard.refusal = None
        try:
            self._check_void()
            if not db.in_transaction:
                raise TransactionError(LOST)
            if self._opening is not None:
                self._open(db, guard)
            return work(db, guard, *args)
        except sqlite3.Error as exc:
            self._check_void()  # It was interrupted, then.
            if guard.refusal is not None and isinstance(exc, sqlite3.DatabaseError):
                raise TransactionError(guard.refusal) from exc
            raise
        finally:
            self.is_lost = self.is_lost or not db.in_transaction
            self._done_count += 1

    @property
    def has_begun(self) -> bool:
        """Whether anything was done in it. Of the connection's thread alone."""
        return self._opening is None

    def _open(self, db: sqlite3.Connection, guard: Guard) -> None:
        opening, self._opening = self._opening, None
        if opening is not None:
            opening(db, guard)

    def _check_void(self) -> None:
        if self._is_void:
            raise TransactionError(self._end or CLOSED)

    # --- for who has opened it -------------------------------------------------------------------

    def close(self, why: str | None = None) -> None:
        """Do no more for its caller."""
        self._end = self._end or why or CLOSED

    async def settle(self, timeout_s: float) -> bool:
        """Wait for statements that their callers do not wait for any more, for so long.

        Returns:
            Whether all have ended.
        """
        if self._done_count == self._asked_count:
            return True
        last = asyncio.ensure_future(self._app.run(_nothing))  # In line behind them.
        last.add_done_callback(_forget)
        await asyncio.wait({last}, timeout=max(timeout_s, 0.0))
        return last.done()

    def void(self) -> None:
        """Cut short what still runs of it: it is to be undone."""
        self.close()
        self._is_void = True
        if self._done_count < self._asked_count:
            self._app.interrupt()


@final
class _Asked:
    """Something that a scope asks for, to be called on the connection's thread."""

    __slots__ = ("_args", "_scope", "_work")

    def __init__(self, scope: Scope, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._scope = scope
        self._work = work
        self._args = args

    def __call__(self, db: sqlite3.Connection, guard: Guard) -> Any:  # noqa: ANN401
        return self._scope.do(self._work, self._args, db, guard)


CLOSED = (
    "the transaction is over: use `tx` only inside of the `async with`, the query or the mutation "
    "that it belongs to"
)
WAITS_FOR_ITSELF = (
    "this call would wait for the end of the transaction that it is made in: make it after the "
    "transaction, or give it `tx=` where it takes one"
)
LOST = (
    "the transaction was rolled back by a statement of its own (INSERT OR ROLLBACK, or "
    "RAISE(ROLLBACK) in a trigger): use ABORT instead, and raise to roll back"
)


def _nothing(_db: sqlite3.Connection, _guard: Guard) -> None:
    pass


def _forget(ended: asyncio.Future[None]) -> None:
    if not ended.cancelled():
        ended.exception()  # What has failed, has failed elsewhere.


def _own(db: sqlite3.Connection, guard: Guard, work: Callable[[sqlite3.Connection], T]) -> T:
    with guard.own():
        return work(db)


def _execute(db: sqlite3.Connection, _guard: Guard, statement: str, params: Params) -> int:
    return _changed(db.execute(statement, params))


def _execute_many(db: sqlite3.Connection, _guard: Guard, statement: str, rows: list[Params]) -> int:
    return _changed(db.executemany(statement, rows))


def _fetch(
    db: sqlite3.Connection, _guard: Guard, statement: str, params: Params, limit: int | None
) -> list[Row]:
    cursor = db.execute(statement, params)
    cursor.row_factory = None  # Whatever the application has set.
    places = places_of([column[0] for column in cursor.description or ()])
    found = cursor.fetchall() if limit is None else cursor.fetchmany(limit)
    cursor.close()
    return [Row(places, values) for values in found]


def _changed(cursor: sqlite3.Cursor) -> int:
    cursor.row_factory = None
    cursor.fetchall()  # With RETURNING, only the last row makes it whole.
    return max(cursor.rowcount, 0)
