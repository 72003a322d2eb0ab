"""The journal in SQLite, through aiosqlite: one connection that writes, one that reads.

Rules:

- WAL and ``synchronous=FULL``, set explicitly: anything less loses acknowledged commits in a power
  cut. Source: sqlite.org/pragma.html#pragma_synchronous, sqlite.org/wal.html.
- A transaction is one plain function that runs whole on the connection's thread. Cancelling its
  caller does not split it.
- Whoever writes holds the lock on writing: see ``writelock``. One of those that have the file open
  is the owner; the others are *guests*: what they write is not fenced, and is for the owner to do.
- After a failed commit the connection is not trusted any more: ``reopen`` makes a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, final

import aiosqlite
import anyio.to_thread

from durable.core.errors import JournalError, JournalUnavailableError
from durable.core.versions import VersionTable
from durable.journal import claims, commits, fence, reads, writes
from durable.journal import guard as sql
from durable.journal.connections import AppConnections
from durable.journal.file import JournalFile
from durable.journal.guard import Guard, GuardedConnection, Mode
from durable.journal.handover import HandOver
from durable.journal.locks import Alone, FileLocks, Locks
from durable.journal.rounds import StatementRound
from durable.journal.schema import damage, is_journal, make_tables, read_journal_id
from durable.journal.scopes import refuse_in_transaction
from durable.journal.versions import enter_versions
from durable.journal.whole import to_its_end

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from durable.core.histories import RecordedRun
    from durable.core.records import EventRecord, RunRecord, StepRecord
    from durable.journal.base import Change, Claim, RunQuery, RunTree, StepQuery
    from durable.journal.connections import Writing
    from durable.journal.scopes import Scope

T = TypeVar("T")

BUSY_TIMEOUT_S = 10
"""How long a statement waits for another connection's lock, such as a backup's."""

STATEMENTS_CACHED = 256
"""Prepared statements kept by a connection: more than there are."""


@final
class SqliteJournal:
    """A journal in an SQLite file, or in memory when ``path`` is ``None``.

    Args:
        is_worker: Whether it may become the owner; otherwise it stays a guest.

    Attributes:
        file: Where it is.
    """

    def __init__(self, path: Path | None, *, is_worker: bool = True) -> None:
        self.file = JournalFile(path)
        self._locks: Locks = Alone()
        self._is_worker = is_worker
        self._is_owner = False
        self._writer: aiosqlite.Connection | None = None
        self._reader: aiosqlite.Connection | None = None
        self._apps = AppConnections(self)
        # Whoever becomes the owner, or ends a dead one's ownership, is alone with the lock.
        self._owning = asyncio.Lock()
        self._epoch = 0
        self._journal_id: str | None = None
        self._versions = VersionTable()

    def __repr__(self) -> str:
        return f"<SqliteJournal {self.file.path or 'in memory'} epoch={self._epoch}>"

    @property
    def path(self) -> Path | None:
        """The database file."""
        return self.file.path

    @property
    def is_owner(self) -> bool:
        return self._is_owner

    @property
    def epoch(self) -> int | None:
        """The fencing token of what is written; a guest has none."""
        return self._epoch if self._is_owner else None

    @property
    def versions(self) -> VersionTable:
        return self._versions

    # --- life ------------------------------------------------------------------------------------

    async def open(self) -> None:
        try:
            await self.file.fix()
            if self.path is not None:
                self._locks = await anyio.to_thread.run_sync(self._take_locks, self.path)
            await self._connect()
        except BaseException:
            await self.close()
            raise

    def _take_locks(self, path: Path) -> Locks:
        locks = FileLocks(path.resolve(), BUSY_TIMEOUT_S, is_worker=self._is_worker)
        try:
            locks.take()
        except BaseException:
            locks.close()
            raise
        return locks

    async def sync_nothing(self) -> None:
        """Let a power cut lose what is committed: for tests, which have none."""
        await self._call(self._writer, _sync_nothing)

    async def take_over(self) -> bool:
        return self._is_worker and await to_its_end(self._take_over())

    async def _take_over(self) -> bool:
        async with self._owning:
            if self._is_owner or not self._locks.owns:
                return False
            await self._become_what_is_due()
            return self._is_owner

    async def _become_what_is_due(self) -> None:
        """Be the owner, if the lock is held, else a guest."""
        self._is_owner = await self._write(self._set_up)
        if self._is_owner:
            await anyio.to_thread.run_sync(self._locks.settle_in)

    def watch(self, tell: Callable[[], None]) -> None:
        self._locks.watch(tell)

    async def release_dead_claims(self) -> bool:
        # A worker takes over, as soon as it hears of the owner's death.
        return not self._is_worker and await to_its_end(self._release_dead_claims())

    async def _release_dead_claims(self) -> bool:
        async with self._owning:
            if not await anyio.to_thread.run_sync(self._locks.try_own):
                return False
            try:
                await self._write(fence.end_ownership)
            finally:
                self._locks.disown()
            return True

    async def reopen(self) -> None:
        # Whole: a connection that is cut off while it is opened or closed is lost, and keeps its
        # thread, and so the interpreter, alive. The engine cancels a reopening when it is closed.
        await to_its_end(self._reopen())

    async def _reopen(self) -> None:
        if self.path is None:
            # A journal in memory is its connection.
            assert self._writer is not None
            await self._call(self._writer, _roll_back)
            await self._become_what_is_due()
            return
        async with self._owning:
            await self._disconnect()
            await self.file.check_is_there()
            await self._connect()

    async def close(self) -> None:
        await anyio.to_thread.run_sync(self._locks.stop_watching)
        await self._disconnect()
        self._is_owner = False
        await anyio.to_thread.run_sync(self._locks.close)

    async def _connect(self) -> None:
        self._writer = await self._open_connection()
        await self._call(self._writer, self._locked(self._prepare_writer))
        await self._become_what_is_due()
        await self._call(self._writer, commits.prepare_commits)
        if self.path is None:
            self._reader = self._writer
        else:
            await self.file.note_opened()
            self._reader = await self._open_connection()
            await self._call(self._reader, _set_up_reader)

    async def _open_connection(self) -> aiosqlite.Connection:
        connection = aiosqlite.connect(
            ":memory:" if self.path is None else self.path,
            isolation_level=None,
            timeout=BUSY_TIMEOUT_S,
            cached_statements=STATEMENTS_CACHED,
            factory=GuardedConnection,
        )
        # An engine that is never closed must not keep the interpreter from ending.
        connection._thread.daemon = True  # noqa: SLF001
        try:
            await connection
        except sqlite3.Error as exc:
            raise self.translate(exc) from exc
        return connection

    async def _disconnect(self) -> None:
        # In memory they are one.
        connections = dict.fromkeys((self._reader, self._writer, *self._apps.take_connections()))
        self._reader = self._writer = None
        for connection in filter(None, connections):
            with contextlib.suppress(sqlite3.Error):
                await connection.close()
        self._apps.let_go()

    def _prepare_writer(self, db: sqlite3.Connection) -> None:
        # Before the first write: a file that is no journal of ours stays as it is.
        has_tables = is_journal(db, str(self.file))
        is_other = not has_tables or read_journal_id(db) not in (None, self._journal_id)
        if self._journal_id is not None and is_other:
            msg = (
                f"{self.file} is not the one that was opened: its file was replaced. Put that "
                "back, or restart with this one."
            )
            raise JournalUnavailableError(msg)
        _set_up_writer(db)

    def _set_up(self, db: sqlite3.Connection) -> bool:
        """Make the tables, if there are none, and become the owner, if the lock is held."""
        if not is_journal(db, str(self.file)):
            make_tables(db)
        self._journal_id = read_journal_id(db)
        if not self._locks.owns:
            return False
        self._epoch = fence.new_epoch(db, self._epoch)
        db.execute(fence.RELEASE_CLAIMS)
        db.execute(fence.RETRY_STUCK)
        self._versions = enter_versions(db)
        return True

    # --- the contract ----------------------------------------------------------------------------

    async def commit(self, changes: Sequence[Change]) -> dict[str, RunRecord]:
        hand_over = HandOver()
        locks = self._locks
        self._check_connected(self._writer)
        epoch = self.epoch
        # Here, where the changes were made: another thread's processor would have to fetch them,
        # and the interpreter lock lets only one of both go on anyway.
        rows = writes.rows_of(changes, epoch)

        def work(db: sqlite3.Connection) -> dict[str, RunRecord]:
            self.file.check()
            locks.hold()
            try:
                hand_over.note_begun()
                return writes.commit(db, changes, rows, epoch)
            finally:
                locks.release()

        hand_over.wait_soon()
        return await self._call(self._writer, work)

    async def claim(self, now_ms: int, limit: int) -> Claim:
        def work(db: sqlite3.Connection) -> Claim:
            fence.check_fence(db, self._epoch)
            return claims.claim_due(db, now_ms, limit, self._epoch)

        return await self._write(work)

    async def load_run(self, run_id: str) -> RunRecord | None:
        return await self._read(partial(reads.read_run, run_id=run_id))

    async def load_tree(self, run_id: str) -> RunTree | None:
        return await self._read(partial(reads.read_tree, run_id=run_id))

    async def load_history(self, run_id: str) -> tuple[RunRecord, list[StepRecord]] | None:
        return await self._read(partial(reads.read_history, run_id=run_id))

    async def load_recorded(self, run_id: str) -> RecordedRun | None:
        return await self._read(partial(reads.read_recorded, run_id=run_id))

    async def load_status(self, run_id: str) -> tuple[RunRecord, list[StepRecord]] | None:
        return await self._read(partial(reads.read_status, run_id=run_id))

    async def load_statuses(
        self, run_ids: list[str]
    ) -> dict[str, tuple[RunRecord, list[StepRecord]] | JournalError]:
        return await self._read(partial(reads.read_statuses, run_ids=run_ids))

    async def is_asked(self, run_id: str, number: int) -> bool:
        return await self._read(partial(reads.read_asked, run_id=run_id, number=number))

    async def load_event(self, event_id: str) -> EventRecord | None:
        return await self._read(partial(reads.read_event, event_id=event_id))

    async def find_over(self, run_ids: list[str]) -> list[str]:
        return await self._read(partial(reads.read_over, run_ids=run_ids))

    async def next_wake_at_ms(self) -> int | None:
        def read(db: sqlite3.Connection) -> int | None:
            fence.check_fence(db, self._epoch)
            return reads.read_next_wake(db)

        return await self._read(read)

    async def list_finished(self, before_ms: int, limit: int) -> list[str]:
        return await self._read(partial(reads.read_finished, before_ms=before_ms, limit=limit))

    async def list_runs(self, query: RunQuery) -> list[tuple[int, RunRecord, list[StepRecord]]]:
        return await self._read(partial(reads.read_runs, query=query))

    async def list_steps(self, query: StepQuery) -> list[StepRecord] | None:
        return await self._read(partial(reads.read_steps, query=query))

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        while self.path is None and not self._apps.quiet.is_set():
            refuse_in_transaction(self)
            await self._apps.quiet.wait()
        return await self._call(self._reader, partial(_snapshot, work=work))

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await self._call(self._writer, self._locked(partial(_transact, work=work)))

    def _locked(self, work: Callable[[sqlite3.Connection], T]) -> Callable[[sqlite3.Connection], T]:
        """Return what does ``work`` while nobody else writes."""
        locks = self._locks

        def locked(db: sqlite3.Connection) -> T:
            locks.hold()
            try:
                return work(db)
            finally:
                locks.release()

        return locked

    # --- the application's own statements --------------------------------------------------------

    @property
    def is_one_connection(self) -> bool:
        return self.path is None

    async def begin(self) -> Writing:
        self._check_connected(self._writer)
        return await self._apps.begin(self, Mode.OWN if self.path is None else Mode.CLOSED)

    def new_round(self) -> StatementRound:
        return StatementRound(self)

    async def commit_writing(
        self, writing: Writing, changes: Sequence[Change]
    ) -> dict[str, RunRecord]:
        return await writing.commit(changes)

    async def write_within(self, scope: Scope, change: Change) -> RunRecord | None:
        return await scope.write(change, self.epoch)

    async def read_within(self, scope: Scope, run_id: str) -> RunRecord | None:
        return await scope.as_journal(partial(reads.read_run, run_id=run_id))

    def hold_writing(self) -> None:
        self._locks.hold()

    def release_writing(self) -> None:
        self._locks.release()

    def reading(self) -> AbstractAsyncContextManager[Scope]:
        self._check_connected(self._writer)
        return self._apps.reading(self)

    async def connect_app(
        self, set_up: Callable[[GuardedConnection], Guard]
    ) -> tuple[aiosqlite.Connection, Guard]:
        if self.path is None:
            connection = self._check_connected(self._writer)
            return connection, await self._call(connection, set_up)
        await anyio.to_thread.run_sync(self.file.check)
        connection = await self._open_connection()
        try:
            return connection, await self._call(connection, set_up)
        except BaseException:
            await connection.close()
            raise

    # --- the one way to the connection -----------------------------------------------------------

    async def _call(
        self, connection: aiosqlite.Connection | None, function: Callable[[GuardedConnection], T]
    ) -> T:
        """Run ``function`` whole, on the connection's thread."""
        connection = self._check_connected(connection)
        raw: Any = connection._conn  # noqa: SLF001
        try:
            # aiosqlite offers statements only; a transaction must not be split into several calls.
            return await connection._execute(function, raw)  # type: ignore[no-any-return, no-untyped-call]  # noqa: SLF001  pyright: ignore
        except sqlite3.Error as exc:
            raise self.translate(exc) from exc
        except ValueError as exc:  # aiosqlite, about a connection that was closed meanwhile
            msg = f"{self.file} was closed"
            raise JournalUnavailableError(msg) from exc

    def _check_connected(self, connection: aiosqlite.Connection | None) -> aiosqlite.Connection:
        if connection is None:
            msg = f"{self.file} is not open: it failed and is being opened again, or was closed"
            raise JournalUnavailableError(msg)
        return connection

    def translate(self, exc: sqlite3.Error) -> JournalError:
        damaged = damage(exc, self.path)
        if damaged is not None:
            return damaged
        name = getattr(exc, "sqlite_errorname", "")
        if self._reader is None:
            msg = (
                f"cannot open {self.file}: {exc} ({name or 'no code'}). Check the file, who may "
                "write to it and to its directory, and whether another program keeps it locked."
            )
            return JournalUnavailableError(msg)
        msg = (
            f"the storage of {self.file} failed: {exc} ({name or 'no code'}). What was asked may "
            "have been written or not: ask again with the same id."
        )
        return JournalUnavailableError(msg)


# --- functions of the connection's thread --------------------------------------------------------


def _set_up_writer(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA journal_mode = WAL").fetchone()
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA temp_store = MEMORY")


def _sync_nothing(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA synchronous = OFF")


def _set_up_reader(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA query_only = ON")


def _transact(db: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    db.execute(sql.BEGIN_IMMEDIATE)
    try:
        result = work(db)
        db.execute(sql.COMMIT)
    except BaseException:
        _roll_back(db)
        raise
    return result


def _snapshot(db: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    """Read in one transaction: all of one moment."""
    db.execute(sql.BEGIN)
    try:
        return work(db)
    finally:
        db.execute(sql.ROLLBACK)


def _roll_back(db: sqlite3.Connection) -> None:
    if db.in_transaction:
        with contextlib.suppress(sqlite3.Error):
            db.execute(sql.ROLLBACK)
