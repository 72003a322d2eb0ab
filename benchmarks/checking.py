"""W14: how long it takes to find out whether code fits the runs under way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from benchmarks.bench import call_concurrently, timed
from benchmarks.processes import run_python
from benchmarks.report import Bar, Result
from benchmarks.workflows import sequence_and_sleep
from durable import Engine

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.bench import Bench

RUNS: Final = 10_000
STEPS: Final = 20


async def measure_check(bench: Bench) -> Sequence[Result]:
    """W14: `python -m durable check` of 10,000 runs of 20 steps, the interpreter included."""
    with bench.journal() as journal:
        bench.progress.show("W14: writing")
        await _write(journal)
        command = ("-m", "durable", "check", "--journal", str(journal), "benchmarks.workflows")
        rounds = bench.rounds("W14", full=5, quick=3)
        check_s = [await timed(run_python(*command)) for _ in rounds]
    return (Result(workload="W14", samples=check_s, unit="s", bar=Bar("value", "<=", 10.0)),)


async def _write(journal: Path) -> None:
    async with Engine(journal) as engine:
        await call_concurrently(RUNS, lambda _: engine.start(sequence_and_sleep(STEPS)))
        while engine.statistics().live_runs:  # noqa: ASYNC110  leaving memory has no event here
            await asyncio.sleep(0.01)
