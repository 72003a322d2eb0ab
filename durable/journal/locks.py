"""What keeps the engines apart that have one journal open: who owns it, and who writes now.

A journal in memory is one engine's: it is ``Alone``. The calls block, in a thread of their own or
in that of the connection.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol, final

from durable.core.errors import JournalError
from durable.journal.lookout import Lookout
from durable.journal.ownership import OwnershipLock
from durable.journal.writelock import WriteLock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Locks(Protocol):
    """What one engine holds of a journal."""

    @property
    def owns(self) -> bool:
        """Whether this engine is the one that may work on the runs."""
        ...

    def try_own(self) -> bool:
        """Become that one, if there is none; return whether it is.

        Raises:
            JournalUnavailableError: The lock file cannot be made.
        """
        ...

    def disown(self) -> None:
        """Be it no more."""
        ...

    def settle_in(self) -> None:
        """Write as the owner from now on, which is cheaper, and not as one of several."""
        ...

    def hold(self) -> None:
        """Have nobody else write, until ``release``.

        Raises:
            JournalLockedError: Another one writes, and does not come to an end.
        """
        ...

    def release(self) -> None:
        """Let others write."""
        ...

    def watch(self, tell: Callable[[], None]) -> None:
        """Have ``tell`` called in a thread, when others may have written, or the owner is gone."""
        ...

    def stop_watching(self) -> None:
        """Return when it is called no more."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


@final
class Alone:
    """Nothing: there is nobody else."""

    owns = True

    def try_own(self) -> bool:
        return True

    def disown(self) -> None:
        pass

    settle_in = hold = release = stop_watching = close = disown

    def watch(self, tell: Callable[[], None]) -> None:
        pass


@final
class FileLocks:
    """Locks beside the file, which end with the process.

    Args:
        path: The database file itself, whatever links lead to it.
        is_worker: Whether to own the journal, now if nobody does, or as soon as nobody does.
        timeout_s: How long to wait for another one that writes.
    """

    def __init__(self, path: Path, timeout_s: float, *, is_worker: bool) -> None:
        self._path = path
        self._is_worker = is_worker
        self._ownership = OwnershipLock(path)
        self._writing = WriteLock(path, timeout_s, self._ownership.holder)
        self._lookout: Lookout | None = None
        self.hold, self.release = self._writing.acquire, self._writing.release
        self.settle_in, self.disown = self._writing.be_owner, self._ownership.release

    def take(self) -> None:
        """Be the owner, or one of the others.

        Raises:
            JournalUnavailableError: A lock file cannot be made.
            JournalLockedError: Somebody holds the file of the others.
        """
        if not self._is_worker or not self._ownership.try_acquire():
            self._writing.be_guest()

    @property
    def owns(self) -> bool:
        return self._ownership.is_held

    def try_own(self) -> bool:
        return self._ownership.try_acquire()

    def watch(self, tell: Callable[[], None]) -> None:
        self._lookout = Lookout(
            self._path, self._writing.is_kept, self._look, tell, self._is_written
        )

    def _look(self) -> bool | None:
        """Return whether the owner is gone; ``None`` if nobody else can have written."""
        with contextlib.suppress(JournalError):  # A lock file cannot be made: nobody has it either.
            if self._writing.look():
                return None
            return self._is_worker and not self.owns and self.try_own()
        return False

    def _is_written(self) -> bool:
        with contextlib.suppress(JournalError):  # Nobody can take it, then.
            return self._writing.is_taken()
        return False

    def stop_watching(self) -> None:
        lookout, self._lookout = self._lookout, None
        if lookout is not None:
            lookout.stop()

    def close(self) -> None:
        self._writing.close()
        self._ownership.release()
