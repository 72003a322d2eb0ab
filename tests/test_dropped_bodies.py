"""A body that was dropped from memory cannot act, whoever closes its coroutines, and whenever.

A coroutine in a reference cycle is closed by the collector, when nobody watches any more what its
``finally`` blocks do: an action awaited there would be an ordinary call, past the journal.
"""

from __future__ import annotations

import asyncio
import gc
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest
from clock import ManualClock
from waiting import until, until_open, until_parked

import durable
from durable import Engine, Step

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterator
    from pathlib import Path

SHORT_S, LONG_S = 5.0, 60.0
"""A short sleep is waited for in memory, until the engine is closed; a long one is not."""

acted: list[str] = []
left: list[str] = []
holder = ContextVar("holder", default="nobody")


@pytest.fixture(autouse=True)
def _new_world() -> None:
    acted.clear()
    left.clear()


@durable.action
async def release() -> None:
    acted.append("released")


class Lease:
    """What a body holds while it sleeps, and what refers to itself by its frames."""

    def __init__(self, step: Step, sleep_s: float) -> None:
        self._step = step
        self._sleep_s = sleep_s
        self._loop: object = None

    async def take(self) -> None:
        try:
            await self._step.sleep(self._sleep_s)
        finally:
            await release()

    def keep(self, what: Any) -> Any:  # noqa: ANN401  whatever refers to this
        self._loop = what
        return what


async def taking(lease: Lease) -> AsyncGenerator[None]:
    while True:
        await lease.take()
        yield


async def taking_at_its_end(lease: Lease) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        await lease.take()


class _OwnIterator:
    """Drives a coroutine, as an adapter between two libraries may."""

    def __init__(self, coro: Coroutine[Any, Any, None]) -> None:
        self._coro = coro

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> object:
        return self._coro.send(None)


class _SlottedIterator:
    __slots__ = ("_coro",)

    def __init__(self, coro: Coroutine[Any, Any, None]) -> None:
        self._coro = coro

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> object:
        return self._coro.send(None)


class _Awaitable:
    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator = iterator

    def __await__(self) -> Generator[Any, Any, None]:
        return self._iterator  # type: ignore[return-value]  # no generator, as it need not be one


async def under_async_for(lease: Lease) -> None:
    async for _ in lease.keep(taking(lease)):
        pass


async def under_asend(lease: Lease) -> None:
    await lease.keep(taking(lease)).asend(None)


async def under_aclose(lease: Lease) -> None:
    generator = lease.keep(taking_at_its_end(lease))
    await anext(generator)
    await generator.aclose()


async def under_context_manager(lease: Lease) -> None:
    @asynccontextmanager
    async def held() -> AsyncGenerator[None]:
        await lease.take()
        yield

    manager: AbstractAsyncContextManager[None] = lease.keep(held())
    async with manager:
        pass


async def under_own_iterator(lease: Lease) -> None:
    awaitable: Awaitable[None] = lease.keep(_Awaitable(_OwnIterator(lease.take())))
    await awaitable


async def under_slotted_iterator(lease: Lease) -> None:
    awaitable: Awaitable[None] = lease.keep(_Awaitable(_SlottedIterator(lease.take())))
    await awaitable


async def _releasing_at_its_end() -> AsyncGenerator[int]:
    try:
        yield 1
        yield 2
    finally:
        await release()


async def with_a_generator_that_its_end_begins(lease: Lease) -> None:
    """Left half done while the body is closed: not for the host's loop to close."""
    try:
        await lease.take()
    finally:
        async for _ in _releasing_at_its_end():
            break


class _InLists:
    def __init__(self, coro: Coroutine[Any, Any, None]) -> None:
        self._deep = [[coro]]

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> object:
        return self._deep[0][0].send(None)


async def under_iterator_with_lists(lease: Lease) -> None:
    awaitable: Awaitable[None] = lease.keep(_Awaitable(_InLists(lease.take())))
    await awaitable


async def under_anext_with_default(lease: Lease) -> None:
    await anext(lease.keep(taking(lease)), None)


WAYS: dict[str, Callable[[Lease], Awaitable[None]]] = {
    "async for": under_async_for,
    "asend": under_asend,
    "aclose": under_aclose,
    "context manager": under_context_manager,
    "iterator of its own": under_own_iterator,
    "iterator with slots": under_slotted_iterator,
    "iterator with lists": under_iterator_with_lists,
    "anext with a default": under_anext_with_default,
    "generator begun by its end": with_a_generator_that_its_end_begins,
}


