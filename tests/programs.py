"""Small random programs, and the one workflow that runs any of them.

A program is a tree in JSON: a node is a list of its kind and what that takes. Whatever the tree,
the body ends, if only by a ``DeadlockError``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, TypeAlias, cast

import anyio
from corpus.actions import ERRORS, boom, echo
from hypothesis import strategies as st

import durable
from durable import Step

Node: TypeAlias = list[Any]
"""Its kind, and then nodes, lists of nodes, texts and numbers."""

LEAVES_MAX = 10


class World:
    """What the parts of one program share."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.trace: list[str] = []
        self.left: list[asyncio.Task[None]] = []
        self.lock = asyncio.Lock()
        self.slots = asyncio.Semaphore(2)
        self.limit = anyio.CapacityLimiter(1)
        self.queue: asyncio.Queue[str] = asyncio.Queue(2)
        self.event = asyncio.Event()
        self.condition = asyncio.Condition()

    async def run(self, node: Node) -> None:
        """Run one node, of any kind."""
        kind, *rest = node
        await KINDS[kind](self, *rest)

    def runs(self, nodes: list[Node]) -> list[Coroutine[Any, Any, None]]:
        return [self.run(node) for node in nodes]

    def spawn(self, nodes: list[Node]) -> list[asyncio.Task[None]]:
        return [asyncio.create_task(work) for work in self.runs(nodes)]

    def note(self, text: str) -> None:
        self.trace.append(text)


KINDS: dict[str, Callable[..., Awaitable[None]]] = {}


