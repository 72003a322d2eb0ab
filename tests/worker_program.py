"""A worker process: ``python worker_program.py JOURNAL EFFECTS``. Web servers have several.

It says "open" once its engine is, and works, or stands by, until it is killed or told to end.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import durable
from durable import Engine, Step

EFFECTS = "DURABLE_TEST_EFFECTS"


def note(text: str) -> None:
    """Append a line, whole, that no crash of the process takes back."""
    fd = os.open(os.environ[EFFECTS], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{os.getpid()} {text}\n".encode())
    os.close(fd)


@durable.action(name="effect")
async def effect(run: str, number: int) -> int:
    note(f"{run}/{number}")
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
    async with Engine(Path(sys.argv[1]), drain_timeout=1):
        print("open", flush=True)  # noqa: T201
        await asyncio.to_thread(sys.stdin.readline)


if __name__ == "__main__":
    os.environ[EFFECTS] = sys.argv[2]
    asyncio.run(main())
