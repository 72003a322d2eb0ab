"""``asyncio.TaskGroup``: failing children, cancelled siblings, groups within groups."""

import asyncio

import durable
from durable import Step

from .actions import CorpusError, boom, double, echo, guarded, picky, traced
from .case import case


@case()
@durable.workflow(name="corpus.group_calls")
async def group_calls(step: Step) -> list[int]:
    """Calls are given straight to create_task."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(double(n)) for n in range(4)]
        tasks.append(group.create_task(step.run(double(50), name="named")))
    return [task.result() for task in tasks]


@case()
@durable.workflow(name="corpus.group_child_fails")
async def group_child_fails(_step: Step) -> list[str]:
    """A failing child withdraws its siblings' steps; what completed before it counts."""
    trace: list[str] = []
    try:
        async with asyncio.TaskGroup() as group:
            for value in "abc":
                group.create_task(traced(trace, echo(value)))
            group.create_task(boom("value"))
    except* ValueError as errors:
        trace.append(f"caught {len(errors.exceptions)}")
    await traced(trace, echo("after"))
    return trace


@case()
@durable.workflow(name="corpus.group_several_fail")
async def group_several_fail(_step: Step) -> list[str]:
    """The first of two failures decides which handlers run."""
    trace: list[str] = []
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(boom("key"))
            group.create_task(boom("value"))
            group.create_task(traced(trace, echo("fine")))
    except* KeyError:
        await traced(trace, echo("key handled"))
    except* ValueError:
        await traced(trace, echo("value handled"))
    return trace


@case()
@durable.workflow(name="corpus.group_cleanup_steps")
async def group_cleanup_steps(_step: Step) -> list[str]:
    """Cancelled siblings run steps before the group ends."""
    trace: list[str] = []
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(guarded(trace, "a"))
            group.create_task(guarded(trace, "b"))
            group.create_task(boom("corpus"))
    except* CorpusError as errors:
        trace.append(f"caught {len(errors.exceptions)}")
    return trace


@case()
@durable.workflow(name="corpus.group_cleanup_fails")
async def group_cleanup_fails(_step: Step) -> list[str]:
    """A sibling whose clean-up step fails adds its error to the group's."""

    async def fragile(label: str) -> None:
        try:
            await echo(label)
        except asyncio.CancelledError:
            await boom("key")

    names: list[str] = []
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fragile("a"))
            group.create_task(fragile("b"))
            group.create_task(boom("value"))
    except* (KeyError, ValueError) as errors:
        names.extend(type(error).__name__ for error in errors.exceptions)
    return [*names, await echo("after")]


@case()
@durable.workflow(name="corpus.group_body_fails")
async def group_body_fails(_step: Step) -> list[str]:
    """An error in the body of the group cancels the children."""
    trace: list[str] = []
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(guarded(trace, "child"))
            await traced(trace, boom("lookup"))
    except* LookupError:
        trace.append("caught")
    return trace


@case()
@durable.workflow(name="corpus.group_nested")
async def group_nested(_step: Step) -> list[str]:
    """A failure that an inner group's owner handles leaves the outer group alone."""
    trace: list[str] = []

    async def inner(number: int) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(traced(trace, echo(f"inner {number}")))
                group.create_task(picky(number))
        except* ValueError:
            await traced(trace, echo(f"handled {number}"))

    async with asyncio.TaskGroup() as group:
        group.create_task(inner(1))
        group.create_task(inner(2))
        group.create_task(traced(trace, echo("outer")))
    return trace


@case()
@durable.workflow(name="corpus.group_nested_fails")
async def group_nested_fails(_step: Step) -> list[str]:
    """A failure in an inner group takes down both, innermost first."""
    trace: list[str] = []

    async def inner() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(guarded(trace, "inner"))
            group.create_task(boom("index"))

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(inner())
            group.create_task(guarded(trace, "outer"))
    except* IndexError as errors:
        trace.append(f"depth {len(errors.exceptions)}")
    return trace


@case()
@durable.workflow(name="corpus.group_grows")
async def group_grows(_step: Step) -> list[str]:
    """Children add children to the group they are in."""
    trace: list[str] = []

    async def spawn(label: str, group: asyncio.TaskGroup) -> None:
        await traced(trace, echo(label))
        if len(label) < 3:
            group.create_task(spawn(f"{label}0", group))
            group.create_task(spawn(f"{label}1", group))

    async with asyncio.TaskGroup() as group:
        group.create_task(spawn("r", group))
    return trace


@case()
@durable.workflow(name="corpus.group_child_cancelled")
async def group_child_cancelled(_step: Step) -> list[str]:
    """Cancelling one child withdraws its step and fails nothing."""
    trace: list[str] = []
    async with asyncio.TaskGroup() as group:
        victim = group.create_task(traced(trace, echo("victim")))
        group.create_task(traced(trace, echo("other")))
        await traced(trace, echo("owner"))
        trace.append(f"cancel {victim.cancel()}")
    return [*trace, f"cancelled {victim.cancelled()}"]


@case()
@durable.workflow(name="corpus.group_deep")
async def group_deep(_step: Step) -> list[str]:
    """Five levels of groups, two tasks on each, a step before and after the children."""
    trace: list[str] = []

    async def level(label: str, depth: int) -> None:
        await traced(trace, echo(f"down {label}"))
        if depth:
            async with asyncio.TaskGroup() as group:
                group.create_task(level(f"{label}.0", depth - 1))
                group.create_task(traced(trace, echo(f"leaf {label}")))
        await traced(trace, echo(f"up {label}"))

    await level("0", 5)
    return trace
