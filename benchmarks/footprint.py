"""W7 and W9: what runs asleep, an import and an idle engine cost."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Final

from benchmarks.bench import MS, timed
from benchmarks.processes import ask, run_python
from benchmarks.report import Bar, Baseline, Result

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from benchmarks.bench import Bench

QUICK_SIZES: Final = (20_000,)
FULL_SIZES: Final = (20_000, 100_000)
OPENINGS: Final = 3
IDLE_RUNS: Final = 10
IDLE_S: Final = 10
QUICK_IDLE_S: Final = 3


async def measure_sleepers(bench: Bench) -> Sequence[Result]:
    """W7: 20,000 and 100,000 runs asleep; quick measures 20,000 alone."""
    sizes = QUICK_SIZES if bench.quick else FULL_SIZES
    rss: dict[int, list[float]] = {size: [] for size in sizes}
    disk: dict[int, list[float]] = {size: [] for size in sizes}
    openings: list[Mapping[str, float]] = []
    row_bytes: list[float] = []
    for _ in bench.rounds("W7", full=3, quick=3):
        row_bytes.append(bench.machine.row_bytes())
        for size in sizes:
            with bench.journal() as journal:
                rss[size].append((await ask("sleepers", journal, size))["rss_bytes"])
                disk[size].append(_bytes_on_disk(journal) / size)
                if size == sizes[-1]:
                    openings += [await ask("reopen", journal) for _ in range(OPENINGS)]
    return (
        Result(workload="W7.rss", samples=_worst(rss), unit="B/run", bar=Bar("value", "<=", 400)),
        Result(
            workload="W7.disk",
            samples=_worst(disk),
            unit="B/run",
            bar=Bar("value", "<=", 1_200),
            baseline=Baseline(row_bytes, "B/row"),
        ),
        Result(
            workload="W7.open",
            samples=[opening["engine_s"] for opening in openings],
            unit="s",
            bar=Bar("value", "<=", 0.3),
            baseline=Baseline([opening["file_s"] for opening in openings], "s, the file"),
        ),
    )


async def measure_import(bench: Bench) -> Sequence[Result]:
    """W9: what `import durable` adds to the start of an interpreter."""
    bare_ms: list[float] = []
    added_ms: list[float] = []
    await run_python("-c", "import durable")  # Compiles.
    for _ in bench.rounds("W9.import", full=21, quick=9):
        bare = await timed(run_python("-c", "pass")) * MS
        imported = await timed(run_python("-c", "import durable")) * MS
        bare_ms.append(bare)
        added_ms.append(imported - bare)
    return (
        Result(
            workload="W9.import",
            samples=added_ms,
            unit="ms",
            bar=Bar("value", "<=", 100),
            baseline=Baseline(bare_ms, "ms, bare"),
        ),
    )


async def measure_idle(bench: Bench) -> Sequence[Result]:
    """W9: what an engine with nothing to do takes of a core."""
    seconds = QUICK_IDLE_S if bench.quick else IDLE_S
    percent: list[float] = []
    for _ in bench.rounds("W9.idle", full=3, quick=3):
        with bench.journal() as journal:
            percent.append((await ask("idle", journal, IDLE_RUNS, seconds))["core_percent"])
    return (
        Result(
            workload="W9.idle", samples=percent, unit="% of a core", bar=Bar("value", "<=", 0.3)
        ),
    )


def _worst(samples_by_size: Mapping[int, Sequence[float]]) -> Sequence[float]:
    """Give the samples of the size with the highest median: the bar is for each size."""
    return max(samples_by_size.values(), key=median)


def _bytes_on_disk(journal: Path) -> int:
    """Count the database, and a write-ahead log where closing left one."""
    files = (journal, journal.with_name(f"{journal.name}-wal"))
    return sum(file.stat().st_size for file in files if file.exists())
