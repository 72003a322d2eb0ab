"""Worker processes on one journal, of which the one that works is killed, again and again."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from interpreters import TESTS
from killing import OPENED, Process, log_of, start_worker
from waiting import until_open
from worker_program import stepping, waiting

from durable import Engine, RunCanceled, RunState
from durable.journal.filelocks import FileLock

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="kills by signal"),
]

ROUNDS = 6
RUNS = 20
STEPS = 6
WAIT_S_MAX = 30


def done(directory: Path) -> list[tuple[int, str]]:
    """Return which process did what, in order."""
    words = [line.split() for line in log_of(directory)]
    return [(int(pid), what) for pid, what in words]


@pytest.mark.parametrize("ends", ["killed", "closed"])
@pytest.mark.parametrize("loaded", [False, True])
def test_the_work_goes_on_when_the_owner_ends(
    path: Path, tmp_path: Path, ends: str, *, loaded: bool
) -> None:
    """Each step runs once, or once more for the death of the process that ran it."""
    with ExitStack() as workers:
        owner = workers.enter_context(start_worker(tmp_path))
        for number in range(ROUNDS):
            standby = workers.enter_context(start_worker(tmp_path))
            before = len(done(tmp_path))
            asyncio.run(_round(path, number, owner, ends, is_loaded=loaded))
            now_done = done(tmp_path)[before:]
            pids = [pid for pid, _ in now_done]
            # All of the owner's come first: nothing of it is done by two at a time.
            assert pids == sorted(pids, key=[owner.pid, standby.pid].index)
            assert standby.pid in pids
            counts = Counter(what for _, what in now_done)
            assert set(counts) == {
                f"{number}-{run}/{step}" for run in range(RUNS) for step in range(STEPS)
            } | {f"{number}-first/0", f"{number}-last/0"}
            assert max(counts.values()) <= 2
            if ends == "closed":
                assert max(counts.values()) == 1
            owner = standby


async def _round(path: Path, number: int, owner: Process, ends: str, *, is_loaded: bool) -> None:
    """Have the owner end, while it works or after, and see the other one go on."""
    async with Engine(path, worker=False) as client, asyncio.timeout(WAIT_S_MAX):
        assert await client.run(stepping(f"{number}-first", 1)) == 0
        runs = [
            await client.start(stepping(f"{number}-{run}", STEPS), id=f"{number}-{run}")
            for run in range(RUNS)
        ]
        if is_loaded:
            while len(await asyncio.to_thread(done, path.parent)) < (number + 1) * RUNS:
                pass
        else:
            for run in runs:
                await run.result()
        if ends == "killed":
            await asyncio.to_thread(owner.kill)
        else:
            assert await asyncio.to_thread(owner.wait) == 0
        assert await client.run(stepping(f"{number}-last", 1)) == 0
        for run in runs:
            assert await run.result() == sum(range(STEPS))


def test_four_workers_hand_over_to_each_other_until_none_is_left(
    path: Path, tmp_path: Path
) -> None:
    with ExitStack() as workers:
        four = [workers.enter_context(start_worker(tmp_path)) for _ in range(4)]
        pids = asyncio.run(_kill_all(path, four))
        assert sorted(pids) == sorted(worker.pid for worker in four)


async def _kill_all(path: Path, left: list[Process]) -> list[int]:
    pids: list[int] = []
    left = list(left)
    async with Engine(path, worker=False) as client, asyncio.timeout(WAIT_S_MAX):
        while left:
            assert await client.run(stepping(f"{len(left)}", 1)) == 0
            pids.append((await asyncio.to_thread(done, path.parent))[-1][0])
            (owner,) = (worker for worker in left if worker.pid == pids[-1])
            left.remove(owner)
            await asyncio.to_thread(owner.kill)
        run = await client.start(stepping("none", 1))
        assert (await run.status()).state is RunState.PENDING
        return pids


def test_what_was_asked_of_a_dead_owner_is_done_by_the_next(path: Path, tmp_path: Path) -> None:
    async def ask(worker: Process) -> None:
        async with Engine(path, worker=False) as client:
            for name in ("cancel", "remove", "keep"):
                run = await client.start(waiting(), id=name)
                await until_open(run)
            await asyncio.to_thread(worker.kill)
            assert await client.cancel("cancel") is True
            assert await client.cleanup("remove", force=True) is True

    async def see() -> None:
        async with Engine(path, worker=False) as client, asyncio.timeout(WAIT_S_MAX):
            with pytest.raises(RunCanceled):
                await client.get("cancel").result()
            assert [run.id async for run in client.iter_runs()] == ["cancel", "keep"]
            assert (await client.status("keep")).state is RunState.RUNNING

    with start_worker(tmp_path) as first:
        asyncio.run(ask(first))
    with start_worker(tmp_path):
        asyncio.run(see())


def test_an_owner_that_is_stopped_in_its_tracks_does_not_stop_clients(
    path: Path, tmp_path: Path
) -> None:
    """Its process is alive, so nobody takes over; but others can write, and what they do waits."""

    async def ask(worker: Process) -> None:
        async with Engine(path, worker=False) as client, asyncio.timeout(WAIT_S_MAX):
            assert await client.run(stepping("before", 1)) == 0
            while not await asyncio.to_thread(writing.try_acquire):
                pass  # It gives the lock back that it has kept for more.
            try:
                await asyncio.to_thread(_stop, worker)  # It is in no transaction now.
                writing.release()
                run = await client.start(stepping("meanwhile", 1))
                assert (await run.status()).state is RunState.PENDING
            finally:
                worker.send_signal(signal.SIGCONT)
                writing.close()
            assert await run.result() == 0

    writing = FileLock(path.with_name(path.name + ".write"))
    # An interpreter of its own: only a parent can wait for its stop.
    with Process(TESTS / "worker_program.py", directory=tmp_path) as worker:
        assert worker.read_line() == OPENED
        asyncio.run(ask(worker))


def _stop(worker: Process) -> None:
    """Return when it is stopped: the signal is sent before that."""
    worker.send_signal(signal.SIGSTOP)
    _, status = os.waitpid(worker.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
