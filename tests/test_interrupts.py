"""A ``KeyboardInterrupt`` that is an action's outcome ends its step, and not the program.

It need not come by a ``raise`` of the action's own. What a signal handler raises is Ctrl-C.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from interpreters import run_python
from waiting import until_step

import durable
from durable import Engine, Run, Step, StepFailed, StepState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator


def interrupt() -> None:
    raise KeyboardInterrupt


def numbers() -> Iterator[int]:
    yield 1
    yield 2


def throw_before_it_begins() -> None:
    (number for number in numbers()).throw(KeyboardInterrupt)


def throw_into_a_suspended_one() -> None:
    generator = (number for number in numbers())
    next(generator)
    generator.throw(KeyboardInterrupt)


def throw_below() -> None:
    def delegating() -> Generator[int, None, None]:
        yield from numbers()

    generator = delegating()
    next(generator)
    generator.throw(KeyboardInterrupt)


def raise_in_what_is_called_by_c() -> None:
    for _ in map(lambda _: interrupt(), [1]):  # noqa: C417  a call by C
        pass


def raise_again() -> None:
    try:
        interrupt()
    finally:
        str(1)


SYNC: dict[str, Callable[[], None]] = {
    "raise": interrupt,
    "raise below C": raise_in_what_is_called_by_c,
    "raise again": raise_again,
    "throw before it begins": throw_before_it_begins,
}
if sys.version_info < (3, 12):  # From then on these look like Ctrl-C, and are taken for it.
    SYNC |= {"throw": throw_into_a_suspended_one, "throw below": throw_below}


async def by_future() -> None:
    future = asyncio.get_running_loop().create_future()
    future.set_exception(KeyboardInterrupt())
    await future


async def by_future_that_is_waited_for() -> None:
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.call_soon(future.set_exception, KeyboardInterrupt())
    await future


async def by_thread() -> None:
    await asyncio.to_thread(interrupt)


async def by_throw() -> None:
    coroutine = by_future()
    coroutine.throw(KeyboardInterrupt)


async def by_athrow() -> None:
    async def values() -> AsyncGenerator[int]:
        yield 1

    generator = values()
    await anext(generator)
    await generator.athrow(KeyboardInterrupt)


ASYNC: dict[str, Callable[[], Awaitable[None]]] = {
    "future": by_future,
    "future, later": by_future_that_is_waited_for,
    "thread": by_thread,
    "throw": by_throw,
}
if sys.version_info < (3, 12):
    ASYNC["athrow"] = by_athrow


@durable.action
def interrupted_in_thread(how: str) -> None:
    SYNC[how]()


@durable.action
async def interrupted(how: str) -> None:
    if how in SYNC:
        SYNC[how]()
    else:
        await ASYNC[how]()


@durable.action
async def fine() -> str:
    return "fine"


@durable.workflow
async def catching(step: Step, how: str, in_thread: bool) -> str:
    with pytest.raises(StepFailed) as info:
        await (interrupted_in_thread if in_thread else interrupted)(how)
    assert info.value.type_name == "KeyboardInterrupt"
    return await fine()


@pytest.mark.parametrize(
    ("how", "in_thread"),
    [(how, False) for how in [*SYNC, *ASYNC]] + [(how, True) for how in SYNC],
)
@pytest.mark.both_loops
async def test_an_interrupt_of_an_actions_own_fails_its_step(
    how: str, in_thread: bool, path: Path
) -> None:
    async with Engine(path) as engine:
        assert await engine.run(catching(how, in_thread)) == "fine"


@durable.action
async def interrupted_in_process() -> None:
    await asyncio.get_running_loop().run_in_executor(pools[0], interrupt)


@durable.workflow
async def catching_from_a_process(step: Step) -> str:
    with pytest.raises(StepFailed) as info:
        await interrupted_in_process()
    assert info.value.type_name == "KeyboardInterrupt"
    return await fine()


pools: list[ProcessPoolExecutor] = []


@pytest.mark.slow
def test_an_interrupt_in_a_worker_process_fails_its_step(path: Path) -> None:
    async def life() -> str:
        async with Engine(path) as engine:
            return await engine.run(catching_from_a_process())

    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(len, ()).result()
        pools[:] = [pool]
        try:
            assert asyncio.run(life()) == "fine"
        finally:
            pools.clear()


@durable.action
async def pressing_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


@durable.workflow
async def pressing(step: Step) -> None:
    await pressing_ctrl_c()


def test_ctrl_c_in_an_action_is_the_programs(path: Path) -> None:
    async def life() -> None:
        # The handler that asyncio.run sets would cancel the main task instead.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        async with Engine(path, drain_timeout=0) as engine:
            await engine.run(pressing())

    outer = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(life())
    finally:
        signal.signal(signal.SIGINT, outer)


class Crash:
    """What the attempts of a crash know of each other."""

    def __init__(self) -> None:
        self.held = asyncio.Event()
        self.run: Run[None] | None = None
        self.begun_late = 0


crash: Crash


@durable.action
async def pressing_while_another_runs() -> None:
    await crash.held.wait()
    signal.raise_signal(signal.SIGINT)


@durable.action
async def holding_the_end_up() -> None:
    crash.held.set()
    try:
        await asyncio.Event().wait()
    finally:
        assert crash.run is not None
        # It has got the slot of the one that has crashed; it would begin soon after that commit.
        await until_step(crash.run, too_late.name, StepState.RUNNING)
        for _ in range(10):
            await asyncio.sleep(0)


@durable.action
async def too_late() -> None:
    crash.begun_late += 1


@durable.workflow
async def crashing_together(step: Step) -> None:
    await asyncio.gather(holding_the_end_up(), pressing_while_another_runs(), too_late())


def test_after_ctrl_c_in_an_action_no_other_begins(path: Path) -> None:
    global crash  # noqa: PLW0603  of one test
    crash = Crash()

    async def life() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        async with Engine(path, max_parallelism=2, drain_timeout=0) as engine:
            crash.run = await engine.start(crashing_together())
            await crash.run.result()

    outer = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(life())
    finally:
        signal.signal(signal.SIGINT, outer)
    assert crash.begun_late == 0


PROGRAM = """
import asyncio, signal, sys
import durable

