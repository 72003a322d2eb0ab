"""What CPython's tasks and futures do, each edge of theirs: a body's do the same."""

import asyncio
from collections.abc import Awaitable, Generator
from contextvars import ContextVar
from typing import Any

import durable
from durable import Step

from .actions import echo
from .case import case
from .outcomes import MOMENT_S, counts, never, outcome, ticks
from .plain_locks import attempt

colour = ContextVar("colour", default="none")


@case()
@durable.workflow(name="corpus.plain_task_cancel")
async def plain_task_cancel(_step: Step) -> list[str]:
    """A cancel has a message and is counted; a task may refuse it, or never have begun."""
    trace: list[str] = []

    async def stubborn() -> str:
        for _ in range(2):
            try:
                await never()
            except asyncio.CancelledError as error:
                trace.append(f"{error.args} {counts()}")
        task = asyncio.current_task()
        assert task is not None
        return f"{task.uncancel()} {task.uncancel()} {task.uncancel()}"

    async def unbegun() -> None:
        trace.append("not reached")

    task = asyncio.create_task(stubborn())
    await ticks(1)
    trace.append(f"{task.cancel('one')} {task.cancel('two')}")
    await ticks(2)
    await echo("refused")
    task.cancel()
    trace += [await outcome(task), f"{task.cancel()} {task.cancelled()}"]
    early = asyncio.create_task(unbegun())
    early.cancel("too early")
    return [*trace, await outcome(early), f"{early.cancelled()} {early.cancelling()}"]


@case()
@durable.workflow(name="corpus.plain_task_cancel_chain")
async def plain_task_cancel_chain(_step: Step) -> list[str]:
    """A cancel goes to what is awaited, through tasks, gathers and groups, and comes back."""
    trace: list[str] = []

    async def innermost() -> None:
        try:
            await never()
        except asyncio.CancelledError as error:
            trace.append(f"innermost {error.args}")
            raise

    async def middle() -> None:
        inner = asyncio.create_task(innermost())
        try:
            await asyncio.gather(inner, never())
        finally:
            trace.append(f"middle {inner.cancelled()}")

    outer = asyncio.create_task(middle())
    await ticks(2)
    await echo("begun")
    outer.cancel("stop")
    try:
        await outer
    except asyncio.CancelledError as error:
        trace.append(f"outer {error.args}")
    task = asyncio.current_task()
    assert task is not None
    task.cancel("myself")
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError as error:
        trace.append(f"{error.args} {task.uncancel()}")
    return trace


@case()
@durable.workflow(name="corpus.plain_task_misuse")
async def plain_task_misuse(_step: Step) -> list[str]:
    """What asyncio refuses, it refuses in a body."""
    loop = asyncio.get_running_loop()

    async def awaits_itself() -> None:
        task = asyncio.current_task()
        assert task is not None
        await task

    async def stops() -> None:
        raise StopIteration

    class YieldsNonsense:
        def __await__(self) -> Generator[Any, None, None]:
            yield "nonsense"

    async def awaits_nonsense() -> None:
        await YieldsNonsense()

    future: asyncio.Future[str] = loop.create_future()
    unfinished = [attempt(future.result), attempt(future.exception)]
    future.set_result(await echo("value"))
    cancelled: asyncio.Future[str] = loop.create_future()
    cancelled.cancel()
    unset: asyncio.Future[str] = loop.create_future()
    no_tasks: list[asyncio.Task[None]] = []
    not_a_coroutine: Any = "text"
    not_a_list: Any = future
    return [
        *unfinished,
        attempt(future.set_result, "again"),
        attempt(future.set_exception, ValueError()),
        str(future.cancel()),
        attempt(cancelled.set_result, "late"),
        attempt(unset.set_exception, StopIteration()),
        attempt(asyncio.create_task, not_a_coroutine),
        attempt(asyncio.ensure_future, not_a_coroutine),
        attempt(asyncio.create_task, unset),
        await outcome(asyncio.create_task(awaits_itself())),
        await outcome(asyncio.create_task(stops())),
        await outcome(asyncio.create_task(awaits_nonsense())),
        await outcome(asyncio.wait(no_tasks)),
        await outcome(asyncio.wait([future], return_when=not_a_coroutine)),
        await outcome(asyncio.wait(not_a_coroutine)),
        attempt(lambda: list(asyncio.as_completed(not_a_list))),
    ]


@case()
@durable.workflow(name="corpus.plain_gather_edges")
async def plain_gather_edges(_step: Step) -> list[str]:
    """gather: one future more than once, cancelled children, and a cancel of the whole."""
    loop = asyncio.get_running_loop()

    async def fail(count: int) -> None:
        await ticks(count)
        raise LookupError(count)

    shared: asyncio.Future[str] = loop.create_future()
    loop.call_soon(shared.set_result, "shared")
    child = asyncio.create_task(never())
    loop.call_soon(child.cancel)
    found = [
        await outcome(asyncio.gather(shared, shared, ticks(1))),
        await outcome(asyncio.gather(child, ticks(1))),
        await outcome(asyncio.gather(fail(2), fail(1))),
        await echo("between"),
    ]
    kept = asyncio.create_task(never())
    found.append(await outcome(asyncio.gather(kept, fail(1))))
    found.append(f"kept {kept.done()}")
    for return_exceptions in (False, True):
        children = [asyncio.create_task(never()) for _ in range(2)]
        whole = asyncio.gather(*children, return_exceptions=return_exceptions)
        await ticks(1)
        found += [str(whole.cancel()), await outcome(whole), str(whole.cancelled())]
        found += [str(task.cancelled()) for task in children]
        found.append(str(whole.cancel()))
    done = asyncio.gather(asyncio.sleep(0, "value"), return_exceptions=True)
    return [*found, await outcome(done), str(done.cancel())]


