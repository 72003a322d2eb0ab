"""``restart`` with code that is another from the step on that it goes on from."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from changing import HOUR_S, act, complete, today
from faults import opened
from waiting import WAIT_S_MAX, until, until_open, until_parked, until_state

import durable
from durable import (
    Engine,
    Run,
    RunCanceled,
    RunFailed,
    RunState,
    Step,
    StepState,
)

if TYPE_CHECKING:
    from pathlib import Path

    from clock import ManualClock


@durable.workflow
async def child(_step: Step, text: str) -> str:
    return await act(text)


async def result(run: Run[Any]) -> Any:  # noqa: ANN401
    return await run.result(timeout=WAIT_S_MAX)


async def states(run: Run[Any]) -> list[tuple[int, str, str]]:
    return [(step.number, step.name, str(step.state)) async for step in run.steps()]


async def replays(run: Run[Any]) -> Any:  # noqa: ANN401
    """Return what the body returns over its history alone, which has to be whole."""
    return await result(await run.restart())


async def beside(_step: Step) -> list[str]:
    return list(await asyncio.gather(*(act(text) for text in "abc")))


async def test_of_parallel_steps_the_later_ones_may_be_others(path: Path) -> None:
    async def other(_step: Step) -> list[str]:
        return list(await asyncio.gather(act("a"), child("y"), act("z"), act("more")))

    async with Engine(path) as engine:
        run = await complete(engine, beside)
        today.code = other
        await run.restart(from_step=1)
        assert await result(run) == ["a", "y", "z", "more"]
        assert today.begun == Counter(["y", "z", "more"])
        assert [number for number, _, _ in await states(run)] == [0, 1, 2, 3]
        assert await replays(run) == ["a", "y", "z", "more"]
        assert sum(today.begun.values()) == 3


async def test_what_the_new_code_has_withdrawn_already_never_begins(path: Path) -> None:
    async def other(_step: Step) -> list[str]:
        first, second = asyncio.ensure_future(act("a")), asyncio.ensure_future(act("never"))
        await first
        second.cancel()
        return [first.result(), await act("after")]

    async with Engine(path) as engine:
        run = await complete(engine, beside)
        today.code = other
        await run.restart(from_step=1)
        assert await result(run) == ["a", "after"]
        assert today.begun == {"after": 1}
        assert [state for _, _, state in await states(run)] == [
            "completed",
            "canceled",
            "completed",
        ]
        assert await replays(run) == ["a", "after"]


async def test_the_new_code_may_end_where_the_old_went_on(path: Path) -> None:
    async def other(_step: Step) -> str:
        tasks = [asyncio.ensure_future(act(text)) for text in ("a", "left")]
        return await tasks[0]

    async with Engine(path) as engine:
        run = await complete(engine, beside)
        today.code = other
        await run.restart(from_step=1)
        assert await result(run) == "a"
        assert not today.begun
        assert await replays(run) == "a"


async def test_the_new_code_may_fail_where_the_old_went_on(path: Path) -> None:
    async def other(_step: Step) -> str:
        raise LookupError(await asyncio.ensure_future(act("a")))

    async with Engine(path) as engine:
        run = await complete(engine, beside)
        today.code = other
        await run.restart(from_step=1)
        with pytest.raises(RunFailed, match="LookupError: a"):
            await result(run)


async def test_a_sleep_of_the_new_code_takes_its_time(path: Path, clock: ManualClock) -> None:
    """Though it was issued, as the body sees it, when the step before was delivered."""
    until_when = datetime.fromtimestamp(clock.now_ms() / 1000 + 20 * HOUR_S, UTC)

    async def other(step: Step) -> list[str]:
        first = asyncio.ensure_future(act("a"))
        sleeping = asyncio.ensure_future(step.sleep(HOUR_S))
        bounded = asyncio.ensure_future(step.sleep_until(until_when))
        delayed = asyncio.ensure_future(step.run(act("delayed"), run_after=HOUR_S))
        done = [await first]
        await sleeping
        done.append(await delayed)
        await bounded
        return done

    async with opened(path, clock) as engine:
        run = await complete(engine, beside)
        clock.advance(10 * HOUR_S)
        today.code = other
        await run.restart(from_step=1)
        await until_open(run)
        assert [step.number for step in (await run.status()).running] == [1, 2, 3]
        clock.advance(HOUR_S - 1)
        await until_parked(engine)
        assert not today.begun
        clock.advance(1)
        await until(lambda: today.begun)
        clock.advance(9 * HOUR_S - 1)
        assert (await run.status()).state is RunState.RUNNING
        clock.advance(1)
        assert await result(run) == ["a", "delayed"]


async def test_nothing_of_the_new_code_begins_when_a_cancel_came_before(path: Path) -> None:
    async def other(_step: Step) -> list[str]:
        try:
            return list(await asyncio.gather(act("a"), act("y"), child("z")))
        finally:
            await act("undo")

    async with Engine(path) as engine:
        run = await complete(engine, beside)
    today.code = other
    async with Engine(path, worker=False) as client:
        await client.restart(run.id, from_step=1)
        assert [step.number async for step in client.iter_steps(run.id)] == [0]
        assert await client.cancel(run.id)
    async with Engine(path) as engine:
        run = engine.get(run.id)
        with pytest.raises(RunCanceled):
            await result(run)
        assert today.begun in ({"undo": 1}, {})
        assert [step async for step in run.steps() if step.finished_at is None] == []


async def test_the_state_between_restart_and_replay_shows_no_dropped_step(path: Path) -> None:
    async with Engine(path) as engine:
        run = await complete(engine, beside)
    async with Engine(path, worker=False) as client:
        await client.restart(run.id, from_step=1)
        assert (await client.status(run.id)).running == []
        assert [step.number async for step in client.iter_steps(run.id)] == [0]


async def test_a_run_that_took_too_long_goes_on_before_its_clean_up(
    path: Path, clock: ManualClock
) -> None:
    """Whichever step of that has failed: the time begins again, and nothing is to be undone."""

    async with opened(path, clock) as engine:
        today.failing.add("undo b")
        run = await engine.start(bounded())
        await until_open(run)
        clock.advance(2 * HOUR_S)
        with pytest.raises(RunFailed):
            await result(run)
        assert today.begun == Counter(["undo a", "undo b"])
        today.failing.clear()
        await run.restart()
        await until_state(run, RunState.RUNNING)
        await run.send_event("go", "gone")
        assert await result(run) == "gone"
        assert today.begun == Counter(["undo a", "undo b", "end"])


@durable.workflow(timeout=HOUR_S)
async def bounded(step: Step) -> Any:  # noqa: ANN401
    try:
        value = await step.wait_event("go")
    except asyncio.CancelledError:
        await act("undo a")
        await act("undo b")
        raise
    await act("end")
    return value


async def test_a_withdrawn_step_of_the_kept_part_stays_withdrawn(path: Path) -> None:
    async def racing(step: Step) -> str:
        slow = asyncio.ensure_future(step.run(act("slow"), run_after=HOUR_S))
        first = await act("a")
        slow.cancel()
        return first + await act("b")

    async with Engine(path) as engine:
        run = await complete(engine, racing)
        await run.restart(from_step=2)
        assert await result(run) == "ab"
        assert today.begun == {"b": 1}
        steps = {step.number: step.state async for step in run.steps()}
        assert steps[1] is StepState.CANCELED