@durable.workflow
async def leasing(step: Step, way: str, sleep_s: float) -> None:
    await WAYS[way](Lease(step, sleep_s))


@pytest.mark.parametrize("way", WAYS)
async def test_a_body_that_an_engine_drops_as_it_is_closed_cannot_act(way: str, path: Path) -> None:
    engine = Engine(path)
    ManualClock().install(engine)
    async with engine:
        await until_open(await engine.start(leasing(way, SHORT_S)))
        assert engine.statistics().live_runs == 1
    gc.collect()
    assert acted == []


@pytest.mark.parametrize("way", WAYS)
async def test_a_body_that_a_long_sleep_drops_cannot_act(way: str, path: Path) -> None:
    """And when the time has come, it does: in the body that is replayed."""
    clock, engine = ManualClock(), Engine(path)
    clock.install(engine)
    async with engine:
        run = await engine.start(leasing(way, LONG_S))
        await until_open(run)
        await until_parked(engine)
        gc.collect()
        await asyncio.sleep(0)
        assert acted == []
        clock.advance(LONG_S)
        await until(lambda: acted)
        assert acted == ["released"]
        names = [step.name async for step in run.steps()]
        assert names[:2] == ["sleep", "test_dropped_bodies:release"]


class _ByHand:
    """A coroutine that is begun by hand, and not awaited: nothing leads from the body to it."""

    def __init__(self) -> None:
        self.coro = self._acting_at_its_end()
        self.coro.send(None)

    async def _acting_at_its_end(self) -> None:
        try:
            await _Awaitable(iter([None, None]))
        finally:
            await release()


@durable.action
async def echo(number: int) -> int:
    return number


@durable.workflow
async def littering(step: Step) -> int:
    """Leaves what only the collector frees, and then makes enough for it to come."""
    _ByHand()
    kept = [[number] for number in range(20_000)]
    return await echo(len(kept))


async def test_the_collector_does_not_run_another_bodys_code_as_this_ones(path: Path) -> None:
    """Which would issue steps of the body whose turn it happens to be, not the same on replay."""
    async with Engine(path) as engine:
        for number in range(5):
            run = await engine.start(littering(), id=f"run-{number}")
            assert await run.result() == 20_000
            assert [step.name async for step in run.steps()] == ["test_dropped_bodies:echo"]


# --- each finally has its turn, where it belongs: in its task and in its context ------------------


@contextmanager
def held_by(name: str) -> Generator[None]:
    token = holder.set(name)
    try:
        yield
    finally:
        holder.reset(token)
        left.append(name)


@asynccontextmanager
async def left_slowly(name: str) -> AsyncGenerator[None]:
    with held_by(name):
        try:
            yield
        finally:
            with held_by(f"{name}'s end"):
                await asyncio.get_running_loop().create_future()


async def generated(name: str, step: Step) -> AsyncGenerator[None]:
    with held_by(name):
        async with left_slowly(f"{name} in a generator"):
            await step.sleep(LONG_S)
            yield


@durable.workflow
async def holding(step: Step) -> None:
    async def hold(name: str) -> None:
        async with left_slowly(name):
            async for _ in generated(f"{name}'s", step):
                pass

    async with asyncio.TaskGroup() as group:
        group.create_task(hold("a"))
        group.create_task(hold("b"))


async def test_a_body_that_is_dropped_leaves_all_that_it_has_entered(path: Path) -> None:
    """Also what a generator has entered, and what answers with another await: at once, in the
    context and the task that entered it. The collector would do it anywhere.
    """
    engine = Engine(path)
    ManualClock().install(engine)
    async with engine:
        gc.disable()
        try:
            await until_open(await engine.start(holding()))
            await until_parked(engine)
            there = list(left)
        finally:
            gc.enable()
    # The tasks begun last are closed first; of each, the innermost first.
    assert there == [
        *("b's in a generator's end", "b's in a generator", "b's", "b's end", "b"),
        *("a's in a generator's end", "a's in a generator", "a's", "a's end", "a"),
    ]
    gc.collect()
    assert left == there