def kind(function: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    KINDS[function.__name__] = function
    return function


# --- leaves: steps, timers, and what the tasks share ---------------------------------------------


@kind
async def step(world: World, label: str) -> None:
    world.note(await echo(label))


@kind
async def delayed(world: World, label: str, seconds: float) -> None:
    world.note(await world.step.run(echo(label), name="delayed", run_after=seconds))


@kind
async def fail(world: World, error: str) -> None:
    world.note(await boom(error))


@kind
async def sleep(world: World, seconds: float) -> None:
    await asyncio.sleep(seconds)
    world.note(f"slept {seconds}")


@kind
async def nap(world: World, seconds: float) -> None:
    await world.step.sleep(seconds, name="nap")
    world.note(f"napped {seconds} until {world.step.now().timestamp()}")


@kind
async def draw(world: World) -> None:
    world.note(await echo(f"drew {world.step.random.randrange(100)}"))


@kind
async def put(world: World, label: str) -> None:
    await world.queue.put(label)


@kind
async def get(world: World) -> None:
    world.note(f"got {await world.queue.get()}")


@kind
async def set_event(world: World) -> None:
    world.event.set()
    async with world.condition:
        world.condition.notify(1)


@kind
async def wait_event(world: World) -> None:
    await world.event.wait()


@kind
async def wait_condition(world: World) -> None:
    async with world.condition:
        await world.condition.wait()
    world.note("notified")


@kind
async def cancel_left(world: World) -> None:
    for task in world.left[:1]:
        task.cancel()


@kind
async def join_left(world: World) -> None:
    done, _ = await asyncio.wait([*world.left, asyncio.create_task(world.run(["step", "joined"]))])
    world.note(f"joined {len(done)}")


# --- many in parallel ----------------------------------------------------------------------------


@kind
async def seq(world: World, nodes: list[Node]) -> None:
    for node in nodes:
        await world.run(node)


@kind
async def gather(world: World, nodes: list[Node]) -> None:
    await asyncio.gather(*world.runs(nodes))


@kind
async def collect(world: World, nodes: list[Node]) -> None:
    outcomes = await asyncio.gather(*world.runs(nodes), return_exceptions=True)
    world.note(f"collected {[type(outcome).__name__ for outcome in outcomes]}")


@kind
async def race(world: World, nodes: list[Node]) -> None:
    runners = world.spawn(nodes)
    done, pending = await asyncio.wait(runners, return_when=asyncio.FIRST_COMPLETED)
    for loser in pending:
        loser.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    world.note(f"{len(done)} of {len(runners)} won")


@kind
async def as_completed(world: World, nodes: list[Node]) -> None:
    for next_done in asyncio.as_completed(world.runs(nodes)):
        await next_done
        world.note("one more")


@kind
async def group(world: World, nodes: list[Node]) -> None:
    async with asyncio.TaskGroup() as tasks:
        for node in nodes:
            tasks.create_task(world.run(node))


@kind
async def nursery(world: World, nodes: list[Node]) -> None:
    async with anyio.create_task_group() as tasks:
        for node in nodes:
            tasks.start_soon(world.run, node)


@kind
async def first_cancels(world: World, nodes: list[Node]) -> None:
    async with anyio.create_task_group() as tasks:

        async def run(node: Node) -> None:
            with anyio.CancelScope():
                await world.run(node)
            tasks.cancel_scope.cancel()

        for node in nodes:
            tasks.start_soon(run, node)


@kind
async def leave(world: World, nodes: list[Node]) -> None:
    world.left += world.spawn(nodes)


@kind
async def generate(world: World, nodes: list[Node]) -> None:
    async def values() -> AsyncGenerator[int, None]:
        try:
            for number, node in enumerate(nodes):
                await world.run(node)
                yield number
        finally:
            world.note(await echo("generated"))

    async for number in values():
        if number:
            break


# --- around one ----------------------------------------------------------------------------------


@kind
async def bounded(world: World, node: Node, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await world.run(node)
    except TimeoutError:
        world.note("late")


@kind
async def wait_for(world: World, node: Node, seconds: float) -> None:
    await asyncio.wait_for(world.run(node), seconds)


@kind
async def move_on(world: World, node: Node, seconds: float) -> None:
    with anyio.move_on_after(seconds) as scope:
        await world.run(node)
    world.note(f"moved on {scope.cancelled_caught}")


@kind
async def shield(world: World, node: Node) -> None:
    await asyncio.shield(world.run(node))


@kind
async def protect(world: World, node: Node) -> None:
    with anyio.CancelScope(shield=True):
        await world.run(node)


@kind
async def attempt(world: World, node: Node, otherwise: Node) -> None:
    try:
        await world.run(node)
    except Exception as error:  # noqa: BLE001  whatever it is
        world.note(f"caught {type(error).__name__}")
        await world.run(otherwise)


@kind
async def at_last(world: World, node: Node, last: Node) -> None:
    try:
        await world.run(node)
    finally:
        await world.run(last)


@kind
async def stubborn(world: World, node: Node, after: Node) -> None:
    try:
        await world.run(node)
    except asyncio.CancelledError:
        world.note("cancelled")
        await world.run(after)


@kind
async def locked(world: World, node: Node) -> None:
    async with world.lock:
        await world.run(node)


@kind
async def slotted(world: World, node: Node) -> None:
    async with world.slots:
        await world.run(node)


@kind
async def limited(world: World, node: Node) -> None:
    async with world.limit:
        await world.run(node)


# --- the workflow, and programs for it -----------------------------------------------------------


@durable.workflow(name="program")
async def program(step: Step, node: object) -> list[str]:
    world = World(step)
    await world.run(cast("Node", node))
    return world.trace


SECONDS = st.sampled_from((0, 0.5, 1, 2))
LABELS = st.sampled_from("abcd")
PLAIN = ("draw", "get", "set_event", "wait_event", "wait_condition", "cancel_left", "join_left")
PARALLEL = (
    "seq",
    "gather",
    "collect",
    "race",
    "as_completed",
    "group",
    "nursery",
    "first_cancels",
    "leave",
    "generate",
)
TIMED = ("bounded", "wait_for", "move_on")
AROUND = ("shield", "protect", "locked", "slotted", "limited")
TWO = ("attempt", "at_last", "stubborn")


def node_of(kinds: tuple[str, ...], *rest: st.SearchStrategy[Any]) -> st.SearchStrategy[Node]:
    return st.tuples(st.sampled_from(kinds), *rest).map(list)


leaves = st.one_of(
    node_of(("step",), LABELS),
    node_of(("step",), LABELS),
    node_of(("step",), LABELS),
    node_of(("delayed",), LABELS, SECONDS),
    node_of(("fail",), st.sampled_from(sorted(ERRORS))),
    node_of(("sleep", "nap"), SECONDS),
    node_of(("put",), LABELS),
    node_of(PLAIN),
)
nodes: st.SearchStrategy[Node] = st.recursive(
    leaves,
    lambda inner: st.one_of(
        node_of(PARALLEL, st.lists(inner, min_size=2, max_size=4)),
        node_of(TIMED, inner, SECONDS),
        node_of(AROUND, inner),
        node_of(TWO, inner, inner),
    ),
    max_leaves=LEAVES_MAX,
)
programs: st.SearchStrategy[Node] = node_of(PARALLEL, st.lists(nodes, min_size=2, max_size=5))
