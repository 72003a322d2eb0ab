"""Timers: parallel sleeps, named sleeps, loops that wait and sleeps that are withdrawn."""

import asyncio
from datetime import timedelta

import durable
from durable import Step

from .actions import echo, traced
from .case import case


@case()
@durable.workflow(name="corpus.sleep_parallel")
async def sleep_parallel(_step: Step) -> list[str]:
    """Three sleeps of different lengths and a step, each followed by a step."""
    trace: list[str] = []

    async def nap(seconds: float) -> None:
        await asyncio.sleep(seconds)
        await traced(trace, echo(f"slept {seconds}"))

    await asyncio.gather(nap(3), nap(1), nap(2.5), traced(trace, echo("awake")))
    return trace


@case()
@durable.workflow(name="corpus.sleep_equal")
async def sleep_equal(_step: Step) -> list[str]:
    """Sleeps that are due at the same instant, with the same step behind each."""
    trace: list[str] = []

    async def nap(label: str) -> None:
        await asyncio.sleep(1)
        trace.append(f"{label} {await echo('same')}")

    await asyncio.gather(*(nap(v) for v in "abcd"))
    return trace


@case()
@durable.workflow(name="corpus.sleep_zero")
async def sleep_zero(_step: Step) -> list[str]:
    """sleep(0) is no timer: it only lets the other tasks go first."""
    trace: list[str] = []

    async def polite(label: str) -> None:
        for number in range(3):
            trace.append(f"{label}{number}")
            await asyncio.sleep(0)
        await traced(trace, echo(label))

    await asyncio.gather(polite("a"), polite("b"))
    return trace


@case()
@durable.workflow(name="corpus.sleep_step")
async def sleep_step(step: Step) -> list[str]:
    """step.sleep in its forms, beside the plain one, all with their order kept."""
    trace: list[str] = []

    async def noted(label: str, seconds: float | timedelta) -> None:
        await step.sleep(seconds, name=label)
        trace.append(label)

    await asyncio.gather(noted("seconds", 2), noted("delta", timedelta(seconds=1)))
    await step.sleep_until(step.now() + timedelta(minutes=1), name="until")
    await step.sleep_until(step.now() - timedelta(minutes=1))
    return [*trace, await echo("after"), await asyncio.sleep(1, "plain")]


@case()
@durable.workflow(name="corpus.sleep_past")
async def sleep_past(_step: Step) -> list[str]:
    """Sleeps of no length and of negative length, between steps."""
    trace = [await echo("a")]
    await asyncio.sleep(-1)
    trace.append(await echo("b"))
    return [*trace, await asyncio.sleep(0, "c")]


@case()
@durable.workflow(name="corpus.sleep_withdrawn")
async def sleep_withdrawn(step: Step) -> list[str]:
    """A sleep that is cancelled is withdrawn; another of the same name follows."""
    trace: list[str] = []

    async def nap() -> None:
        await step.sleep(3, name="nap")
        trace.append("woke up")

    task = asyncio.create_task(nap())
    await traced(trace, echo("signal"))
    task.cancel()
    await asyncio.wait([task])
    await nap()
    return [*trace, f"cancelled {task.cancelled()}"]


@case()
@durable.workflow(name="corpus.sleep_heartbeat")
async def sleep_heartbeat(_step: Step) -> list[str]:
    """A few beats while the work runs: as many as there are timers before it completes."""
    trace: list[str] = []
    work = asyncio.create_task(traced(trace, echo("work")))
    for beat in range(4):
        if work.done():
            break
        await asyncio.sleep(1)
        trace.append(f"beat {beat}")
    await work
    return trace


@case()
@durable.workflow(name="corpus.sleep_ticker")
async def sleep_ticker(_step: Step) -> list[str]:
    """A ticker that never ends by itself runs beside the work and is cancelled with it."""
    trace: list[str] = []

    async def ticker() -> None:
        for tick in range(100):
            await asyncio.sleep(1)
            await traced(trace, echo(f"tick {tick}"))

    task = asyncio.create_task(ticker())
    for label in "abc":
        await traced(trace, echo(label))
    task.cancel()
    await asyncio.wait([task])
    return trace


@case()
@durable.workflow(name="corpus.sleep_clock")
async def sleep_clock(step: Step) -> list[bool]:
    """The loop's time and step.now() stand still between completions and never go back."""
    loop = asyncio.get_running_loop()
    start, now = loop.time(), step.now()
    await asyncio.sleep(0)
    checks = [loop.time() == start, step.now() == now]
    await asyncio.gather(asyncio.sleep(2), echo("a"))
    checks += [loop.time() >= start + 2, step.now() >= now + timedelta(seconds=2)]
    return checks
