"""anyio's task groups, synchronisation and streams on the body's loop."""

import anyio
from anyio.abc import TaskStatus
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

import durable
from durable import Step

from .actions import boom, double, echo, guarded, picky, traced
from .case import case


@case()
@durable.workflow(name="corpus.anyio_group")
async def anyio_group(step: Step) -> list[str]:
    """start_soon takes an action and its arguments, and helpers of the body's own."""
    trace: list[str] = []
    async with anyio.create_task_group() as group:
        group.start_soon(echo, "action")
        for label in "abc":
            group.start_soon(traced, trace, step.run(echo(label), name="work"))
    return [*trace, await echo("after")]


@case()
@durable.workflow(name="corpus.anyio_group_fails")
async def anyio_group_fails(_step: Step) -> list[str]:
    """A failing child cancels its siblings and the error comes in a group."""
    trace: list[str] = []
    try:
        async with anyio.create_task_group() as group:
            for label in "abc":
                group.start_soon(traced, trace, echo(label))
            group.start_soon(boom, "key")
    except* KeyError as errors:
        trace.append(f"caught {len(errors.exceptions)}")
    return [*trace, await echo("after")]


@case()
@durable.workflow(name="corpus.anyio_group_cancelled")
async def anyio_group_cancelled(_step: Step) -> list[str]:
    """The group's scope is cancelled by its owner: no child's step is waited for."""
    trace: list[str] = []
    async with anyio.create_task_group() as group:
        for label in "ab":
            group.start_soon(traced, trace, echo(label))
        await traced(trace, echo("owner"))
        group.cancel_scope.cancel()
    return [*trace, await echo("after")]


@case()
@durable.workflow(name="corpus.anyio_group_first_wins")
async def anyio_group_first_wins(_step: Step) -> list[str]:
    """A race in anyio's manner: the child that is first cancels the others."""
    trace: list[str] = []
    async with anyio.create_task_group() as group:

        async def run(label: str) -> None:
            await traced(trace, echo(label))
            group.cancel_scope.cancel()

        for label in "abcd":
            group.start_soon(run, label)
    return [*trace, await echo(f"{trace[0]} won")]


@case()
@durable.workflow(name="corpus.anyio_group_nested")
async def anyio_group_nested(_step: Step) -> list[str]:
    """Inner groups fail and are handled while the outer one goes on."""
    trace: list[str] = []

    async def inner(number: int) -> None:
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(traced, trace, echo(f"inner {number}"))
                group.start_soon(picky, number)
        except* ValueError:
            await traced(trace, echo(f"handled {number}"))

    async with anyio.create_task_group() as group:
        for number in (1, 2, 3):
            group.start_soon(inner, number)
        await traced(trace, echo("owner"))
    return trace


@case()
@durable.workflow(name="corpus.anyio_group_level_cancel")
async def anyio_group_level_cancel(_step: Step) -> list[str]:
    """In a cancelled scope every await is cancelled: an unshielded clean-up step too."""
    trace: list[str] = []
    async with anyio.create_task_group() as group:
        group.start_soon(guarded, trace, "child")
        await traced(trace, echo("owner"))
        group.cancel_scope.cancel()
    return [*trace, await echo("after")]


@case()
@durable.workflow(name="corpus.anyio_group_shielded_cleanup")
async def anyio_group_shielded_cleanup(_step: Step) -> list[str]:
    """In a cancelled scope a clean-up step behind a shield completes."""
    trace: list[str] = []

    async def careful(label: str) -> None:
        try:
            await traced(trace, echo(label))
        finally:
            with anyio.CancelScope(shield=True):
                await traced(trace, echo(f"close {label}"))

    async with anyio.create_task_group() as group:
        group.start_soon(careful, "a")
        group.start_soon(careful, "b")
        await traced(trace, echo("owner"))
        group.cancel_scope.cancel()
    return [*trace, await echo("after")]


@case()
@durable.workflow(name="corpus.anyio_start")
async def anyio_start(_step: Step) -> list[str]:
    """start() waits until the child says that it is ready, with a value of a step."""
    trace: list[str] = []

    async def service(label: str, *, task_status: TaskStatus[str]) -> None:
        task_status.started(await echo(f"{label} ready"))
        await traced(trace, echo(f"{label} served"))

    async with anyio.create_task_group() as group:
        group.start_soon(traced, trace, echo("sibling"))
        for label in "ab":
            ready = await group.start(service, label)
            trace.append(ready)
    return trace


