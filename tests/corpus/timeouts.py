"""``asyncio.timeout`` and ``wait_for``: lost and won, nested, rescheduled, over groups."""

import asyncio

import durable
from durable import Step

from .actions import boom, echo, guarded, traced
from .case import case


@case()
@durable.workflow(name="corpus.timeout_step")
async def timeout_step(step: Step) -> list[str]:
    """A step against a time-out: either way the next steps follow."""
    try:
        async with asyncio.timeout(5):
            value = await step.run(echo("in time"), name="work")
    except TimeoutError:
        value = await step.run(echo("late"), name="fallback")
    return [value, await step.run(echo("after"), name="work")]


@case()
@durable.workflow(name="corpus.timeout_nested")
async def timeout_nested(_step: Step) -> list[str]:
    """Two time-outs around two steps: the inner's error stops at the inner."""
    trace: list[str] = []
    try:
        async with asyncio.timeout(10):
            try:
                async with asyncio.timeout(5):
                    await traced(trace, echo("inner"))
            except TimeoutError:
                await traced(trace, echo("inner late"))
            await traced(trace, echo("outer"))
    except TimeoutError:
        await traced(trace, echo("outer late"))
    return trace


@case()
@durable.workflow(name="corpus.timeout_rescheduled")
async def timeout_rescheduled(_step: Step) -> list[str]:
    """A time-out that is moved after each step, then switched off."""
    trace: list[str] = []
    loop = asyncio.get_running_loop()
    limit = asyncio.timeout(3)
    try:
        async with limit:
            await traced(trace, echo("a"))
            limit.reschedule(loop.time() + 3)
            await traced(trace, echo("b"))
            limit.reschedule(None)
            await traced(trace, echo("c"))
    except TimeoutError:
        trace.append("late")
    return [*trace, f"expired {limit.expired()}", await echo("after")]


@case()
@durable.workflow(name="corpus.timeout_at")
async def timeout_at(_step: Step) -> list[str]:
    """One deadline of the loop's clock, shared by several steps."""
    trace: list[str] = []
    deadline = asyncio.get_running_loop().time() + 4
    for label in "abc":
        try:
            async with asyncio.timeout_at(deadline):
                await traced(trace, echo(label))
        except TimeoutError:
            trace.append(f"late {label}")
    return trace


@case()
@durable.workflow(name="corpus.timeout_zero")
async def timeout_zero(_step: Step) -> list[str]:
    """Time-outs already over: the step is withdrawn without a completion."""
    trace: list[str] = []
    for seconds in (0, -1, None):
        try:
            async with asyncio.timeout(seconds):
                await traced(trace, echo(f"timeout {seconds}"))
        except TimeoutError:
            trace.append(f"late {seconds}")
    return trace


@case()
@durable.workflow(name="corpus.timeout_retries")
async def timeout_retries(step: Step) -> list[str]:
    """A step tried up to four times, each with its own time-out and a growing pause."""
    trace: list[str] = []
    for number in range(4):
        try:
            async with asyncio.timeout(2):
                trace.append(await step.run(echo(f"try {number}"), name="try"))
                return trace
        except TimeoutError:
            await asyncio.sleep(2**number)
            trace.append(f"slept {2**number}")
    return trace


@case()
@durable.workflow(name="corpus.timeout_gather")
async def timeout_gather(_step: Step) -> list[str]:
    """A time-out over a gather: what completed before it stays, the rest cleans up."""
    trace: list[str] = []
    try:
        async with asyncio.timeout(3):
            await asyncio.gather(*(guarded(trace, v) for v in "abc"))
    except TimeoutError:
        trace.append("late")
    await traced(trace, echo("after"))
    return trace


@case()
@durable.workflow(name="corpus.timeout_group")
async def timeout_group(_step: Step) -> list[str]:
    """A time-out over a task group, whose children clean up before it is seen."""
    trace: list[str] = []
    try:
        async with asyncio.timeout(3), asyncio.TaskGroup() as group:
            group.create_task(guarded(trace, "a"))
            group.create_task(guarded(trace, "b"))
            await traced(trace, echo("owner"))
    except TimeoutError:
        await traced(trace, echo("late"))
    return trace


