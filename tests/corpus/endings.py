"""How bodies end: at once, by errors of all kinds, and with tasks still running."""

import asyncio

import durable
from durable import Step

from .actions import CorpusError, boom, echo, guarded, picky, traced
from .case import case


@case("value")
@durable.workflow(name="corpus.ends_at_once")
async def ends_at_once(_step: Step, value: str) -> str:
    """No step at all."""
    return value


@case()
@durable.workflow(name="corpus.ends_with_none")
async def ends_with_none(step: Step) -> None:
    """Steps, and no result."""
    await step.run(echo("a"), name="only")


@case(raises=ValueError)
@durable.workflow(name="corpus.ends_by_value_error")
async def ends_by_value_error(_step: Step) -> str:
    """The body's own error, worded by a step's result."""
    value = await echo("word")
    raise ValueError(value)


@case(raises=CorpusError)
@durable.workflow(name="corpus.ends_by_step_error")
async def ends_by_step_error(_step: Step) -> str:
    """An error of a step that nobody catches, past a finally block with a step."""
    try:
        return await boom("corpus")
    finally:
        await echo("on the way out")


@case(raises=LookupError)
@durable.workflow(name="corpus.ends_by_first_error")
async def ends_by_first_error(_step: Step) -> list[str]:
    """Which of two errors ends the run depends on which step completes first."""
    return list(await asyncio.gather(boom("key"), boom("index"), echo("fine")))


@case(raises=CorpusError)
@durable.workflow(name="corpus.ends_by_chained_error")
async def ends_by_chained_error(_step: Step) -> str:
    """An error raised from another, which came while a third was handled."""
    try:
        try:
            return await boom("key")
        except KeyError:
            return await boom("value")
    except ValueError as error:
        raise CorpusError(await echo("chained")) from error


@case(raises=ExceptionGroup)
@durable.workflow(name="corpus.ends_by_group")
async def ends_by_group(_step: Step) -> None:
    """A task group's error ends the run."""
    async with asyncio.TaskGroup() as group:
        group.create_task(boom("value"))
        group.create_task(picky(3))
        group.create_task(echo("sibling"))


@case(raises=ExceptionGroup)
@durable.workflow(name="corpus.ends_by_nested_groups")
async def ends_by_nested_groups(_step: Step) -> None:
    """A group in a group, of which the handlers take one part and leave the rest."""
    outcomes = await asyncio.gather(boom("key"), boom("value"), return_exceptions=True)
    errors = [error for error in outcomes if isinstance(error, Exception)]
    try:
        inner = ExceptionGroup("inner", errors)
        raise ExceptionGroup("outer", [inner, CorpusError(await echo("c"))])
    except* KeyError:
        await echo("key handled")


@case(raises=asyncio.CancelledError)
@durable.workflow(name="corpus.ends_by_cancelling_itself")
async def ends_by_cancelling_itself(_step: Step) -> str:
    """The body raises CancelledError, though nobody cancelled the run."""
    value = await echo("a")
    raise asyncio.CancelledError(value)


@case()
@durable.workflow(name="corpus.ends_with_tasks")
async def ends_with_tasks(_step: Step) -> list[str]:
    """Steps and timers of tasks that nobody awaited are withdrawn at the end."""
    trace: list[str] = []
    left = [asyncio.create_task(traced(trace, echo(v))) for v in "abc"]
    left.append(asyncio.create_task(asyncio.sleep(9, "slept")))
    first = await echo("first")
    return [first, *trace, f"{len(left)} tasks"]


@case()
@durable.workflow(name="corpus.ends_with_cleanup")
async def ends_with_cleanup(_step: Step) -> list[str]:
    """Tasks that are cancelled at the end of the body run their last steps."""
    trace: list[str] = []
    left = [asyncio.create_task(guarded(trace, v)) for v in "ab"]
    first = await echo("first")
    return [first, *trace, f"{len(left)} tasks"]


@case()
@durable.workflow(name="corpus.ends_with_stubborn_task")
async def ends_with_stubborn_task(_step: Step) -> str:
    """A task swallows the cancel at the end of the body and goes on for a while."""

    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await echo("one more")
            await asyncio.sleep(1)
            await echo("and the last")

    task = asyncio.create_task(stubborn(), name="stubborn")
    return await echo(f"left {task.get_name()}")


@case()
@durable.workflow(name="corpus.ends_with_late_task")
async def ends_with_late_task(_step: Step) -> str:
    """A task that is cancelled at the end of the body starts another one."""
    late: list[asyncio.Task[str]] = []

    async def starting() -> None:
        try:
            await echo("waiting")
        finally:
            late.append(asyncio.create_task(echo("late")))
            await echo("on the way out")

    task = asyncio.create_task(starting(), name="starting")
    return await echo(f"left {task.get_name()}")


@case()
@durable.workflow(name="corpus.ends_with_failing_cleanup")
async def ends_with_failing_cleanup(_step: Step) -> str:
    """The result stands though the clean-up after it fails."""

    async def failing() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await boom("value")

    task = asyncio.create_task(failing(), name="failing")
    return await echo(f"left {task.get_name()}")


@case(raises=CorpusError)
@durable.workflow(name="corpus.ends_failing_with_tasks")
async def ends_failing_with_tasks(_step: Step) -> str:
    """An error ends the body while tasks are at work; they still clean up."""
    trace: list[str] = []
    left = [asyncio.create_task(guarded(trace, v)) for v in "ab"]
    await echo("first")
    raise CorpusError(f"{len(left)} tasks, {trace}")


@case()
@durable.workflow(name="corpus.ends_with_unread_error")
async def ends_with_unread_error(_step: Step) -> str:
    """A task failed and nobody looked: the run's result is not touched."""
    task = asyncio.create_task(boom("value"))
    await asyncio.wait([task])
    return await echo("fine")


@case()
@durable.workflow(name="corpus.ends_with_shielded")
async def ends_with_shielded(_step: Step) -> list[str]:
    """A shield protects from its own waiter, not from the end of the body."""
    trace: list[str] = []
    shielded = asyncio.shield(guarded(trace, "shielded"))
    first = await echo("first")
    return [first, f"done {shielded.done()}", *trace]
