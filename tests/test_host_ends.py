"""A host that ends without having closed its engine: it ends quietly, and nothing is lost."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from interpreters import run_python

from durable import Engine, RunState

if TYPE_CHECKING:
    from pathlib import Path

HOST = """
import asyncio, sys
from pathlib import Path
import durable
from durable import Engine, Step, Transaction

begun = asyncio.Event()

@durable.action(name="act")
async def act() -> None:
    begun.set()
    await asyncio.Event().wait()

@durable.mutation(name="put")
async def put(tx: Transaction, waits: bool) -> None:
    await tx.execute("INSERT INTO entry (x) VALUES (1)")
    if waits:
        begun.set()
        await asyncio.Event().wait()

@durable.workflow(name="flow")
async def flow(step: Step) -> None:
    await put(False)
    await act()

@durable.workflow(name="putting")
async def putting(step: Step) -> None:
    await asyncio.gather(*(put(False) for _ in range(40)))
    await put(True)

async def hold(engine: Engine) -> None:
    async with engine.transaction() as tx:
        await tx.execute("INSERT INTO entry (x) VALUES (2)")
        begun.set()
        await asyncio.Event().wait()

async def watch(engine: Engine) -> None:
    run = await engine.start(flow(), id="watched")
    async for _status in run.watch():
        if begun.is_set():
            await asyncio.Event().wait()

async def main(open_: str) -> None:
    engine = await Engine(Path(sys.argv[1])).__aenter__()
    async with engine.transaction() as tx:
        await tx.execute("CREATE TABLE entry (x)")
    await engine.start(flow(), id="it", run_after=0 if open_ == "result" else 1000)
    waiting = {
        "transaction": lambda: hold(engine),
        "watch": lambda: watch(engine),
        "result": lambda: engine.get("it").result(),
        "mutation": lambda: engine.run(putting(), id="putting"),
    }[open_]
    task = asyncio.create_task(waiting())
    await begun.wait()
    print("ends", task.done())

asyncio.run(main(sys.argv[2]))
"""


@pytest.mark.parametrize("open_", ["transaction", "watch", "result", "mutation"])
def test_it_ends_quietly_whatever_is_under_way(path: Path, open_: str) -> None:
    ended = run_python("-W", "error", "-c", HOST, path, open_)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ends False\n", "")


async def test_what_was_committed_is_there(path: Path) -> None:
    await asyncio.to_thread(run_python, "-c", HOST, path, "mutation")
    async with Engine(path, worker=False) as client:
        assert (await client.status("putting")).state is RunState.RUNNING
        async with client.transaction() as tx:
            assert await tx.fetch_value("SELECT count(*) FROM entry") == 40
