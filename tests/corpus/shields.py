"""``asyncio.shield``: the outer wait is cancelled, the inner work goes on."""

import asyncio

import durable
from durable import Step

from .actions import boom, echo, traced
from .case import case


@case()
@durable.workflow(name="corpus.shield_cancelled")
async def shield_cancelled(_step: Step) -> list[str]:
    """Cancelling the one who waits leaves the shielded step to complete."""
    trace: list[str] = []
    inner = asyncio.create_task(traced(trace, echo("inner")))

    async def outer() -> None:
        try:
            await asyncio.shield(inner)
        except asyncio.CancelledError:
            await traced(trace, echo("outer cancelled"))

    waiting = asyncio.create_task(outer())
    await traced(trace, echo("signal"))
    waiting.cancel()
    await asyncio.wait([waiting])
    return [*trace, await inner]


@case()
@durable.workflow(name="corpus.shield_timeout")
async def shield_timeout(step: Step) -> list[str]:
    """A shielded step that is late is not run again: its value is taken later."""
    task = asyncio.create_task(step.run(echo("value"), name="slow"))
    trace: list[str] = []
    for number in range(3):
        try:
            async with asyncio.timeout(2):
                trace.append(await asyncio.shield(task))
                break
        except TimeoutError:
            trace.append(f"late {number}")
    return [*trace, await task, await step.run(echo("after"), name="slow")]


@case()
@durable.workflow(name="corpus.shield_wait_for")
async def shield_wait_for(_step: Step) -> list[str]:
    """wait_for over a shield around a call: the call's step outlives the wait."""
    trace: list[str] = []
    shielded = asyncio.shield(traced(trace, echo("work")))
    try:
        await asyncio.wait_for(shielded, 2)
    except TimeoutError:
        await traced(trace, echo("late"))
    await traced(trace, echo("after"))
    return list(trace)


@case()
@durable.workflow(name="corpus.shield_call")
async def shield_call(_step: Step) -> list[str]:
    """A call given straight to shield is one step, started at once."""
    shielded = asyncio.shield(echo("shielded"))
    first = await echo("first")
    shielded.cancel()
    cancelled = shielded.cancelled()
    return [first, f"cancelled {cancelled}", await echo("after")]


@case()
@durable.workflow(name="corpus.shield_gather")
async def shield_gather(_step: Step) -> list[str]:
    """A shield around a gather protects every branch of it."""
    trace: list[str] = []
    work = asyncio.gather(traced(trace, echo("a")), traced(trace, echo("b")))
    waiting = asyncio.ensure_future(asyncio.shield(work))
    await traced(trace, echo("signal"))
    trace.append(f"cancel {waiting.cancel()}")
    await work
    return trace


@case()
@durable.workflow(name="corpus.shield_fails")
async def shield_fails(_step: Step) -> list[str]:
    """The error of shielded work arrives through the shield, or is read from the task."""
    inner = asyncio.create_task(boom("value"))
    try:
        async with asyncio.timeout(2):
            await asyncio.shield(inner)
    except TimeoutError:
        first = "late"
    except ValueError:
        first = "failed"
    else:
        first = "fine"
    await asyncio.wait([inner])
    return [first, repr(inner.exception()), await echo("after")]


@case()
@durable.workflow(name="corpus.shield_cleanup")
async def shield_cleanup(_step: Step) -> list[str]:
    """Clean-up behind a shield survives a second cancel of its owner."""
    trace: list[str] = []

    async def owner() -> None:
        try:
            await traced(trace, echo("work"))
        finally:
            cleanup = asyncio.create_task(traced(trace, echo("clean-up")))
            try:
                await asyncio.shield(cleanup)
            except asyncio.CancelledError:
                await cleanup
                raise

    task = asyncio.create_task(owner())
    for _ in range(2):
        await traced(trace, echo("signal"))
        task.cancel()
    await asyncio.wait([task])
    return [*trace, f"cancelled {task.cancelled()}"]
