"""What CPython's task groups and time-outs do, each edge of theirs: a body's do the same."""

import asyncio
from contextvars import ContextVar, copy_context

import durable
from durable import Step

from .actions import echo
from .case import case
from .outcomes import MOMENT_S, counts, never, outcome, ticks

where = ContextVar("where", default="nowhere")


@case()
@durable.workflow(name="corpus.plain_group_parent_cancelled")
async def plain_group_parent_cancelled(_step: Step) -> list[str]:
    """Who is cancelled in a group, or at its end, cancels the children and is cancelled itself."""
    trace: list[str] = []

    async def child(label: str) -> None:
        try:
            await never()
        finally:
            await echo(label)
            trace.append("ended")

    async def parent(*, waits_inside: bool) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(child("a"))
            group.create_task(child("b"))
            if waits_inside:
                await never()
        trace.append("not reached")

    for waits_inside in (True, False):
        task = asyncio.create_task(parent(waits_inside=waits_inside))
        await echo("begun")
        await ticks(2)
        task.cancel("enough")
        trace.append(await outcome(task))
        trace.append(f"{task.cancelled()} {task.cancelling()}")
    return trace


@case()
@durable.workflow(name="corpus.plain_group_cancel_and_failure")
async def plain_group_cancel_and_failure(_step: Step) -> list[str]:
    """A parent that is cancelled while its children fail, before, with and after them."""
    trace: list[str] = []

    async def failing(count: int) -> None:
        await ticks(count)
        raise ValueError(count)

    async def stubborn() -> None:
        try:
            await never()
        except asyncio.CancelledError:
            raise KeyError from None

    async def parent(count: int) -> str:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(failing(count))
                group.create_task(stubborn())
        finally:
            trace.append(counts())
        return "not reached"

    for count in range(1, 6):
        task = asyncio.create_task(parent(count))
        await ticks(3)
        task.cancel()
        trace.append(await outcome(task))
        trace.append(await echo(f"after {count}"))
    return trace


@case()
@durable.workflow(name="corpus.plain_group_states")
async def plain_group_states(_step: Step) -> list[str]:
    """A group takes no task before it is entered, once it shuts down, or when it is over."""
    trace: list[str] = []
    group = asyncio.TaskGroup()

    def is_taken() -> None:
        work = never()
        try:
            group.create_task(work)
            trace.append("taken")
        except RuntimeError:
            work.close()
            trace.append("refused")

    async def late() -> None:
        try:
            await never()
        finally:
            is_taken()

    is_taken()
    await echo("before")
    try:
        async with group:
            group.create_task(late())
            await ticks(1)
            raise LookupError  # noqa: TRY301 - what ends the group
    except* LookupError as errors:
        trace.append(errors.message)
    is_taken()
    trace.append(await outcome(group.__aenter__()))
    return trace


@case()
@durable.workflow(name="corpus.plain_group_errors")
async def plain_group_errors(_step: Step) -> list[str]:
    """All errors are gathered, the block's own first; cancellations of children are none."""

    class OwnExit(BaseException):
        pass

    async def fail(error: BaseException) -> None:
        await ticks(1)
        raise error

    async def fail_when_cancelled() -> None:
        try:
            await never()
        finally:
            raise IndexError

    async def run(*errors: BaseException, own: BaseException | None = None) -> None:
        async with asyncio.TaskGroup() as group:
            for error in errors:
                group.create_task(fail(error))
            group.create_task(fail_when_cancelled())
            if own is not None:
                await ticks(3)
                raise own
            await never()

    async def run_cancelled() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail(asyncio.CancelledError()))
            group.create_task(ticks(3))

    first = [
        await outcome(run(ValueError())),
        await outcome(run(ValueError(), KeyError())),
        await outcome(run(OwnExit(), KeyError())),
        await outcome(run_cancelled()),
    ]
    await echo("between")
    return [
        *first,
        await outcome(run(own=LookupError())),
        await outcome(run(own=OwnExit())),
        await outcome(run(own=asyncio.CancelledError())),
        await outcome(run(KeyError(), own=LookupError())),
    ]


@case()
@durable.workflow(name="corpus.plain_group_contexts")
async def plain_group_contexts(_step: Step) -> list[str]:
    """A child has a copy of its parent's context, or the one that it is given; and its name."""
    trace: list[str] = []

    async def child() -> None:
        task = asyncio.current_task()
        assert task is not None
        trace.append(f"{task.get_name()} {where.get()}")
        where.set(task.get_name())

    where.set("parent")
    async with asyncio.TaskGroup() as group:
        first = group.create_task(child(), name="first")
        await echo("step")
        await first
        where.set("later")
        given = copy_context()
        await group.create_task(child(), name="second", context=given)
        await group.create_task(child(), name="third", context=given)
    return [*trace, where.get(), given[where]]


