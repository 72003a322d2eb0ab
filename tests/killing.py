"""Processes that tests start, kill and start again, and what such a process leaves behind.

A program that is killed over and over is a test module's ``live()``: it plays in the directory of
its journal, says that it has opened it, and notes what it does in a log that no kill takes back.

A process is a new interpreter, or is forked from one that has imported what it needs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Final, Protocol, final

from interpreters import LIFE_S_MAX, ROOT, environment
from nursery import fork

OPENED: Final = "opened"
"""What a process says when its engine is open."""

KILLED: Final = -9
"""The status of a process that a signal has killed."""

JOURNAL: Final = Path("journal.db")
LOG: Final = Path("log.txt")

_ERROR_CHARS_MAX: Final = 4_000


# --- in the process ------------------------------------------------------------------------------


def say_opened() -> None:
    """Tell the test that the engine is open."""
    print(OPENED, flush=True)  # noqa: T201  the test reads it


def note(text: str) -> None:
    """Append a line, whole, to the log in this process's directory."""
    fd = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(fd, f"{text}\n".encode())
    os.close(fd)


# --- in the test ---------------------------------------------------------------------------------


class Handle(Protocol):
    """What is asked of a process, whoever has begun it."""

    @property
    def pid(self) -> int: ...
    @property
    def stdin(self) -> IO[str] | None: ...
    @property
    def stdout(self) -> IO[str] | None: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def kill(self) -> None: ...
    def send_signal(self, number: int, /) -> None: ...


def spawn(arguments: Sequence[str], directory: Path, errors: IO[str]) -> Handle:
    """Begin an interpreter with these arguments."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=directory,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )


@final
class Process:
    """A Python process, which ends with the block that it is used in.

    Args:
        arguments: An interpreter's, or for ``fork`` a function, ``module:name``, and its own.
    """

    def __init__(
        self,
        *arguments: str | Path,
        directory: Path = ROOT,
        begin: Callable[[Sequence[str], Path, IO[str]], Handle] = spawn,
    ) -> None:
        self._arguments = [str(argument) for argument in arguments]
        # A file: nobody reads it while the process goes on, and a pipe might be full.
        self._errors = TemporaryFile("a+", encoding="utf-8")  # noqa: SIM115  closed with the block
        self._process = begin(self._arguments, directory, self._errors)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.kill()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            assert stream is not None
            stream.close()

    def __repr__(self) -> str:
        return f"<{' '.join(self._arguments)}: {self._process.poll()}>"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def errors(self) -> str:
        """What it has said on its standard error."""
        self._errors.seek(0)
        return self._errors.read()

    def read_line(self) -> str:
        """Return the next line that it says, or nothing when it has ended."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def close_input(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """Have it end at once, whatever it does."""
        self._process.kill()
        self._process.wait()

    def kill_after(self, seconds: float, *, lines: int = 1) -> None:
        """Kill it so long after it said its first lines, unless it ends before that."""
        if all(self.read_line() for _ in range(lines)):
            time.sleep(seconds)  # The moment of the kill is what this is about.
            self.kill()

    def wait(self, life_s_max: float = LIFE_S_MAX) -> int:
        """Close its input and wait for its end; return its status: 0, or ``KILLED``.

        A traceback is in the log of a run that got stuck, or of a task that was forgotten.
        """
        self.close_input()
        try:
            status = self._process.wait(life_s_max)
        except subprocess.TimeoutExpired:
            self.kill()
            msg = f"{self} does not end\n{self.errors[:_ERROR_CHARS_MAX]}"
            raise AssertionError(msg) from None
        errors = self.errors[:_ERROR_CHARS_MAX]
        assert status in (0, KILLED), f"{self}\n{errors}"
        assert "Traceback" not in errors, f"{self}\n{errors}"
        return status


def start_worker(directory: Path) -> Process:
    """Start a process that works on the journal there, or stands by; its engine is open."""
    worker = Process("worker_program:main", directory=directory, begin=fork)
    assert worker.read_line() == OPENED, worker.errors
    return worker


def live(module: str, directory: Path, kill_after_s: float | None) -> bool:
    """Let a process play ``module.live()``; return whether it came to its end unkilled."""
    with Process(f"{module}:live", directory=directory, begin=fork) as process:
        if kill_after_s is not None:
            process.kill_after(kill_after_s)
        return process.wait() == 0


def kill_over_and_over(
    module: str,
    directory: Path,
    kills_after_s: Iterable[float],
    check: Callable[[], object] | None = None,
) -> int:
    """Let processes play ``module.live()``, one after another; return how many were killed.

    The last of them is not killed, unless one before it was over too soon for that. After each
    death, what it has left is checked.
    """
    deaths = 0
    for kill_after_s in kills_after_s:
        if live(module, directory, kill_after_s):
            return deaths
        deaths += 1
        if check is not None:
            check()
    assert live(module, directory, None), "somebody else has killed it"
    return deaths


def time_a_life(module: str, directory: Path) -> float:
    """Return how long one takes that is not killed, from when it has opened its journal there.

    A machine may be fast or slow: kills at parts of that time come while there is something to do.
    """
    directory.mkdir()
    with Process(f"{module}:live", directory=directory, begin=fork) as process:
        assert process.read_line(), process.errors
        began_s = time.perf_counter()
        assert process.wait() == 0
        return time.perf_counter() - began_s


def log_of(directory: Path) -> list[str]:
    """Return the lines that processes have noted there."""
    log = directory / LOG
    return log.read_text("utf-8").splitlines() if log.exists() else []
