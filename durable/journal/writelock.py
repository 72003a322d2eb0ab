"""Who may write to a journal's file now, of all that have it open.

SQLite before 3.51.3 can damage a write-ahead log when two connections write or checkpoint at the
same instant, so every transaction that writes is made under a lock of ours, on ``<file>.write``.
Source: sqlite.org/wal.html, section 11, "The WAL-Reset Bug".

Rules:

- Who does not own the journal takes the lock for one transaction, and shows that it is there: it
  holds a share of ``<file>.guests``.
- The owner keeps the lock from one transaction to the next while there are no guests, because each
  taking costs it the interpreter lock; and gives it back when it has written nothing for a while,
  so that an owner that is stopped in its tracks does not stop others.
- Who has had it for long lets those go first who wait: there is no queue, they try now and then.
- While it is kept, whatever changes in the file is the owner's own doing.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Self, final

from durable.core.errors import JournalLockedError
from durable.journal.filelocks import CAN_SHARE, FileLock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TRY_AGAIN_MIN_S = 0.0002
TRY_AGAIN_MAX_S = 0.002
"""The waits between attempts to take the lock: as short as a transaction, then longer."""

LONG_S = 0.02
OTHERS_FIRST_S = 2 * TRY_AGAIN_MAX_S
"""Who has had the lock for as long as the first takes it again no sooner than after the second."""


@final
class WriteLock:
    """The lock, as a process takes it: ``with lock:`` around a transaction, or ``acquire`` and
    ``release``. The process's own connections take turns by it, too.

    Args:
        timeout_s: How long taking it may wait for another process.
        owner: Returns the journal's owner, for the error.

    Raises:
        JournalLockedError: On acquiring: it could not be had in that time. Nothing was written.
    """

    def __init__(self, database: Path, timeout_s: float, owner: Callable[[], str]) -> None:
        self._database = database
        self._owner = owner
        self._timeout_s = timeout_s
        self._lock = FileLock(database.with_name(database.name + ".write"))
        # By itself: to try the lock must not take it from a transaction of this process.
        self._probe = FileLock(self._lock.path)
        self._guests = FileLock(database.with_name(database.name + ".guests"))
        self._mutex = threading.Lock()
        self._turn = threading.Lock()
        self._taken_at_s = self._free_until_s = 0.0
        self._is_guest = False
        self._is_shared = True
        self._is_in_use = False
        self._is_used = False
        self._was_given_back = True

    def be_guest(self) -> None:
        """Write as one who does not own the journal.

        Raises:
            JournalLockedError: Somebody holds the file of those who do not.
        """
        self._is_guest = True
        deadline_s = time.monotonic() + self._timeout_s
        # An owner that looks whether there is anybody holds it for a moment.
        while CAN_SHARE and not self._guests.try_acquire(shared=True):
            self._pause(deadline_s, TRY_AGAIN_MIN_S)

    def be_owner(self) -> None:
        """Write as the one who owns the journal."""
        self._guests.release()
        self._is_guest = False

    def is_kept(self) -> bool:
        """Whether it is held now, in a transaction or between two."""
        return self._lock.is_held

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock, for one transaction."""
        if not self._turn.acquire(timeout=self._timeout_s):
            raise self._timed_out("this process, in a transaction that does not end")
        with self._mutex:
            self._is_in_use = self._is_used = True
            if self._lock.is_held:
                return
        try:
            self._acquire()
        except BaseException:
            self._is_in_use = False
            self._turn.release()
            raise

    def release(self) -> None:
        """The transaction is over. Any thread may say so."""
        with self._mutex:
            self._is_in_use = False
            if self._is_shared:
                self._give_back()
        self._turn.release()

    def look(self) -> bool:
        """See whether others are there, now and then, from any one thread.

        Returns:
            Whether nobody else can have written since the last time.
        """
        if not self._lock.is_held:
            return False
        is_alone = CAN_SHARE and not self._is_guest and self._guests.try_acquire()
        if is_alone:
            self._guests.release()
        with self._mutex:
            is_held = self._lock.is_held
            is_ours = is_held and not self._was_given_back
            self._was_given_back = not is_held
            self._is_shared = not is_alone
            if not self._is_in_use and (self._is_shared or not self._is_used):
                self._give_back()
            self._is_used = self._is_in_use
        return is_ours

    def is_taken(self) -> bool:
        """Whether anybody may be in the middle of a transaction. For the thread of ``look``."""
        if not self._probe.try_acquire(shared=CAN_SHARE):
            return True
        self._probe.release()
        return False

    def close(self) -> None:
        """Give everything back."""
        self._lock.close()
        self._probe.close()
        self._guests.close()

    def _acquire(self) -> None:
        now_s = time.monotonic()
        deadline_s = now_s + self._timeout_s
        wait_s = TRY_AGAIN_MIN_S
        if now_s < self._free_until_s:
            time.sleep(self._free_until_s - now_s)
        while not self._lock.try_acquire():
            self._pause(deadline_s, wait_s)
            wait_s = min(wait_s * 1.1, TRY_AGAIN_MAX_S)
        self._taken_at_s = time.monotonic()

    def _give_back(self) -> None:
        self._was_given_back = True
        self._lock.release()
        now_s = time.monotonic()
        if now_s - self._taken_at_s > LONG_S:
            self._free_until_s = now_s + OTHERS_FIRST_S

    def _pause(self, deadline_s: float, wait_s: float) -> None:
        if time.monotonic() > deadline_s:
            raise self._timed_out("another process")
        time.sleep(wait_s)

    def _timed_out(self, by_whom: str) -> JournalLockedError:
        msg = (
            f"the journal {self._database} is being written to by {by_whom}, for more "
            f"than {self._timeout_s:g} s. It is owned by process {self._owner()}: see whether "
            "that hangs, or another one that uses it."
        )
        return JournalLockedError(msg)
