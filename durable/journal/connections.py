"""The connections that the application's own statements run on, and their transactions.

Rules:

- They are opened when they are first needed, and closed with the journal's own.
- There is one writing transaction at a time, and the writer of the journal is the one who has it.
  It holds the lock on writing from its beginning to its end.
- A query has a connection and a snapshot of its own, which nothing else waits for.
- A journal in memory is one connection: there, a query is a writing transaction that may not write.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol, final

from durable.core.errors import JournalCorruptError, JournalError
from durable.journal import commits, fence, writes
from durable.journal import guard as sql
from durable.journal.appconnection import AppConnection, roll_back
from durable.journal.guard import Guard, GuardedConnection, Mode
from durable.journal.handover import HandOver
from durable.journal.scopes import Scope
from durable.journal.whole import to_its_end

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    import aiosqlite

    from durable.core.records import RunRecord
    from durable.journal.base import Change
    from durable.journal.file import JournalFile
    from durable.journal.rounds import StatementRound

QUERIES_MAX = 4
"""How many queries run at once: each has a connection, and so a thread."""

CUT_AGAIN_S = 0.01
"""How often a statement is interrupted until it ends."""


class AppConnectionsHost(Protocol):
    """What the application's connections need from the journal."""

    file: JournalFile

    @property
    def epoch(self) -> int | None:
        """The owner's fencing token; ``None`` while another engine owns the journal."""
        ...

    def hold_writing(self) -> None:
        """Take the lock on writing, on a connection's thread.

        Raises:
            JournalLockedError: Another process has it for too long.
        """
        ...

    def release_writing(self) -> None:
        """Give it back."""
        ...

    async def connect_app(
        self, set_up: Callable[[GuardedConnection], Guard]
    ) -> tuple[aiosqlite.Connection, Guard]:
        """Open a connection; of a journal in memory, return the only one."""
        ...

    def translate(self, exc: sqlite3.Error) -> JournalError:
        """Return the journal's error for SQLite's."""
        ...


@final
class AppConnections:
    """The connections that the application has of one journal.

    Attributes:
        quiet: Set while no writing transaction is open.
    """

    def __init__(self, host: AppConnectionsHost) -> None:
        self._host = host
        self._writer: AppConnection | None = None
        self._all: list[AppConnection] = []
        self._idle: list[AppConnection] = []
        self._places = asyncio.Semaphore(QUERIES_MAX)
        self._turn = _WritingTurn(host)
        self.quiet = asyncio.Event()
        self.quiet.set()

    async def begin(self, owner: object, idle: Mode) -> Writing:
        """Begin the writing transaction, with its first scope.

        Raises:
            JournalError: The storage failed; OwnershipLostError: another owner has taken over.
        """
        if self._writer is None or self._writer.is_closed:
            self._writer = await to_its_end(self._open(idle))
        writing = Writing(self._writer, self._host, self._turn, self.quiet, owner)
        await writing.begin()
        return writing

    @asynccontextmanager
    async def reading(self, owner: object) -> AsyncGenerator[Scope]:
        """Read in a transaction of its own, of one moment.

        Raises:
            JournalError: The storage failed.
        """
        async with self._places:
            app = await to_its_end(self._take_reader())
            scope = Scope(app, owner, is_reading=True)
            try:
                await app.begin(_begin_reading, Mode.READING)
                yield scope
            finally:
                scope.void()
                await to_its_end(self._give_back(app))

    async def _take_reader(self) -> AppConnection:
        return self._idle.pop() if self._idle else await self._open(Mode.CLOSED)

    async def _give_back(self, app: AppConnection) -> None:
        with contextlib.suppress(JournalError):
            await app.end(_nothing, _no_more)
            self._idle.append(app)

    async def _open(self, idle: Mode) -> AppConnection:
        connection, guard = await self._host.connect_app(lambda db: _set_up(db, idle))
        app = AppConnection(connection, guard, self._host.translate)
        self._all.append(app)
        return app

    def let_go(self) -> None:
        """The connections are closed: no transaction is open any more."""
        self._turn.end()

    def take_connections(self) -> list[aiosqlite.Connection]:
        """Forget all connections, and return them to be closed."""
        taken = [app.connection for app in self._all]
        self._writer = None
        self._all.clear()
        self._idle.clear()
        self.quiet.set()
        return taken


@final
class _WritingTurn:
    """The lock on writing, as the writing transaction has it: given back once, by any thread."""

    def __init__(self, host: AppConnectionsHost) -> None:
        self._host = host
        self._mutex = threading.Lock()
        self._is_held = False

    def begin(self) -> None:
        self._host.hold_writing()
        self._is_held = True

    def end(self) -> None:
        with self._mutex:
            is_held, self._is_held = self._is_held, False
        if is_held:
            self._host.release_writing()


