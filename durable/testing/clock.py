"""Time that a test holds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Callable

    from durable.engine import Engine

START_MS = 1_735_689_600_000
"""When a test begins, unless it says so: at the first moment of 2025, UTC."""


@final
class _Handle(asyncio.TimerHandle):
    """A timer that the loop knows nothing of: not every loop would let it be cancelled."""

    def cancel(self) -> None:
        asyncio.Handle.cancel(self)


@final
class VirtualClock:
    """A clock that stands still until it is moved: what was waiting for the time is then called.

    It is one engine's, or of several that are given the same one; it knows of no other.
    """

    def __init__(self, now_ms: int = START_MS) -> None:
        self._now_ms = now_ms
        self._waiting: list[asyncio.TimerHandle] = []

    def now_ms(self) -> int:
        return self._now_ms

    def call_later(self, delay_ms: int, callback: Callable[[], None]) -> asyncio.TimerHandle:
        loop = asyncio.get_running_loop()
        if delay_ms <= 0:
            return loop.call_later(0, callback)
        handle = _Handle(self._now_ms + delay_ms, callback, (), loop)
        self._waiting.append(handle)
        return handle

    def advance(self, seconds: float) -> None:
        """Move the clock, and let everything look at it again."""
        self.move_to(self._now_ms + round(seconds * 1000))

    def move_to(self, now_ms: int) -> None:
        """Set the clock to a time in milliseconds, and let everything look at it again."""
        self._now_ms = now_ms
        waiting, self._waiting = self._waiting, []
        for handle in waiting:
            if not handle.cancelled():
                handle._run()

    def install(self, engine: Engine) -> None:
        """Give the clock to an engine that is not open yet."""
        engine._clock = self
