"""Noticing what other processes do with a journal's file, cheaply.

A thread looks at the times of the write-ahead log: that is no work for the event loop, which sleeps
on. A commit changes them; where two fall into one tick of the file system's clock, the second could
not be told from the first, so a time that is that new is looked at again. So is one while somebody
writes: a commit can be read only when it is on the disk, which may be long after the file's time.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LOOK_S = 0.09
"""How often it looks: each time costs a thread's awakening. Others' commits are to be known within
100 ms."""

LOOKS_TO_BE_SURE = 4
"""When nothing has changed, only each so many looks are whole: what a thread does after a sleep is
slow, as nothing of it is in the processor's caches."""

TELL_S_MAX = 5.0
"""How long it is silent at most: some file systems are late with their times."""

TICK_NS = 20_000_000
"""The clock of files goes on at least that often, 100 times a second at the least."""

COARSE_TICK_NS = 2_000_000_000
"""The same for file systems that know whole seconds only."""

SECOND_NS = 1_000_000_000


@final
class Lookout:
    """The thread.

    Args:
        is_busy: Whether to call ``look`` even if the file has not changed.
        look: Is called after a change, and now and then; returns whether to tell even if the file
            has not changed, or ``None`` for not to tell even if it has.
        tell: Is called in the thread, after a change.
        is_written: Whether somebody may be in the middle of a commit, whose change was told
            before it can be read.
    """

    def __init__(
        self,
        database: Path,
        is_busy: Callable[[], bool],
        look: Callable[[], bool | None],
        tell: Callable[[], None],
        is_written: Callable[[], bool],
    ) -> None:
        self._log = f"{database}-wal"
        self._is_busy = is_busy
        self._look = look
        self._tell = tell
        self._is_written = is_written
        # Held until it is to stop: to wait for a lock costs less than to wait for an event.
        self._running = threading.Lock()
        self._running.acquire()
        # A daemon, so that an engine that is never closed does not keep the interpreter alive.
        self._thread = threading.Thread(target=self._run, name="durable.lookout", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Return when it has ended."""
        self._running.release()
        self._thread.join()

    def _run(self) -> None:
        seen: tuple[int, int, int] | None = None
        is_new = True
        looks_count = 0
        told_s = time.monotonic()
        while not self._running.acquire(timeout=LOOK_S):
            stamp = self._stamp()
            looks_count += 1
            is_changed = is_new or stamp != seen
            if not is_changed and looks_count % LOOKS_TO_BE_SURE and not self._is_busy():
                continue
            answer = self._look()
            seen, is_new = stamp, _is_new(stamp)
            if answer is None:
                # What was written until now is known.
                continue
            is_new = is_new or (is_changed and self._is_written())
            now_s = time.monotonic()
            if answer or is_changed or now_s - told_s >= TELL_S_MAX:
                told_s = now_s
                self._tell()

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self._log)  # noqa: PTH116  pathlib costs as much again
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def _is_new(stamp: tuple[int, int, int] | None) -> bool:
    if stamp is None:
        return False
    tick_ns = TICK_NS if stamp[0] % SECOND_NS else COARSE_TICK_NS
    return abs(time.time_ns() - stamp[0]) <= tick_ns