@case()
@durable.workflow(name="corpus.anyio_start_fails")
async def anyio_start_fails(_step: Step) -> list[str]:
    """A child that fails before it is ready fails its start(), not the group."""
    trace: list[str] = []

    async def service(*, task_status: TaskStatus[str]) -> None:
        task_status.started(await boom("lookup"))

    async with anyio.create_task_group() as group:
        group.start_soon(traced, trace, echo("sibling"))
        try:
            await group.start(service)
        except LookupError:
            await traced(trace, echo("not started"))
    return trace


@case()
@durable.workflow(name="corpus.anyio_event_and_lock")
async def anyio_event_and_lock(_step: Step) -> list[str]:
    """anyio's event and lock keep the order of arrival."""
    trace: list[str] = []
    gate, lock = anyio.Event(), anyio.Lock()

    async def worker(label: str) -> None:
        await echo(label)
        trace.append(f"came {label}")
        await gate.wait()
        async with lock:
            await traced(trace, echo(f"held {label}"))

    async with anyio.create_task_group() as group:
        for label in "abc":
            group.start_soon(worker, label)
        await traced(trace, echo("open"))
        gate.set()
    return trace


@case()
@durable.workflow(name="corpus.anyio_limits")
async def anyio_limits(_step: Step) -> list[str]:
    """A semaphore and a capacity limiter hold a fan-out to two and then to one."""
    trace: list[str] = []
    slots, limiter = anyio.Semaphore(2), anyio.CapacityLimiter(1)

    async def worker(label: str) -> None:
        async with slots:
            await traced(trace, echo(f"wide {label}"))
            async with limiter:
                await traced(trace, echo(f"narrow {label}"))

    async with anyio.create_task_group() as group:
        for label in "abcd":
            group.start_soon(worker, label)
    return trace


@case()
@durable.workflow(name="corpus.anyio_condition")
async def anyio_condition(_step: Step) -> list[int]:
    """A consumer sleeps on a condition until enough has arrived."""
    received: list[int] = []
    enough: list[int] = []
    condition = anyio.Condition()

    async def send(n: int) -> None:
        value = await double(n)
        async with condition:
            received.append(value)
            condition.notify_all()

    async with anyio.create_task_group() as group:
        for n in (1, 2, 3):
            group.start_soon(send, n)
        async with condition:
            while sum(received) < 6:
                await condition.wait()
            enough.extend(received)
    return [*enough, *received]


@case()
@durable.workflow(name="corpus.anyio_stream")
async def anyio_stream(_step: Step) -> list[str]:
    """Two producers and two consumers on one stream without a buffer."""
    trace: list[str] = []
    sending, receiving = anyio.create_memory_object_stream[str](0)

    async def produce(label: str, sender: MemoryObjectSendStream[str]) -> None:
        async with sender:
            for number in range(2):
                await sender.send(await echo(f"{label}{number}"))

    async def consume(name: str, receiver: MemoryObjectReceiveStream[str]) -> None:
        async with receiver:
            async for item in receiver:
                await traced(trace, echo(f"{name} {item}"))

    async with anyio.create_task_group() as group, sending, receiving:
        for label in "ab":
            group.start_soon(produce, label, sending.clone())
        for name in ("one", "two"):
            group.start_soon(consume, name, receiving.clone())
    return trace


@case()
@durable.workflow(name="corpus.anyio_stream_closed")
async def anyio_stream_closed(_step: Step) -> list[str]:
    """A consumer that leaves breaks the stream for the producer, who takes a step about it."""
    trace: list[str] = []
    sending, receiving = anyio.create_memory_object_stream[str](1)

    async def produce() -> None:
        async with sending:
            try:
                for number in range(5):
                    await sending.send(await echo(f"item {number}"))
            except anyio.BrokenResourceError:
                await traced(trace, echo("broken"))

    async with anyio.create_task_group() as group:
        group.start_soon(produce)
        async with receiving:
            trace.append(await receiving.receive())
            await traced(trace, echo("between"))
            trace.append(await receiving.receive())
    return trace
