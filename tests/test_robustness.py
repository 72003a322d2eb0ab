"""Odd things that users and hosts do, each of which once brought an engine or a run to a halt."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import durable
from durable import Engine, JournalUnavailableError, NotInWorkflowError, Step
from durable.runtime.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable

WAIT_S_MAX = 10
HOUR_S = 3600


@durable.action
async def cancel_myself(how: str) -> str:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    if how == "raise":
        msg = "after the cancel"
        raise ValueError(msg)
    return "returned"


@durable.workflow
async def call_cancel_myself(step: Step, how: str) -> str:
    try:
        return await cancel_myself(how)
    except ValueError as exc:
        return str(exc)


@pytest.mark.parametrize(("how", "result"), [("return", "returned"), ("raise", "after the cancel")])
async def test_an_action_that_cancels_its_own_task_does_not_end_the_engine(
    path: Path, how: str, result: str
) -> None:
    async with Engine(path) as engine:
        for _ in range(2):
            run = await engine.start(call_cancel_myself(how))
            assert await run.result(timeout=WAIT_S_MAX) == result


@durable.action
async def fail() -> None:
    msg = "x"
    raise ValueError(msg)


@durable.workflow
async def raise_in_callbacks(step: Step) -> str:
    loop = asyncio.get_running_loop()
    loop.call_soon(lambda: 1 / 0)
    task = asyncio.create_task(fail())
    task.add_done_callback(lambda done: done.result())
    await step.sleep(0)
    await asyncio.wait([task])
    return "went on"


async def test_exceptions_in_a_body_s_callbacks_are_logged_and_the_run_goes_on(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Engine(path) as engine:
        run = await engine.start(raise_in_callbacks())
        assert await run.result(timeout=WAIT_S_MAX) == "went on"
    assert "ZeroDivisionError: division by zero" in caplog.text
    assert "ValueError: x" in caplog.text


@durable.action
async def swallow_cancels(release_after: int) -> str:
    for _ in range(release_after):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            continue
    return "late"


@durable.workflow
async def bound_it(step: Step) -> str:
    try:
        return await step.run(swallow_cancels(1), timeout=0.01)
    except TimeoutError:
        return "timed out"


async def test_an_attempt_that_swallows_its_time_out_has_timed_out_all_the_same(path: Path) -> None:
    async with Engine(path) as engine:
        run = await engine.start(bound_it())
        assert await run.result(timeout=WAIT_S_MAX) == "timed out"


kept: list[Step] = []


@durable.workflow
async def give_away_the_step(step: Step) -> None:
    kept.append(step)


async def test_a_step_kept_past_its_run_says_that_it_is_over(path: Path) -> None:
    async with Engine(path) as engine:
        await engine.run(give_away_the_step())
        with pytest.raises(NotInWorkflowError):
            await kept.pop().sleep(1)


@durable.workflow
async def nothing(step: Step) -> None:
    return None


async def test_a_journal_whose_file_was_removed_acknowledges_nothing(path: Path) -> None:
    moved = path.with_name("moved.db")
    async with Engine(path) as engine:
        await engine.run(nothing(), id="before")
        await asyncio.to_thread(path.rename, moved)
        with pytest.raises(JournalUnavailableError, match="removed"):
            await engine.run(nothing(), id="while it is gone")
        await asyncio.to_thread(moved.rename, path)
        async with asyncio.timeout(WAIT_S_MAX):
            while True:
                try:
                    await engine.run(nothing(), id="when it is back")
                    break
                except JournalUnavailableError:
                    # Not 0: a loop that spins takes the interpreter from the journal's threads.
                    await asyncio.sleep(0.005)
        found = [run.id async for run in engine.iter_runs()]
    assert found == ["before", "when it is back"]


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


async def test_a_file_name_that_is_too_long_is_a_journal_error() -> None:
    with pytest.raises(JournalUnavailableError, match="too long"):
        async with Engine(Path("a" * 300 + ".db")):
            pass


async def test_a_cursor_of_the_other_order_is_refused(path: Path) -> None:
    async with Engine(path) as engine:
        for _ in range(3):
            await engine.run(nothing())
        page = await engine.list_runs(order="desc", limit=1)
        with pytest.raises(ValueError, match="order"):
            await engine.list_runs(order="asc", cursor=page.cursor)
