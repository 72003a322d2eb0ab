"""A process that is killed while a run cleans up: the next ones finish it, each step once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Final

import pytest
from crashes.image import read_image
from killing import JOURNAL, kill_over_and_over, log_of, note, say_opened

import durable
from durable import Engine, Retry, RunCanceled, RunState, Step

CLEAN_UPS: Final = 60
RUNS: Final = 4
KILLS: Final = 8


@durable.action
def undo(n: int) -> int:
    attempt = durable.attempt()
    note(f"undo {attempt.run_id} {n} {attempt.interruptions}")
    return n


@durable.action(retry=Retry(max_attempts=1))
async def hang() -> None:
    note(f"hang {durable.attempt().run_id}")
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


async def live() -> None:
    """The child: start the runs and cancel them, or go on with them, and see their end."""
    async with Engine(JOURNAL, max_parallelism=3) as engine:
        say_opened()
        runs = [await engine.start(cleaning_up(), id=f"run-{n}") for n in range(RUNS)]
        for run in runs:
            if (await run.cancel()) or (await run.status()).state is RunState.CANCELED:
                note(f"acked {run.id}")
        for run in runs:
            try:
                await run.result()
            except RunCanceled:
                note(f"ended {run.id}")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_clean_up_is_finished_however_often_its_process_is_killed(
    tmp_path: Path, seed: int
) -> None:
    def check() -> None:
        image = read_image(tmp_path / JOURNAL)
        acked = {line.split()[1] for line in log_of(tmp_path) if line.startswith("acked")}
        for run_id in acked:
            steps = image.steps_of[run_id]
            assert any(step.number < 0 for step in steps), "an acknowledged cancel is lost"
            assert image.runs[run_id].state in ("running", "canceling", "canceled")

    draw = random.Random(seed)  # noqa: S311  no secret
    kills_after_s = (draw.uniform(0.0, 0.03) for _ in range(KILLS))
    deaths = kill_over_and_over(__name__, tmp_path, kills_after_s, check)
    assert deaths > 3, "it was killed too late to show anything"
    image = read_image(tmp_path / JOURNAL)
    lines = log_of(tmp_path)
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
