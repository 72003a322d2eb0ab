"""Which process works on the runs of a journal's file: the one that holds ``<file>.lock``.

The file holds the owner's process id, for the errors of others.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, final

from durable.journal.filelocks import FileLock

if TYPE_CHECKING:
    from pathlib import Path


@final
class OwnershipLock:
    """An exclusive lock on a file beside the journal."""

    def __init__(self, database: Path) -> None:
        self._lock = FileLock(database.with_name(database.name + ".lock"))

    @property
    def is_held(self) -> bool:
        """Whether this engine holds it."""
        return self._lock.is_held

    def try_acquire(self) -> bool:
        """Take the lock, if nobody else has it; return whether it is held.

        Raises:
            JournalUnavailableError: The lock file cannot be made.
        """
        if self._lock.is_held:
            return True
        if not self._lock.try_acquire():
            return False
        self._lock.write(str(os.getpid()).encode())
        return True

    def holder(self) -> str:
        """Return the process id of the one who took it last, as text for a message."""
        try:
            pid = self._lock.read().decode("ascii") or "unknown"
        except (OSError, UnicodeDecodeError):
            return "unknown"
        return f"{pid} (this process)" if pid == str(os.getpid()) else pid

    def release(self) -> None:
        """Give the lock back."""
        self._lock.close()
