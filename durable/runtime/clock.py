"""Time, and the alarms that wait for it.

Rules:

- There is one clock. All due times are compared with it and with nothing else.
- No alarm rings early. The host's timers are only a hint when to look: the clock is looked at
  again at least once a second while an alarm is set, so that a jump of it hangs nothing.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from typing import TYPE_CHECKING, Protocol, final

if TYPE_CHECKING:
    from collections.abc import Callable

LOOK_AGAIN_MS_MAX = 1_000
"""The longest wait before the clock is looked at again: how late an alarm can be after a jump."""


JUMP_NS_MIN = 1_000_000_000
"""Less than this between two looks is the fine adjustment of a clock, not a jump."""

CANCELLED_KEPT_MAX = 64
"""Cancelled alarms are thrown away when they are more than half of all, and more than this."""


class Clock(Protocol):
    """Where the time comes from."""

    def now_ms(self) -> int:
        """Return the time in milliseconds since the epoch, UTC."""
        ...

    def call_later(self, delay_ms: int, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """Call ``callback`` on the running loop about ``delay_ms`` from now; early is no harm."""
        ...


@final
class SystemClock:
    """The machine's clock, save that it is never set back.

    When the machine's clock is, this one goes on by the monotonic one, ahead of the machine's by as
    much: timers that are set ring after the time they were set for. By so little that it may be a
    fine adjustment, this one stands still meanwhile. When the machine's is set forward, this one
    follows, at first only by what it is not ahead.
    """

    def __init__(self) -> None:
        self._ahead_ns = 0
        self._latest_ns = time.time_ns()
        self._note(self._latest_ns, time.monotonic_ns())

    def now_ms(self) -> int:
        wall_ns = time.time_ns()
        if not self._latest_ns <= wall_ns < self._look_at_ns:
            wall_ns = self._look(wall_ns)
        self._latest_ns = wall_ns
        return (wall_ns + self._ahead_ns) // 1_000_000

    def _note(self, wall_ns: int, monotonic_ns: int) -> None:
        self._wall_ns, self._monotonic_ns = wall_ns, monotonic_ns
        self._look_at_ns = wall_ns + JUMP_NS_MIN

    def _look(self, wall_ns: int) -> int:
        """Look whether the machine's clock was set; return its time, or what it stands still at."""
        if self._wall_ns <= wall_ns < self._look_at_ns:
            return self._latest_ns
        told_ns = self._latest_ns + self._ahead_ns
        monotonic_ns = time.monotonic_ns()
        jump_ns = (wall_ns - self._wall_ns) - (monotonic_ns - self._monotonic_ns)
        if jump_ns < -JUMP_NS_MIN or (jump_ns > JUMP_NS_MIN and self._ahead_ns):
            self._ahead_ns = max(self._ahead_ns - jump_ns, 0)
        self._note(wall_ns, monotonic_ns)
        return max(wall_ns, told_ns - self._ahead_ns)

    def call_later(self, delay_ms: int, callback: Callable[[], None]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(delay_ms / 1000, callback)


@final
class Alarm:
    """A callback that is owed at a time. Cancelling it twice is no error."""

    __slots__ = ("callback", "due_ms", "is_background", "number")

    def __init__(
        self, due_ms: int, number: int, callback: Callable[[], None], *, is_background: bool
    ) -> None:
        self.due_ms = due_ms
        self.number = number
        self.callback: Callable[[], None] | None = callback
        self.is_background = is_background

    @property
    def is_cancelled(self) -> bool:
        """Whether it does not ring any more."""
        return self.callback is None

    def __lt__(self, other: Alarm) -> bool:
        return (self.due_ms, self.number) < (other.due_ms, other.number)


@final
class Alarms:
    """The alarms of one engine, on one timer of the host's loop; of equally due ones, the first."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heap: list[Alarm] = []
        self._count = 0
        self._cancelled_count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_ms = 0
        self._stopped = False

    def set(
        self, due_ms: int, callback: Callable[[], None], *, is_background: bool = False
    ) -> Alarm:
        """Call ``callback`` once, when the clock has come to ``due_ms``.

        Args:
            is_background: No run waits for it.
        """
        self._count += 1
        alarm = Alarm(due_ms, self._count, callback, is_background=is_background)
        heapq.heappush(self._heap, alarm)
        self._arm()
        return alarm

    def cancel(self, alarm: Alarm) -> None:
        """Do not ring. Cancelling one that has rung, or twice, is no error."""
        if alarm.callback is None:
            return
        alarm.callback = None
        self._cancelled_count += 1
        if self._cancelled_count > len(self._heap) // 2 + CANCELLED_KEPT_MAX:
            self._heap = [kept for kept in self._heap if kept.callback is not None]
            heapq.heapify(self._heap)
            self._cancelled_count = 0

    def next_due_ms(self) -> int | None:
        """Return when the next alarm rings that is none of the background."""
        dues = (alarm.due_ms for alarm in self._heap if alarm.callback and not alarm.is_background)
        return min(dues, default=None)

    def stop(self) -> None:
        """Ring no more."""
        self._stopped = True
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        if self._stopped:
            return
        self._drop_cancelled()
        if not self._heap:
            return
        now_ms = self._clock.now_ms()
        delay_ms = min(max(self._heap[0].due_ms - now_ms, 0), LOOK_AGAIN_MS_MAX)
        if self._timer is not None:
            if now_ms <= self._timer_at_ms <= now_ms + delay_ms:
                return
            self._timer.cancel()
        self._timer_at_ms = now_ms + delay_ms
        self._timer = self._clock.call_later(delay_ms, self._look)

    def _look(self) -> None:
        self._timer = None
        now_ms = self._clock.now_ms()
        while True:
            self._drop_cancelled()
            if not self._heap or self._heap[0].due_ms > now_ms:
                break
            alarm = heapq.heappop(self._heap)
            callback, alarm.callback = alarm.callback, None
            assert callback is not None
            callback()
        self._arm()

    def _drop_cancelled(self) -> None:
        while self._heap and self._heap[0].callback is None:
            heapq.heappop(self._heap)
            self._cancelled_count -= 1


@final
class EarliestAlarm:
    """One alarm, at the earliest of the times that it was asked for since it last rang."""

    def __init__(self, alarms: Alarms, callback: Callable[[], None]) -> None:
        self._alarms = alarms
        self._callback = callback
        self._alarm: Alarm | None = None

    def set(self, due_ms: int) -> None:
        """Ring at that time, unless it rings sooner anyway."""
        if self._alarm is not None:
            if self._alarm.due_ms <= due_ms:
                return
            self._alarms.cancel(self._alarm)
        self._alarm = self._alarms.set(due_ms, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self._callback()
