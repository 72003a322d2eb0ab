"""``asyncio.Queue`` and its kin: who takes what follows from who was waiting first."""

import asyncio

import durable
from durable import Step

from .actions import double, echo, picky, traced
from .case import case


@case()
@durable.workflow(name="corpus.queue_workers")
async def queue_workers(step: Step) -> list[str]:
    """Three workers share one queue; join ends them."""
    trace: list[str] = []
    queue: asyncio.Queue[str] = asyncio.Queue()

    async def worker(name: str) -> None:
        while True:
            item = await queue.get()
            trace.append(f"{name} {await step.run(echo(item), name='work')}")
            queue.task_done()

    for item in "abcdefg":
        queue.put_nowait(item)
    workers = [asyncio.create_task(worker(name)) for name in ("one", "two", "three")]
    await queue.join()
    for task in workers:
        task.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    return trace


@case()
@durable.workflow(name="corpus.queue_bounded")
async def queue_bounded(_step: Step) -> list[int]:
    """A producer held back by a queue of one, and a consumer that takes a step for each item."""
    taken: list[int] = []
    queue: asyncio.Queue[int | None] = asyncio.Queue(maxsize=1)

    async def produce() -> None:
        for n in range(4):
            await queue.put(await double(n))
        await queue.put(None)

    producer = asyncio.create_task(produce())
    while (item := await queue.get()) is not None:
        taken.append(await double(item))
    await producer
    return taken


@case()
@durable.workflow(name="corpus.queue_producers")
async def queue_producers(_step: Step) -> list[str]:
    """Two producers whose items interleave as their steps complete."""
    taken: list[str] = []
    queue: asyncio.Queue[str] = asyncio.Queue(maxsize=2)

    async def produce(label: str) -> None:
        for number in range(3):
            await queue.put(await echo(f"{label}{number}"))

    async with asyncio.TaskGroup() as group:
        group.create_task(produce("a"))
        group.create_task(produce("b"))
        while len(taken) < 6:
            taken.append(await queue.get())
    return taken


@case()
@durable.workflow(name="corpus.queue_priority")
async def queue_priority(_step: Step) -> list[str]:
    """What a priority queue gives depends on what has arrived by then."""
    taken: list[str] = []
    queue: asyncio.PriorityQueue[tuple[int, str]] = asyncio.PriorityQueue()

    async def arrive(priority: int, label: str) -> None:
        queue.put_nowait((priority, await echo(label)))

    arrivals = [asyncio.create_task(arrive(n, label)) for n, label in enumerate("abcd")]
    for _ in arrivals:
        _, label = await queue.get()
        taken.append(await echo(f"took {label}"))
    return taken


@case()
@durable.workflow(name="corpus.queue_last_in")
async def queue_last_in(_step: Step) -> list[str]:
    """The last that came is the first that goes, of what has come so far."""
    trace: list[str] = []
    stack: asyncio.LifoQueue[str] = asyncio.LifoQueue()
    for label in "abc":
        task = asyncio.create_task(traced(trace, echo(label)))
        task.add_done_callback(lambda done: stack.put_nowait(done.result()))
    taken: list[str] = []
    for _ in range(3):
        taken.append(await stack.get())
        await echo("between")
    return [*trace, *taken]


@case()
@durable.workflow(name="corpus.queue_get_timeout")
async def queue_get_timeout(_step: Step) -> list[str]:
    """A consumer that gives up after a while loses no item."""
    taken: list[str] = []
    queue: asyncio.Queue[str] = asyncio.Queue()

    async def produce() -> None:
        for label in "ab":
            queue.put_nowait(await echo(label))

    producer = asyncio.create_task(produce())
    for number in range(3):
        try:
            async with asyncio.timeout(2):
                taken.append(await queue.get())
        except TimeoutError:
            taken.append(f"nothing {number}")
    await producer
    return [*taken, f"{queue.qsize()} left"]


@case()
@durable.workflow(name="corpus.queue_pipeline")
async def queue_pipeline(_step: Step) -> list[int]:
    """Two stages, joined by queues, each with two workers."""
    results: list[int] = []
    first: asyncio.Queue[int] = asyncio.Queue()
    second: asyncio.Queue[int] = asyncio.Queue(maxsize=1)

    async def stage_one() -> None:
        while not first.empty():
            await second.put(await double(first.get_nowait()))

    async def stage_two() -> None:
        while len(results) < 3:
            results.append(await double(await second.get()))

    for n in range(5):
        first.put_nowait(n)
    stages = [stage_one(), stage_one(), stage_two(), stage_two()]
    _, rest = await asyncio.wait([asyncio.create_task(stage) for stage in stages], timeout=20)
    for task in rest:
        task.cancel()
    return list(results)


@case()
@durable.workflow(name="corpus.queue_retries")
async def queue_retries(_step: Step) -> list[str]:
    """A worker puts back what failed, changed, so that it comes again behind the others."""
    trace: list[str] = []
    queue: asyncio.Queue[int] = asyncio.Queue()

    async def worker(name: str) -> None:
        while not queue.empty():
            item = queue.get_nowait()
            try:
                trace.append(f"{name} {await picky(item)}")
            except ValueError:
                trace.append(f"{name} refused {item}")
                queue.put_nowait(item + 1)

    for n in (1, 2, 3, 4):
        queue.put_nowait(n)
    await asyncio.gather(worker("one"), worker("two"))
    return trace
