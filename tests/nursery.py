"""Processes that begin at once: one that has imported what others need forks for each of them.

For Python to start and to import the library takes longer than all that most processes of a test
do. What such a process is asked for is a function of a module, called with texts. It has a process
identifier, standard streams, a directory and an end of its own, and can be killed like any other;
only its parent is somebody else: the *minder*, which tells its end, and dies with it.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import importlib
import inspect
import itertools
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final, final

from interpreters import ROOT, environment

IMPORTED: Final = (
    "crashes.child",
    "durable.runtime.runner",
    "pytest",
    "structlog",
    "waiting",
    "worker_program",
)
"""What is there when a process begins, so that no kill hits only its import. None of it starts a
thread, or keeps anything open."""

NURSES: Final = 2
"""How many processes fork, in turns: as in processes that have nothing in common, texts of two that
follow each other hash differently, and what they make is at other addresses."""

NUMBER: Final = struct.Struct("=q")
STREAMS_COUNT: Final = 5
"""What comes with a request: a file that holds it, the three standard streams, and a pipe for what
is told of the process: its identifier, and then its end."""


# --- in the test ---------------------------------------------------------------------------------


@final
class Forked:
    """A process that was forked, as ``subprocess.Popen`` has it."""

    def __init__(self, stdin: IO[str], stdout: IO[str], told: int) -> None:
        self.stdin = stdin
        self.stdout = stdout
        self._told = told
        self._returncode: int | None = None
        self.pid = self._read_number()

    def poll(self) -> int | None:
        """Return its status, if it has ended."""
        with suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; return its status."""
        if self._returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self._returncode = self._read_number()
            os.close(self._told)
        return self._returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _read_number(self) -> int:
        number: int
        (number,) = NUMBER.unpack(os.read(self._told, NUMBER.size))
        return number


@final
class Nurse:
    """The one that forks. It ends when nobody can ask it any more."""

    def __init__(self) -> None:
        self._asking = threading.Lock()
        self._socket, other_end = socket.socketpair()
        with other_end:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(other_end.fileno())],
                cwd=ROOT,
                env=environment(),
                stdin=subprocess.DEVNULL,
                pass_fds=[other_end.fileno()],
            )
        atexit.register(self._dismiss)

    def fork(self, function: str, arguments: Sequence[str], directory: Path, errors: int) -> Forked:
        """Have a process call ``module:function``; what it has to say of errors goes to a file."""
        request_end, request = os.pipe()
        stdin, stdin_end = os.pipe()
        stdout_end, stdout = os.pipe()
        told_end, told = os.pipe()
        theirs = [request_end, stdin, stdout, errors, told]
        with self._asking:
            socket.send_fds(self._socket, [b"\0"], theirs)
        with os.fdopen(request, "w", encoding="utf-8") as file:
            json.dump([function, list(arguments), str(directory)], file)
        for end in (request_end, stdin, stdout, told):
            os.close(end)
        return Forked(os.fdopen(stdin_end, "w"), os.fdopen(stdout_end), told_end)

    def _dismiss(self) -> None:
        self._socket.close()
        self._process.wait()


@final
class _Nursery:
    """Nurses, who are there from the first time that one is needed."""

    def __init__(self) -> None:
        self._coming = threading.Lock()
        self._nurses: Iterator[Nurse] | None = None

    def next_nurse(self) -> Nurse:
        with self._coming:
            if self._nurses is None:
                self._nurses = itertools.cycle([Nurse() for _ in range(NURSES)])
            return next(self._nurses)


_nursery = _Nursery()


def fork(arguments: Sequence[str], directory: Path, errors: IO[str]) -> Forked:
    """Begin a process that calls a function, ``module:name``, with the other arguments."""
    function, *others = arguments
    return _nursery.next_nurse().fork(function, others, directory, errors.fileno())


# --- in the process ------------------------------------------------------------------------------


def main() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as asked:
        streams = _serve(asked)
    if streams is not None:
        _play(*streams)


def _serve(asked: socket.socket) -> tuple[int, ...] | None:
    """Fork for each request; return the streams of one in the process that is to fulfil it."""
    while True:
        said, streams, _, _ = socket.recv_fds(asked, 1, STREAMS_COUNT)
        _forget_minders()
        if not said:
            return None
        if os.fork() == 0:
            child = os.fork()
            if child == 0:
                return tuple(streams)
            _mind(child, *streams)
        for stream in streams:
            os.close(stream)


def _forget_minders() -> None:
    """Take note of those who have ended, and of the time that they have used."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _mind(child: int, *streams: int) -> None:
    """Be the parent of a process until its end."""
    *others, told = streams
    for stream in others:
        os.close(stream)
    os.write(told, NUMBER.pack(child))
    _, status = os.waitpid(child, 0)
    os.write(told, NUMBER.pack(os.waitstatus_to_exitcode(status)))
    os._exit(0)


def _play(request: int, stdin: int, stdout: int, errors: int, told: int) -> None:
    os.close(told)
    for number, stream in enumerate((stdin, stdout, errors)):
        os.dup2(stream, number)
        os.close(stream)
    with os.fdopen(request, encoding="utf-8") as file:
        function, arguments, directory = json.load(file)
    os.chdir(directory)
    module, _, name = function.partition(":")
    result: Any = getattr(importlib.import_module(module), name)(*arguments)
    if inspect.iscoroutine(result):
        asyncio.run(result)


if __name__ == "__main__":
    main()
