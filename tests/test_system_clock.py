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
