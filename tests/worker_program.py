"""A worker process, in the directory of its journal. Web servers have several.

It says so once its engine is open, and works, or stands by, until it is killed or told to end.
"""

from __future__ import annotations

import asyncio
import os
import sys

from killing import JOURNAL, note, say_opened

import durable
from durable import Engine, Step


@durable.action(name="effect")
async def effect(run: str, number: int) -> int:
    note(f"{os.getpid()} {run}/{number}")
    await asyncio.sleep(0.002)
    return number


@durable.workflow(name="stepping")
async def stepping(step: Step, run: str, steps: int) -> int:
    total = 0
    for number in range(steps):
        total += await effect(run, number)
    await step.sleep(0.01)
    return total


@durable.workflow(name="waiting")
async def waiting(step: Step) -> None:
    await step.sleep(3600)


async def main() -> None:
    async with Engine(JOURNAL, drain_timeout=1):
        say_opened()
        await asyncio.to_thread(sys.stdin.readline)


if __name__ == "__main__":
    asyncio.run(main())
