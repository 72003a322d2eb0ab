"""Cancellation by the body itself: steps withdrawn, swallowed, repeated and counted."""

import asyncio

import durable
from durable import Step

from .actions import echo, guarded, traced
from .case import case


async def outcome(task: asyncio.Task[str]) -> str:
    """Wait for the task and tell how it ended."""
    try:
        return f"value {await task}"
    except asyncio.CancelledError:
        return "cancelled"


@case()
@durable.workflow(name="corpus.cancel_step")
async def cancel_step(step: Step) -> list[str]:
    """A step whose task is cancelled is withdrawn; one of the same name follows."""
    task = asyncio.create_task(step.run(echo("lost"), name="work"))
    await step.run(echo("first"), name="other")
    task.cancel()
    return [await outcome(task), await step.run(echo("again"), name="work")]


@case()
@durable.workflow(name="corpus.cancel_before_start")
async def cancel_before_start(_step: Step) -> list[str]:
    """A task cancelled before its first turn issues nothing, also when it holds a call."""
    trace: list[str] = []
    coroutine = asyncio.create_task(guarded(trace, "never"))
    call = asyncio.create_task(echo("never"))
    coroutine.cancel()
    call.cancel()
    ends = [await outcome(coroutine), await outcome(call)]
    return [*ends, *trace, await echo("after")]


@case()
@durable.workflow(name="corpus.cancel_at_once")
async def cancel_at_once(_step: Step) -> list[str]:
    """A step issued and withdrawn with no completion between."""
    task = asyncio.create_task(echo("brief"))
    await asyncio.sleep(0)
    task.cancel()
    return [await outcome(task), await echo("after")]


@case()
@durable.workflow(name="corpus.cancel_swallowed")
async def cancel_swallowed(_step: Step) -> list[str]:
    """A task that swallows its cancellation runs on and gives a value."""
    trace: list[str] = []

    async def stubborn() -> str:
        try:
            return await traced(trace, echo("patient"))
        except asyncio.CancelledError:
            return await traced(trace, echo("stubborn"))

    task = asyncio.create_task(stubborn())
    await traced(trace, echo("other"))
    task.cancel()
    return [await outcome(task), f"cancelled {task.cancelled()}", *trace]


@case()
@durable.workflow(name="corpus.cancel_twice")
async def cancel_twice(_step: Step) -> list[str]:
    """A second cancel lands in the clean-up that the first one started."""
    trace: list[str] = []
    task = asyncio.create_task(guarded(trace, "work"))
    await traced(trace, echo("one"))
    task.cancel()
    await traced(trace, echo("two"))
    task.cancel()
    return [await outcome(task), *trace]


@case()
@durable.workflow(name="corpus.cancel_finally")
async def cancel_finally(step: Step) -> list[str]:
    """A finally block runs its steps in each way out of the try."""
    trace: list[str] = []

    async def careful(label: str) -> str:
        try:
            return await step.run(echo(label), name="work")
        finally:
            trace.append(await step.run(echo(f"close {label}"), name="close"))

    kept, dropped = asyncio.create_task(careful("kept")), asyncio.create_task(careful("dropped"))
    await step.run(echo("signal"), name="signal")
    dropped.cancel()
    return [await outcome(kept), await outcome(dropped), *trace]


@case()
@durable.workflow(name="corpus.cancel_uncancel")
async def cancel_uncancel(_step: Step) -> list[int]:
    """Cancelling() and uncancel() count as in asyncio."""
    counts: list[int] = []

    async def counting() -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            await echo("work")
            await echo("more")
        except asyncio.CancelledError:
            counts.append(task.cancelling())
            counts.append(task.uncancel())
            await echo("recovered")
        counts.append(task.cancelling())

    task = asyncio.create_task(counting())
    await echo("signal")
    counts.append(int(task.cancel()))
    await task
    return counts


@case()
@durable.workflow(name="corpus.cancel_self")
async def cancel_self(_step: Step) -> list[str]:
    """A task that cancels itself gets the cancellation at its next step, not before."""

    async def quitting() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return await echo("withdrawn in the turn that issued it")

    return [await outcome(asyncio.create_task(quitting())), await echo("after")]


@case()
@durable.workflow(name="corpus.cancel_chain")
async def cancel_chain(_step: Step) -> list[str]:
    """A cancel goes down a chain of tasks that await each other."""
    trace: list[str] = []

    async def link(depth: int) -> str:
        try:
            if depth == 0:
                return await traced(trace, echo("bottom"))
            return await asyncio.create_task(link(depth - 1))
        except asyncio.CancelledError:
            await traced(trace, echo(f"unwind {depth}"))
            raise

    top = asyncio.create_task(link(3))
    await traced(trace, echo("signal"))
    top.cancel()
    return [await outcome(top), *trace]


@case()
@durable.workflow(name="corpus.cancel_each_other")
async def cancel_each_other(_step: Step) -> list[str]:
    """Whichever task completes first cancels the other."""
    tasks: dict[str, asyncio.Task[str]] = {}

    async def duel(label: str, rival: str) -> str:
        value = await echo(label)
        tasks[rival].cancel()
        return await echo(f"{value} won")

    tasks["a"] = asyncio.create_task(duel("a", "b"))
    tasks["b"] = asyncio.create_task(duel("b", "a"))
    return [await outcome(task) for task in tasks.values()]


@case()
@durable.workflow(name="corpus.cancel_message")
async def cancel_message(_step: Step) -> list[str]:
    """The message of a cancel reaches the task; a raised CancelledError ends only its task."""

    async def listening() -> str:
        try:
            return await echo("work")
        except asyncio.CancelledError as error:
            return await echo(f"told {error.args[0]}")

    async def resigning() -> str:
        await echo("resigning")
        raise asyncio.CancelledError

    told, resigned = asyncio.create_task(listening()), asyncio.create_task(resigning())
    await echo("signal")
    told.cancel("enough")
    return [await outcome(told), await outcome(resigned)]


@case()
@durable.workflow(name="corpus.cancel_done")
async def cancel_done(_step: Step) -> list[str]:
    """Cancelling a finished task changes nothing, its value included."""
    task = asyncio.create_task(echo("done"))
    value = await task
    return [value, f"late {task.cancel()}", await outcome(task), await echo("after")]


@case()
@durable.workflow(name="corpus.cancel_unawaited")
async def cancel_unawaited(_step: Step) -> list[str]:
    """Calls that nobody awaits are no steps, wherever they are made."""
    unused = [echo("unused"), echo("unused")]
    first = await echo("first")
    unused.append(echo("unused too"))
    second = await echo("second")
    return [first, second, f"{len(unused)} unused"]
