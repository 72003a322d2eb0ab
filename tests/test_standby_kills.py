"""Worker processes on one journal, of which the one that works is killed, again and again."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from waiting import until_open
from worker_program import stepping, waiting

from durable import Engine, RunCanceled, RunState

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="kills by signal"),
]

PROGRAM = Path(__file__).with_name("worker_program.py")
ROUNDS = 6
RUNS = 20
STEPS = 6
WAIT_S_MAX = 30
TAKE_OVER_S_MAX = 1.0
SLACK_S = 0.5
"""What a machine with other things to do may add."""


class Worker:
    """A worker process, from when its engine is open."""

    def __init__(self, path: Path, effects: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(path), str(effects)],
            cwd=PROGRAM.parent.parent,
            env={"PYTHONPATH": str(PROGRAM.parent.parent)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "open\n"

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self) -> None:
        """Have it close its engine, and leave."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(WAIT_S_MAX) == 0


@contextmanager
def workers(path: Path, effects: Path, count: int) -> Iterator[list[Worker]]:
    """Have worker processes, the first of which is the first to open the journal."""
    all_workers: list[Worker] = []
    try:
        for _ in range(count):
            all_workers.append(Worker(path, effects))  # noqa: PERF401  those that there are, end
        yield all_workers
    finally:
        for worker in all_workers:
            if worker.process.poll() is None:
                worker.kill()
            for stream in (worker.process.stdin, worker.process.stdout):
                assert stream is not None
                stream.close()


def lines(effects: Path) -> list[tuple[int, str]]:
    """Return which process did what, in order."""
    if not effects.exists():
        return []
    words = [line.split() for line in effects.read_text("utf-8").splitlines()]
    return [(int(pid), what) for pid, what in words]


@pytest.mark.parametrize("ends", ["killed", "closed"])
@pytest.mark.parametrize("loaded", [False, True])
def test_the_work_goes_on_when_the_owner_ends(
    path: Path, tmp_path: Path, ends: str, *, loaded: bool
) -> None:
    """Each step runs once, or once more for the death of the process that ran it."""
    effects = tmp_path / "effects"
    with workers(path, effects, 2) as both:
        for number in range(ROUNDS):
            owner, standby = both
            before = len(lines(effects))
            began = asyncio.run(_round(path, effects, number, owner, ends, is_loaded=loaded))
            done = lines(effects)[before:]
            pids = [pid for pid, _ in done]
            # All of the owner's come first: nothing of it is done by two at a time.
            assert pids == sorted(pids, key=[owner.pid, standby.pid].index)
            assert standby.pid in pids
            counts = Counter(what for _, what in done)
            assert set(counts) == {
                f"{number}-{run}/{step}" for run in range(RUNS) for step in range(STEPS)
            } | {f"{number}-first/0", f"{number}-last/0"}
            assert max(counts.values()) <= 2
            if ends == "closed":
                assert max(counts.values()) == 1
            assert began < TAKE_OVER_S_MAX + SLACK_S
            for stream in (owner.process.stdin, owner.process.stdout):
                assert stream is not None
                stream.close()
            both[:] = [standby, Worker(path, effects)]


async def _round(
    path: Path, effects: Path, number: int, owner: Worker, ends: str, *, is_loaded: bool
) -> float:
    """Have the owner end, while it works or after; return how long nobody worked."""
    async with Engine(path, worker=False) as client, asyncio.timeout(WAIT_S_MAX):
        assert await client.run(stepping(f"{number}-first", 1)) == 0
        runs = [
            await client.start(stepping(f"{number}-{run}", STEPS), id=f"{number}-{run}")
            for run in range(RUNS)
        ]
        if is_loaded:
            while len(await asyncio.to_thread(lines, effects)) < (number + 1) * RUNS:
                pass
        else:
            for run in runs:
                await run.result()
        began = time.monotonic()
        if ends == "killed":
            await asyncio.to_thread(owner.kill)
        else:
            await asyncio.to_thread(owner.end)
            began = time.monotonic()
        assert await client.run(stepping(f"{number}-last", 1)) == 0
        elapsed_s = time.monotonic() - began
        for run in runs:
            assert await run.result() == sum(range(STEPS))
        return elapsed_s


def test_four_workers_hand_over_to_each_other_until_none_is_left(
    path: Path, tmp_path: Path
) -> None:
    effects = tmp_path / "effects"
    with workers(path, effects, 4) as four:
        pids = asyncio.run(_kill_all(path, effects, four))
        assert sorted(pids) == sorted(worker.pid for worker in four)


async def _kill_all(path: Path, effects: Path, left: list[Worker]) -> list[int]:
    pids: list[int] = []
    left = list(left)
    async with Engine(path, worker=False) as client, asyncio.timeout(WAIT_S_MAX):
        while left:
            assert await client.run(stepping(f"{len(left)}", 1)) == 0
            done = await asyncio.to_thread(lines, effects)
            pids.append(done[-1][0])
            (owner,) = (worker for worker in left if worker.pid == pids[-1])
            left.remove(owner)
            await asyncio.to_thread(owner.kill)
        run = await client.start(stepping("none", 1))
        assert (await run.status()).state is RunState.PENDING
        return pids


def test_what_was_asked_of_a_dead_owner_is_done_by_the_next(path: Path, tmp_path: Path) -> None:
    effects = tmp_path / "effects"

    async def ask(worker: Worker) -> None:
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

    with workers(path, effects, 1) as one:
        asyncio.run(ask(one[0]))
        one.append(Worker(path, effects))
        asyncio.run(see())


def test_an_owner_that_is_stopped_in_its_tracks_does_not_stop_clients(
    path: Path, tmp_path: Path
) -> None:
    """Its process is alive, so nobody takes over; but others can write, and what they do waits."""
    effects = tmp_path / "effects"

    async def ask(worker: Worker) -> None:
        async with Engine(path, worker=False) as client, asyncio.timeout(WAIT_S_MAX):
            assert await client.run(stepping("before", 1)) == 0
            await asyncio.sleep(0.2)  # It gives the lock back that it has kept for more.
            worker.process.send_signal(signal.SIGSTOP)
            try:
                began = time.monotonic()
                run = await client.start(stepping("meanwhile", 1))
                assert time.monotonic() - began < TAKE_OVER_S_MAX
                assert (await run.status()).state is RunState.PENDING
            finally:
                worker.process.send_signal(signal.SIGCONT)
            assert await run.result() == 0

    with workers(path, effects, 1) as (worker,):
        asyncio.run(ask(worker))
