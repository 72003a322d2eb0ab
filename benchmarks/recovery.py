"""W5 and W6's replay: how soon a new process has finished what a killed one left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks.processes import ask, kill_when_ready
from benchmarks.report import Bar, Baseline, Result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.bench import Bench

RUNS: Final = 1_000
STEPS: Final = 5
REPLAYED_STEPS: Final = 5_000


async def measure_restart(bench: Bench) -> Sequence[Result]:
    """W5: a process killed with 1,000 runs in flight, 5 recorded steps each."""
    finish_s: list[float] = []
    rows_s: list[float] = []
    for _ in bench.rounds("W5", full=5, quick=3):
        rows_s.append(RUNS * STEPS / bench.machine.raw_rows_per_s())
        finish_s.append(await _restart_s(bench, runs=RUNS, steps=STEPS))
    return (
        Result(
            workload="W5",
            samples=finish_s,
            unit="s",
            bar=Bar("value", "<=", 1.0),
            baseline=Baseline(rows_s, "s/5,000 rows"),
        ),
    )


async def measure_replay(bench: Bench) -> Sequence[Result]:
    """W6: a process killed in a run with 5,000 recorded steps."""
    replay_s: list[float] = []
    rows_s: list[float] = []
    for _ in bench.rounds("W6.replay", full=5, quick=3):
        rows_s.append(REPLAYED_STEPS / bench.machine.raw_rows_per_s())
        replay_s.append(await _restart_s(bench, runs=1, steps=REPLAYED_STEPS))
    return (
        Result(
            workload="W6.replay",
            samples=replay_s,
            unit="s",
            bar=Bar("value", "<=", 0.15),
            baseline=Baseline(rows_s, "s/5,000 rows"),
        ),
    )


async def _restart_s(bench: Bench, *, runs: int, steps: int) -> float:
    with bench.journal() as journal:
        await kill_when_ready("hold", journal, runs, steps)
        return (await ask("finish", journal, runs, steps))["seconds"]
