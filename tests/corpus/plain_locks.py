"""What CPython's locks do, each edge of theirs: a body's do the same."""

import asyncio
from collections.abc import Callable

import durable
from durable import Step

from .actions import echo
from .case import case
from .outcomes import MOMENT_S, outcome, ticks


def attempt(act: Callable[..., object], *args: object) -> str:
    """Return what comes of a plain call."""
    try:
        return str(act(*args))
    except Exception as error:  # noqa: BLE001 - its type is the outcome
        return type(error).__name__


@case()
@durable.workflow(name="corpus.plain_lock_edges")
async def plain_lock_edges(_step: Step) -> list[str]:
    """Only who holds a lock can release it, and who waits gets it before who comes later."""
    trace: list[str] = []
    lock = asyncio.Lock()

    async def hold(label: str) -> None:
        async with lock:
            trace.append(label)
            await ticks(1)

    trace.append(attempt(lock.release))
    trace.append(f"{await lock.acquire()} {lock.locked()}")
    tasks = [asyncio.create_task(hold(label)) for label in "ab"]
    await ticks(1)
    await echo("held")
    lock.release()
    trace.append(f"locked {lock.locked()}")
    await hold("late")
    await asyncio.gather(*tasks)
    trace.append(f"locked {lock.locked()}")
    return [*trace, attempt(lock.release)]


@case()
@durable.workflow(name="corpus.plain_lock_handed_over")
async def plain_lock_handed_over(_step: Step) -> list[str]:
    """A lock that is released to a waiter who is cancelled at that moment goes to the next."""
    trace: list[str] = []

    async def hold(lock: asyncio.Lock, label: str) -> str:
        async with lock:
            trace.append(label)
        return label

    for is_released_first in (True, False):
        lock = asyncio.Lock()
        await lock.acquire()
        first, second = (asyncio.create_task(hold(lock, label)) for label in "ab")
        await ticks(1)
        if is_released_first:
            lock.release()
            first.cancel()
        else:
            first.cancel()
            lock.release()
        trace += [await outcome(first), await outcome(second), f"locked {lock.locked()}"]
        await echo("between")
    return trace


@case()
@durable.workflow(name="corpus.plain_event_edges")
async def plain_event_edges(_step: Step) -> list[str]:
    """Who waits is woken by a set that is cleared at once; who is cancelled is not."""
    event = asyncio.Event()
    waiters = [asyncio.create_task(event.wait()) for _ in range(3)]
    await ticks(1)
    await echo("waiting")
    waiters[1].cancel()
    event.set()
    event.clear()
    late = asyncio.create_task(event.wait())
    found = [await outcome(waiter) for waiter in waiters]
    await ticks(3)
    found.append(f"late {late.done()} {event.is_set()}")
    event.set()
    return [*found, await outcome(late), await outcome(event.wait())]


@case()
@durable.workflow(name="corpus.plain_condition_edges")
async def plain_condition_edges(_step: Step) -> list[str]:
    """A condition is waited for and notified by who holds its lock, which may be a given one."""
    trace: list[str] = []
    lock = asyncio.Lock()
    condition, other = asyncio.Condition(lock), asyncio.Condition(lock)
    values: list[int] = []

    async def wait(label: str) -> None:
        async with condition:
            trace.append(f"{label} {await condition.wait()} {lock.locked()}")

    async def wait_for_two() -> str:
        async with other:
            return f"found {await other.wait_for(lambda: len(values) == 2 and values)}"

    trace += [await outcome(condition.wait()), attempt(condition.notify)]
    trace.append(attempt(condition.notify_all))
    tasks = [asyncio.create_task(wait(label)) for label in "abcd"]
    two = asyncio.create_task(wait_for_two())
    await ticks(2)
    await echo("waiting")
    async with condition:
        condition.notify(2)
        trace.append("notified")
    await ticks(5)
    async with condition:
        condition.notify(5)
        trace.append("notified more than there are")
    await asyncio.gather(*tasks)
    for value in (1, 2):
        async with other:
            values.append(value)
            other.notify_all()
        await ticks(3)
        trace.append(f"two {two.done()}")
    return [*trace, await two, f"locked {lock.locked()}"]


@case()
@durable.workflow(name="corpus.plain_condition_cancelled")
async def plain_condition_cancelled(_step: Step) -> list[str]:
    """Who is cancelled while waiting, or while taking the lock again, holds it when told so."""
    trace: list[str] = []
    condition = asyncio.Condition()

    async def wait(label: str) -> None:
        async with condition:
            try:
                await condition.wait()
            finally:
                trace.append(f"{label} {condition.locked()}")

    first, second = (asyncio.create_task(wait(label)) for label in "ab")
    await ticks(1)
    first.cancel()
    await ticks(3)
    trace.append(f"first {first.cancelled()}")
    await echo("cancelled")
    async with condition:
        condition.notify()
        await ticks(2)  # It was notified, and waits for the lock.
        second.cancel()
        await ticks(2)
        trace.append(f"second {second.done()}")
    trace.append(await outcome(second))
    return [*trace, f"locked {condition.locked()}"]


@case()
@durable.workflow(name="corpus.plain_semaphore_edges")
async def plain_semaphore_edges(_step: Step) -> list[str]:
    """Slots go to who waits longest, not to who comes along; a cancelled waiter takes none."""
    trace: list[str] = [attempt(asyncio.Semaphore, -1), attempt(asyncio.BoundedSemaphore, -1)]
    slots = asyncio.Semaphore(1)

    async def work(label: str) -> str:
        async with slots:
            trace.append(label)
            await ticks(1)
        return label

    await slots.acquire()
    trace.append(f"locked {slots.locked()}")
    tasks = [asyncio.create_task(work(label)) for label in "abcd"]
    await ticks(1)
    await echo("waiting")
    slots.release()
    tasks[0].cancel()
    tasks[2].cancel()
    trace.append(await work("late"))
    trace += [await outcome(task) for task in tasks]
    slots.release()
    slots.release()
    for _ in range(3):
        trace.append(f"{await slots.acquire()} {slots.locked()}")
    bounded = asyncio.BoundedSemaphore(2)
    await bounded.acquire()
    return [*trace, attempt(bounded.release), attempt(bounded.release), str(bounded.locked())]


@case()
@durable.workflow(name="corpus.plain_barrier_edges")
async def plain_barrier_edges(_step: Step) -> list[str]:
    """A barrier gives each party a number, and can be reset, broken and mended."""
    trace: list[str] = [attempt(asyncio.Barrier, 0)]
    barrier = asyncio.Barrier(2)

    def state() -> str:
        return f"{barrier.parties} {barrier.n_waiting} {barrier.broken}"

    async def enter() -> str:
        async with barrier as position:
            return str(position)

    positions = await asyncio.gather(*(enter() for _ in range(4)))
    trace += [" ".join(sorted(positions)), state()]
    waiting = asyncio.create_task(barrier.wait())
    await ticks(2)
    trace.append(state())
    await echo("waiting")
    await barrier.reset()
    trace += [await outcome(waiting), state()]
    cancelled = asyncio.create_task(barrier.wait())
    await ticks(2)
    cancelled.cancel()
    trace += [await outcome(cancelled), state()]
    late = asyncio.create_task(asyncio.wait_for(barrier.wait(), MOMENT_S))
    trace += [await outcome(late), state()]
    await barrier.abort()
    trace += [await outcome(barrier.wait()), state()]
    await barrier.reset()
    trace += [" ".join(sorted(await asyncio.gather(enter(), enter()))), state()]
    return trace
