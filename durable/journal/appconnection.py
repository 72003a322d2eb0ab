"""A connection that the application's own statements run on.

Rules:

- What belongs together is one function that runs whole on the connection's thread.
- A failure of the storage is told from a statement that is wrong: it is nobody's fault here.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, TypeVar, final

from durable.core.errors import JournalError, JournalUnavailableError
from durable.journal import guard as sql

if TYPE_CHECKING:
    from collections.abc import Callable

    import aiosqlite

    from durable.journal.guard import Guard, Mode

T = TypeVar("T")

STORAGE_ERRORS = (
    "SQLITE_IOERR",
    "SQLITE_FULL",
    "SQLITE_NOMEM",
    "SQLITE_BUSY",
    "SQLITE_CANTOPEN",
    "SQLITE_PROTOCOL",
    "SQLITE_NOTADB",
)
"""How the codes begin of what is not the statement's fault, and may be over by itself."""

DAMAGED = "SQLITE_CORRUPT"


@final
class AppConnection:
    """A connection that the application's own statements run on."""

    def __init__(
        self,
        connection: aiosqlite.Connection,
        guard: Guard,
        translate: Callable[[sqlite3.Error], JournalError],
    ) -> None:
        self._connection = connection
        self._guard = guard
        self._translate = translate

    @property
    def connection(self) -> aiosqlite.Connection:
        return self._connection

    @property
    def _raw(self) -> sqlite3.Connection:
        raw: sqlite3.Connection = self._connection._conn  # noqa: SLF001
        return raw

    async def run(self, work: Callable[[sqlite3.Connection, Guard], T]) -> T:
        """See ``ScopeConnection``.

        Raises:
            JournalError: The storage failed, or the connection was closed.
            sqlite3.Error: The statement is wrong, or breaks a constraint.
        """
        self._check_open()
        guard = self._guard
        try:
            # aiosqlite offers statements only; what belongs together is one call.
            return await self._connection._execute(work, self._raw, guard)  # type: ignore[no-any-return, no-untyped-call]  # noqa: SLF001  pyright: ignore
        except sqlite3.Error as exc:
            self._check_open()
            if getattr(exc, "sqlite_errorname", "").startswith((*STORAGE_ERRORS, DAMAGED)):
                raise self._translate(exc) from exc
            raise

    def post(self, work: Callable[[sqlite3.Connection, Guard], object]) -> object:
        self._check_open()
        asked = self._connection._execute(work, self._raw, self._guard)  # type: ignore[no-untyped-call]  # noqa: SLF001  pyright: ignore
        asked.send(None)  # So far that it is in line.
        return asked

    async def run_own(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run what is the journal's own: all of its errors are storage errors."""

        def own(db: sqlite3.Connection, guard: Guard) -> T:
            with guard.own():
                return work(db)

        try:
            return await self.run(own)
        except sqlite3.Error as exc:
            raise self._translate(exc) from exc

    async def begin(self, work: Callable[[sqlite3.Connection], None], mode: Mode) -> None:
        """Begin a transaction by ``work``, and let users act in it."""

        def begin(db: sqlite3.Connection, guard: Guard) -> None:
            with guard.own():
                work(db)
            guard.admit(mode)

        try:
            await self.run(begin)
        except sqlite3.Error as exc:
            raise self._translate(exc) from exc

    async def end(self, work: Callable[[sqlite3.Connection], T], then: Callable[[], None]) -> T:
        """Let users act no more, end the transaction by ``work``, or roll it back, and ``then``."""

        def end(db: sqlite3.Connection, guard: Guard) -> T:
            guard.dismiss()
            with guard.own():
                try:
                    return work(db)
                finally:
                    try:
                        roll_back(db)
                    finally:
                        then()

        try:
            return await self.run(end)
        except sqlite3.Error as exc:
            raise self._translate(exc) from exc

    def interrupt(self) -> None:
        if not self.is_closed:
            self._raw.interrupt()

    @property
    def is_closed(self) -> bool:
        return not self._connection._running or self._connection._connection is None  # noqa: SLF001

    def _check_open(self) -> None:
        if self.is_closed:
            msg = "the journal's connection was closed: it failed, or its engine was closed"
            raise JournalUnavailableError(msg)


def roll_back(db: sqlite3.Connection) -> None:
    """End the transaction that is open, if one is."""
    if db.in_transaction:
        db.execute(sql.ROLLBACK)