def summing(numbers):
    return sum(number for number in numbers)

def spinning(numbers):
    for number in numbers:
        pass

@durable.action
async def busy(how: str) -> None:
    def numbers():
        for number in range(100_000_000):
            if number == 1000:
                signal.raise_signal(int(sys.argv[3]))
            yield number
    globals()[how](numbers())

@durable.action
async def waits(how: str) -> str:
    begun.set()
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        if how == "spinning":
            raise
    return "what it says when it is cut off"

@durable.workflow
async def working(step, how: str) -> None:
    await busy(how)

@durable.workflow
async def waiting(step, how: str) -> None:
    await waits(how)

async def main():
    global begun
    begun = asyncio.Event()
    async with durable.Engine("sqlite:///" + sys.argv[1], drain_timeout=0) as engine:
        await engine.start(waiting(sys.argv[2]), id="other")
        await begun.wait()
        await engine.run(working(sys.argv[2]), id="r")

signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
signal.signal(signal.SIGINT, signal.default_int_handler)
loop = asyncio.new_event_loop()
try:
    loop.run_until_complete(main())
except KeyboardInterrupt:
    sys.exit(5)
finally:
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.gather(*asyncio.all_tasks(loop), return_exceptions=True))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["summing", "spinning"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 5), (signal.SIGTERM, 7)])
def test_a_signal_while_an_action_computes_is_the_programs(
    number: int, code: int, how: str, path: Path
) -> None:
    """Also in a generator; and what a handler of the program's own raises.

    It is nothing to other attempts that run then: they are made again in the next life.
    """
    ended = run_python("-c", PROGRAM, path, how, str(int(number)))
    assert ended.returncode == code, ended.stderr

    async def look() -> list[str]:
        async with Engine(path, worker=False) as engine:
            return [f"{run.state} {run.running[0].state}" async for run in engine.iter_runs()]

    assert asyncio.run(look()) == ["running running"] * 2
