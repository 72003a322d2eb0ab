"""A process that is killed among families of runs: the next ones finish them, each child once."""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest
from crashes.image import read_image
from killing import JOURNAL, kill_over_and_over, log_of, note, say_opened

import durable
from durable import Engine, RunCanceled, RunFailed, Step

FAMILIES: Final = 5
DEPTH: Final = 3
WIDTH: Final = 3
KILLS: Final = 40


@durable.action
def act(n: int) -> int:
    attempt = durable.attempt()
    note(f"act {attempt.run_id} {attempt.step_key} {attempt.interruptions}")
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


async def live() -> None:
    """Start the families, or go on with them, and see their end."""
    async with Engine(JOURNAL, max_parallelism=30, drain_timeout=0) as engine:
        say_opened()
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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_killed_over_and_over_families_are_finished_each_child_once(tmp_path: Path) -> None:
    draw = random.Random(29)  # noqa: S311  a test's
    kills_after_s = (draw.uniform(0.0, 0.12) for _ in range(KILLS))
    deaths = kill_over_and_over(__name__, tmp_path, kills_after_s)
    assert deaths > 2
    image = read_image(tmp_path / JOURNAL)
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
    begun = Counter(log_of(tmp_path))
    assert max(begun.values()) == 1, "a begin says by its number how often it was interrupted"
