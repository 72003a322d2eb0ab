"""How far a command is: a line on the terminal, if there is one."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, TextIO, final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

BAR_CHARS = 30
REDRAW_S = 0.1


@final
class Progress:
    """A bar on standard error; nothing where that is no terminal.

    Args:
        total: How many things there are.
        what: What they are called.
        stream: Where it is drawn.
    """

    def __init__(self, total: int, what: str, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._is_shown = self._stream.isatty()
        self._total = total
        self._what = what
        self._drawn_at = 0.0

    def over(self, things: Iterable[str]) -> Iterator[str]:
        """Iterate over the things, and draw how many have been taken."""
        try:
            for count, thing in enumerate(things):
                if self._is_shown:
                    self._draw(count)
                yield thing
        finally:
            if self._is_shown:
                self._stream.write("\r\x1b[K")
                self._stream.flush()

    def _draw(self, count: int) -> None:
        now = time.monotonic()
        if now - self._drawn_at < REDRAW_S:
            return
        self._drawn_at = now
        share = min(1.0, count / self._total) if self._total else 1.0
        done = round(share * BAR_CHARS)
        bar = "#" * done + "." * (BAR_CHARS - done)
        self._stream.write(f"\r[{bar}] {count:,} of {self._total:,} {self._what}")
        self._stream.flush()
