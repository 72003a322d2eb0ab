"""The mixed load: workflows of many shapes, whose outcomes are known beforehand.

What is killed and run again gives the same outcome as what was never killed: each shape names the
few outcomes that it can have. Its actions take some milliseconds, so that kills hit them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Final, TypeAlias
from uuid import UUID

import durable
from crashes.effects import EffectLog
from durable import Attempt, OutcomeUnknown, Retry, Step, Workflow

WORK_S: Final = 0.003
SHORT_S: Final = 0.02
HOUR_S: Final = 3600
DAY_S: Final = 86400

_log: EffectLog | None = None


def log_to(log: EffectLog) -> None:
    """Have actions report to ``log``."""
    global _log  # noqa: PLW0603  actions get nothing but their arguments
    _log = log


@contextmanager
def _effect() -> Generator[Attempt]:
    assert _log is not None
    attempt = durable.attempt()
    _log.begun(attempt)
    returned = False
    try:
        yield attempt
        returned = True
    finally:
        _log.ended(attempt, returned=returned)


# --- actions -------------------------------------------------------------------------------------


@durable.action
async def double(n: int) -> int:
    with _effect():
        await asyncio.sleep(WORK_S)
        return 2 * n


@durable.action
def triple(n: int) -> int:
    with _effect():
        time.sleep(WORK_S)
        return 3 * n


@durable.action(retry=Retry(max_attempts=4, initial_backoff=SHORT_S))
async def flaky(n: int) -> int:
    with _effect() as attempt:
        if attempt.number < 3:
            raise ConnectionError(attempt.number)
        return 2 * n


@durable.action(retry=Retry(max_attempts=3, initial_backoff=WORK_S), timeout=SHORT_S)
async def hanging_once(n: int) -> int:
    with _effect() as attempt:
        if attempt.number == 1:
            await asyncio.Event().wait()
        return 2 * n


@durable.action(retry=Retry(max_attempts=2, initial_backoff=WORK_S))
async def hopeless(n: int) -> int:
    with _effect():
        raise ValueError(n)


@durable.action
async def failing_soon(n: int) -> int:
    with _effect():
        await asyncio.sleep(WORK_S)
        raise ValueError(n)


@durable.action(retry=False)
async def once(n: int) -> int:
    with _effect():
        await asyncio.sleep(WORK_S)
        return 2 * n


@durable.action
async def endless() -> int:
    """Hold a slot until withdrawn."""
    with _effect():
        await asyncio.Event().wait()
        return 0


@durable.action
async def stamp(number: UUID, now: datetime, draw: float) -> str:
    """Compared on replay, as all arguments are: what a body is given must not change."""
    with _effect():
        return f"{number} {now} {draw}"


AT_MOST_ONCE: Final = frozenset({once.name})
RETRIES: Final = {
    action.name: action.retry
    for action in (flaky, hanging_once, hopeless)
    if isinstance(action.retry, Retry)
}


# --- workflows -----------------------------------------------------------------------------------


@durable.workflow
async def sequence(_step: Step, n: int) -> int:
    n = await double(n)
    n = await triple(n)
    return await double(n)


@durable.workflow
async def fan_out(_step: Step, n: int) -> int:
    calls = [double(i) if i % 2 else triple(i) for i in range(n + 4)]
    return sum(await asyncio.gather(*calls))


@durable.workflow
async def race(step: Step, n: int) -> int:
    async def last() -> int:
        await step.sleep(HOUR_S)
        return 0

    return await _first(double(n), endless(), endless(), last())


@durable.workflow
async def photo_finish(_step: Step, n: int) -> int:
    return await double(await _first(*(double(n) for _ in range(5)), triple(n), triple(n)))


@durable.workflow
async def timeouts(_step: Step, n: int) -> int:
    try:
        async with asyncio.timeout(SHORT_S):
            return await endless()
    except TimeoutError:
        async with asyncio.timeout(HOUR_S):
            return await double(n)


@durable.workflow
async def retried(_step: Step, n: int) -> int:
    return sum(await asyncio.gather(flaky(n), hanging_once(n), flaky(n)))


@durable.workflow
async def at_most_once(_step: Step, n: int) -> int:
    try:
        n = await once(n)
    except OutcomeUnknown:
        return -1
    return await double(n)


@durable.workflow
async def naps(step: Step, n: int) -> int:
    n = await double(n)
    await step.sleep(SHORT_S)
    n = await double(n)
    await asyncio.sleep(SHORT_S)
    n = await triple(n)
    await step.sleep_until(step.now() + timedelta(seconds=SHORT_S))
    return await double(n)


@durable.workflow
async def delayed_steps(step: Step, n: int) -> int:
    await stamp(step.uuid4(), step.now(), step.random.random())
    at = step.now() + timedelta(seconds=2 * SHORT_S)
    results = await asyncio.gather(
        step.run(double(n), run_after=SHORT_S), step.run(triple(n), run_at=at)
    )
    return sum(results)


@durable.workflow
async def failing_group(_step: Step, n: int) -> int:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(failing_soon(n))
            group.create_task(endless())
            for i in range(6):
                group.create_task(double(i))
    except* ValueError as errors:
        n = errors.exceptions[0].args[0]
    return await double(n)


@durable.workflow
async def branches(step: Step, n: int) -> int:
    """Completions come in another order than the steps were issued in, and the body can tell."""
    count = n % 3 + 3

    async def branch(i: int) -> int:
        await asyncio.sleep(WORK_S * (count - i))
        await stamp(step.uuid4(), step.now(), step.random.random())
        return 2 * await double(i)

    return sum(await asyncio.gather(*(branch(i) for i in range(count))))


@durable.workflow
async def pipeline(_step: Step, n: int) -> int:
    queue: asyncio.Queue[int] = asyncio.Queue(maxsize=2)
    sums: list[int] = []

    async def work() -> None:
        while True:
            sums.append(await double(await queue.get()))
            queue.task_done()

    workers = [asyncio.create_task(work()) for _ in range(3)]
    for i in range(n + 2):
        await queue.put(i)
    await queue.join()
    for worker in workers:
        worker.cancel()
    return sum(sums)


@durable.workflow
async def failing(_step: Step, n: int) -> int:
    raise LookupError(await double(n))


@durable.workflow
async def failing_step(_step: Step, n: int) -> int:
    return await hopeless(n)


@durable.workflow
async def long_sleep(step: Step, n: int) -> int:
    n = await double(n)
    await step.sleep(DAY_S)
    return await double(n)


async def _first(*rivals: Awaitable[int]) -> int:
    tasks = [asyncio.ensure_future(rival) for rival in rivals]
    done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()
    return done.pop().result()


# --- outcomes ------------------------------------------------------------------------------------

Shape: TypeAlias = Workflow[[int], int]

OUTCOMES: Final[dict[Shape, Callable[[int], set[object]]]] = {
    sequence: lambda n: {12 * n},
    fan_out: lambda n: {sum(2 * i if i % 2 else 3 * i for i in range(n + 4))},
    race: lambda n: {2 * n},
    photo_finish: lambda n: {4 * n, 6 * n},
    timeouts: lambda n: {2 * n},
    retried: lambda n: {6 * n},
    at_most_once: lambda n: {4 * n, -1},
    naps: lambda n: {24 * n},
    delayed_steps: lambda n: {5 * n},
    failing_group: lambda n: {2 * n},
    branches: lambda n: {4 * sum(range(n % 3 + 3))},
    pipeline: lambda n: {2 * sum(range(n + 2))},
    failing: lambda n: {repr(LookupError(2 * n))},
    failing_step: lambda n: {repr(ValueError(n))},
    long_sleep: lambda n: {4 * n},
}
"""By shape: its results, or what the error that it fails with looks like."""
