"""The advisory lock that makes one process the owner of a journal's file.

The lock is held on ``<file>.lock``, by the operating system: it ends with the process, however that
ends. The file holds the owner's process id, for the error of the one who is refused.

A forked child, such as a worker of a process pool, shares the lock with its parent, and would hold
it longer: each child gives its share up as it begins.
"""

from __future__ import annotations

import os
import sys
import weakref
from typing import TYPE_CHECKING, final

from durable.core.errors import JournalLockedError, JournalUnavailableError

if TYPE_CHECKING:
    from pathlib import Path

PID_BYTES_MAX = 32

if sys.platform == "win32":  # pragma: no cover  needs Windows
    import msvcrt

    def _lock(fd: int) -> None:
        # Windows locks are mandatory: lock a byte that nobody reads, past the process id.
        os.lseek(fd, PID_BYTES_MAX, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


_held: weakref.WeakSet[OwnershipLock] = weakref.WeakSet()
_is_fork_watched = False


def _drop_in_child() -> None:
    for lock in list(_held):
        lock.release()


def _watch_forks() -> None:
    global _is_fork_watched  # noqa: PLW0603  it is the process that forks
    if not _is_fork_watched and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_drop_in_child)
        _is_fork_watched = True


@final
class OwnershipLock:
    """An exclusive lock on a file beside the journal."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._path = database.with_name(database.name + ".lock")
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock, or fail at once. Does nothing when it is held.

        Raises:
            JournalLockedError: Another owner holds it.
            JournalUnavailableError: The lock file cannot be made.
        """
        if self._fd is not None:
            return
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as exc:
            msg = f"cannot make the lock file {self._path}: {exc.strerror}. Check its directory."
            raise JournalUnavailableError(msg) from exc
        try:
            _lock(fd)
        except OSError:
            owner = _read_pid(fd)
            os.close(fd)
            here = " (this process)" if owner == str(os.getpid()) else ""
            msg = (
                f"the journal {self._database} is owned by process {owner}{here}. Use that "
                "engine, or stop it first."
            )
            raise JournalLockedError(msg) from None
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, str(os.getpid()).encode())
        self._fd = fd
        _held.add(self)
        _watch_forks()

    def release(self) -> None:
        """Give the lock back. The file stays: removing it would race with the next owner."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
            _held.discard(self)


def _read_pid(fd: int) -> str:
    try:
        os.lseek(fd, 0, os.SEEK_SET)
        return os.read(fd, PID_BYTES_MAX).decode("ascii") or "unknown"
    except (OSError, UnicodeDecodeError):
        return "unknown"