@case()
@durable.workflow(name="corpus.timeout_own_error")
async def timeout_own_error(_step: Step) -> list[str]:
    """A TimeoutError that a step raised is told from the time-out's own."""
    limit = asyncio.timeout(5)
    try:
        async with limit:
            await boom("timeout")
    except TimeoutError:
        source = "clock" if limit.expired() else "step"
    else:
        source = "nobody"
    return [source, await echo(source)]


@case()
@durable.workflow(name="corpus.timeout_swallowed")
async def timeout_swallowed(_step: Step) -> list[str]:
    """A body that swallows the time-out's cancellation goes on inside the block."""
    trace: list[str] = []
    async with asyncio.timeout(5) as limit:
        try:
            await traced(trace, echo("work"))
        except asyncio.CancelledError:
            await traced(trace, echo("swallowed"))
    return [*trace, f"expired {limit.expired()}", await echo("after")]


@case()
@durable.workflow(name="corpus.timeout_branches")
async def timeout_branches(step: Step) -> list[str]:
    """Parallel branches with equal time-outs and equal step names, each decided alone."""

    async def branch(label: str) -> str:
        try:
            async with asyncio.timeout(5):
                return await step.run(echo(label), name="work")
        except TimeoutError:
            return await step.run(echo(f"late {label}"), name="late")

    return await asyncio.gather(*(branch(v) for v in "abcd"))


@case()
@durable.workflow(name="corpus.wait_for_step")
async def wait_for_step(_step: Step) -> list[str]:
    """wait_for over a call, a coroutine and a task; what is late is withdrawn."""
    trace: list[str] = []
    task = asyncio.create_task(traced(trace, echo("task")))
    for work in (echo("call"), traced(trace, echo("coroutine")), task):
        try:
            trace.append(f"got {await asyncio.wait_for(work, 4)}")
        except TimeoutError:
            trace.append(f"late {await echo('fallback')}")
    return [*trace, f"task cancelled {task.cancelled()}"]


@case()
@durable.workflow(name="corpus.wait_for_cleanup")
async def wait_for_cleanup(_step: Step) -> list[str]:
    """wait_for waits for the clean-up step of the work it gives up."""
    trace: list[str] = []
    try:
        await asyncio.wait_for(guarded(trace, "work"), 3)
    except TimeoutError:
        trace.append("late")
    return [*trace, await echo("after")]


@case()
@durable.workflow(name="corpus.wait_for_in_timeout")
async def wait_for_in_timeout(_step: Step) -> list[str]:
    """wait_for nested in a time-out: either may end the step, and they are told apart."""
    trace: list[str] = []
    limit = asyncio.timeout(6)
    try:
        async with limit:
            try:
                await asyncio.wait_for(traced(trace, echo("work")), 3)
            except TimeoutError:
                await traced(trace, echo("inner late"))
            await traced(trace, echo("more"))
    except TimeoutError:
        trace.append("outer late")
    return [*trace, f"expired {limit.expired()}"]


@case()
@durable.workflow(name="corpus.wait_for_zero")
async def wait_for_zero(_step: Step) -> list[str]:
    """wait_for with no time at all takes what is done and nothing else."""
    done = asyncio.create_task(echo("done"))
    await asyncio.wait([done])
    values = [await asyncio.wait_for(done, 0)]
    try:
        values.append(await asyncio.wait_for(echo("never"), 0))
    except TimeoutError:
        values.append("late")
    return [*values, await asyncio.wait_for(echo("unbounded"), None)]


@case()
@durable.workflow(name="corpus.wait_for_cancelled")
async def wait_for_cancelled(_step: Step) -> list[str]:
    """A cancel from another branch and the time-out compete for one wait_for."""
    trace: list[str] = []

    async def waiting() -> None:
        try:
            await asyncio.wait_for(traced(trace, echo("work")), 3)
        except TimeoutError:
            await traced(trace, echo("late"))
        except asyncio.CancelledError:
            await traced(trace, echo("cancelled"))

    task = asyncio.create_task(waiting())
    await traced(trace, echo("signal"))
    task.cancel()
    await asyncio.wait([task])
    return trace
