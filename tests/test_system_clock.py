"""The machine's clock, which its user may set while an engine is open."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from waiting import WAIT_S_MAX

import durable
from durable import Engine, Step
from durable.runtime.clock import Alarms, SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HOUR_S = 3600


@pytest.fixture
def jump(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the machine's clock forward or back by so many seconds."""
    true_time_ns = time.time_ns
    offset_ns = 0

    def jump_by(seconds: float) -> None:
        nonlocal offset_ns
        offset_ns += round(seconds * 1e9)

    monkeypatch.setattr(time, "time_ns", lambda: true_time_ns() + offset_ns)
    return jump_by


async def test_the_machines_clock_tells_milliseconds_and_calls_back() -> None:
    clock, called = SystemClock(), asyncio.Event()
    before_ms = clock.now_ms()
    alarms = Alarms(clock)
    alarms.set(before_ms + 20, called.set)
    await asyncio.wait_for(called.wait(), 5)
    assert clock.now_ms() >= before_ms + 20
    alarms.stop()


def test_the_clock_is_never_set_back(jump: Callable[[float], None]) -> None:
    clock = SystemClock()
    before_ms = clock.now_ms()
    jump(-HOUR_S)
    assert 0 <= clock.now_ms() - before_ms < HOUR_S * 500
    jump(-HOUR_S)
    assert 0 <= clock.now_ms() - before_ms < HOUR_S * 500


@pytest.mark.parametrize("seconds", [0.3, 0.9, 1.5])
def test_the_clock_is_not_set_back_by_a_little_either(
    monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """Nor where it was last looked at some time before it was set."""
    monotonic_ns, ahead_ns = 0, 0
    monkeypatch.setattr(time, "time_ns", lambda: HOUR_S * 10**9 + monotonic_ns + ahead_ns)
    monkeypatch.setattr(time, "monotonic_ns", lambda: monotonic_ns)
    clock = SystemClock()
    monotonic_ns = 950_000_000
    before_ms = clock.now_ms()
    ahead_ns = -round(seconds * 1e9)
    told: list[int] = []
    for _ in range(40):
        monotonic_ns += 100_000_000
        told.append(clock.now_ms())
    assert [before_ms, *told] == sorted([before_ms, *told])
    assert told[-1] - before_ms >= 4_000 - seconds * 1000


def test_the_clock_follows_the_machine_s_forward_once_it_is_not_ahead(
    jump: Callable[[float], None],
) -> None:
    clock = SystemClock()
    before_ms = clock.now_ms()
    jump(-HOUR_S)
    clock.now_ms()
    jump(HOUR_S)
    assert clock.now_ms() - before_ms < HOUR_S * 500
    jump(HOUR_S)
    assert HOUR_S * 1000 <= clock.now_ms() - before_ms < HOUR_S * 1500


@durable.workflow
async def nap(step: Step) -> str:
    await step.sleep(0.05)
    return "slept"


async def test_a_clock_that_is_set_back_does_not_hang_a_sleep(
    path: Path, jump: Callable[[float], None]
) -> None:
    async with Engine(path) as engine:
        run = await engine.start(nap())
        jump(-HOUR_S)
        assert await run.result(timeout=WAIT_S_MAX) == "slept"
