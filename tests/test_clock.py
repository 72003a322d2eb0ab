"""Alarms: never early, never twice, and not lost when the clock jumps."""

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from clock import START_MS, ManualClock
from hypothesis import given, settings
from hypothesis import strategies as st

import durable
from durable import Engine, Retry, Run, Step, StepInfo, StepState
from durable.runtime.clock import LOOK_AGAIN_MS_MAX, Alarm, Alarms

HOUR_MS = 3_600_000
HOUR_S = 3_600


class HostClock:
    """The machine's clock, which may jump, and the host's timers, which go on regardless."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._host_ms = 0
        self._offset_ms = START_MS
        self._timers: list[asyncio.TimerHandle] = []

    def now_ms(self) -> int:
        return self._host_ms + self._offset_ms

    def call_later(self, delay_ms: int, callback: Callable[[], None]) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(self._host_ms + delay_ms, callback, (), self._loop)
        self._timers.append(timer)
        return timer

    def jump(self, by_ms: int) -> None:
        self._offset_ms += by_ms

    def go_on(self, by_ms: int) -> None:
        end_ms = self._host_ms + by_ms
        while due := [timer for timer in self._timers if timer.when() <= end_ms]:
            timer = min(due, key=asyncio.TimerHandle.when)
            self._timers.remove(timer)
            self._host_ms = max(self._host_ms, int(timer.when()))
            if not timer.cancelled():
                timer._run()
        self._host_ms = end_ms

    @property
    def timers_count(self) -> int:
        return sum(not timer.cancelled() for timer in self._timers)


@contextmanager
def _host_clock() -> Iterator[HostClock]:
    loop = asyncio.new_event_loop()  # Timer handles belong to one; it never runs.
    try:
        yield HostClock(loop)
    finally:
        loop.close()


class Ring:
    """An alarm that keeps a record of when it rang."""

    def __init__(self, clock: HostClock, alarms: Alarms, delay_ms: int) -> None:
        self._clock = clock
        self.due_ms = clock.now_ms() + delay_ms
        self.times_ms: list[int] = []
        self.is_cancelled = False
        self.alarm: Alarm = alarms.set(self.due_ms, self._on_ring)

    def _on_ring(self) -> None:
        self.times_ms.append(self._clock.now_ms())


def test_an_alarm_rings_at_its_time_and_once() -> None:
    with _host_clock() as clock:
        ring = Ring(clock, Alarms(clock), 500)
        clock.go_on(499)
        assert ring.times_ms == []
        clock.go_on(1)
        assert ring.times_ms == [ring.due_ms]
        clock.go_on(HOUR_MS)
        assert ring.times_ms == [ring.due_ms]
        assert clock.timers_count == 0


def test_what_is_due_rings_at_the_next_look() -> None:
    with _host_clock() as clock:
        alarms = Alarms(clock)
        rings = [Ring(clock, alarms, 0), Ring(clock, alarms, -5)]
        assert [ring.times_ms for ring in rings] == [[], []]
        clock.go_on(0)
        assert [len(ring.times_ms) for ring in rings] == [1, 1]


@pytest.mark.parametrize("set_late", [False, True])
def test_a_cancelled_alarm_does_not_ring(set_late: bool) -> None:
    with _host_clock() as clock:
        alarms = Alarms(clock)
        first, second = Ring(clock, alarms, 100), Ring(clock, alarms, 200)
        alarms.cancel(first.alarm)
        alarms.cancel(first.alarm)
        third = Ring(clock, alarms, 50) if set_late else second
        clock.go_on(1000)
        alarms.cancel(second.alarm)  # Too late, and no error.
        assert (first.times_ms, second.times_ms) == ([], [second.due_ms])
        assert third.times_ms == [third.due_ms]


def test_an_alarm_may_cancel_another_that_is_due() -> None:
    with _host_clock() as clock:
        alarms = Alarms(clock)
        other = Ring(clock, alarms, 100)
        alarms.set(other.due_ms - 1, lambda: alarms.cancel(other.alarm))
        clock.jump(HOUR_MS)
        clock.go_on(LOOK_AGAIN_MS_MAX)
        assert other.times_ms == []


def test_an_alarm_may_set_another() -> None:
    with _host_clock() as clock:
        alarms = Alarms(clock)
        rung: list[int] = []

        def again() -> None:
            rung.append(clock.now_ms())
            if len(rung) < 3:
                alarms.set(clock.now_ms() + 10, again)

        alarms.set(clock.now_ms() + 10, again)
        clock.go_on(1000)
        assert rung == [START_MS + 10, START_MS + 20, START_MS + 30]


def test_a_stopped_clock_rings_no_more() -> None:
    with _host_clock() as clock:
        alarms = Alarms(clock)
        ring = Ring(clock, alarms, 100)
        alarms.stop()
        late = Ring(clock, alarms, 100)
        clock.go_on(HOUR_MS)
        assert ring.times_ms == late.times_ms == []
        assert clock.timers_count == 0


def test_cancelled_alarms_are_not_kept() -> None:
    """A body that puts a long time-out around each of many steps must not fill the memory."""
    with _host_clock() as clock:
        alarms = Alarms(clock)
        draw = random.Random(5)  # noqa: S311  no secret
        kept: list[Ring] = []
        for number in range(10_000):
            if number % 100 == 0:
                kept.append(Ring(clock, alarms, draw.randrange(HOUR_MS)))
            alarms.cancel(alarms.set(clock.now_ms() + draw.randrange(HOUR_MS), lambda: None))
        assert len(alarms._heap) < 1000
        assert clock.timers_count == 1
        for _ in range(HOUR_MS // LOOK_AGAIN_MS_MAX):
            clock.go_on(LOOK_AGAIN_MS_MAX)
        assert all(ring.times_ms == [ring.due_ms] for ring in kept)


OPERATIONS = st.one_of(
    st.tuples(st.just("set"), st.integers(-1000, 2 * HOUR_MS)),
    st.tuples(st.just("cancel"), st.integers(0, 20)),
    st.tuples(st.just("go on"), st.integers(0, 5_000)),
    st.tuples(st.just("jump"), st.sampled_from([-HOUR_MS, -1, 1, 1500, HOUR_MS])),
)


@given(st.lists(OPERATIONS, max_size=30))
@settings(deadline=None)
def test_whatever_the_clock_does_nothing_rings_early_or_twice_or_never(
    operations: list[tuple[str, int]],
) -> None:
    with _host_clock() as clock:
        alarms = Alarms(clock)
        rings: list[Ring] = []
        for what, number in operations:
            if what == "set":
                rings.append(Ring(clock, alarms, number))
            elif what == "cancel" and number < len(rings):
                alarms.cancel(rings[number].alarm)
                rings[number].is_cancelled = not rings[number].times_ms
            elif what == "go on":
                clock.go_on(number)
            elif what == "jump":
                clock.jump(number)
        was_due = {id(ring) for ring in rings if ring.due_ms <= clock.now_ms()}
        clock.go_on(LOOK_AGAIN_MS_MAX)
        for ring in rings:
            assert all(time_ms >= ring.due_ms for time_ms in ring.times_ms)
            if ring.is_cancelled:
                assert ring.times_ms == []
            elif id(ring) in was_due:
                assert len(ring.times_ms) == 1
            else:
                assert len(ring.times_ms) <= 1


# --- with an engine ------------------------------------------------------------------------------

TICKS: list[str] = []


@durable.action
async def tick(run_id: str) -> None:
    TICKS.append(run_id)


@durable.workflow
async def ticking(step: Step, naps: int) -> int:
    for _ in range(naps):
        await step.sleep(600)
        await tick(step.run_id)
    return naps


@durable.action(retry=Retry(max_attempts=2, initial_backoff=600, jitter=False))
async def fail_once(run_id: str) -> int:
    TICKS.append(run_id)
    if durable.attempt().number == 1:
        msg = "the first time"
        raise ValueError(msg)
    return durable.attempt().number


@durable.workflow
async def failing_once(step: Step) -> int:
    async with asyncio.timeout(2 * HOUR_S):
        return await fail_once(step.run_id)


async def _wait_for_timer(run: Run[int], count: int) -> StepInfo:
    """Wait until the run waits for its ``count``-th step, which is due later."""
    async with asyncio.timeout(5):
        while True:
            for step in (await run.status()).running:
                waits = step.kind == "sleep" or step.state is StepState.PENDING
                if step.number + 1 == count and waits:
                    return step


async def _see_nothing_happen(run: Run[int], ticks: int) -> None:
    for _ in range(5):
        assert (await run.status()).finished_at is None
        assert TICKS.count(run.id) == ticks


async def test_jumps_of_an_hour_fire_no_sleep_twice_and_lose_none(path: Path) -> None:
    clock, engine = ManualClock(), Engine(path)
    clock.install(engine)
    async with engine:
        run = await engine.start(ticking(3), id="napping")
        await _wait_for_timer(run, 1)
        clock.advance(-HOUR_S)
        await _see_nothing_happen(run, 0)
        clock.advance(HOUR_S + 599)
        await _see_nothing_happen(run, 0)
        clock.advance(1)
        await _wait_for_timer(run, 3)
        clock.advance(HOUR_S)
        await _wait_for_timer(run, 5)
        assert TICKS.count(run.id) == 2
        clock.advance(-HOUR_S)
        await _see_nothing_happen(run, 2)
        clock.advance(HOUR_S + 599)
        await _see_nothing_happen(run, 2)
        clock.advance(1)
        assert await run.result(timeout=5) == 3
        assert TICKS.count(run.id) == 3
        assert [step.attempts async for step in run.steps()] == [0, 1, 0, 1, 0, 1]


async def test_a_jump_neither_skips_nor_hastens_a_backoff(path: Path) -> None:
    clock, engine = ManualClock(), Engine(path)
    clock.install(engine)
    async with engine:
        run = await engine.start(failing_once(), id="backing-off")
        await _wait_for_timer(run, 2)
        clock.advance(-HOUR_S)
        await _see_nothing_happen(run, 1)
        clock.advance(HOUR_S + 599)
        await _see_nothing_happen(run, 1)
        clock.advance(1)
        assert await run.result(timeout=5) == 2


@pytest.mark.parametrize("off_s", [-HOUR_S, 0, HOUR_S])
async def test_a_clock_that_is_off_after_a_restart_changes_no_due_time(
    path: Path, off_s: int
) -> None:
    clock, engine = ManualClock(), Engine(path)
    clock.install(engine)
    run_id = f"restarted-{off_s}"
    async with engine:
        await _wait_for_timer(await engine.start(ticking(1), id=run_id), 1)
    clock.advance(off_s)
    again = Engine(path)
    clock.install(again)
    async with again:
        run: Run[int] = again.get(run_id)
        if off_s <= 0:
            await _see_nothing_happen(run, 0)
            clock.advance(-off_s + 599)
            await _see_nothing_happen(run, 0)
            clock.advance(1)
        assert await run.result(timeout=5) == 1
        assert TICKS.count(run_id) == 1


def test_the_manual_clock_is_a_clock() -> None:
    """The other tests' time is only worth something if it behaves as the machine's does."""

    async def ring() -> None:
        clock = ManualClock()
        alarms = Alarms(clock)
        rung: list[int] = []
        alarms.set(START_MS + 1500, lambda: rung.append(clock.now_ms()))
        clock.advance(1.499)
        assert rung == []
        clock.advance(0.001)
        assert rung == [START_MS + 1500]
        clock.advance(HOUR_S)
        assert rung == [START_MS + 1500]

    asyncio.run(ring())


async def test_what_is_due_next_is_what_a_run_waits_for() -> None:
    """What keeps an engine tidy waits in the background: a test's time does not stop for it."""
    clock = ManualClock()
    alarms = Alarms(clock)
    rung: list[str] = []
    assert alarms.next_due_ms() is None
    alarms.set(clock.now_ms() + 5, lambda: rung.append("tidy"), is_background=True)
    assert alarms.next_due_ms() is None
    cancelled = alarms.set(clock.now_ms() + 7, lambda: rung.append("cancelled"))
    alarms.set(clock.now_ms() + 9, lambda: rung.append("run"))
    alarms.cancel(cancelled)
    assert alarms.next_due_ms() == clock.now_ms() + 9
    clock.advance(0.009)
    assert rung == ["tidy", "run"]
    assert alarms.next_due_ms() is None
