"""Letting a connection's thread come as far as SQLite, whatever the loop has to do."""

from __future__ import annotations

import asyncio
import contextlib
from queue import Empty, SimpleQueue
from typing import final

HAND_OVER_S_MAX = 0.001
"""How long the event loop stands still, at most, for a commit to begin; usually a tenth of it."""


@final
class HandOver:
    """One commit's way to SQLite.

    A thread that asks for the interpreter lock may wait as long as the event loop has something to
    do: the loop gives the lock up at each turn, and has it again before the thread is awake. So
    the loop would write nothing to disk just when there is most to write.
    """

    def __init__(self) -> None:
        self._begun: SimpleQueue[None] = SimpleQueue()

    def note_begun(self) -> None:
        """It is about to begin, on the connection's thread."""
        self._begun.put(None)

    def wait_soon(self) -> None:
        """Have the loop stand still, when it comes to it, until that is so."""
        asyncio.get_running_loop().call_soon(self.wait)

    def wait(self) -> None:
        """Stand still until that is so."""
        with contextlib.suppress(Empty):
            self._begun.get(timeout=HAND_OVER_S_MAX)
