"""Async context managers whose exits run steps, and context variables across tasks."""

import asyncio
import contextvars
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from types import TracebackType
from typing import Self

import durable
from durable import Step

from .actions import boom, echo, traced
from .case import case

WHO = contextvars.ContextVar("WHO", default="nobody")


class Resource:
    """A manager that takes one step on the way in and one on the way out."""

    def __init__(self, trace: list[str], label: str, *, forgives: bool = False) -> None:
        self.trace = trace
        self.label = label
        self.forgives = forgives

    async def __aenter__(self) -> Self:
        await traced(self.trace, echo(f"open {self.label}"))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        reason = kind.__name__ if kind else "end"
        await traced(self.trace, echo(f"close {self.label} at {reason}"))
        return self.forgives


@asynccontextmanager
async def borrowed(trace: list[str], label: str) -> AsyncGenerator[str, None]:
    """Lend ``label`` between two steps."""
    lent = await traced(trace, echo(f"lend {label}"))
    try:
        yield lent
    finally:
        await traced(trace, echo(f"return {label}"))


@case()
@durable.workflow(name="corpus.context_exits")
async def context_exits(_step: Step) -> list[str]:
    """Nested managers close in reverse, each with a step."""
    trace: list[str] = []
    async with Resource(trace, "a"), borrowed(trace, "b") as lent:
        await traced(trace, echo(f"use {lent}"))
    return trace


@case()
@durable.workflow(name="corpus.context_suppresses")
async def context_suppresses(_step: Step) -> list[str]:
    """An exit that swallows the error of a step, after its own step."""
    trace: list[str] = []
    async with Resource(trace, "outer", forgives=True), Resource(trace, "inner"):
        await traced(trace, boom("value"))
    await traced(trace, echo("after"))
    return trace


@case()
@durable.workflow(name="corpus.context_cancelled")
async def context_cancelled(_step: Step) -> list[str]:
    """A cancel inside managers that are open, opening or closing."""
    trace: list[str] = []

    async def holding() -> None:
        async with Resource(trace, "a"), borrowed(trace, "b"):
            await traced(trace, echo("work"))

    task = asyncio.create_task(holding())
    for label in "xyz":
        await traced(trace, echo(label))
    task.cancel()
    await asyncio.wait([task])
    return [*trace, f"cancelled {task.cancelled()}"]


@case()
@durable.workflow(name="corpus.context_stack")
async def context_stack(_step: Step) -> list[str]:
    """An exit stack built from steps in parallel closes in reverse order of arrival."""
    trace: list[str] = []
    async with AsyncExitStack() as stack:
        stack.push_async_callback(traced, trace, echo("callback"))

        async def enter(label: str) -> None:
            await stack.enter_async_context(Resource(trace, label))

        await asyncio.gather(*(enter(v) for v in "abc"))
        kept = stack.pop_all()
        await traced(trace, echo("moved"))
    await kept.aclose()
    return trace


@case()
@durable.workflow(name="corpus.context_stack_fails")
async def context_stack_fails(_step: Step) -> list[str]:
    """An exit whose step fails replaces the error on its way out."""
    trace: list[str] = []
    try:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(Resource(trace, "a"))
            stack.push_async_callback(boom, "key")
            await traced(trace, boom("value"))
    except KeyError as error:
        trace.append(f"{error!r} in the context of {error.__context__!r}")
    return trace


@case()
@durable.workflow(name="corpus.context_parallel")
async def context_parallel(_step: Step) -> list[str]:
    """Parallel managers under a time-out, with their exits interleaved."""
    trace: list[str] = []

    async def using(label: str) -> None:
        async with borrowed(trace, label):
            await traced(trace, echo(f"use {label}"))

    with suppress(TimeoutError):
        async with asyncio.timeout(4):
            await asyncio.gather(using("a"), using("b"))
    await traced(trace, echo("after"))
    return trace


@case()
@durable.workflow(name="corpus.variables_in_tasks")
async def variables_in_tasks(_step: Step) -> list[str]:
    """A variable that a task sets is its own; nothing of an earlier run is seen."""
    trace = [f"first {WHO.get()}"]
    WHO.set("body")

    async def child(label: str) -> None:
        before = WHO.get()
        WHO.set(await echo(label))
        await echo("same")
        trace.append(f"{before} {WHO.get()}")

    await asyncio.gather(child("a"), child("b"))
    await child("body again")
    return [*trace, WHO.get()]


@case()
@durable.workflow(name="corpus.variables_given")
async def variables_given(_step: Step) -> list[str]:
    """Tasks and callbacks that share a context given to them see each other's changes."""
    trace: list[str] = []
    shared = contextvars.copy_context()

    async def child(label: str) -> None:
        await echo(label)
        trace.append(f"{label} after {WHO.get()}")
        WHO.set(label)

    tasks = [asyncio.create_task(child(v), context=shared) for v in "abc"]
    tasks[0].add_done_callback(lambda _: trace.append(f"seen {WHO.get()}"), context=shared)
    await asyncio.wait(tasks)
    return [*trace, f"shared {shared[WHO]}", f"own {WHO.get()}"]


@case()
@durable.workflow(name="corpus.variables_reset")
async def variables_reset(_step: Step) -> list[str]:
    """Tokens reset over awaits, also when the step between is withdrawn."""
    trace: list[str] = []

    async def scoped() -> None:
        token = WHO.set("scoped")
        try:
            await echo("work")
        finally:
            WHO.reset(token)
            trace.append(WHO.get())

    WHO.set("owner")
    await scoped()
    with suppress(TimeoutError):
        async with asyncio.timeout(1):
            await scoped()
            trace.append("in time")
    return [*trace, await echo(WHO.get())]