@case()
@durable.workflow(name="corpus.plain_shield_edges")
async def plain_shield_edges(_step: Step) -> list[str]:
    """shield: what is inside is not cancelled with the outside, but takes it along."""
    loop = asyncio.get_running_loop()
    reports: list[str] = []
    inner: asyncio.Future[str] = loop.create_future()
    outer = asyncio.shield(inner)
    outer.cancel()
    found = [await outcome(outer), f"inner {inner.cancelled()}"]
    inner.set_result(await echo("inside"))
    found.append(await outcome(asyncio.shield(inner)))
    found.append(str(asyncio.shield(inner) is inner))
    for act in ("cancel", "fail"):
        inside: asyncio.Future[str] = loop.create_future()
        outside = asyncio.shield(inside)
        if act == "cancel":
            inside.cancel()
        else:
            inside.set_exception(KeyError())
        found.append(await outcome(outside))
    given_up = asyncio.create_task(asyncio.sleep(0, "went on"))
    waiter = asyncio.create_task(asyncio.wait_for(asyncio.shield(given_up), 0))
    return [*found, await outcome(waiter), await given_up, *reports]


@case()
@durable.workflow(name="corpus.plain_wait_edges")
async def plain_wait_edges(_step: Step) -> list[str]:
    """wait and as_completed: what is done already, twice there, cancelled or late."""
    loop = asyncio.get_running_loop()

    async def fail(count: int) -> None:
        await ticks(count)
        raise LookupError(count)

    def shown(sets: tuple[set[asyncio.Future[Any]], set[asyncio.Future[Any]]]) -> str:
        return f"{len(sets[0])} done, {len(sets[1])} not"

    ready: asyncio.Future[str] = loop.create_future()
    ready.set_result("ready")
    open_one: asyncio.Future[str] = loop.create_future()
    both = [ready, open_one, ready]
    found = [
        shown(await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)),
        shown(await asyncio.wait(both, timeout=0)),
        shown(await asyncio.wait(both, timeout=MOMENT_S)),
        await echo("between"),
    ]
    tasks = [asyncio.create_task(fail(count)) for count in (3, 1, 2)]
    found.append(shown(await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)))
    found += [await outcome(each) for each in asyncio.as_completed(tasks)]
    waiting = asyncio.create_task(asyncio.wait([open_one]))
    await ticks(1)
    waiting.cancel()
    found += [await outcome(waiting), f"open {open_one.done()}"]
    late: list[Awaitable[str]] = [ready, open_one, ready]
    found += [await outcome(each) for each in asyncio.as_completed(late, timeout=MOMENT_S)]
    return found


@case()
@durable.workflow(name="corpus.plain_turns")
async def plain_turns(_step: Step) -> list[str]:
    """What is ready runs in the order in which it became so; each sleep(0) is one turn."""
    trace: list[str] = []
    loop = asyncio.get_running_loop()

    async def run(label: str, turns: int) -> None:
        for turn in range(turns):
            trace.append(f"{label}{turn}")
            await asyncio.sleep(0)

    async def nested() -> None:
        await run("n", 1)
        loop.call_soon(trace.append, "soon")
        await asyncio.create_task(run("t", 2))
        trace.append("after t")

    def told(_: object) -> None:
        trace.append("told")
        loop.call_soon(trace.append, "after told")

    tasks = [asyncio.create_task(run("a", 3)), asyncio.create_task(nested())]
    tasks[0].add_done_callback(told)
    await asyncio.gather(*tasks, asyncio.sleep(-1), run("b", 2))
    trace.append(await asyncio.sleep(0, await echo("slept")))
    return trace


@case()
@durable.workflow(name="corpus.plain_contexts")
async def plain_contexts(_step: Step) -> list[str]:
    """Tasks and callbacks have the context of when they were made; awaits share theirs."""
    trace: list[str] = []
    loop = asyncio.get_running_loop()

    async def paint(value: str) -> None:
        trace.append(colour.get())
        colour.set(value)
        await ticks(1)
        trace.append(colour.get())

    colour.set("red")
    task = asyncio.create_task(paint("blue"))
    loop.call_soon(lambda: trace.append(f"soon {colour.get()}"))
    loop.call_soon(colour.set, "lost")
    colour.set("green")
    task.add_done_callback(lambda _: trace.append(f"told {colour.get()}"))
    await task
    await ticks(1)
    await paint("white")
    await echo("painted")
    await asyncio.wait_for(paint("black"), 1000)
    return [*trace, colour.get()]
