"""What the fresh processes do: ``python -m benchmarks.child ROLE JOURNAL [NUMBER …]``.

Each role prints one line: its figures as JSON, or that it is ready to be killed.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import resource
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Final

import anyio

from benchmarks.bench import call_concurrently, expect, log_warnings_only
from benchmarks.workflows import gate, guarded_sequence, sleep_a_day, until_waiting
from durable import Engine

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

STATM: Final = Path("/proc/self/statm")
RESIDENT_FIELD: Final = 1
KIBIBYTE: Final = 1024
# How many runs fill the caches that are there only once, SQLite's page cache above all.
WARM_UP_RUNS: Final = 5_000
PARKED_S_MAX: Final = 60
POLL_S: Final = 0.01
PAUSE_S_MAX: Final = 0.2


async def hold(journal: Path, runs: int, steps: int) -> None:
    """Bring the runs to their last step and stay there until killed."""
    gate.close(expected=runs)
    async with Engine(journal, max_parallelism=runs) as engine:
        await call_concurrently(
            runs, lambda number: engine.start(guarded_sequence(steps), id=_held(number))
        )
        # A step's function starts after the commit that records the step before it.
        await gate.wait_until_crowded()
        print("ready", flush=True)
        # Ends when the parent dies without having killed this process.
        await anyio.to_thread.run_sync(sys.stdin.read)
        os._exit(1)


async def finish(journal: Path, runs: int, steps: int) -> Mapping[str, float]:
    """Open the engine on what a killed process left and wait for all of its runs."""
    began = perf_counter()
    async with Engine(journal, max_parallelism=200) as engine:
        results = [await engine.get(_held(number)).result() for number in range(runs)]
        elapsed_s = perf_counter() - began
    expect(set(results), {steps}, "results after the restart")
    return {"seconds": elapsed_s}


async def send(journal: Path, run: int, events: int) -> Mapping[str, float]:
    """Send events to a run of another process, as a client; return when each was sent."""
    sent_at: dict[str, float] = {}
    async with Engine(journal, worker=False) as engine:
        receiver = engine.get(f"receiver-{run}")
        for number in range(events):
            await until_waiting(receiver, number)
            # Anywhere between two looks of the owner's.
            await asyncio.sleep(random.uniform(0, PAUSE_S_MAX))  # noqa: S311  no secret
            sent_at[str(number)] = perf_counter()
            await receiver.send_event("number", number)
    return sent_at


async def sleepers(journal: Path, runs: int) -> Mapping[str, float]:
    """Put runs to sleep and see by how much the process grows for each."""
    async with Engine(journal) as engine:
        await _start_sleepers(engine, WARM_UP_RUNS)
        before = _resident_bytes()
        await _start_sleepers(engine, runs - WARM_UP_RUNS)
        grown = _resident_bytes() - before
    return {"rss_bytes": grown / (runs - WARM_UP_RUNS)}


async def reopen(journal: Path) -> Mapping[str, float]:
    """Open the engine on a journal, and afterwards the file alone."""
    began = perf_counter()
    async with Engine(journal):
        engine_s = perf_counter() - began
    began = perf_counter()
    with closing(sqlite3.connect(journal)) as connection:
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        file_s = perf_counter() - began
    return {"engine_s": engine_s, "file_s": file_s}


async def idle(journal: Path, runs: int, seconds: int) -> Mapping[str, float]:
    """Keep an engine open that has nothing to do, and see what of a core it takes."""
    async with Engine(journal) as engine:
        await _start_sleepers(engine, runs)
        cpu_began, wall_began = time.process_time(), perf_counter()
        await asyncio.sleep(seconds)
        cpu_s, wall_s = time.process_time() - cpu_began, perf_counter() - wall_began
    return {"core_percent": 100 * cpu_s / wall_s}


async def _start_sleepers(engine: Engine, runs: int) -> None:
    await call_concurrently(runs, lambda _: engine.start(sleep_a_day()))
    with anyio.fail_after(PARKED_S_MAX):
        while engine.statistics().live_runs:  # noqa: ASYNC110 - parking has no event to wait for
            await asyncio.sleep(POLL_S)
    gc.collect()


def _resident_bytes() -> int:
    if STATM.exists():
        return int(STATM.read_text().split()[RESIDENT_FIELD]) * os.sysconf("SC_PAGE_SIZE")
    # Elsewhere only the peak is known, which is an upper bound.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * KIBIBYTE


def _held(number: int) -> str:
    return f"held-{number}"


ROLES: Final[Mapping[str, Callable[..., Awaitable[Mapping[str, float] | None]]]] = {
    role.__name__: role for role in (hold, finish, send, sleepers, reopen, idle)
}


async def main() -> None:
    """Play the role and report what came of it."""
    role, journal, *numbers = sys.argv[1:]
    figures = await ROLES[role](Path(journal), *map(int, numbers))
    print(json.dumps(figures))


if __name__ == "__main__":
    log_warnings_only()
    asyncio.run(main())
