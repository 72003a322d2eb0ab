"""Crashes lose nothing: processes are killed at random moments, and around every commit.

After each life the journal and the effect log are checked against the invariants, and the next
process goes on with what it finds. ``CRASH_KILLS`` and ``CRASH_SEED`` in the environment set how
many kills there are, and what is drawn.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Final

import pytest
from crashes import load
from crashes.child import TOMORROW_MS, Options
from crashes.lives import Lives, end_all
from waiting import until_step

import durable
from durable import Engine, Step, StepState

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")

KILLS: Final = int(os.environ.get("CRASH_KILLS", "200"))
SEED: Final = int(os.environ.get("CRASH_SEED", "0"))
LIFE_S_MAX: Final = 0.25
"""The longest that a child lives: it has recovered by then, and started dozens of runs."""

PARKING: Final = Options(seed=SEED + 1, park_after_ms=5)
VARIANTS: Final = (
    Options(seed=SEED),
    PARKING,
    Options(seed=SEED + 2, park_after_ms=5, live_runs_max=5),
    Options(seed=SEED + 3, max_parallelism=1),
)
"""Journals whose runs stay in memory, leave it for every nap, crowd it, or have one slot."""

RECOVERY_POINTS: Final = 8
"""How many transactions of a second life are crash points: taking the journal over, claiming runs,
taking up what was interrupted, and their first turns."""


@pytest.mark.slow
def test_random_kills_lose_nothing(tmp_path: Path) -> None:
    def live_and_die(number: int) -> Lives:
        lives = Lives(tmp_path / str(number), VARIANTS[number])
        draw = random.Random(lives.options.seed)  # noqa: S311  no secret
        for kill in range(number, KILLS, len(VARIANTS)):
            # Every other one has opened the journal by then, however slow the machine is.
            is_open = kill // len(VARIANTS) % 2 == 1
            lives.begin("work").kill(draw.uniform(0, LIFE_S_MAX), is_open=is_open)
            lives.examine()
        for role, ahead_ms in (("finish", 0), ("tomorrow", TOMORROW_MS)):
            lives.begin(role).wait()
            lives.examine()
            lives.examine_end(_now_ms() + ahead_ms)
        return lives

    with ThreadPoolExecutor(len(VARIANTS)) as threads:
        all_lives = list(threads.map(live_and_die, range(len(VARIANTS))))
    for lives in all_lives:
        assert lives.ledger.peak == lives.options.max_parallelism
        assert lives.ledger.deaths
    runs = [run for lives in all_lives for run in lives.image.runs.values()]
    assert {run.name for run in runs} == {shape.name for shape in load.OUTCOMES}


@pytest.mark.slow
def test_a_crash_around_any_commit_loses_nothing(tmp_path: Path) -> None:
    """One process dies right before a COMMIT or right after it, for each that a fixed scenario
    makes; of half of the journals the next one dies too, while it recovers; the last has to
    finish."""

    def die_at_every_commit(*, after: bool) -> list[Lives]:
        all_lives: list[Lives] = []
        for transaction in count():
            lives = Lives(tmp_path / f"{transaction}-{'after' if after else 'before'}", PARKING)
            all_lives.append(lives)
            first = lives.begin("scenario", crash_at=transaction, crash_after=after)
            has_died = first.wait_or_killed()
            lives.examine()
            if not has_died:
                break
            if transaction % 2 == after:
                point = transaction // 2 % RECOVERY_POINTS
                lives.begin("scenario", crash_at=point, crash_after=not after).wait_or_killed()
                lives.examine()
        end_all("scenario", all_lives, PARKING)
        for lives in all_lives:
            lives.examine_end(_now_ms())
        return all_lives

    with ThreadPoolExecutor(2) as threads:
        sides = [threads.submit(die_at_every_commit, after=after) for after in (False, True)]
        for all_lives in [side.result() for side in sides]:
            assert len(all_lives) > 2 * RECOVERY_POINTS
            assert {len(lives.image.runs) for lives in all_lives} == {len(load.OUTCOMES) - 1}


@durable.action
async def echo(n: int) -> int:
    return n


@durable.workflow
async def dead_heat(step: Step, rivals: int) -> int:
    tasks = [asyncio.ensure_future(echo(n)) for n in range(rivals)]
    done, losers = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for loser in losers:
        loser.cancel()
    await step.sleep(load.DAY_S)
    return len(done)


async def test_a_loser_that_has_ended_too_is_withdrawn_for_good(path: Path) -> None:
    """Its outcome is there when the winner's is delivered, and must not be left as if it ran: no
    replay could be told that the body does not wait for it."""
    async with Engine(path) as engine:
        run = await engine.start(dead_heat(3))
        await until_step(run, "sleep", StepState.RUNNING)
        states = [step.state async for step in run.steps()]
        assert states == ["completed", "canceled", "canceled", "running"]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