@final
class Writing:
    """The writing transaction that is open.

    Attributes:
        scope: The part of it that is open now.
    """

    def __init__(
        self,
        app: AppConnection,
        host: AppConnectionsHost,
        turn: _WritingTurn,
        quiet: asyncio.Event,
        owner: object,
    ) -> None:
        self._app = app
        self._host = host
        self._turn = turn
        self._quiet = quiet
        self._owner = owner
        self.scope = Scope(app, owner, is_reading=False)
        # Whether the last savepoint is nobody's yet. Of the connection's thread alone.
        self._has_mark = False
        # Of the changes that are written while others are made: how many, what is taken, the
        # failure, and what has to be kept.
        self._written_count = 0
        self._taken: dict[str, RunRecord] = {}
        self._failure: BaseException | None = None
        self._posted: list[object] = []

    async def begin(self) -> None:
        """Begin it."""

        def begin(db: sqlite3.Connection) -> None:
            self._host.file.check()
            self._turn.begin()
            try:
                epoch = self._host.epoch
                db.execute(sql.BEGIN_IMMEDIATE)
                if epoch is not None:
                    fence.check_fence(db, epoch)
                db.execute(sql.SAVEPOINT)
                self._has_mark = True
            except BaseException:
                roll_back(db)
                self._turn.end()
                raise

        self._quiet.clear()
        try:
            await self._app.begin(begin, Mode.WRITING)
        except BaseException:
            await self.abort()
            raise

    def admit(self, *, is_reading: bool) -> Scope:
        """Open the next part; the one before is done, or was undone.

        Its savepoint is made with its first statement: each call into the connection's thread costs
        more than a statement.
        """

        def mark(db: sqlite3.Connection, guard: Guard) -> None:
            if not self._has_mark:
                with guard.own():
                    db.execute(sql.SAVEPOINT)
            self._has_mark = False
            guard.admit(Mode.READING if is_reading else Mode.WRITING)

        self.scope = Scope(self._app, self._owner, is_reading=is_reading, opening=mark)
        return self.scope

    async def do_round(self, statements: StatementRound, s_max: float) -> bool:
        """Do the statements of a round; whether none has failed, nor was cut short after so long.

        Raises:
            JournalError: The storage failed.
        """

        def do(db: sqlite3.Connection, guard: Guard) -> None:
            self._has_mark = False  # What is undone later, does not reach back so far.
            guard.admit(Mode.WRITING)
            statements.do_all(db, guard)

        work = asyncio.ensure_future(self._app.run(do))
        try:
            await asyncio.wait({work}, timeout=s_max)
        finally:
            if not work.done():
                await to_its_end(self._cut_short(statements, work))
        try:
            work.result()
        except JournalCorruptError:
            return False  # Of the application's own table: its own doing.
        except JournalError:
            raise
        except Exception:  # noqa: BLE001  what is bound to a statement may raise anything
            return False
        return True

    async def _cut_short(self, statements: StatementRound, work: asyncio.Future[None]) -> None:
        """End a round that takes too long, or that nobody wants."""
        statements.stop()
        while not work.done():
            self._app.interrupt()  # It may have come between two statements.
            await asyncio.wait({work}, timeout=CUT_AGAIN_S)
        if not work.cancelled():
            work.exception()  # Nobody else asks.

    async def undo(self) -> bool:
        """Undo what was written in the part that is open; whether the rest is still there."""

        scope = self.scope

        def undo(db: sqlite3.Connection) -> bool:
            if db.in_transaction and scope.has_begun:  # Else the savepoint is the one before's.
                db.execute(sql.ROLLBACK_TO)
                self._has_mark = True
            return db.in_transaction

        self.scope.void()
        return await self._app.run_own(undo)

    def write(self, changes: Sequence[Change]) -> None:
        """Have the first of the journal's changes written, while the others are made.

        What goes wrong with them, the commit raises.

        Raises:
            JournalError: The connection was closed.
        """
        epoch = self._host.epoch
        rows = writes.rows_of(changes, epoch)
        hand_over = HandOver()

        def write(db: sqlite3.Connection, guard: Guard) -> None:
            hand_over.note_begun()
            guard.dismiss()  # No scope is open any more.
            if self._failure is not None:
                return
            try:
                with guard.own():
                    self._taken |= writes.commit(db, changes, rows, epoch)
            except BaseException as exc:  # noqa: BLE001  the commit raises it
                self._failure = exc

        self._written_count += len(changes)
        self._posted.append(self._app.post(write))
        hand_over.wait()

    async def commit(self, changes: Sequence[Change]) -> dict[str, RunRecord]:
        """Write the rest of the journal's ``changes``, and commit all; return whose ids are taken.

        Raises:
            JournalError: The outcome is unknown.
        """
        epoch = self._host.epoch
        rest = changes[self._written_count :]
        rows = writes.rows_of(rest, epoch) if rest else None
        hand_over = HandOver()

        def commit(db: sqlite3.Connection) -> dict[str, RunRecord]:
            self._host.file.check()
            hand_over.note_begun()
            if self._failure is not None:
                raise self._failure
            if rows is not None:
                self._taken |= writes.commit(db, rest, rows, epoch)
            db.execute(sql.COMMIT)
            return self._taken

        hand_over.wait_soon()
        try:
            return await self._app.end(commit, self._turn.end)
        finally:
            self._quiet.set()

    async def abort(self) -> None:
        """Roll all back. Never raises: what is not committed, is not there."""
        self.scope.void()
        try:
            with contextlib.suppress(JournalError):
                await self._app.end(_nothing, self._turn.end)
        finally:
            self._quiet.set()


def _set_up(db: GuardedConnection, idle: Mode) -> Guard:
    # What the commit of a batch would fail by, is to fail its statement.
    db.execute("PRAGMA foreign_keys = OFF")
    if idle is Mode.CLOSED:
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA temp_store = MEMORY")
        commits.prepare_commits(db)
    return Guard(db, idle)


def _begin_reading(db: sqlite3.Connection) -> None:
    db.execute(sql.BEGIN)
    db.execute("SELECT 1 FROM durable_owner").fetchone()  # The snapshot is that of the first read.


def _nothing(_db: sqlite3.Connection) -> None:
    pass


def _no_more() -> None:
    pass
