"""A batch of many, in parallel, so many at a time: each item is a child run of the batch.

The batch goes on where it was when its process dies. So the process dies here, in the middle of it,
and starts again.

$ python examples/batch.py
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import durable
from durable import Engine, RunFailed, Step

ITEMS = 200
AT_A_TIME = 20
DIES_AFTER = 50

at_work = 0
most_at_work = 0


@durable.action
async def download(item: int) -> int:
    """Fetch an item: this takes a while, and one in fifty is not there."""
    global at_work, most_at_work  # noqa: PLW0603  the example's own check
    at_work += 1
    most_at_work = max(most_at_work, at_work)
    await asyncio.sleep(0.01)
    at_work -= 1
    if item % 50 == 49:
        raise FileNotFoundError(f"item {item}")
    return item * 1_000


@durable.action
async def store(item: int, size: int) -> None:
    """Keep it, once: the second time it is there already."""


@durable.workflow
async def convert(_step: Step, item: int) -> int:
    """What is done with one item."""
    size = await download(item)
    await store(item, size)
    return size


@durable.workflow
async def batch(_step: Step, items: int, at_a_time: int) -> dict[str, int]:
    """Convert all of them, ``at_a_time`` at a time; one that fails does not stop the others."""
    room = asyncio.Semaphore(at_a_time)

    async def one(item: int) -> int | None:
        async with room:
            try:
                return await convert(item)
            except RunFailed:
                return None

    sizes = await asyncio.gather(*(one(item) for item in range(items)))
    done = [size for size in sizes if size is not None]
    return {"converted": len(done), "failed": items - len(done), "bytes": sum(done)}


async def main(journal: Path, dies_after: int | None) -> None:
    """Start the batch, or go on with it."""
    async with Engine(journal, max_parallelism=100) as engine:
        run = await engine.start(batch(ITEMS, AT_A_TIME), id="tonight")
        done = 0
        while (await run.status()).finished_at is None:
            completed = engine.iter_runs(parent=run.id, state="completed")
            done = len([child.id async for child in completed])
            if dies_after is not None and done >= dies_after:
                print(f"  {done} items are done, and the process dies", flush=True)
                os._exit(1)
            await asyncio.sleep(0.02)
        result = await run.result()
        children = [child async for child in engine.iter_runs(parent=run.id)]
        print(f"  {result}, at most {most_at_work} at a time, {len(children)} children in all")
        assert result == {"converted": 196, "failed": 4, "bytes": 19_404_000}
        assert len(children) == ITEMS
        assert most_at_work <= AT_A_TIME


def die_and_go_on() -> None:
    """Run the batch in a process that dies, and in one that goes on."""
    with tempfile.TemporaryDirectory() as directory:
        journal = Path(directory, "journal.db")
        print("the first process:", flush=True)
        subprocess.run([sys.executable, __file__, str(journal)], check=False)  # noqa: S603
        print("the second process:", flush=True)
        asyncio.run(main(journal, None))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(main(Path(sys.argv[1]), DIES_AFTER))
    else:
        die_and_go_on()
