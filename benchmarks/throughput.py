"""W1 to W4 and W6: how fast a run's steps, many runs and many starts are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks.bench import CALLERS, MS, call_concurrently, expect, timed
from benchmarks.report import Bar, Baseline, Result
from benchmarks.workflows import DAY_S, fan_out, sequence
from durable import Engine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.bench import Bench

LATENCY_STEPS: Final = 200
THROUGHPUT_RUNS: Final = 2_000
THROUGHPUT_STEPS: Final = 5
FAN_OUT_STEPS: Final = 1_000
STARTS: Final = 5_000
SHORT_STEPS: Final = 100
MIDDLE_STEPS: Final = 1_000
LONG_STEPS: Final = 5_000


async def measure_latency(bench: Bench) -> Sequence[Result]:
    """W1: one run of 200 sequential steps."""
    step_ms: list[float] = []
    commit_ms: list[float] = []
    async with bench.engine() as engine:
        await _run_sequence(engine, LATENCY_STEPS)  # Warms up.
        for _ in bench.rounds("W1", full=31, quick=11):
            commit_ms.append(await bench.machine.commit_s() * MS)
            run_s = await timed(_run_sequence(engine, LATENCY_STEPS))
            step_ms.append(run_s * MS / LATENCY_STEPS)
    return (
        Result(
            workload="W1",
            samples=step_ms,
            unit="ms/step",
            bar=Bar("ratio", "<=", 2.5),
            baseline=Baseline(commit_ms, "ms/commit"),
        ),
    )


async def measure_throughput(bench: Bench) -> Sequence[Result]:
    """W2: 2,000 runs of 5 sequential steps, 200 in flight."""
    steps_per_s: list[float] = []
    rows_per_s: list[float] = []

    async def run_all() -> None:
        await call_concurrently(THROUGHPUT_RUNS, lambda _: _run_sequence(engine, THROUGHPUT_STEPS))

    async with bench.engine(CALLERS) as engine:
        await run_all()  # Warms up.
        for _ in bench.rounds("W2", full=7, quick=3):
            rows_per_s.append(bench.machine.raw_rows_per_s())
            steps_per_s.append(THROUGHPUT_RUNS * THROUGHPUT_STEPS / await timed(run_all()))
    return (
        Result(
            workload="W2",
            samples=steps_per_s,
            unit="steps/s",
            bar=Bar("ratio", ">=", 0.08),
            baseline=Baseline(rows_per_s, "rows/s"),
        ),
    )


async def measure_fan_out(bench: Bench) -> Sequence[Result]:
    """W3: one run of 1,000 parallel steps."""
    run_s: list[float] = []
    commits: list[float] = []
    rows_s: list[float] = []
    async with bench.engine(CALLERS) as engine:
        await _run_fan_out(engine)  # Warms up.
        for _ in bench.rounds("W3", full=11, quick=5):
            rows_s.append(FAN_OUT_STEPS / bench.machine.raw_rows_per_s())
            before = engine.statistics().commits
            run_s.append(await timed(_run_fan_out(engine)))
            commits.append(engine.statistics().commits - before)
    return (
        Result(
            workload="W3",
            samples=run_s,
            unit="s",
            bar=Bar("value", "<=", 0.10),
            baseline=Baseline(rows_s, "s/1,000 rows"),
        ),
        Result(workload="W3.commits", samples=commits, unit="commits", bar=Bar("value", "<=", 10)),
    )


async def measure_starts(bench: Bench) -> Sequence[Result]:
    """W4: 5,000 starts from 200 callers, delayed so that the start alone is timed."""
    starts_per_s: list[float] = []
    rows_per_s: list[float] = []

    async def start_all() -> None:
        await call_concurrently(
            STARTS, lambda _: engine.start(sequence(THROUGHPUT_STEPS), run_after=DAY_S)
        )

    async with bench.engine() as engine:
        await start_all()  # Warms up.
        for _ in bench.rounds("W4", full=7, quick=3):
            rows_per_s.append(bench.machine.raw_rows_per_s())
            starts_per_s.append(STARTS / await timed(start_all()))
    return (
        Result(
            workload="W4",
            samples=starts_per_s,
            unit="starts/s",
            bar=Bar("ratio", ">=", 0.04),
            baseline=Baseline(rows_per_s, "rows/s"),
        ),
    )


async def measure_length(bench: Bench) -> Sequence[Result]:
    """W6: what a step costs in a run of 100, 1,000 and 5,000 steps."""
    step_ms: dict[int, list[float]] = {SHORT_STEPS: [], MIDDLE_STEPS: [], LONG_STEPS: []}
    async with bench.engine() as engine:
        await _run_sequence(engine, LONG_STEPS)  # Warms up.
        for _ in bench.rounds("W6", full=7, quick=3):
            for steps, samples in step_ms.items():
                samples.append(await _step_ms(engine, steps))
    return tuple(
        Result(
            workload=workload,
            samples=step_ms[steps],
            unit="ms/step",
            bar=Bar("ratio", "<=", 1.2),
            baseline=Baseline(step_ms[SHORT_STEPS], "ms, run of 100"),
        )
        for workload, steps in (("W6", LONG_STEPS), ("W6.1000", MIDDLE_STEPS))
    )


async def _step_ms(engine: Engine, steps: int) -> float:
    """Milliseconds a step, over as many runs as make the longest run's number of steps.

    One run of 100 steps is over too soon to be compared with one of 5,000.
    """
    runs = LONG_STEPS // steps
    total_s = sum([await timed(_run_sequence(engine, steps)) for _ in range(runs)])
    return total_s * MS / LONG_STEPS


async def _run_sequence(engine: Engine, steps: int) -> None:
    result = await engine.run(sequence(steps))
    expect(result, steps, "the steps' result")


async def _run_fan_out(engine: Engine) -> None:
    result = await engine.run(fan_out(FAN_OUT_STEPS))
    expect(result, FAN_OUT_STEPS, "the steps' sum")
