"""Tasks, futures and the loop itself: names, callbacks, handles and what they count."""

import asyncio
from functools import partial

import durable
from durable import Step

from .actions import boom, echo, join, traced
from .case import case


@case()
@durable.workflow(name="corpus.task_of_call")
async def task_of_call(_step: Step) -> list[str]:
    """create_task takes a call; two tasks made of one call are two steps."""
    call = echo("twice")
    first, second = asyncio.create_task(call), asyncio.create_task(call)
    return [await second, await first, await call, await call]


@case()
@durable.workflow(name="corpus.task_names")
async def task_names(_step: Step) -> list[str]:
    """Given names and the current task are as in asyncio, also when a name is used twice."""
    trace: list[str] = []

    async def whoami() -> None:
        task = asyncio.current_task()
        assert task is not None
        await echo("who")
        trace.append(task.get_name())
        task.set_name(f"former {task.get_name()}")

    tasks = [asyncio.create_task(whoami(), name=name) for name in ("ann", "bob", "ann")]
    await asyncio.wait(tasks)
    return [*trace, *(task.get_name() for task in tasks)]


@case()
@durable.workflow(name="corpus.task_counts")
async def task_counts(_step: Step) -> list[int]:
    """all_tasks() sees the run's own tasks, as they come and go."""
    base = len(asyncio.all_tasks())
    counts: list[int] = []
    tasks = [asyncio.create_task(echo(v)) for v in "abc"]
    for next_done in asyncio.as_completed(tasks):
        counts.append(len(asyncio.all_tasks()) - base)
        await next_done
    counts.append(sum(not task.done() for task in tasks))
    return counts


@case()
@durable.workflow(name="corpus.task_stop_all")
async def task_stop_all(_step: Step) -> list[str]:
    """all_tasks() is a set: what is cancelled in its order unwinds in that order on replay."""
    trace: list[str] = []

    async def unwinding(label: str) -> None:
        try:
            await echo(label)
        finally:
            trace.append(label)

    for label in "abcdef":
        asyncio.create_task(unwinding(label), name=label)  # noqa: RUF006 - all_tasks finds it
    await echo("signal")
    names = {*"abcdef"}
    rest = [task for task in asyncio.all_tasks() if task.get_name() in names]
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    return trace


@case()
@durable.workflow(name="corpus.task_callbacks")
async def task_callbacks(_step: Step) -> list[str]:
    """Done callbacks run in the order they were added, before those who wait go on."""
    trace: list[str] = []

    def note(number: int, task: asyncio.Task[str]) -> None:
        trace.append(f"{task.get_name()}{number}")

    dropped = partial(note, 3)
    tasks = [asyncio.create_task(echo(v), name=v) for v in "ab"]
    for task in tasks:
        for callback in (partial(note, 1), dropped, partial(note, 2)):
            task.add_done_callback(callback)
        trace.append(f"dropped {task.remove_done_callback(dropped)}")
    await asyncio.gather(*tasks)
    tasks[0].add_done_callback(partial(note, 4))
    return [*trace, await echo("after"), f"{len(trace)} notes"]


@case()
@durable.workflow(name="corpus.task_from_callback")
async def task_from_callback(_step: Step) -> list[str]:
    """A done callback starts the next step; the body waits for what it started."""
    trace: list[str] = []
    started: list[asyncio.Task[str]] = []

    def follow_up(done: asyncio.Task[str]) -> None:
        if not done.cancelled():
            started.append(asyncio.create_task(traced(trace, echo(f"after {done.result()}"))))

    for label in "abc":
        asyncio.create_task(echo(label)).add_done_callback(follow_up)
    await echo("signal")
    trace.append(f"{len(started)} started")
    await asyncio.gather(*started)
    return list(trace)


@case()
@durable.workflow(name="corpus.task_errors")
async def task_errors(_step: Step) -> list[str]:
    """An error is kept by its task and is the same object for each who asks."""
    task = asyncio.create_task(boom("corpus"))
    await asyncio.wait([task])
    caught: list[BaseException] = []
    for _ in range(2):
        try:
            await task
        except Exception as error:  # noqa: BLE001 - whatever arrived is what is looked at
            caught.append(error)
    same = caught[0] is caught[1] is task.exception()
    return [*(await asyncio.gather(*(echo(repr(error)) for error in caught))), f"same {same}"]


