"""anyio's cancel scopes and timers, alone, nested, shielded and mixed with asyncio's."""

import asyncio

import anyio
from anyio.lowlevel import checkpoint

import durable
from durable import Step

from .actions import echo, guarded, traced
from .case import case


@case()
@durable.workflow(name="corpus.anyio_move_on")
async def anyio_move_on(_step: Step) -> list[str]:
    """move_on_after around two steps: it is seen afterwards which way it went."""
    trace: list[str] = []
    with anyio.move_on_after(3) as scope:
        await traced(trace, echo("a"))
        await traced(trace, echo("b"))
    return [*trace, f"late {scope.cancelled_caught}", await echo("after")]


@case()
@durable.workflow(name="corpus.anyio_fail")
async def anyio_fail(step: Step) -> list[str]:
    """fail_after raises TimeoutError, and a step of the same name follows."""
    try:
        with anyio.fail_after(3):
            value = await step.run(echo("in time"), name="work")
    except TimeoutError:
        value = await step.run(echo("late"), name="work")
    return [value, await step.run(echo("after"), name="work")]


@case()
@durable.workflow(name="corpus.anyio_sleep")
async def anyio_sleep(_step: Step) -> list[str]:
    """anyio.sleep in parallel tasks, of no length too, and against a step."""
    trace: list[str] = []

    async def nap(seconds: float) -> None:
        await anyio.sleep(seconds)
        await traced(trace, echo(f"slept {seconds}"))

    async with anyio.create_task_group() as group:
        for seconds in (2, 0, 1):
            group.start_soon(nap, seconds)
        await traced(trace, echo("awake"))
    return trace


@case()
@durable.workflow(name="corpus.anyio_nested_scopes")
async def anyio_nested_scopes(_step: Step) -> list[str]:
    """An inner time-out inside an outer one: either may cut the steps short."""
    trace: list[str] = []
    with anyio.move_on_after(6) as outer:
        with anyio.move_on_after(3) as inner:
            await traced(trace, echo("inner"))
        await traced(trace, echo(f"inner late {inner.cancelled_caught}"))
        await traced(trace, echo("outer"))
    return [*trace, f"outer late {outer.cancelled_caught}"]


@case()
@durable.workflow(name="corpus.anyio_shield")
async def anyio_shield(_step: Step) -> list[str]:
    """A shielded scope inside one that times out: what is in it completes first."""
    trace: list[str] = []
    with anyio.move_on_after(3) as outer:
        try:
            await traced(trace, echo("work"))
        finally:
            with anyio.CancelScope(shield=True):
                await traced(trace, echo("shielded"))
                await anyio.sleep(1)
        await traced(trace, echo("more"))
    return [*trace, f"late {outer.cancelled_caught}"]


@case()
@durable.workflow(name="corpus.anyio_shield_with_limit")
async def anyio_shield_with_limit(_step: Step) -> list[str]:
    """Clean-up behind a shield that has a time-out of its own."""
    trace: list[str] = []
    with anyio.move_on_after(2):
        try:
            await traced(trace, echo("work"))
            await anyio.sleep_forever()
        finally:
            with anyio.move_on_after(2, shield=True) as scope:
                await traced(trace, echo("clean-up"))
            trace.append(f"cut {scope.cancelled_caught}")
    return [*trace, await echo("after")]


@case()
@durable.workflow(name="corpus.anyio_deadline_moved")
async def anyio_deadline_moved(_step: Step) -> list[str]:
    """A deadline moved forward after each step."""
    trace: list[str] = []
    with anyio.move_on_after(2) as scope:
        for label in "abc":
            await traced(trace, echo(label))
            scope.deadline = anyio.current_time() + 2
    return [*trace, f"late {scope.cancelled_caught}"]


