"""What CPython's queues do, each edge of theirs: a body's do the same."""

import asyncio
import sys

import durable
from durable import Step

from .actions import echo
from .case import case
from .outcomes import MOMENT_S, outcome, ticks
from .plain_locks import attempt


@case()
@durable.workflow(name="corpus.plain_queue_edges")
async def plain_queue_edges(_step: Step) -> list[str]:
    """What a queue says of itself, when it is full, empty, and done with."""
    queue: asyncio.Queue[str] = asyncio.Queue(2)

    def state() -> str:
        return f"{queue.qsize()} {queue.maxsize} {queue.empty()} {queue.full()}"

    trace = [state(), attempt(queue.get_nowait), attempt(queue.task_done)]
    await queue.join()  # Nothing is unfinished.
    for label in "ab":
        await queue.put(await echo(label))
    trace += [state(), attempt(queue.put_nowait, "c")]
    joined = asyncio.create_task(queue.join())
    trace += [queue.get_nowait(), await queue.get(), state()]
    queue.task_done()
    await ticks(3)
    trace.append(f"joined {joined.done()}")
    queue.put_nowait("one more")
    queue.task_done()
    await ticks(3)
    trace.append(f"joined {joined.done()}")
    queue.task_done()
    await joined
    unbounded: asyncio.Queue[int] = asyncio.Queue(-1)
    for number in range(100):
        unbounded.put_nowait(number)
    return [*trace, attempt(queue.task_done), f"{unbounded.full()} {unbounded.qsize()}"]


@case()
@durable.workflow(name="corpus.plain_queue_fair")
async def plain_queue_fair(_step: Step) -> list[str]:
    """Getters and putters are served in the order in which they came."""
    trace: list[str] = []
    queue: asyncio.Queue[str] = asyncio.Queue(1)

    async def get(name: str) -> None:
        trace.append(f"{name} got {await queue.get()}")

    async def put(item: str) -> None:
        await queue.put(item)
        trace.append(f"put {item}")

    getters = [asyncio.create_task(get(name)) for name in ("one", "two", "three")]
    await ticks(1)
    await echo("waiting")
    putters = [asyncio.create_task(put(item)) for item in "abcde"]
    await asyncio.gather(*getters)
    trace.append(await queue.get())
    await asyncio.gather(*putters)
    return [*trace, queue.get_nowait()]


@case()
@durable.workflow(name="corpus.plain_queue_cancelled_getter")
async def plain_queue_cancelled_getter(_step: Step) -> list[str]:
    """An item that comes as a getter is cancelled, or late, is there for the next one."""
    found: list[str] = []
    queue: asyncio.Queue[str] = asyncio.Queue()
    for is_put_first in (True, False):
        first, second = (asyncio.create_task(queue.get()) for _ in range(2))
        await ticks(1)
        if is_put_first:
            queue.put_nowait(await echo("item"))
            first.cancel()
        else:
            first.cancel()
            queue.put_nowait("item")
        found += [await outcome(first), await outcome(second), str(queue.qsize())]
    found.append(await outcome(asyncio.wait_for(queue.get(), MOMENT_S)))
    queue.put_nowait("kept")
    await ticks(2)
    return [*found, str(queue.qsize()), await queue.get()]


@case()
@durable.workflow(name="corpus.plain_queue_cancelled_putter")
async def plain_queue_cancelled_putter(_step: Step) -> list[str]:
    """A putter that is cancelled as a place gets free leaves the place to the next one."""
    queue: asyncio.Queue[str] = asyncio.Queue(1)
    queue.put_nowait("first")
    putters = [asyncio.create_task(queue.put(item)) for item in "abc"]
    await ticks(1)
    await echo("waiting")
    found = [queue.get_nowait()]
    putters[0].cancel()
    found += [await queue.get(), await queue.get()]
    found += [await outcome(putter) for putter in putters]
    late = asyncio.create_task(asyncio.wait_for(queue.put("late"), MOMENT_S))
    return [*found, await outcome(late), await queue.get(), f"empty {queue.empty()}"]


@case()
@durable.workflow(name="corpus.plain_queue_orders")
async def plain_queue_orders(_step: Step) -> list[str]:
    """Least first, last first: also for who was waiting already, and with a bound."""
    least: asyncio.PriorityQueue[tuple[int, str]] = asyncio.PriorityQueue()
    last: asyncio.LifoQueue[str] = asyncio.LifoQueue(3)
    waiting = asyncio.create_task(least.get())
    await ticks(1)
    for priority, label in ((3, "c"), (1, "b"), (2, "z"), (1, "a")):
        least.put_nowait((priority, await echo(label)))
    found = [str(await least.get()), str(await least.get())]
    found += [str(await waiting), str(await least.get())]
    for label in "abc":
        await last.put(label)
    found += [attempt(last.put_nowait, "d"), await last.get()]
    putter = asyncio.create_task(last.put("e"))
    await putter
    return sorted(found[:4]) + found[4:] + [await last.get() for _ in range(3)]


if sys.version_info >= (3, 13):

    @case()
    @durable.workflow(name="corpus.plain_queue_shut_down")
    async def plain_queue_shut_down(_step: Step) -> list[str]:
        """A queue that is shut down refuses what comes, and gives what it has, or nothing."""
        found: list[str] = []
        for is_immediate in (False, True):
            queue: asyncio.Queue[str] = asyncio.Queue(1)
            queue.put_nowait("item")
            putter = asyncio.create_task(queue.put("late"))
            empty: asyncio.Queue[str] = asyncio.Queue()
            getter = asyncio.create_task(empty.get())
            joining = asyncio.create_task(queue.join())
            await ticks(1)
            await echo("waiting")
            queue.shutdown(immediate=is_immediate)
            empty.shutdown(immediate=is_immediate)
            found += [await outcome(putter), await outcome(getter)]
            found += [attempt(queue.put_nowait, "more"), await outcome(queue.get())]
            found += [await outcome(queue.get()), attempt(queue.task_done)]
            found.append(await outcome(asyncio.wait_for(joining, MOMENT_S)))
        return found
