"""A process that is killed while a run cleans up: the next ones finish it, each step once."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

import pytest
from crashes.image import read_image

import durable
from durable import Engine, Retry, RunCanceled, RunState, Step

OPENED: Final = "opened"
LOG: Final = "effects.txt"
CLEAN_UPS: Final = 60
RUNS: Final = 4
LIVES_MAX: Final = 30
LIFE_S_MAX: Final = 60
CHILD: Final = "import asyncio, sys, test_cancel_kills as t; asyncio.run(t.live(sys.argv[1]))"

directory = Path()
"""Where the child has its journal and its effect log."""


def append(text: str) -> None:
    """Append a line to the effect log, which nothing rolls back."""
    fd = os.open(directory / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(fd, f"{text}\n".encode())
    os.close(fd)


@durable.action
def undo(n: int) -> int:
    attempt = durable.attempt()
    append(f"undo {attempt.run_id} {n} {attempt.interruptions}")
    return n


@durable.action(retry=Retry(max_attempts=1))
async def hang() -> None:
    append(f"hang {durable.attempt().run_id}")
    await asyncio.Event().wait()


@durable.workflow
async def cleaning_up(_step: Step) -> None:
    try:
        await hang()
    finally:
        half = CLEAN_UPS // 2
        for n in range(half):
            await undo(n)
        await asyncio.gather(*map(undo, range(half, CLEAN_UPS)))


async def live(path: str) -> None:
    """The child: start the runs and cancel them, or go on with them, and see their end."""
    global directory  # noqa: PLW0603  the actions' log
    directory = Path(path)
    async with Engine(directory / "journal.db", max_parallelism=3) as engine:
        print(OPENED, flush=True)  # noqa: T201  the parent reads it
        runs = [await engine.start(cleaning_up(), id=f"run-{n}") for n in range(RUNS)]
        for run in runs:
            if (await run.cancel()) or (await run.status()).state is RunState.CANCELED:
                append(f"acked {run.id}")
        for run in runs:
            try:
                await run.result()
            except RunCanceled:
                append(f"ended {run.id}")


def play(path: Path, kill_after_s: float | None) -> bool:
    """Let a child live; return whether it came to its end before it was killed."""
    tests = Path(__file__).parent
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(tests), str(tests.parent)))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    try:
        if child.stdout.readline().strip() == OPENED and kill_after_s is not None:
            time.sleep(kill_after_s)  # The moment of the kill is what this is about.
            child.kill()
        _, errors = child.communicate(timeout=LIFE_S_MAX)
    finally:
        child.kill()
        child.communicate()
    assert child.returncode in (0, -9), errors
    assert "Traceback" not in errors, errors
    return child.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_clean_up_is_finished_however_often_its_process_is_killed(
    tmp_path: Path, seed: int
) -> None:
    draw = random.Random(seed)  # noqa: S311  no secret
    deaths = 0
    while not play(tmp_path, draw.uniform(0.0, 0.03) if deaths < 8 else None):
        deaths += 1
        assert deaths < LIVES_MAX
        image = read_image(tmp_path / "journal.db")
        acked = {line.split()[1] for line in lines_of(tmp_path) if line.startswith("acked")}
        for run_id in acked:
            steps = image.steps_of[run_id]
            assert any(step.number < 0 for step in steps), "an acknowledged cancel is lost"
            assert image.runs[run_id].state in ("running", "canceling", "canceled")
    assert deaths > 3, "it was killed too late to show anything"
    image = read_image(tmp_path / "journal.db")
    lines = lines_of(tmp_path)
    begun = Counter(tuple(line.split()) for line in lines if line.startswith("undo"))
    for run in image.runs.values():
        assert run.state == "canceled"
        assert f"ended {run.run_id}" in lines
        steps = [step for step in image.steps_of[run.run_id] if step.number >= 0]
        done = [step for step in steps if step.name == undo.name]
        assert sorted(step.result or "" for step in done) == sorted(map(str, range(CLEAN_UPS)))
        assert {step.state for step in done} == {"completed"}
        assert [step.state for step in steps if step.name == hang.name] == ["canceled"]
    # A step began anew only where its process had died meanwhile, and says so by its number.
    assert max(begun.values()) <= 1 + deaths
    assert sum(begun.values()) <= RUNS * CLEAN_UPS + deaths * 3, "no more than the slots at a death"


def lines_of(path: Path) -> list[str]:
    log = path / LOG
    return log.read_text().splitlines() if log.exists() else []
