"""A process that is killed while events are sent and consumed: each acked one is consumed once."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from functools import partial
from pathlib import Path
from typing import Final

import pytest
from killing import JOURNAL, kill_over_and_over, log_of, note, say_opened, time_a_life

import durable
from durable import Engine, EventAlreadySentError, EventId, Step

EVENTS: Final = 80
RUNS: Final = 3
KILLS: Final = 8


@durable.workflow
async def collecting(step: Step) -> list[int]:
    got: list[int] = []
    while len(got) < EVENTS:
        waits = [asyncio.create_task(step.wait_event("it")) for _ in range(2)]
        done, left = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        got += [wait.result() for wait in waits if wait in done]
        for wait in left:
            wait.cancel()
    return got


def acked(directory: Path) -> list[list[str]]:
    return [line.split() for line in log_of(directory)]


async def send_all(engine: Engine, run: durable.Run[list[int]]) -> None:
    """Send what was not sent yet, by ids, so that what is asked again is sent once."""
    new = [line[2:] for line in acked(Path()) if line[:2] == ["new", run.id]]
    created = {int(n): EventId(event_id) for n, event_id in new}
    for n in range(EVENTS):
        if n not in created:
            created[n] = await engine.create_event(run.id, "it")
            note(f"new {run.id} {n} {created[n]}")
        try:
            await engine.send_event_id(created[n], n)
        except EventAlreadySentError:
            continue
        note(f"sent {run.id} {n} {created[n]}")


async def live() -> None:
    """The child: start the runs, send them all that is not sent yet, and see their end."""
    async with Engine(JOURNAL) as engine:
        say_opened()
        runs = [await engine.start(collecting(), id=f"run-{n}") for n in range(RUNS)]
        open_runs = [run for run in runs if not (await run.status()).state.is_final]
        await asyncio.gather(*(send_all(engine, run) for run in open_runs))
        for run in runs:
            assert await run.result() == list(range(EVENTS))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_every_acknowledged_event_is_consumed_once_and_in_order(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311  no secret
    life_s = time_a_life(__name__, tmp_path / "undisturbed")
    kills_after_s = (draw.uniform(0.05, 0.3) * life_s for _ in range(KILLS))
    deaths = kill_over_and_over(__name__, tmp_path, kills_after_s, partial(check_rows, tmp_path))
    assert deaths > 3, "it was killed too late to show anything"
    check_rows(tmp_path, is_over=True)


def check_rows(directory: Path, *, is_over: bool = False) -> None:
    """See that no commit is half there, and that what was acknowledged is."""
    db = sqlite3.connect(directory / JOURNAL)
    rows = db.execute(
        "SELECT event_id, run_id, value, step_number, sent_at_ms FROM durable_event ORDER BY seq"
    ).fetchall()
    steps = db.execute(
        "SELECT run_id, number, result, event_id, state FROM durable_step WHERE kind = 'event'"
    ).fetchall()
    db.close()
    sent = {event_id for event_id, _, _, _, sent_at_ms in rows if sent_at_ms is not None}
    assert sent >= {event_id for what, _, _, event_id in acked(directory) if what == "sent"}
    consumed = {(run_id, n, value, e) for e, run_id, value, n, _ in rows if n is not None}
    completed = {tuple(step[:4]) for step in steps if step[4] == "completed"}
    assert consumed == completed
    for number in range(RUNS):
        values = [int(v) for _, r, v, n, _ in rows if r == f"run-{number}" and n is not None]
        assert values == list(range(len(values)))
        assert not is_over or len(values) == EVENTS
