"""Shapes of whole workflows: recursion, loops led by results, sagas, decisions by chance."""

import asyncio

import durable
from durable import Step

from .actions import boom, children, collatz, double, echo, join, page, picky, traced
from .case import case


@case(7)
@durable.workflow(name="corpus.loop_until")
async def loop_until(step: Step, start: int) -> list[int]:
    """A loop as long as the steps' results make it."""
    path = [start]
    while path[-1] != 1:
        path.append(await step.run(collatz(path[-1]), name="next"))
    return path


@case((6, 7, 9, 3))
@durable.workflow(name="corpus.loops_in_parallel")
async def loops_in_parallel(step: Step, starts: tuple[int, ...]) -> dict[int, int]:
    """Loops of different lengths with same-named steps; the dict is in order of arrival."""
    lengths: dict[int, int] = {}

    async def walk(n: int) -> None:
        start, length = n, 0
        while n != 1:
            n = await step.run(collatz(n), name="next")
            length += 1
        lengths[start] = length

    await asyncio.gather(*(walk(n) for n in starts))
    return lengths


@case("root")
@durable.workflow(name="corpus.tree_depth_first")
async def tree_depth_first(_step: Step, root: str) -> list[str]:
    """Recursion over a tree that the steps reveal, one node after the other."""

    async def visit(node: str) -> list[str]:
        found = [node]
        for child in await children(node):
            found += await visit(child)
        return found

    return await visit(root)


@case("root")
@durable.workflow(name="corpus.tree_parallel")
async def tree_parallel(_step: Step, root: str) -> list[str]:
    """The same tree with all branches at once: nodes in the order they answered."""
    trace: list[str] = []

    async def visit(node: str) -> str:
        below = await children(node)
        trace.append(node)
        parts = await asyncio.gather(*(visit(child) for child in below))
        return await join([node, *parts])

    return [await visit(root), *trace]


@case(5)
@durable.workflow(name="corpus.recursion")
async def recursion(_step: Step, depth: int) -> int:
    """A step on the way down and on the way up, without any task."""

    async def descend(depth: int) -> int:
        below = await descend(depth - 1) if await double(depth) else 0
        return await double(below + depth)

    return await descend(depth)


@case()
@durable.workflow(name="corpus.saga")
async def saga(step: Step) -> list[str]:
    """What was done is undone in reverse when a later step fails."""
    trace: list[str] = []
    undo: list[str] = []
    try:
        for label in ("flight", "hotel"):
            await traced(trace, step.run(echo(f"book {label}"), name="book"))
            undo.append(label)
        await step.run(boom("corpus"), name="book")
    except Exception as error:  # noqa: BLE001 - a saga undoes its work whatever went wrong
        trace.append(type(error).__name__)
        for label in reversed(undo):
            await traced(trace, step.run(echo(f"undo {label}"), name="undo"))
    return trace


@case()
@durable.workflow(name="corpus.saga_parallel")
async def saga_parallel(_step: Step) -> list[str]:
    """Parallel bookings, of which one fails: what had completed by then is undone."""
    booked: list[str] = []
    trace: list[str] = []
    try:
        async with asyncio.TaskGroup() as group:
            for label in "abc":
                group.create_task(traced(booked, echo(label)))
            group.create_task(boom("lookup"))
    except* LookupError:
        await asyncio.gather(*(traced(trace, echo(f"undo {v}")) for v in reversed(booked)))
    return [*booked, *trace]


@case((3, 5, 8))
@durable.workflow(name="corpus.retry_by_hand")
async def retry_by_hand(_step: Step, numbers: tuple[int, ...]) -> list[str]:
    """Each branch tries again, after a sleep, with what its failure taught it."""
    trace: list[str] = []

    async def persist(n: int) -> None:
        while True:
            try:
                trace.append(f"took {await picky(n)}")
            except ValueError as error:
                trace.append(f"refused {error}")
                await asyncio.sleep(n)
                n += 1
            else:
                return

    await asyncio.gather(*(persist(n) for n in numbers))
    return trace


@case()
@durable.workflow(name="corpus.map_reduce")
async def map_reduce(_step: Step) -> str:
    """Words are joined in pairs as they come, until one is left."""
    ready = [await echo(v) for v in "ab"]
    tasks = [asyncio.create_task(echo(v)) for v in "cdef"]
    for next_done in asyncio.as_completed(tasks):
        ready.append(await next_done)
        ready = [await join(ready[-2:]), *ready[:-2]]
    return await join(ready)


@case()
@durable.workflow(name="corpus.prefetch")
async def prefetch(_step: Step) -> list[int]:
    """The next page is under way while the items of this one are worked on."""
    results: list[int] = []
    upcoming: asyncio.Task[None] | None = None
    current = await page(0)

    async def turn(cursor: int) -> None:
        nonlocal current
        current = await page(cursor)

    while True:
        items, cursor = current.items, current.cursor
        upcoming = None if cursor is None else asyncio.create_task(turn(cursor))
        results += await asyncio.gather(*(double(item) for item in items))
        if upcoming is None:
            return results
        await upcoming


@case(12)
@durable.workflow(name="corpus.random_decisions")
async def random_decisions(step: Step, count: int) -> list[str]:
    """Which step comes next is drawn by lot, the same on replay."""
    trace: list[str] = []
    for _ in range(count):
        match step.random.choice(["step", "pair", "sleep"]):
            case "step":
                await traced(trace, echo(f"step {step.random.randint(1, 6)}"))
            case "pair":
                await asyncio.gather(traced(trace, echo("a")), traced(trace, echo("b")))
            case _:
                await asyncio.sleep(step.random.random())
                trace.append("slept")
    return trace


@case()
@durable.workflow(name="corpus.random_in_branches")
async def random_in_branches(step: Step) -> list[str]:
    """Branches draw from one generator: who draws what follows from who completed first."""
    trace: list[str] = []

    async def draw(label: str) -> None:
        await echo(label)
        trace.append(f"{label} {step.random.randrange(1000)} {step.uuid4()}")
        await echo(label)
        step.random.shuffle(items)
        trace.append(f"{label} {items}")

    items = list(range(5))
    await asyncio.gather(draw("a"), draw("b"), draw("c"))
    return trace


@case()
@durable.workflow(name="corpus.state_machine")
async def state_machine(_step: Step) -> list[str]:
    """Two signals move a machine; which states it passes depends on their order."""
    moves = {("idle", "on"): "ready", ("ready", "go"): "busy", ("idle", "go"): "refused"}
    trace = ["idle"]

    async def signal(name: str) -> None:
        move = await echo(name)
        state = moves.get((trace[-1], move), "lost")
        trace.append(state)
        await echo(state)

    await asyncio.gather(signal("on"), signal("go"))
    return trace


@case()
@durable.workflow(name="corpus.deep_awaits")
async def deep_awaits(_step: Step) -> list[str]:
    """Five levels of tasks, each awaiting the next beside a step and a sleep of its own."""
    trace: list[str] = []

    async def level(depth: int) -> None:
        side = asyncio.create_task(traced(trace, echo(f"side {depth}")))
        if depth:
            await asyncio.create_task(level(depth - 1))
        await asyncio.sleep(1)
        await traced(trace, echo(f"level {depth}"))
        await side

    await asyncio.create_task(level(4))
    return trace


@case(60)
@durable.workflow(name="corpus.long_sequence")
async def long_sequence(step: Step, count: int) -> int:
    """Many steps one after the other, each fed by the one before."""
    total = 1
    for _ in range(count):
        total = await step.run(double(total), name="double") % 1009
    return total
