"""What the application's own SQL may do on a connection of the journal.

Rules:

- It is asked when a statement is prepared. A statement that is prepared already, and kept, is not
  asked about again: so what the journal itself runs must not read like what a user would write.
- A transaction is the journal's to begin and to end, and ``durable_*`` are the journal's tables.
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from collections.abc import Generator

BEGIN = "BEGIN -- durable"
BEGIN_IMMEDIATE = "BEGIN IMMEDIATE -- durable"
COMMIT = "COMMIT -- durable"
ROLLBACK = "ROLLBACK -- durable"
SAVEPOINT = "SAVEPOINT durable_part"
ROLLBACK_TO = "ROLLBACK TO durable_part"

RESERVED = "durable_"
"""What the names of the journal's own tables begin with, and no others may."""

ALLOWED, DENIED = sqlite3.SQLITE_OK, sqlite3.SQLITE_DENY

READS = frozenset(
    {
        sqlite3.SQLITE_SELECT,
        sqlite3.SQLITE_READ,
        sqlite3.SQLITE_FUNCTION,
        sqlite3.SQLITE_RECURSIVE,
    }
)
ENDS = "a transaction is ended by its scope alone, not by SQL: return to commit, raise to roll back"
ATTACHES = "a transaction cannot attach or detach databases: it is the journal's connection"
NOT_SET = "cannot be set in a transaction: it is the journal's connection"
OUTSIDE = {
    sqlite3.SQLITE_TRANSACTION: ENDS,
    sqlite3.SQLITE_SAVEPOINT: ENDS,
    sqlite3.SQLITE_ATTACH: ATTACHES,
    sqlite3.SQLITE_DETACH: ATTACHES,
}
"""What no transaction may do, and why."""
READ_PRAGMAS = frozenset(
    {
        "database_list",
        "foreign_key_check",
        "foreign_key_list",
        "index_info",
        "index_list",
        "index_xinfo",
        "table_info",
        "table_list",
        "table_xinfo",
    }
)
"""The pragmas that only tell about tables: they may be used with an argument."""
ACTING_PRAGMAS = frozenset({"incremental_vacuum", "optimize", "shrink_memory", "wal_checkpoint"})
"""Those that do something, even without an argument."""


class Mode(Enum):
    """Whose statements are prepared."""

    OWN = auto()
    """The journal's: they may do anything."""
    WRITING = auto()
    READING = auto()
    CLOSED = auto()
    """Nobody's: no transaction is open."""


class GuardedConnection(sqlite3.Connection):
    """A connection that may have a guard.

    Attributes:
        guard: Who is asked what users may do on it, if they may do anything.
    """

    guard: Guard | None = None

    def backup(self, *args: Any, **options: Any) -> None:  # noqa: ANN401  as sqlite3 has them
        if self.guard is not None and self.guard.has_lock:
            # SQLite would wait for the end of the transaction that asks for it.
            msg = (
                "a backup cannot be made in a transaction that may write, nor of a journal in "
                "memory: make it in a query, or on a connection of your own"
            )
            raise sqlite3.OperationalError(msg)
        super().backup(*args, **options)


@final
class Guard:
    """The authorizer of one connection. It is used on the connection's thread alone.

    Attributes:
        refusal: Why the latest statement was refused, if it was.
    """

    def __init__(self, db: GuardedConnection, idle: Mode) -> None:
        self._db = db
        self._idle = idle
        self._mode = idle
        self.refusal: str | None = None
        db.set_authorizer(self._judge)
        db.guard = self

    @property
    def has_lock(self) -> bool:
        """Whether users act in a transaction that SQLite takes for one that writes."""
        return self._mode is Mode.WRITING or self._idle is Mode.OWN

    @contextmanager
    def own(self) -> Generator[None]:
        """Let the journal itself act, on a connection as it is without what users have set."""
        db = self._db
        mode, self._mode = self._mode, Mode.OWN
        factories = db.row_factory, db.text_factory
        self._reset()
        try:
            yield
        finally:
            self._mode = mode
            db.row_factory, db.text_factory = factories

    def admit(self, mode: Mode) -> None:
        """Let users act from now on."""
        self._mode = mode

    def dismiss(self) -> None:
        """Let users act no more, and forget what they have set."""
        self._mode = self._idle
        self._reset()

    def _reset(self) -> None:
        self._db.row_factory = None
        self._db.text_factory = str
        self._db.set_progress_handler(None, 0)

    def _judge(
        self, action: int, first: str | None, second: str | None, _db: str | None, _by: str | None
    ) -> int:
        if self._mode is Mode.OWN:
            return ALLOWED
        self.refusal = self._objection(action, first, second)
        return ALLOWED if self.refusal is None else DENIED

    def _objection(self, action: int, first: str | None, second: str | None) -> str | None:
        if self._mode is Mode.CLOSED or not self._db.in_transaction:
            return "the transaction is over"
        if action in READS:
            return None
        if action == sqlite3.SQLITE_PRAGMA:
            is_reading = first in READ_PRAGMAS or (second is None and first not in ACTING_PRAGMAS)
            return None if is_reading else f"PRAGMA {first} {NOT_SET}"
        if action in OUTSIDE:
            return OUTSIDE[action]
        if self._mode is Mode.READING:
            return "a query only reads; write in a mutation"
        return _find_reserved(action, first, second)


def _find_reserved(action: int, first: str | None, second: str | None) -> str | None:
    # What is second, is a column for updates, and else a table.
    for name in (first, None if action == sqlite3.SQLITE_UPDATE else second):
        if name is not None and name.lower().startswith(RESERVED):
            return (
                f"{name!r} is not to be written: names with {RESERVED!r} at their beginning "
                "are the journal's own"
            )
    return None