@case()
@durable.workflow(name="corpus.plain_timeout_states")
async def plain_timeout_states(_step: Step) -> list[str]:
    """A time-out is entered once, moved while it is active, and says when it is and was."""
    loop = asyncio.get_running_loop()
    trace: list[str] = []
    limit = asyncio.timeout(None)

    def move(when: float | None) -> None:
        try:
            limit.reschedule(when)
            trace.append("moved")
        except RuntimeError:
            trace.append("not active")

    move(None)
    async with limit:
        await echo("inside")
        trace.append(f"{limit.when()} {limit.expired()}")
        when = loop.time() + 1000
        move(when)
        trace.append(f"{limit.when() == when}")
    move(None)
    trace.append(f"{limit.when() == when} {limit.expired()}")
    trace.append(await outcome(limit.__aenter__()))
    late = asyncio.timeout(MOMENT_S)
    try:
        async with late:
            await never()
    except TimeoutError as error:
        trace += [type(error.__cause__).__name__, f"expired {late.expired()}", counts()]
    return trace


@case()
@durable.workflow(name="corpus.plain_timeout_nested")
async def plain_timeout_nested(_step: Step) -> list[str]:
    """Of two time-outs that end one wait, each converts its own cancellation only."""

    async def nested(outer_s: float, inner_s: float) -> str:
        outer, inner = asyncio.timeout(outer_s), asyncio.timeout(inner_s)
        caught = "nothing"
        try:
            async with outer:
                try:
                    async with inner:
                        await never()
                except TimeoutError:
                    caught = "inner"
                    await asyncio.sleep(0)
        except TimeoutError:
            caught += ", outer"
        return f"{caught}: {outer.expired()} {inner.expired()} {counts()}"

    return [
        await nested(1000, MOMENT_S),
        await nested(MOMENT_S, 1000),
        await echo("between"),
        await nested(-1, 1000),
        await nested(1000, -1),
        await nested(-1, -1),
    ]


@case()
@durable.workflow(name="corpus.plain_timeout_cancelled")
async def plain_timeout_cancelled(_step: Step) -> list[str]:
    """A cancellation from outside stays one, in a time-out, beside it, and in its handler."""

    async def patient() -> None:
        async with asyncio.timeout(1000):
            await never()

    async def both() -> None:
        async with asyncio.timeout(-1):
            await never()

    async def cleaning_up() -> str:
        try:
            await never()
        except asyncio.CancelledError:
            try:
                async with asyncio.timeout(MOMENT_S):
                    await never()
            except TimeoutError:
                return f"cleaned up, {counts()}"
        return "not reached"

    async def taken_back() -> str:
        task = asyncio.current_task()
        assert task is not None
        try:
            await never()
        except asyncio.CancelledError:
            task.uncancel()
        async with asyncio.timeout(1000):
            await ticks(2)
        return counts()

    found: list[str] = []
    for make in (patient, both, cleaning_up, taken_back):
        task = asyncio.create_task(make())
        await ticks(1)
        task.cancel()
        found.append(await outcome(task))
        await echo(make.__name__)
    return found


@case()
@durable.workflow(name="corpus.plain_wait_for")
async def plain_wait_for(_step: Step) -> list[str]:
    """wait_for: what is given up is cancelled, and its own end counts where asyncio says so."""
    loop = asyncio.get_running_loop()

    async def fails_at_the_end() -> None:
        try:
            await never()
        finally:
            raise KeyError

    async def goes_on() -> str:
        try:
            await never()
        except asyncio.CancelledError:
            await ticks(2)
        return "went on"

    done: asyncio.Future[str] = loop.create_future()
    done.set_result("done")
    failed: asyncio.Future[str] = loop.create_future()
    failed.set_exception(LookupError())
    cancelled: asyncio.Future[str] = loop.create_future()
    cancelled.cancel()
    given_up = asyncio.create_task(never())
    waiter = asyncio.create_task(asyncio.wait_for(goes_on(), 1000))
    found = [
        await outcome(asyncio.wait_for(done, 0)),
        await outcome(asyncio.wait_for(failed, -1)),
        await outcome(asyncio.wait_for(cancelled, 1)),
        await outcome(asyncio.wait_for(given_up, 0)),
        await echo("between"),
        await outcome(asyncio.wait_for(fails_at_the_end(), MOMENT_S)),
        await outcome(asyncio.wait_for(goes_on(), MOMENT_S)),
        await outcome(asyncio.wait_for(asyncio.shield(done), MOMENT_S)),
    ]
    waiter.cancel()
    return [*found, f"{given_up.cancelled()}", await outcome(waiter), f"{waiter.cancelled()}"]
