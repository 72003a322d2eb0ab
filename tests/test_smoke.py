import asyncio
from pathlib import Path

import pytest

import durable
from clock import ManualClock
from durable import Engine, Step


@durable.action
async def add(a: int, b: int = 1) -> int:
    return a + b


@durable.workflow
async def add_up(step: Step, n: int) -> int:
    total = 0
    for _ in range(n):
        total = await add(total, b=2)
    await step.sleep(86400)
    return total


@pytest.mark.both_loops
async def test_a_run_sleeps_and_finishes(path: Path) -> None:
    clock = ManualClock()
    engine = Engine(path)
    clock.install(engine)
    async with engine:
        run = await engine.start(add_up(3))
        while not (await run.status()).running or (await run.status()).running[0].kind != "sleep":
            await asyncio.sleep(0)
        clock.advance(86400)
        assert await run.result(timeout=5) == 6
