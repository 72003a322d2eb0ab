"""Lock, Event, Condition, Semaphore and Barrier: waiters go on in the order they came."""

import asyncio

import durable
from durable import Step

from .actions import double, echo, traced
from .case import case


@case()
@durable.workflow(name="corpus.lock_order")
async def lock_order(step: Step) -> list[str]:
    """Holders of a lock follow each other as they came to it; a step is held over."""
    trace: list[str] = []
    lock = asyncio.Lock()

    async def holder(label: str) -> None:
        await step.run(echo(label), name="arrive")
        async with lock:
            trace.append(f"in {label}")
            await step.run(echo(label), name="hold")
            trace.append(f"out {label}")

    await asyncio.gather(*(holder(v) for v in "abc"))
    return trace


@case()
@durable.workflow(name="corpus.lock_cancelled_waiter")
async def lock_cancelled_waiter(_step: Step) -> list[str]:
    """A waiter that is cancelled leaves the queue of the lock, and the next one goes on."""
    trace: list[str] = []
    lock = asyncio.Lock()

    async def holder(label: str) -> None:
        async with lock:
            await traced(trace, echo(label))

    tasks = [asyncio.create_task(holder(v)) for v in "abc"]
    await traced(trace, echo("signal"))
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return [*trace, f"cancelled {tasks[1].cancelled()}"]


@case()
@durable.workflow(name="corpus.lock_timeout")
async def lock_timeout(_step: Step) -> list[str]:
    """A lock that is not got in time."""
    trace: list[str] = []
    lock = asyncio.Lock()

    async def impatient(label: str) -> None:
        try:
            async with asyncio.timeout(3), lock:
                await traced(trace, echo(label))
        except TimeoutError:
            trace.append(f"late {label}")

    await asyncio.gather(*(impatient(v) for v in "abc"))
    return [*trace, f"locked {lock.locked()}"]


@case()
@durable.workflow(name="corpus.event_gate")
async def event_gate(_step: Step) -> list[str]:
    """An event lets all its waiters go at once, and later ones straight through."""
    trace: list[str] = []
    gate = asyncio.Event()

    async def waiter(label: str) -> None:
        await echo(label)
        trace.append(f"{label} {'free' if gate.is_set() else 'waits'}")
        await gate.wait()
        await traced(trace, echo(label))

    async def opener() -> None:
        await traced(trace, echo("open"))
        gate.set()

    await asyncio.gather(*(waiter(v) for v in "abc"), opener())
    return trace


@case()
@durable.workflow(name="corpus.event_timeout")
async def event_timeout(_step: Step) -> list[str]:
    """Waiting for an event with a time-out, again and again, while a step is to set it."""
    trace: list[str] = []
    gate = asyncio.Event()
    task = asyncio.create_task(traced(trace, echo("step")))
    task.add_done_callback(lambda _: gate.set())
    for number in range(3):
        try:
            await asyncio.wait_for(gate.wait(), 1)
        except TimeoutError:
            trace.append(f"not yet {number}")
    await gate.wait()
    return trace


@case()
@durable.workflow(name="corpus.condition_notify")
async def condition_notify(_step: Step) -> list[str]:
    """notify wakes the one that waits longest; notify_all the rest."""
    trace: list[str] = []
    condition = asyncio.Condition()
    arrived = asyncio.Semaphore(0)

    async def waiter(label: str) -> None:
        await echo(label)
        async with condition:
            trace.append(f"wait {label}")
            arrived.release()
            await condition.wait()
            await traced(trace, echo(f"woken {label}"))

    async with asyncio.TaskGroup() as group:
        for label in "abcd":
            group.create_task(waiter(label))
        for wake in (condition.notify, condition.notify_all):
            await arrived.acquire()
            await arrived.acquire()
            await traced(trace, echo(wake.__name__))
            async with condition:
                wake()
    return trace


@case()
@durable.workflow(name="corpus.condition_predicate")
async def condition_predicate(_step: Step) -> list[int]:
    """wait_for(predicate): the moment at which the sum suffices depends on the order."""
    condition = asyncio.Condition()
    received: list[int] = []

    async def send(n: int) -> None:
        value = await double(n)
        async with condition:
            received.append(value)
            condition.notify_all()

    async with asyncio.TaskGroup() as group:
        for n in (1, 2, 3, 4):
            group.create_task(send(n))
        async with condition:
            await condition.wait_for(lambda: sum(received) >= 8)
            enough = sum(received)
    return [enough, *received]


@case()
@durable.workflow(name="corpus.semaphore_fan_out")
async def semaphore_fan_out(step: Step) -> list[str]:
    """No more than two of six steps are open; each that ends lets the next one in."""
    trace: list[str] = []
    slots = asyncio.Semaphore(2)
    held: set[str] = set()

    async def bounded(label: str) -> None:
        async with slots:
            held.add(label)
            await step.run(echo(label), name="work")
            trace.append("".join(sorted(held)))
            held.remove(label)

    await asyncio.gather(*(bounded(v) for v in "abcdef"))
    return trace


@case()
@durable.workflow(name="corpus.semaphore_bounded")
async def semaphore_bounded(_step: Step) -> list[str]:
    """A bounded semaphore refuses one release too many; a cancelled waiter takes no slot."""
    trace: list[str] = []
    slots = asyncio.BoundedSemaphore(1)

    async def worker(label: str) -> None:
        async with slots:
            await traced(trace, echo(label))

    tasks = [asyncio.create_task(worker(v)) for v in "abc"]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    tasks[1].cancel()
    await asyncio.wait(tasks)
    try:
        slots.release()
    except ValueError:
        trace.append("full")
    return trace


@case()
@durable.workflow(name="corpus.barrier_rounds")
async def barrier_rounds(_step: Step) -> list[str]:
    """Three parties meet twice; the first to come takes a step for all."""
    trace: list[str] = []
    barrier = asyncio.Barrier(3)

    async def party(label: str) -> None:
        for number in range(2):
            await traced(trace, echo(f"{label}{number}"))
            if await barrier.wait() == 0:
                await traced(trace, echo(f"round {number}"))

    await asyncio.gather(*(party(v) for v in "abc"))
    return trace


@case()
@durable.workflow(name="corpus.barrier_broken")
async def barrier_broken(_step: Step) -> list[str]:
    """A barrier that is aborted breaks for those who wait and for those who come."""
    trace: list[str] = []
    barrier = asyncio.Barrier(3)

    async def party(label: str) -> None:
        await echo(label)
        try:
            await barrier.wait()
        except asyncio.BrokenBarrierError:
            await traced(trace, echo(f"broken {label}"))

    async def breaker() -> None:
        await traced(trace, echo("abort"))
        await barrier.abort()

    await asyncio.gather(party("a"), party("b"), breaker())
    return trace
