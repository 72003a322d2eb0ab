"""What every workload is given, and how it is timed and loaded."""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Final, final

import structlog

from durable import Engine

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator

    from benchmarks.machine import Machine
    from benchmarks.report import Progress

CALLERS: Final = 200

MS: Final = 1_000
"""How many milliseconds a second has."""


@final
class BenchmarkError(Exception):
    """What was measured did not do its work, so that its time means nothing."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The surroundings of a workload.

    Attributes:
        directory: Where journals go, on the same disk as the baselines' databases.
        quick: Fewer rounds.
    """

    directory: Path
    quick: bool
    machine: Machine
    progress: Progress

    @contextmanager
    def journal(self) -> Generator[Path]:
        """Give the path of a journal that does not exist yet, and remove it afterwards."""
        with TemporaryDirectory(dir=self.directory) as folder:
            yield Path(folder) / "journal.db"

    @asynccontextmanager
    async def engine(self, max_parallelism: int = 25) -> AsyncGenerator[Engine]:
        """Open an engine on a journal that does not exist yet, with as many slots as by default."""
        with self.journal() as journal:
            async with Engine(journal, max_parallelism=max_parallelism) as engine:
                yield engine

    def rounds(self, workload: str, *, full: int, quick: int) -> Iterator[int]:
        """Count the rounds and show how far they are."""
        count = quick if self.quick else full
        for number in range(count):
            self.progress.show(f"{workload}: round {number + 1} of {count}")
            yield number


async def timed(work: Awaitable[object]) -> float:
    """Seconds until ``work`` is done."""
    began = perf_counter()
    await work
    return perf_counter() - began


async def call_concurrently(count: int, call: Callable[[int], Awaitable[object]]) -> None:
    """Call with each number below ``count``, from 200 callers that wait for each of their calls."""

    async def keep_calling() -> None:
        for number in numbers:
            await call(number)

    numbers = iter(range(count))
    async with asyncio.TaskGroup() as callers:
        for _ in range(CALLERS):
            callers.create_task(keep_calling())


def expect(actual: object, expected: object, what: str) -> None:
    """Check that the work was done.

    Raises:
        BenchmarkError: It was not.
    """
    if actual != expected:
        raise BenchmarkError(f"{what}: expected {expected!r}, got {actual!r}")


def log_warnings_only() -> None:
    """Log as a service does: warnings and above, away from standard output."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