@case()
@durable.workflow(name="corpus.loop_call_soon")
async def loop_call_soon(_step: Step) -> list[str]:
    """Callbacks run in the order given, after the turn that gave them; a handle cancels one."""
    trace: list[str] = []
    loop = asyncio.get_running_loop()
    loop.call_soon(trace.append, "soon")
    loop.call_soon(trace.append, "cancelled").cancel()
    loop.call_soon(loop.call_soon, trace.append, "sooner or later")
    trace.append("now")
    await asyncio.gather(*(traced(trace, echo(v)) for v in "ab"))
    return trace


@case()
@durable.workflow(name="corpus.loop_call_later")
async def loop_call_later(_step: Step) -> list[str]:
    """Timers of the loop with plain callbacks, one cancelled, beside steps."""
    trace: list[str] = []
    loop = asyncio.get_running_loop()
    both = asyncio.Event()

    def ring(label: str) -> None:
        trace.append(label)
        if {"late", "early"} <= {*trace}:
            both.set()

    loop.call_later(2, ring, "late")
    loop.call_at(loop.time() + 1, ring, "early")
    never = loop.call_later(3, ring, "never")
    await traced(trace, echo("step"))
    never.cancel()
    await both.wait()
    return [*trace, f"cancelled {never.cancelled()}", await echo("after")]


@case()
@durable.workflow(name="corpus.future_by_hand")
async def future_by_hand(_step: Step) -> list[str]:
    """Futures of the body's own, set by tasks, callbacks and timers: the first one counts."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[str] = loop.create_future()

    def offer(value: str) -> None:
        if not answer.done():
            answer.set_result(value)

    async def offering(label: str) -> None:
        offer(await echo(label))

    tasks = [asyncio.create_task(offering(v)) for v in "ab"]
    loop.call_later(2, offer, "timer")
    first = await answer
    await asyncio.wait(tasks)
    return [first, await echo("after")]


@case()
@durable.workflow(name="corpus.future_outcomes")
async def future_outcomes(_step: Step) -> list[str]:
    """A future that fails, one that is cancelled and one that is awaited by several."""
    trace: list[str] = []
    loop = asyncio.get_running_loop()
    failed, cancelled, shared = (loop.create_future() for _ in range(3))

    async def settle() -> None:
        await echo("settle")
        failed.set_exception(KeyError("failed"))
        cancelled.cancel()
        shared.set_result("shared")

    async def reading(label: str) -> None:
        trace.append(f"{label} {await shared}")
        await traced(trace, echo(label))

    waiting = asyncio.gather(failed, cancelled, return_exceptions=True)
    await asyncio.gather(settle(), *(reading(v) for v in "abc"))
    return [*trace, *(type(error).__name__ for error in await waiting)]


@case()
@durable.workflow(name="corpus.future_ensured")
async def future_ensured(_step: Step) -> list[str]:
    """ensure_future gives a task for a call and for a coroutine, and a future back itself."""
    trace: list[str] = []
    ensured = [asyncio.ensure_future(echo("call")), asyncio.ensure_future(join(["x", "y"]))]
    ensured.append(asyncio.ensure_future(traced(trace, echo("coroutine"))))
    same = asyncio.ensure_future(ensured[0]) is ensured[0]
    return [*await asyncio.gather(*ensured), f"same {same}", *trace]


@case()
@durable.workflow(name="corpus.task_done_order")
async def task_done_order(_step: Step) -> list[str]:
    """Who was told first of what: callbacks, waiters and a gather on the same tasks."""
    trace: list[str] = []
    tasks = {label: asyncio.create_task(echo(label)) for label in "ab"}

    async def waiting(label: str, reader: str) -> None:
        trace.append(f"{reader} read {await tasks[label]}")
        await traced(trace, echo(f"{reader}{label}"))

    def told(done: asyncio.Task[str]) -> None:
        trace.append(f"told {done.result()}")

    readers = [waiting(label, reader) for reader in ("one", "two") for label in "ba"]
    for task in tasks.values():
        task.add_done_callback(told)
    await asyncio.gather(*readers)
    return trace