@case()
@durable.workflow(name="corpus.anyio_scope_of_another")
async def anyio_scope_of_another(_step: Step) -> list[str]:
    """A scope in one task is cancelled by another; the task itself goes on."""
    trace: list[str] = []
    scope = anyio.CancelScope()

    async def working() -> None:
        with scope:
            await traced(trace, echo("work"))
        await traced(trace, echo("next"))

    async with anyio.create_task_group() as group:
        group.start_soon(working)
        await traced(trace, echo("signal"))
        scope.cancel()
    return [*trace, f"caught {scope.cancelled_caught}"]


@case()
@durable.workflow(name="corpus.anyio_scope_over_group")
async def anyio_scope_over_group(_step: Step) -> list[str]:
    """A time-out over an anyio group: whole branches are cut at different places."""
    trace: list[str] = []

    async def branch(label: str) -> None:
        for number in range(3):
            await traced(trace, echo(f"{label}{number}"))

    with anyio.move_on_after(4) as scope:
        async with anyio.create_task_group() as group:
            for label in "ab":
                group.start_soon(branch, label)
    return [*trace, f"late {scope.cancelled_caught}", await echo("after")]


@case()
@durable.workflow(name="corpus.anyio_in_asyncio")
async def anyio_in_asyncio(_step: Step) -> list[str]:
    """anyio's scopes in the tasks of an asyncio group, inside an asyncio time-out."""
    trace: list[str] = []

    async def branch(label: str, seconds: float) -> None:
        with anyio.move_on_after(seconds) as scope:
            await traced(trace, echo(label))
        trace.append(f"{label} late {scope.cancelled_caught}")
        await traced(trace, echo(f"{label} again"))

    try:
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            group.create_task(branch("a", 2))
            group.create_task(branch("b", 3))
    except TimeoutError:
        trace.append("group late")
    return trace


@case()
@durable.workflow(name="corpus.asyncio_in_anyio")
async def asyncio_in_anyio(_step: Step) -> list[str]:
    """An asyncio group whose children clean up, inside an anyio scope that may time out."""
    trace: list[str] = []
    with anyio.move_on_after(3) as scope:
        async with asyncio.TaskGroup() as group:
            group.create_task(guarded(trace, "a"))
            group.create_task(guarded(trace, "b"))
    return [*trace, f"late {scope.cancelled_caught}", await echo("after")]


@case()
@durable.workflow(name="corpus.anyio_task_cancelled")
async def anyio_task_cancelled(_step: Step) -> list[str]:
    """A native cancel goes through a scope that was not cancelled itself."""
    trace: list[str] = []

    async def scoped() -> None:
        with anyio.CancelScope() as scope:
            try:
                await traced(trace, echo("work"))
            finally:
                trace.append(f"scope cancelled {scope.cancel_called}")

    task = asyncio.create_task(scoped())
    await traced(trace, echo("signal"))
    task.cancel()
    await asyncio.wait([task])
    return [*trace, f"task cancelled {task.cancelled()}"]


@case()
@durable.workflow(name="corpus.anyio_checkpoints")
async def anyio_checkpoints(_step: Step) -> list[str]:
    """Checkpoints let others go first and see a cancelled scope; no timer is made."""
    trace: list[str] = []

    async def polite(label: str) -> None:
        for number in range(2):
            await checkpoint()
            trace.append(f"{label}{number}")
        await traced(trace, echo(label))

    async with anyio.create_task_group() as group:
        group.start_soon(polite, "a")
        group.start_soon(polite, "b")
    with anyio.CancelScope() as scope:
        scope.cancel()
        await checkpoint()
        trace.append("never")
    return [*trace, await echo("after")]


@case()
@durable.workflow(name="corpus.anyio_sibling_scopes")
async def anyio_sibling_scopes(_step: Step) -> list[str]:
    """Children with scopes of their own, all cancelled at once by the group's."""
    closed: list[str] = []

    async def scoped(label: str) -> None:
        with anyio.move_on_after(60):
            try:
                await echo(label)
            finally:
                with anyio.CancelScope(shield=True):
                    await traced(closed, echo(f"close {label}"))

    async with anyio.create_task_group() as group:
        for label in "abc":
            group.start_soon(scoped, label)
        await echo("owner")
        group.cancel_scope.cancel()
    return closed
