"""Code that has nothing to do with workflows, with and without the audit hook of a strict engine.

``python -m benchmarks.foreign CHUNKS ROUNDS`` prints, for each kind of work, the processor time of
each round without a hook, with a strict engine's, and with one that does nothing, as JSON.

A hook cannot be taken out again, and two processes never take quite the same time: memory is laid
out otherwise in each. So one process warms up, and forks a child for each figure, in turns. A child
reports the fastest of many short chunks: all that disturbs it adds time.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from durable.runtime.strictness import strict_guard

FILES: Final = 2
RECORDS: Final = 40
EVENTS: Final = 100
CALLS_A_CHUNK: Final = 10


def serve(directory: Path) -> int:
    """Do what a request of a web service does: a file or two, some logging, values and text."""
    log = logging.getLogger("benchmarks.foreign")
    total = 0
    for number in range(FILES):
        with (directory / f"{number}.json").open(encoding="utf-8") as file:
            records = json.load(file)
        chosen = sorted(
            (record for record in records if record["number"] % 3),
            key=lambda record: record["name"],
        )
        log.debug("chosen %d of %d", len(chosen), len(records))
        total += len(json.dumps({record["name"]: record for record in chosen}))
    return total


def raise_events(_directory: Path) -> None:
    """Do nothing but what a hook is called for, as cheaply as there is."""
    for _ in range(EVENTS):
        sys._getframe()  # noqa: SLF001  it raises an audit event


def ignore(_event: str, _arguments: tuple[object, ...]) -> None:
    """Be a hook that does nothing: what the interpreter takes for any."""


WORKS: Final[dict[str, Callable[[Path], object]]] = {"mix": serve, "event": raise_events}
HOOKS: Final[dict[str, Callable[[], object]]] = {
    "without": lambda: None,
    "strict": strict_guard,
    "empty": lambda: sys.addaudithook(ignore),
}


def main() -> None:
    """Print the figures."""
    chunks, rounds = map(int, sys.argv[1:])
    figures: dict[str, dict[str, list[float]]] = {}
    with TemporaryDirectory() as name:
        directory = Path(name)
        for number in range(FILES):
            records = [{"number": n, "name": f"record {n * 7919 % 1000}"} for n in range(RECORDS)]
            (directory / f"{number}.json").write_text(json.dumps(records), "utf-8")
        for kind, work in WORKS.items():
            _fastest_us(work, directory, chunks)
            figures[kind] = {hook: [] for hook in HOOKS}
            for number in range(rounds):
                # There and back again, so that none is always the first of a pair.
                for hook in list(HOOKS) if number % 2 else reversed(HOOKS):
                    figures[kind][hook].append(_of_a_child(work, directory, chunks, hook))
    print(json.dumps(figures))


def _of_a_child(work: Callable[[Path], object], directory: Path, chunks: int, hook: str) -> float:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        HOOKS[hook]()
        os.write(writing, str(_fastest_us(work, directory, chunks)).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:  # noqa: PTH123  a descriptor
        printed = pipe.read()
    os.waitpid(pid, 0)
    return float(printed)


def _fastest_us(work: Callable[[Path], object], directory: Path, chunks: int) -> float:
    gc.collect()
    gc.disable()
    fastest_s = float("inf")
    for _ in range(chunks):
        began = time.process_time_ns()
        for _ in range(CALLS_A_CHUNK):
            work(directory)
        fastest_s = min(fastest_s, (time.process_time_ns() - began) / 1e9)
    gc.enable()
    return fastest_s / CALLS_A_CHUNK * 1e6


if __name__ == "__main__":
    main()
