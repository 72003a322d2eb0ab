"""Measure the workloads and hold them to their bars."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import signal
import sqlite3
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, final

from benchmarks.bench import Bench, log_warnings_only
from benchmarks.checking import measure_check
from benchmarks.footprint import measure_idle, measure_import, measure_sleepers
from benchmarks.machine import open_machine
from benchmarks.recovery import measure_replay, measure_restart
from benchmarks.report import Progress, as_json, as_row, header
from benchmarks.strict import measure_strict
from benchmarks.throughput import (
    measure_fan_out,
    measure_latency,
    measure_length,
    measure_starts,
    measure_throughput,
)
from benchmarks.together import (
    measure_children,
    measure_events,
    measure_events_of_others,
    measure_mutations,
    measure_watchers,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from benchmarks.report import Result

MOUNTS: Final = Path("/proc/self/mounts")
UNKNOWN: Final = "unknown filesystem"
IN_MEMORY: Final = frozenset({"tmpfs", "ramfs"})


@final
@dataclass(frozen=True, slots=True)
class Workload:
    """What is measured under one name."""

    summary: str
    measures: Sequence[Callable[[Bench], Awaitable[Sequence[Result]]]]


WORKLOADS: Final = {
    "W1": Workload("one run of 200 sequential steps", [measure_latency]),
    "W2": Workload("2,000 runs of 5 sequential steps, 200 in flight", [measure_throughput]),
    "W3": Workload("one run of 1,000 parallel steps: time and commits", [measure_fan_out]),
    "W4": Workload("5,000 delayed starts from 200 concurrent callers", [measure_starts]),
    "W5": Workload(
        "kill -9 with 1,000 runs in flight: a new process finishes them", [measure_restart]
    ),
    "W6": Workload(
        "time a step in a run of 100 to 5,000 steps; replay of 5,000 recorded steps",
        [measure_length, measure_replay],
    ),
    "W7": Workload(
        "20,000 and 100,000 runs asleep: memory, disk, opening the engine on them",
        [measure_sleepers],
    ),
    "W8": Workload(
        "from the sending of an event to the body that goes on, here and by another process",
        [measure_events, measure_events_of_others],
    ),
    "W9": Workload("the import, and an idle engine", [measure_import, measure_idle]),
    "W10": Workload("2,000 runs of 3 mutations, 200 in flight", [measure_mutations]),
    "W11": Workload("one run with 1,000 children", [measure_children]),
    "W12": Workload("a run of 20 steps that 1,000 watch", [measure_watchers]),
    "W13": Workload(
        "strict: code that is no body, with and without the audit hook", [measure_strict]
    ),
    "W14": Workload("checking 10,000 runs of 20 steps against the code", [measure_check]),
}


def main() -> int:
    """Run from the command line.

    Returns:
        0 when all bars hold, 1 when one does not.
    """
    arguments = _parser().parse_args()
    names = arguments.workloads or list(WORKLOADS)
    if unknown := [name for name in names if name not in WORKLOADS]:
        _parser().error(f"no workload {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")
    signal.signal(signal.SIGTERM, _exit)
    log_warnings_only()
    with tempfile.TemporaryDirectory(
        prefix="durable-benchmarks-", dir=arguments.directory or _default_directory()
    ) as directory:
        measuring = _measure(
            names, Path(directory), quick=arguments.quick, as_objects=arguments.json
        )
        return 0 if asyncio.run(measuring) else 1


async def _measure(names: Sequence[str], directory: Path, *, quick: bool, as_objects: bool) -> bool:
    """Print each result as it comes; whether all bars hold."""
    progress = Progress()
    # With --json, standard output is for objects alone.
    print(_surroundings(directory), file=sys.stderr if as_objects else sys.stdout)
    if not as_objects:
        print(header())
    all_ok = True
    async with open_machine(directory) as machine:
        bench = Bench(directory=directory, quick=quick, machine=machine, progress=progress)
        for measure in (measure for name in names for measure in WORKLOADS[name].measures):
            results = await measure(bench)
            progress.clear()
            for result in results:
                line = as_json(result) if as_objects else as_row(result)
                print(line, flush=True)
                all_ok = all_ok and result.ok
    return all_ok


def _parser() -> argparse.ArgumentParser:
    summaries = "\n".join(f"  {name}  {load.summary}" for name, load in WORKLOADS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=f"workloads:\n{summaries}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workloads", nargs="*", metavar="W1", help="which ones; all by default")
    parser.add_argument(
        "--quick", action="store_true", help="fewer rounds and smaller sizes, the same bars"
    )
    parser.add_argument("--json", action="store_true", help="print one object a line")
    parser.add_argument(
        "--directory",
        type=Path,
        metavar="DIR",
        help="where to make journals, removed afterwards (default: the directory for temporary "
        "files, or the current one when that is in memory)",
    )
    return parser


def _default_directory() -> Path:
    """Choose a disk: in memory a commit costs nothing, and every ratio would be another one."""
    temporary = Path(tempfile.gettempdir())
    return Path.cwd() if _filesystem(temporary) in IN_MEMORY else temporary


def _filesystem(directory: Path) -> str:
    if not MOUNTS.exists():
        return UNKNOWN
    kinds = {
        Path(point): kind
        for _, point, kind, *_ in (line.split() for line in MOUNTS.read_text().splitlines())
    }
    resolved = directory.resolve()
    folders = (resolved, *resolved.parents)
    return next((kinds[folder] for folder in folders if folder in kinds), UNKNOWN)


def _surroundings(directory: Path) -> str:
    return (
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"{os.cpu_count()} cores, journals in {directory} ({_filesystem(directory)})"
    )


def _exit(*_: object) -> NoReturn:
    """Leave by an exception, so that the journals and the child processes are removed."""
    sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
