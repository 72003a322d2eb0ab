"""Letting bodies go on, from plain callbacks of the host's loop, a slice at a time.

So that a long replay, or a flood of completions, does not hold the loop.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections import deque
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Callable

    from durable.runtime.instrumentation import EngineLog
    from durable.runtime.live import LiveRun

DELIVERIES_PER_SLICE = 256
"""How many completions one run takes before the next run's turn."""

SLICE_S_MAX = 0.001
"""How long bodies are pumped before the host's loop gets its turn."""

SLOW_TURN_S = 0.1
"""A body that holds the host's loop longer than this is reported."""


@final
class Pump:
    """The runs that have something to do, first in, first out.

    Args:
        on_void: What to do with a run whose turn an interrupt, such as Ctrl-C, has cut off.
    """

    def __init__(self, log: EngineLog, on_void: Callable[[LiveRun], None]) -> None:
        self._log = log
        self._on_void = on_void
        self._ready: deque[LiveRun] = deque()
        self._is_scheduled = False

    @property
    def is_idle(self) -> bool:
        """Whether no run has anything to do."""
        return not self._ready

    def schedule(self, live: LiveRun) -> None:
        """Have a run advanced soon, from a plain callback."""
        self._ready.append(live)
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._run_slice)

    def clear(self) -> None:
        """Forget them."""
        self._ready.clear()

    def _run_slice(self) -> None:
        began_s = turn_s = time.perf_counter()
        # What the collector frees runs code, such as the ``finally`` of another body's coroutine:
        # not while a body could take it for its own.
        is_collecting = gc.isenabled()
        gc.disable()
        try:
            while self._ready:
                live = self._ready.popleft()
                try:
                    live.advance(DELIVERIES_PER_SLICE)
                except BaseException:
                    self._on_void(live)
                    raise
                now_s = time.perf_counter()
                if now_s - turn_s > SLOW_TURN_S:
                    self._report_slow(live, now_s - turn_s)
                if live.is_ready:
                    self._ready.append(live)
                if now_s - began_s > SLICE_S_MAX:
                    break
                turn_s = now_s
        finally:
            if is_collecting:
                gc.enable()
            self._is_scheduled = bool(self._ready)
            if self._is_scheduled:
                asyncio.get_running_loop().call_soon(self._run_slice)

    def _report_slow(self, live: LiveRun, held_s: float) -> None:
        self._log.warning(
            "durable.body_held_the_loop",
            run_id=live.record.run_id,
            workflow=live.record.name,
            seconds=round(held_s, 3),
            now_at=live.places(),
        )
