"""Calls that are cancelled in each cycle of the event loop, one after the other."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from contextvars import Context

    Call = Callable[[], Awaitable[object]]

Way = Literal["task", "timeout", "scope"]
WAYS: tuple[Way, ...] = ("task", "timeout", "scope")

UNREACHED_MAX = 2
"""A call takes some cycles of the loop more or less, as its threads answer: a sweep ends when this
many calls in a row were over before it was their turn to be cancelled."""


@contextmanager
def at_cycle(number: int, act: Callable[[], object]) -> Generator[None]:
    """Call ``act`` at the beginning of the running loop's ``number``-th cycle from here.

    Of every loop, a cycle begins with the first callback that was put in line for it: counting
    puts one of its own in front. So it adds no cycle, and the loop waits as it would.
    """
    loop: Any = asyncio.get_running_loop()
    left = count(number, -1)
    is_marked = is_over = False

    def begin() -> None:
        nonlocal is_marked
        is_marked = False
        if not is_over and next(left) == 0:
            act()

    def marking(put_in_line: Callable[..., asyncio.Handle]) -> Callable[..., asyncio.Handle]:
        def call(
            callback: Callable[..., object], *args: object, context: Context | None = None
        ) -> asyncio.Handle:
            nonlocal is_marked
            if not is_marked:
                is_marked = True
                put_in_line(begin)
            return put_in_line(callback, *args, context=context)

        return call

    loop.call_soon = marking(loop.call_soon)
    loop.call_soon_threadsafe = marking(loop.call_soon_threadsafe)
    try:
        yield
    finally:
        is_over = True
        del loop.call_soon, loop.call_soon_threadsafe


async def cancel_at(cycle: int, way: Way, call: Call) -> bool:
    """Cancel a call in that cycle; return ``False`` when it was over before.

    A cancellation that was asked for has to come out of the call: nothing may swallow it.
    """
    asked = False

    async def with_timeout() -> None:
        nonlocal asked
        raised = False
        try:
            async with asyncio.timeout(None) as timeout:
                with at_cycle(cycle, lambda: timeout.reschedule(0)):
                    await call()
        except TimeoutError:
            raised = True
        asked = raised or timeout.when() is not None
        assert raised is timeout.expired()

    async def in_scope() -> None:
        nonlocal asked
        with anyio.CancelScope() as scope, at_cycle(cycle, scope.cancel):
            await call()
        asked = scope.cancel_called

    async def as_task() -> None:
        nonlocal asked

        def cancel() -> None:
            nonlocal asked
            asked = task.cancel()

        with at_cycle(cycle, cancel):
            await call()

    bodies_of = {"timeout": with_timeout, "scope": in_scope, "task": as_task}
    task = asyncio.create_task(bodies_of[way]())
    await asyncio.wait([task])
    if way == "task":
        assert task.cancelled() is asked, (cycle, way)
    if not task.cancelled():
        await task
    return asked


async def sweep(
    way: Way, prepare: Callable[[str], Awaitable[Call]], check: Callable[[str], Awaitable[None]]
) -> None:
    """Cancel what ``prepare`` gives in cycle 0, 1, 2, and so on, and check after each."""
    unreached = 0
    for cycle in count():
        run_id = f"{way}-{cycle}"
        if await cancel_at(cycle, way, await prepare(run_id)):
            unreached = 0
        else:
            unreached += 1
        await check(run_id)
        if unreached == UNREACHED_MAX:
            assert cycle >= UNREACHED_MAX, "it was never cancelled"
            return
