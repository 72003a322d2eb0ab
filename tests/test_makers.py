"""Futures and tasks that a body makes past its loop: those would hash by their address."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from bare_loop import Host, current, nothing, run

import durable
from durable import Engine, RunFailed, Step
from durable.core.errors import NonDeterminismError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskStatus

    from durable.core.loop import WorkflowLoop


# --- refused -------------------------------------------------------------------------------------


class Later(asyncio.Future[int]):
    pass


class Numbered(asyncio.Future[int]):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


async def child() -> None:
    pass


def make_task() -> object:
    coroutine = child()
    try:
        return asyncio.Task(coroutine)
    finally:
        coroutine.close()


MADE: dict[str, Callable[[], object]] = {
    "Future": asyncio.Future,
    "Future with its loop": lambda: asyncio.Future(loop=current()),
    "Future by map": lambda: [future() for future in [asyncio.Future] * 2],
    "subclass": Later,
    "subclass with __init__": lambda: Numbered(1),
    "Task": make_task,
}


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_what_is_made_past_the_loop_is_refused(
    loop: WorkflowLoop, host: Host, made: Callable[[], object]
) -> None:
    async def body() -> None:
        made()

    expected = (
        r"may not use asyncio\.Future\(\) or asyncio\.Task\(\).*"
        r"get_running_loop\(\)\.create_future\(\) or asyncio\.create_task\(\)"
    )
    with pytest.raises(NonDeterminismError, match=expected):
        run(loop, body())
    assert len(host.refusals) == 1


@durable.workflow
async def making_futures(step: Step) -> None:
    futures = [asyncio.Future[int]() for _ in range(20)]
    await asyncio.wait(futures)


async def test_a_run_that_makes_one_says_what_to_use(path: Path) -> None:
    async with Engine(path) as engine:
        with pytest.raises(RunFailed, match=r"asyncio\.get_running_loop\(\)\.create_future\(\)"):
            await engine.run(making_futures())


# --- fine ----------------------------------------------------------------------------------------


def _own_protocol() -> bool:
    return bool(current().get_debug())


async def gathered() -> object:
    return await asyncio.gather(child(), child())


async def scheduled() -> object:
    current().call_soon(nothing)
    current().call_later(0, nothing)
    done, _ = await asyncio.wait([asyncio.create_task(child()), current().create_task(child())])
    return len(done)


async def asked_in_a_comprehension() -> object:
    return [current().get_debug() for _ in range(2)]


async def asked_by_a_helper() -> object:
    return _own_protocol()


async def two_in_a_lock() -> object:
    lock, trace = anyio.Lock(), list[int]()

    async def hold(number: int) -> None:
        async with lock:
            await asyncio.sleep(0)
            trace.append(number)

    async with anyio.create_task_group() as group:
        for number in range(3):
            group.start_soon(hold, number)
    return trace


async def waiting_for_an_event() -> object:
    event, trace = anyio.Event(), list[str]()

    async def wait() -> None:
        await event.wait()
        trace.append("told")

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        group.start_soon(wait)
        await asyncio.sleep(0)
        event.set()
    return trace


async def by_a_stream() -> object:
    sending, receiving = anyio.create_memory_object_stream[int]()

    async def send() -> None:
        async with sending:
            for number in range(3):
                await sending.send(number)

    received = list[int]()
    async with anyio.create_task_group() as group, receiving:
        group.start_soon(send)
        received += [number async for number in receiving]
    return received


async def started() -> object:
    async def serve(*, task_status: TaskStatus[str]) -> None:
        await asyncio.sleep(0)
        task_status.started("ready")

    async with anyio.create_task_group() as group:
        said: str = await group.start(serve)
    return said


async def under_limits() -> object:
    limiter, semaphore, condition = anyio.CapacityLimiter(1), anyio.Semaphore(1), anyio.Condition()
    trace = list[int]()

    async def work(number: int) -> None:
        async with limiter, semaphore, condition:
            await asyncio.sleep(0)
            trace.append(number)

    async with anyio.create_task_group() as group:
        for number in range(3):
            group.start_soon(work, number)
    return trace


FINE: dict[str, tuple[Callable[[], Awaitable[object]], object]] = {
    "gather": (gathered, [None, None]),
    "schedule": (scheduled, 2),
    "get_debug in a comprehension": (asked_in_a_comprehension, [False, False]),
    "get_debug by a helper": (asked_by_a_helper, False),
    "anyio.Lock": (two_in_a_lock, [0, 1, 2]),
    "anyio.Event": (waiting_for_an_event, ["told", "told"]),
    "anyio memory stream": (by_a_stream, [0, 1, 2]),
    "anyio TaskGroup.start": (started, "ready"),
    "anyio limiter, semaphore and condition": (under_limits, [0, 1, 2]),
}


@pytest.mark.parametrize(("use", "expected"), FINE.values(), ids=FINE)
def test_what_asks_for_the_debug_mode_and_makes_nothing_unordered_works(
    loop: WorkflowLoop, host: Host, use: Callable[[], Any], expected: object
) -> None:
    assert run(loop, use()) == expected
    assert host.refusals == []


@durable.action
async def double(number: int) -> int:
    return 2 * number


@durable.workflow
async def piping(step: Step) -> list[int]:
    sending, receiving = anyio.create_memory_object_stream[int]()

    async def send() -> None:
        async with sending:
            for number in range(3):
                await sending.send(await double(number))
        await step.sleep(0)

    doubled = list[int]()
    async with anyio.create_task_group() as group, receiving:
        group.start_soon(send)
        doubled += [await double(number) async for number in receiving]
    return doubled


async def test_anyios_futures_work_in_a_run(path: Path) -> None:
    async with Engine(path) as engine:
        assert await engine.run(piping()) == [0, 4, 8]
