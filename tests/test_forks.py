"""A forked child does not own its parent's journal, however long it lives.

Each test forks in a process of its own: a fork copies the threads of none but the one that forks.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from interpreters import ROOT
from killing import Process

from durable import Engine

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
]

POOL = """
import asyncio, multiprocessing, os, sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
import durable
from durable import Engine, Step

@durable.action
async def elsewhere() -> int:
    return await asyncio.get_running_loop().run_in_executor(pool, os.getpid)

@durable.workflow
async def working(step: Step) -> int:
    return await elsewhere()

async def life():
    async with Engine(Path(sys.argv[1])) as engine:
        return await engine.run(working())

with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
    first, second = asyncio.run(life()), asyncio.run(life())
    print(first == second != os.getpid())
"""

OWNER = """
import asyncio, os, sys
from pathlib import Path
import durable

async def main():
    async with durable.Engine(Path(sys.argv[1])):
        if os.fork() == 0:
            # The child, which lives on until the pipe is closed. It is the one that says so: until
            # it has run, it has what it was forked with.
            print("open", flush=True)
            sys.stdin.read()
            print("the child ends", flush=True)
            os._exit(0)
        await asyncio.Event().wait()

asyncio.run(main())
"""

IGNORE_FORKS = "-Wignore::DeprecationWarning"  # What Python says of a fork beside other threads.


async def _owns(path: Path) -> bool:
    """Open the journal; return whether its runs would be worked on here."""
    async with Engine(path) as engine:
        assert engine._journal is not None
        return engine._journal.is_owner


def test_a_worker_of_a_process_pool_does_not_keep_a_closed_journal(path: Path) -> None:
    """The second life's action runs in the worker that was forked in the first."""
    lives = subprocess.run(
        [sys.executable, IGNORE_FORKS, "-c", POOL, path],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (lives.stdout, lives.stderr) == ("True\n", "")


def _owner_with_a_child(path: Path) -> Process:
    owner = Process(IGNORE_FORKS, "-c", OWNER, path)
    assert owner.read_line() == "open"
    return owner


def _end_child(owner: Process) -> None:
    """Let the child end, and see that it had lived until now."""
    owner.close_input()
    assert owner.read_line() == "the child ends"


def test_a_child_of_a_dead_owner_does_not_keep_the_journal(path: Path) -> None:
    with _owner_with_a_child(path) as owner:
        owner.kill()
        assert asyncio.run(_owns(path))
        _end_child(owner)


def test_a_child_does_not_take_the_lock_from_its_parent(path: Path) -> None:
    with _owner_with_a_child(path) as owner:
        assert not asyncio.run(_owns(path))
        _end_child(owner)
        assert not asyncio.run(_owns(path))
