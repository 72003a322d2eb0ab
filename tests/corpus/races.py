"""``asyncio.wait`` in its three modes and ``as_completed``: winners, losers and leftovers."""

import asyncio

import durable
from durable import Step

from .actions import boom, double, echo, guarded, traced
from .case import case


def tasks_of(labels: str) -> list[asyncio.Task[str]]:
    """Start one step for each letter, in a task named after it."""
    return [asyncio.create_task(echo(label), name=label) for label in labels]


@case()
@durable.workflow(name="corpus.race_first_completed")
async def race_first_completed(step: Step) -> list[str]:
    """The first to finish wins, the losers are withdrawn, and a step follows."""
    runners = [asyncio.create_task(step.run(echo(v), name="run")) for v in "abc"]
    done, pending = await asyncio.wait(runners, return_when=asyncio.FIRST_COMPLETED)
    for loser in pending:
        loser.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    winner = done.pop().result()
    return [winner, await step.run(echo(f"prize for {winner}"), name="run")]


@case()
@durable.workflow(name="corpus.race_losers_clean_up")
async def race_losers_clean_up(_step: Step) -> list[str]:
    """Losers run clean-up steps, which race in their turn."""
    trace: list[str] = []
    runners = {asyncio.create_task(guarded(trace, v), name=v) for v in "abcd"}
    _, losers = await asyncio.wait(runners, return_when=asyncio.FIRST_COMPLETED)
    for loser in losers:
        loser.cancel()
    await asyncio.gather(*losers, return_exceptions=True)
    return trace


@case()
@durable.workflow(name="corpus.race_losers_go_on")
async def race_losers_go_on(_step: Step) -> list[str]:
    """Losers that are left running are awaited later, in the order of the set."""
    done, pending = await asyncio.wait(tasks_of("abcd"), return_when=asyncio.FIRST_COMPLETED)
    between = await echo("between")
    return [*(t.get_name() for t in done), between, *[await task for task in pending]]


@case()
@durable.workflow(name="corpus.race_first_exception")
async def race_first_exception(_step: Step) -> list[str]:
    """FIRST_EXCEPTION returns at the failure, with what had completed by then."""
    failing = asyncio.create_task(boom("value"), name="boom")
    done, pending = await asyncio.wait(
        [*tasks_of("abc"), failing], return_when=asyncio.FIRST_EXCEPTION
    )
    names = [task.get_name() for task in done]
    late = await asyncio.gather(*pending)
    return [*names, "late", *late, type(failing.exception()).__name__]


@case()
@durable.workflow(name="corpus.race_no_exception")
async def race_no_exception(_step: Step) -> list[str]:
    """FIRST_EXCEPTION without one waits for all; a cancelled task counts as no exception."""
    tasks = tasks_of("abc")
    asyncio.get_running_loop().call_soon(tasks[1].cancel)
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    ends = [f"{t.get_name()} {t.cancelled()}" for t in done]
    return [*ends, f"{len(pending)} pending", await echo("after")]


@case()
@durable.workflow(name="corpus.race_all_completed")
async def race_all_completed(_step: Step) -> list[str]:
    """ALL_COMPLETED gives a set, which iterates in the same order on replay."""
    done, _ = await asyncio.wait([*tasks_of("abcdefghij"), asyncio.create_task(boom("key"))])
    return [await echo("failed" if t.exception() else t.result()) for t in done]


@case()
@durable.workflow(name="corpus.race_wait_timeout")
async def race_wait_timeout(_step: Step) -> list[str]:
    """A wait with a time-out withdraws nothing: what is pending is waited for again."""
    trace: list[str] = []
    pending = {asyncio.create_task(traced(trace, echo(v))) for v in "abc"}
    for number in range(3):
        if pending:
            done, pending = await asyncio.wait(pending, timeout=2)
            trace.append(f"wait {number}: {len(done)} done")
    await asyncio.gather(*pending)
    return trace


