"""What the processes of a machine share: one database file, the locks beside it, and its faults.

The journal's own code runs as it is, on true SQLite files in memory; only what it asks of the
machine is simulated: the threads of its connections, the locks of the operating system, and errors.

Rules:

- A statement may fail before it does anything, or after. So a commit that is reported as failed is
  lost, or kept. A process may be killed before a statement, or after it.
- What a killed process had not committed is rolled back.
- After each commit the oracle looks at what is there.
- A lock on writing that another one holds makes a thread wait in virtual time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, final
from unittest import mock

import aiosqlite

from durable import JournalLockedError
from durable.journal.guard import GuardedConnection
from durable.journal.lookout import TELL_S_MAX
from simulation.loop import Killed, Machine, Process, WouldBlock, stream

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECT: Final = aiosqlite.connect
NOTICED_S_MAX: Final = 0.1
"""How soon others hear of a commit."""

COMMITS: Final = ("COMMIT", "INSERT INTO durable_commit")
NEVER_FAILS: Final = ("ROLLBACK", "PRAGMA", "CREATE", "SELECT name FROM sqlite_master")


@final
class Faults:
    """What goes wrong, and how often: a rate is of 1, for each statement of its kind.

    Attributes:
        lost: Commits that are not made, and reported as failed.
        kept: Commits that are made, and reported as failed.
        broken: Other statements that fail.
        kill_before: Commits before which the process dies.
        kill_after: Commits after which the process dies.
    """

    def __init__(self) -> None:
        self.lost = self.kept = self.broken = self.kill_before = self.kill_after = 0.0

    def stop(self) -> None:
        """Let nothing go wrong any more."""
        self.__init__()


class Connection(GuardedConnection):
    """A connection of one process to the disk."""

    disk: Disk
    process: Process

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:  # noqa: ANN401
        disk, process = self.disk, self.process
        if not process.is_alive:
            raise Killed
        if sql.startswith(COMMITS) and (sql[0] == "C" or not self.in_transaction):
            return disk.commit(process, partial(super().execute, sql, *args))
        if disk.faults.broken and not sql.startswith(NEVER_FAILS) and self._is_hit():
            raise disk.error(process, f"fails at {sql[:40]!r}")
        return super().execute(sql, *args)

    def _is_hit(self) -> bool:
        return self.disk.random.random() < self.disk.faults.broken


@final
class Disk:
    """The file, who has it open, and what goes wrong with it.

    Attributes:
        faults: What goes wrong now.
        was_robbed: Whether any owner has lost its lock without knowing.
        on_commit: Is called after each commit, with the process.
    """

    def __init__(self, machine: Machine, path: Path, seed: str) -> None:
        self.machine = machine
        self.path = path
        self.random = stream(seed, "disk")
        self.faults = Faults()
        self.on_commit: Callable[[Process], None] = lambda _: None
        self.owner: SimulatedLocks | None = None
        self.was_robbed = False
        self.writing: SimulatedLocks | None = None
        self.all_locks: list[SimulatedLocks] = []
        self._connections: list[Connection] = []

    def error(self, process: Process, what: str) -> sqlite3.OperationalError:
        """Return what SQLite raises when its file cannot be read or written."""
        self.machine.note(process, f"disk {what}")
        exc = sqlite3.OperationalError("disk I/O error")
        exc.sqlite_errorname = "SQLITE_IOERR"
        exc.sqlite_errorcode = sqlite3.SQLITE_IOERR
        return exc

    def commit(self, process: Process, work: Callable[[], sqlite3.Cursor]) -> sqlite3.Cursor:
        """Do what commits, or not."""
        draw, faults = self.random.random(), self.faults
        if (draw := draw - faults.kill_before) < 0:
            self._kill(process, "before")
        if (draw := draw - faults.lost) < 0:
            raise self.error(process, "has lost a commit")
        cursor = work()
        self.on_commit(process)
        self._tell_others(process)
        if (draw := draw - faults.kept) < 0:
            raise self.error(process, "has kept a commit, and says it failed")
        if (draw := draw - faults.kill_after) < 0:
            self._kill(process, "after")
        return cursor

    def _kill(self, process: Process, when: str) -> None:
        self.machine.note(process, f"is killed {when} a commit")
        process.kill()
        raise Killed

    # --- connections -----------------------------------------------------------------------------

    def connect(self, database: Path, **options: Any) -> aiosqlite.Connection:  # noqa: ANN401
        """Stand in for ``aiosqlite.connect``."""
        process = self.machine.running
        assert process is not None
        options["timeout"] = 0  # Who would wait here, would wait for ever.
        options["factory"] = partial(self._open, process)
        connection = CONNECT(database, **options)
        this: Any = connection
        this._tx = this._thread = process.thread()
        process.on_death.append(partial(self._drop, connection))
        return connection

    def _open(self, process: Process, *args: Any, **options: Any) -> Connection:  # noqa: ANN401
        if self.random.random() < self.faults.broken:
            raise self.error(process, "cannot be opened")
        db = Connection(*args, **options)
        db.disk, db.process = self, process
        db.create_function("randomblob", 1, self.random.randbytes)
        return db

    def _drop(self, connection: aiosqlite.Connection) -> None:
        this: Any = connection
        raw, this._connection, this._running = this._connection, None, False
        if raw is not None:
            raw.close()

    # --- other processes -------------------------------------------------------------------------

    def _tell_others(self, process: Process) -> None:
        for locks in self.all_locks:
            if locks.process is not process:
                delay_s = self.machine.random.random() * NOTICED_S_MAX
                locks.process.after(delay_s, locks.look)

    def owner_is_gone(self) -> None:
        """Have the others find that nobody owns the journal."""
        for locks in self.all_locks:
            locks.process.after(self.machine.random.random() * NOTICED_S_MAX, locks.look)

    def steal(self) -> None:
        """Take the lock from the owner, who does not notice: as some file systems do."""
        if self.owner is not None and self.writing is not self.owner:
            self.machine.note(self.owner.process, "loses its lock, and does not know")
            self.owner.process.is_robbed = self.was_robbed = True
            self.owner = None
            self.owner_is_gone()

    # --- standing in for the machine -------------------------------------------------------------

    @contextmanager
    def mounted(self, *, slices: float) -> Iterator[None]:
        """Let durable's modules use this disk, this machine's threads and clocks.

        Args:
            slices: How long bodies are pumped before the event loop gets its turn, in seconds.
        """
        machine = self.machine
        clocks = SimpleNamespace(
            time_ns=machine.wall_ns,
            monotonic_ns=machine.monotonic_ns,
            perf_counter=lambda: machine.now_s,
        )
        patches: dict[str, object] = {
            "aiosqlite.connect": self.connect,
            "anyio.to_thread.run_sync": machine.run_sync,
            "durable.journal.sqlite.FileLocks": partial(SimulatedLocks, self),
            "durable.journal.handover.HAND_OVER_S_MAX": 0,
            "durable.runtime.clock.time": clocks,
            "durable.runtime.pump.time": clocks,
            "durable.runtime.rounds.time": clocks,
            "durable.journal.rounds.time": clocks,
            # What mutations do is known early, and soon forgotten when it is not so.
            "durable.runtime.rounds.TRUSTED_AFTER": 1,
            "durable.runtime.rounds.TRUSTED_AFTER_MAX": 3,
            "durable.runtime.mutations.WRITTEN_AHEAD_MIN": 2,
            # Bodies take the outcomes of mutations before these are committed, or after that.
            "durable.runtime.mutations.SETTLING_SLICES_MAX": 20 if slices > 0 else 0,
            # None of them is what the disk fails by, however often it fails.
            "durable.runtime.mutations.FAILURES_MAX": 1_000,
            "durable.runtime.pump.SLICE_S_MAX": slices,
            "durable.runtime.ids.os": SimpleNamespace(urandom=machine.random.randbytes),
            "durable.runtime.attempts.random": machine.random,
        }
        with ExitStack() as stack:
            for name, new in patches.items():
                stack.enter_context(mock.patch(name, new))
            yield


@final
class SimulatedLocks:
    """What one engine holds of the file: the contract of ``durable.journal.locks``."""

    def __init__(self, disk: Disk, _path: Path, timeout_s: float, *, is_worker: bool) -> None:
        assert disk.machine.running is not None
        self.process = disk.machine.running
        self._disk = disk
        self._timeout_s = timeout_s
        self._is_worker = is_worker
        self._owns = self._is_settled = False
        self._waits_since_s: float | None = None
        self._tell: Callable[[], None] | None = None

    def take(self) -> None:
        self._disk.all_locks.append(self)
        self.process.on_death.append(self.close)
        if self._is_worker:
            self.try_own()

    @property
    def owns(self) -> bool:
        return self._owns

    def try_own(self) -> bool:
        if not self._owns and self._disk.owner is None:
            self._disk.owner = self
            self._owns = True
        return self._owns

    def disown(self) -> None:
        self._owns = False
        if self._disk.owner is self:
            self._disk.owner = None
            self._disk.owner_is_gone()

    def settle_in(self) -> None:
        self._is_settled = True

    def hold(self) -> None:
        now_s = self._disk.machine.now_s
        if self._disk.writing is None:
            self._disk.writing = self
            self._waits_since_s = None
            return
        self._waits_since_s = now_s if self._waits_since_s is None else self._waits_since_s
        if now_s - self._waits_since_s < self._timeout_s:
            raise WouldBlock
        self._waits_since_s = None
        msg = "the journal is being written to by another process"
        raise JournalLockedError(msg)

    def release(self) -> None:
        if self.process.is_alive and self._disk.writing is not self:
            self._disk.machine.fail("I3: a lock is given back that is not held")
        self._give_back()

    def _give_back(self) -> None:
        if self._disk.writing is self:
            self._disk.writing = None

    def watch(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        self.process.after(TELL_S_MAX, self._look_again)

    def _look_again(self) -> None:
        if self._tell is not None:
            if len(self._disk.all_locks) > 1 or not self._is_settled:
                self.look()
            self.process.after(TELL_S_MAX, self._look_again)

    def look(self) -> None:
        """Do what the look-out's thread does when something has changed."""
        if self._is_worker:
            self.try_own()
        if self._tell is not None:
            self._tell()

    def stop_watching(self) -> None:
        self._tell = None

    def close(self) -> None:
        if self in self._disk.all_locks:
            self._disk.all_locks.remove(self)
        self._give_back()
        self.disown()
