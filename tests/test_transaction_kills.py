"""A process that is killed among mutations: what they write is there if their steps are done."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest
from killing import JOURNAL, kill_over_and_over, say_opened, time_a_life

import durable
from durable import Engine, Step, Transaction

RUNS: Final = 6
MUTATIONS: Final = 40
KILLS: Final = 8

TABLES: Final = """
CREATE TABLE IF NOT EXISTS entry (
    id INTEGER PRIMARY KEY, run_id TEXT, n INTEGER, half TEXT, is_by_step INTEGER
) STRICT
"""
INSERT: Final = "INSERT INTO entry (run_id, n, half, is_by_step) VALUES (?, ?, ?, ?)"


@durable.mutation
async def put(tx: Transaction, n: int) -> int:
    """Write in two statements, with a turn of the loop between: nobody is to see one alone."""
    run_id = durable.attempt().run_id
    await tx.execute(INSERT, run_id, n, "first", 1)
    await asyncio.sleep(0)
    await tx.execute(INSERT, run_id, n, "second", 1)
    if n % 7 == 3:
        raise LookupError(n)
    return n


@durable.query
async def total(tx: Transaction, run_id: str) -> int:
    found: int = await tx.fetch_value("SELECT count(*) FROM entry WHERE run_id = ?", run_id)
    return found


@durable.workflow
async def putting(step: Step) -> int:
    async def one(n: int) -> None:
        try:
            assert await put(n) == n
        except LookupError:
            assert n % 7 == 3

    for n in range(MUTATIONS // 2):
        await one(n)
    await asyncio.gather(*map(one, range(MUTATIONS // 2, MUTATIONS)))
    return await total(step.run_id)


async def live() -> None:
    """The child: start the runs together with their rows, or go on with them; see their end."""
    async with Engine(JOURNAL) as engine:
        say_opened()
        for n in range(RUNS):
            async with engine.transaction() as tx:
                await tx.execute(TABLES)
                sql = "SELECT count(*) FROM entry WHERE run_id = ? AND is_by_step = 0"
                if not await tx.fetch_value(sql, f"run-{n}"):
                    await tx.execute(INSERT, f"run-{n}", -1, "order", 0)
                    await engine.start(putting(), id=f"run-{n}", tx=tx)
        await asyncio.gather(*(engine.get(f"run-{n}").result() for n in range(RUNS)))


def check_image(path: Path) -> int:
    """See that runs, outcomes and rows belong to each other; return how many mutations are done."""
    with closing(sqlite3.connect(path)) as db:
        if not db.execute("SELECT name FROM sqlite_schema WHERE name = 'entry'").fetchall():
            return 0
        runs = {row[0] for row in db.execute("SELECT run_id FROM durable_run")}
        orders = db.execute("SELECT run_id FROM entry WHERE is_by_step = 0").fetchall()
        assert sorted(row[0] for row in orders) == sorted(runs), "a start without its row, or twice"
        done = db.execute(
            "SELECT run_id, CAST(json_extract(args, '$.n') AS INTEGER) FROM durable_step "
            "WHERE kind = 'mutation' AND state = 'completed'"
        ).fetchall()
        written = db.execute("SELECT run_id, n, half FROM entry WHERE is_by_step").fetchall()
    wanted = [(*step, half) for step in done for half in ("first", "second")]
    assert sorted(written) == sorted(wanted)
    return len(done)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_killed_process_leaves_no_half_and_each_effect_comes_once(path: Path, seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311  no secret
    counts = set[int]()
    life_s = time_a_life(__name__, path.parent / "undisturbed")
    kills_after_s = (draw.uniform(0.0, 0.3) * life_s for _ in range(KILLS))
    deaths = kill_over_and_over(
        __name__, path.parent, kills_after_s, lambda: counts.add(check_image(path))
    )
    assert deaths > 3, "it was killed too late to show anything"
    assert len(counts) > 1, "it was always killed at one place"
    failing = len([n for n in range(MUTATIONS) if n % 7 == 3])
    assert check_image(path) == RUNS * (MUTATIONS - failing)
    with closing(sqlite3.connect(path)) as db:
        ends = db.execute("SELECT state, result FROM durable_run").fetchall()
    assert ends == [("completed", str(1 + 2 * (MUTATIONS - failing)))] * RUNS