@case()
@durable.workflow(name="corpus.race_rolling")
async def race_rolling(_step: Step) -> list[int]:
    """Each step that finishes is replaced by the next, two at a time."""
    finished: list[int] = []
    waiting = list(range(6))
    active: set[asyncio.Task[int]] = set()
    while waiting or active:
        while waiting and len(active) < 2:
            active.add(asyncio.create_task(double(waiting.pop(0))))
        done, active = await asyncio.wait(active, return_when=asyncio.FIRST_COMPLETED)
        finished.extend(task.result() for task in done)
    return finished


@case()
@durable.workflow(name="corpus.race_step_and_sleep")
async def race_step_and_sleep(_step: Step) -> list[str]:
    """A step against a sleep, with FIRST_COMPLETED instead of a time-out."""
    work = asyncio.create_task(echo("work"))
    clock = asyncio.create_task(asyncio.sleep(3, "clock"))
    done, pending = await asyncio.wait({work, clock}, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    return [*(task.result() for task in done), await echo("after")]


@case()
@durable.workflow(name="corpus.race_hedged")
async def race_hedged(step: Step) -> list[str]:
    """A second try starts when the first is slow; the slower of the two is withdrawn."""
    first = asyncio.create_task(step.run(echo("first"), name="try"))
    done, _ = await asyncio.wait([first], timeout=2)
    if done:
        return [first.result()]
    second = asyncio.create_task(step.run(echo("second"), name="try"))
    done, pending = await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    return [*(task.result() for task in done), await echo("hedged")]


@case()
@durable.workflow(name="corpus.race_of_races")
async def race_of_races(_step: Step) -> list[str]:
    """The winners of two races race each other with a further step."""

    async def heat(labels: str) -> str:
        runners = tasks_of(labels)
        done, pending = await asyncio.wait(runners, return_when=asyncio.FIRST_COMPLETED)
        for loser in pending:
            loser.cancel()
        return await echo(f"{done.pop().get_name()} again")

    heats = [asyncio.create_task(heat(labels), name=labels) for labels in ("ab", "cd")]
    done, pending = await asyncio.wait(heats, return_when=asyncio.FIRST_COMPLETED)
    return [*(t.result() for t in done), "then", *[await task for task in pending]]


@case()
@durable.workflow(name="corpus.as_completed_calls")
async def as_completed_calls(_step: Step) -> list[str]:
    """Calls given straight to as_completed, which puts them into a set first."""
    order = [await value for value in asyncio.as_completed([echo(v) for v in "abcdefgh"])]
    return [*order, await echo(order[0])]


@case()
@durable.workflow(name="corpus.as_completed_tasks")
async def as_completed_tasks(_step: Step) -> list[str]:
    """Tasks in order of completion, with a step between; failures come in their turn."""
    trace: list[str] = []
    failing = asyncio.create_task(boom("index"))
    for next_done in asyncio.as_completed([*tasks_of("abc"), failing]):
        try:
            trace.append(await next_done)
        except IndexError:
            trace.append(await echo("failed"))
    return trace


@case()
@durable.workflow(name="corpus.as_completed_timeout")
async def as_completed_timeout(_step: Step) -> list[str]:
    """A time-out ends the iteration but not the tasks."""
    trace: list[str] = []
    tasks = [asyncio.create_task(traced(trace, echo(v))) for v in "abc"]
    try:
        for next_done in asyncio.as_completed(tasks, timeout=3):
            await next_done
    except TimeoutError:
        trace.append("late")
    await asyncio.gather(*tasks)
    return trace


@case()
@durable.workflow(name="corpus.as_completed_left_early")
async def as_completed_left_early(_step: Step) -> list[str]:
    """An iteration left after the second result; the rest is cancelled by hand."""
    values: list[str] = []
    tasks = tasks_of("abcd")
    for next_done in asyncio.as_completed(tasks):
        values.append(await next_done)
        if len(values) == 2:
            break
    stopped = [task.get_name() for task in tasks if task.cancel()]
    return [*values, *stopped, await echo("after")]
