"""A process that is killed among families of runs: the next ones finish them, each child once."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest
from crashes.image import read_image

import durable
from durable import Engine, RunCanceled, RunFailed, Step

OPENED: Final = "opened"
LOG: Final = "effects.txt"
FAMILIES: Final = 5
DEPTH: Final = 3
WIDTH: Final = 3
LIVES_MAX: Final = 40
LIFE_S_MAX: Final = 60
PROGRAM: Final = "import asyncio, sys, test_children_kills as t; asyncio.run(t.live(sys.argv[1]))"

directory = Path()
"""Where the process has its journal and its effect log."""


def append(text: str) -> None:
    """Append a line to the effect log, which nothing rolls back."""
    fd = os.open(directory / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(fd, f"{text}\n".encode())
    os.close(fd)


@durable.action
def act(n: int) -> int:
    attempt = durable.attempt()
    append(f"act {attempt.run_id} {attempt.step_key} {attempt.interruptions}")
    return n


@durable.action
async def hang() -> None:
    await asyncio.Event().wait()


@durable.workflow
async def tree(step: Step, depth: int) -> int:
    """Count the leaves; each level loses a child that hangs, and catches one that fails."""
    if depth == 0:
        return await act(1)
    hanging = asyncio.create_task(hung())
    counts = await asyncio.gather(*(tree(depth - 1) for _ in range(WIDTH)))
    hanging.cancel()
    with pytest.raises(RunFailed) as caught:
        await step.run(failing(depth), run_after=0.005)
    assert isinstance(caught.value.__cause__, LookupError)
    return sum(counts)


@durable.workflow
async def hung(_step: Step) -> None:
    await hang()


@durable.workflow
async def failing(_step: Step, depth: int) -> None:
    await act(depth)
    raise LookupError(depth)


@durable.workflow
async def canceled(_step: Step, depth: int) -> None:
    await (hang() if depth == 0 else canceled(depth - 1))


async def live(path: str) -> None:
    """Start the families, or go on with them, and see their end."""
    global directory  # noqa: PLW0603  the actions' log
    directory = Path(path)
    async with Engine(directory / "journal.db", max_parallelism=30, drain_timeout=0) as engine:
        print(OPENED, flush=True)  # noqa: T201  the parent reads it
        runs = [await engine.start(tree(DEPTH), id=f"tree-{n}") for n in range(FAMILIES)]
        doomed = await engine.start(canceled(DEPTH), id="canceled")
        for run in runs[: FAMILIES // 2]:
            assert await run.result() == WIDTH**DEPTH
        await doomed.cancel()
        for run in runs:
            assert await run.result() == WIDTH**DEPTH
        async for status in engine.iter_runs():
            with suppress(RunCanceled, RunFailed):
                await engine.get(status.id).result()


def let_live(path: Path, kill_after_s: float | None) -> bool:
    """Let a process live; return whether it came to its end before it was killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(("tests", "."))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
        text=True,
    )
    assert process.stdout is not None
    try:
        if process.stdout.readline().strip() == OPENED and kill_after_s is not None:
            time.sleep(kill_after_s)  # The moment of the kill is what this is about.
            process.kill()
        _, errors = process.communicate(timeout=LIFE_S_MAX)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode in (0, -9), errors
    return process.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_killed_over_and_over_families_are_finished_each_child_once(tmp_path: Path) -> None:
    draw = random.Random(29)  # noqa: S311  a test's
    deaths = 0
    while not let_live(tmp_path, draw.uniform(0.0, 0.4) if deaths < LIVES_MAX else None):
        deaths += 1
    assert deaths > 2
    image = read_image(tmp_path / "journal.db")
    states: Counter[tuple[str, str]] = Counter()
    parents: Counter[str] = Counter()
    for run in image.runs.values():
        states[run.name.split(":")[1], run.state] += 1
        for step in image.steps_of[run.run_id]:
            assert step.is_final
            if step.kind == "workflow":
                assert step.child_run_id in image.runs
                parents[step.child_run_id] += 1
    inner = sum(WIDTH**level for level in range(DEPTH))
    assert states == {
        ("tree", "completed"): FAMILIES * (inner + WIDTH**DEPTH),
        ("failing", "failed"): FAMILIES * inner,
        ("hung", "canceled"): FAMILIES * inner,
        ("canceled", "canceled"): DEPTH + 1,
    }
    assert set(parents.values()) == {1}
    assert len(image.runs) - len(parents) == FAMILIES + 1
    begun = Counter(line for line in (tmp_path / LOG).read_text().splitlines())
    assert max(begun.values()) == 1, "a begin says by its number how often it was interrupted"
