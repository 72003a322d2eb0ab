"""A process that is killed while events are sent and consumed: each acked one is consumed once."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest

import durable
from durable import Engine, EventAlreadySentError, EventId, Step

OPENED: Final = "opened"
LOG: Final = "acked.txt"
EVENTS: Final = 80
RUNS: Final = 3
LIVES_MAX: Final = 30
LIFE_S_MAX: Final = 60
CHILD: Final = "import asyncio, sys, test_events_kills as t; asyncio.run(t.live(sys.argv[1]))"


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


def append(directory: Path, text: str) -> None:
    """Append a line to the log, which nothing rolls back."""
    fd = os.open(directory / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(fd, f"{text}\n".encode())
    os.close(fd)


def acked(directory: Path) -> list[list[str]]:
    log = directory / LOG
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


async def send_all(engine: Engine, directory: Path, run: durable.Run[list[int]]) -> None:
    """Send what was not sent yet, by ids, so that what is asked again is sent once."""
    new = [line[2:] for line in acked(directory) if line[:2] == ["new", run.id]]
    created = {int(n): EventId(event_id) for n, event_id in new}
    for n in range(EVENTS):
        if n not in created:
            created[n] = await engine.create_event(run.id, "it")
            append(directory, f"new {run.id} {n} {created[n]}")
        try:
            await engine.send_event_id(created[n], n)
        except EventAlreadySentError:
            continue
        append(directory, f"sent {run.id} {n} {created[n]}")


async def live(path: str) -> None:
    """The child: start the runs, send them all that is not sent yet, and see their end."""
    directory = Path(path)
    async with Engine(directory / "journal.db") as engine:
        print(OPENED, flush=True)  # noqa: T201  the parent reads it
        runs = [await engine.start(collecting(), id=f"run-{n}") for n in range(RUNS)]
        open_runs = [run for run in runs if not (await run.status()).state.is_final]
        await asyncio.gather(*(send_all(engine, directory, run) for run in open_runs))
        for run in runs:
            assert await run.result() == list(range(EVENTS))


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
def test_every_acknowledged_event_is_consumed_once_and_in_order(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311  no secret
    deaths = 0
    while not play(tmp_path, draw.uniform(0.01, 0.08) if deaths < 8 else None):
        deaths += 1
        assert deaths < LIVES_MAX
        check_rows(tmp_path)
    assert deaths > 3, "it was killed too late to show anything"
    check_rows(tmp_path, is_over=True)


def check_rows(directory: Path, *, is_over: bool = False) -> None:
    """See that no commit is half there, and that what was acknowledged is."""
    db = sqlite3.connect(directory / "journal.db")
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
