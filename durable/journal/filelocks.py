"""Advisory locks on files, held by the operating system: they end with the process.

A forked child, such as a worker of a process pool, shares the locks with its parent, and would hold
them longer: each child gives its share up as it begins.
"""

from __future__ import annotations

import os
import sys
import weakref
from typing import TYPE_CHECKING, final

from durable.core.errors import JournalUnavailableError

if TYPE_CHECKING:
    from pathlib import Path

LOCKED_BYTE = 32
"""Where a lock is on Windows, whose locks are mandatory: nobody reads or writes there."""

if sys.platform == "win32":  # pragma: no cover  needs Windows
    import msvcrt

    CAN_SHARE = False

    def _lock(fd: int, *, shared: bool) -> None:  # noqa: ARG001  there are exclusive ones only
        os.lseek(fd, LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)

    def _unlock(fd: int) -> None:
        os.lseek(fd, LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    CAN_SHARE = True

    def _lock(fd: int, *, shared: bool) -> None:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)

    def _unlock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_UN)


_open: weakref.WeakSet[FileLock] = weakref.WeakSet()
_is_fork_watched = False


def _close_in_child() -> None:
    for lock in list(_open):
        lock.close()


def _watch_forks() -> None:
    global _is_fork_watched  # noqa: PLW0603  it is the process that forks
    if not _is_fork_watched and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_close_in_child)
        _is_fork_watched = True


@final
class FileLock:
    """A lock on a file, which is made when it is needed. Its calls do not wait."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_held = False
        self._fd: int | None = None

    def try_acquire(self, *, shared: bool = False) -> bool:
        """Take the lock, alone or with others; return whether it is held.

        Raises:
            JournalUnavailableError: The file cannot be made.
        """
        if not self.is_held:
            fd = self._open()
            try:
                _lock(fd, shared=shared)
            except OSError:
                return False
            self.is_held = True
        return True

    def release(self) -> None:
        """Give the lock back. The file stays: removing it would race with the next one."""
        if self.is_held:
            assert self._fd is not None
            self.is_held = False
            _unlock(self._fd)

    def close(self) -> None:
        """Give the lock back, and keep nothing open."""
        self.is_held = False
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)
            _open.discard(self)

    def write(self, content: bytes) -> None:
        """Put something into the file, for others to read."""
        fd = self._open()
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, content)

    def read(self) -> bytes:
        """Return what is in the file, as far as it is not under the lock."""
        fd = self._open()
        os.lseek(fd, 0, os.SEEK_SET)
        return os.read(fd, LOCKED_BYTE)

    def _open(self) -> int:
        if self._fd is None:
            try:
                self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as exc:
                msg = f"cannot make the lock file {self.path}: {exc.strerror}. Check its directory."
                raise JournalUnavailableError(msg) from exc
            _open.add(self)
            _watch_forks()
        return self._fd
