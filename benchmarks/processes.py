"""Fresh processes: asked for their figures, or killed."""

from __future__ import annotations

import os
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import msgspec
from anyio.streams.buffered import BufferedByteReceiveStream

from benchmarks.bench import BenchmarkError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from anyio.abc import ByteReceiveStream, Process

# A child that takes longer hangs: the slowest of them is done in under a minute.
CHILD_S_MAX: Final = 300
READY: Final = b"ready"
LINE_BYTES_MAX: Final = 1_000
ROOT: Final = Path(__file__).parents[1]


async def run_python(*arguments: str) -> bytes:
    """Run a fresh interpreter to its end and return what it printed.

    Raises:
        BenchmarkError: It failed; why is on standard error.
    """
    async with _python(arguments) as (process, output):
        printed = b"".join([chunk async for chunk in output])
        if status := await process.wait():
            raise BenchmarkError(f"python {' '.join(arguments)}: exit status {status}")
    return printed


async def ask(role: str, journal: Path, *options: object) -> dict[str, float]:
    """Let a child play ``role`` on the journal and return the figures it reports."""
    printed = await run_python(*_child(role, journal, options))
    return msgspec.json.decode(printed, type=dict[str, float])


async def kill_when_ready(role: str, journal: Path, *options: object) -> None:
    """Let a child play ``role`` until it says that it is ready, then kill it with SIGKILL.

    Raises:
        anyio.IncompleteRead: It ended before; why is on standard error.
    """
    async with _python(_child(role, journal, options)) as (_, output):
        await BufferedByteReceiveStream(output).receive_until(READY, LINE_BYTES_MAX)


@asynccontextmanager
async def _python(
    arguments: Sequence[str],
) -> AsyncGenerator[tuple[Process, ByteReceiveStream]]:
    """Start an interpreter that does not outlive the block, whatever ends that."""
    command = [sys.executable, *arguments]
    # An installed package has its bytecode: a process that may not cache it would compile it anew.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    async with await anyio.open_process(command, stderr=None, cwd=ROOT, env=environment) as process:
        assert process.stdout is not None
        try:
            with anyio.fail_after(CHILD_S_MAX):
                yield process, process.stdout
        finally:
            with suppress(ProcessLookupError):  # It may have ended by itself.
                process.kill()


def _child(role: str, journal: Path, options: Sequence[object]) -> Sequence[str]:
    return ("-m", "benchmarks.child", role, str(journal), *map(str, options))
