"""Async generators with steps inside: iterated, left early, thrown into, finalised."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import durable
from durable import Step

from .actions import boom, double, echo, page, traced
from .case import case


async def doubles(trace: list[str], count: int = 8) -> AsyncGenerator[int, None]:
    """Yield the values of steps, with a step on the way out."""
    try:
        for n in range(count):
            yield await double(n)
    finally:
        trace.append("closing")
        await traced(trace, echo("closed"))


@case()
@durable.workflow(name="corpus.generator_whole")
async def generator_whole(_step: Step) -> list[str]:
    """A generator iterated to its end, with steps on both sides of each yield."""
    trace: list[str] = []
    async for value in doubles(trace, 3):
        await traced(trace, echo(f"got {value}"))
    return trace


@case()
@durable.workflow(name="corpus.generator_left")
async def generator_left(_step: Step) -> list[str]:
    """A generator left early is closed by the loop's hook, beside what the body does next."""
    trace: list[str] = []
    async for value in doubles(trace):
        if value == 4:
            break
    for label in "abc":
        await traced(trace, echo(label))
    return list(trace)


@case()
@durable.workflow(name="corpus.generator_left_at_end")
async def generator_left_at_end(_step: Step) -> str:
    """A generator is still open when its body returns."""
    trace: list[str] = []
    generator = doubles(trace)
    return await echo(f"first {await anext(generator)}")


@case()
@durable.workflow(name="corpus.generator_closed")
async def generator_closed(_step: Step) -> list[str]:
    """With aclosing the generator's last step comes before what follows."""
    trace: list[str] = []
    async with aclosing(doubles(trace)) as values:
        async for value in values:
            if value >= 2:
                break
    await traced(trace, echo("after"))
    return trace


@case()
@durable.workflow(name="corpus.generator_comprehension")
async def generator_comprehension(_step: Step) -> list[int]:
    """Async comprehensions, of a generator and of steps."""
    trace: list[str] = []
    even = [value async for value in doubles(trace, 4) if value % 4 == 0]
    more = {n: await double(n) for n in even}
    return [*even, *more.values(), len(trace)]


@case()
@durable.workflow(name="corpus.generator_pages")
async def generator_pages(_step: Step) -> list[int]:
    """A listing read page by page, as many pages as the steps say."""

    async def items() -> AsyncIterator[int]:
        cursor: int | None = 0
        while cursor is not None:
            current = await page(cursor)
            for item in current.items:
                yield item
            cursor = current.cursor

    return [await double(item) async for item in items()]


@case()
@durable.workflow(name="corpus.generator_nested")
async def generator_nested(_step: Step) -> list[str]:
    """A generator over a generator: both close, the inner one first."""
    trace: list[str] = []

    async def labelled() -> AsyncGenerator[str, None]:
        async with aclosing(doubles(trace)) as values:
            try:
                async for value in values:
                    yield await echo(f"label {value}")
            finally:
                trace.append("labelled out")

    async with aclosing(labelled()) as labels:
        async for label in labels:
            trace.append(label)
            if label == "label 2":
                break
    return trace


@case()
@durable.workflow(name="corpus.generator_parallel")
async def generator_parallel(_step: Step) -> list[str]:
    """Generators iterated by parallel tasks, with the same steps in each."""
    trace: list[str] = []

    async def consume(label: str) -> None:
        async for value in doubles(trace, 2):
            await traced(trace, echo(f"{label} {value}"))

    await asyncio.gather(consume("a"), consume("b"))
    return trace


@case()
@durable.workflow(name="corpus.generator_conversation")
async def generator_conversation(_step: Step) -> list[str]:
    """asend and athrow: what is sent in becomes a step, what is thrown in is handled by one."""

    async def answering() -> AsyncGenerator[str, str]:
        question = yield "ready"
        while True:
            try:
                question = yield await echo(f"answer {question}")
            except KeyError:
                yield await echo("excuse")
                return

    talk = answering()
    said = [await anext(talk), await talk.asend("one"), await talk.asend("two")]
    said.append(await talk.athrow(KeyError("no")))
    return [*said, await anext(talk, "end")]


@case()
@durable.workflow(name="corpus.generator_fails")
async def generator_fails(_step: Step) -> list[str]:
    """A step that fails inside a generator ends it, with its clean-up, for the consumer."""
    trace: list[str] = []

    async def failing() -> AsyncGenerator[str, None]:
        try:
            yield await echo("one")
            yield await boom("key")
        finally:
            await traced(trace, echo("clean-up"))

    try:
        async for value in failing():
            await traced(trace, echo(f"got {value}"))
    except KeyError:
        await traced(trace, echo("caught"))
    return trace


@case()
@durable.workflow(name="corpus.generator_cancelled")
async def generator_cancelled(_step: Step) -> list[str]:
    """A consumer cancelled inside a generator's step closes the generator on its way out."""
    trace: list[str] = []

    async def consume() -> None:
        async for value in doubles(trace):
            await traced(trace, echo(f"got {value}"))

    task = asyncio.create_task(consume())
    for label in "ab":
        await traced(trace, echo(label))
    task.cancel()
    await asyncio.wait([task])
    return trace


@case()
@durable.workflow(name="corpus.generator_merged")
async def generator_merged(_step: Step) -> list[str]:
    """A generator that merges parallel steps gives them as they complete."""

    async def merged(labels: str) -> AsyncGenerator[str, None]:
        queue: asyncio.Queue[str] = asyncio.Queue()
        async with asyncio.TaskGroup() as group:
            for label in labels:
                task = group.create_task(echo(label))
                task.add_done_callback(lambda done: queue.put_nowait(done.result()))
            for _ in labels:
                yield await queue.get()

    return [label async for label in merged("abcde")]
