"""An engine whose journal another one has taken over, which no lock could prevent."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import anyio.to_thread
import pytest
from journals import execute_outside
from world import held, new_world, world

from durable import Engine, EngineClosedError, JournalLockedError

if TYPE_CHECKING:
    from pathlib import Path

WAIT_S_MAX = 20
TAKE_OVER = "UPDATE durable_owner SET epoch = epoch + 1"


@pytest.mark.parametrize("ends_by", ["a start", "a step", "nothing that it does"])
async def test_the_engine_ends_says_why_and_writes_nothing(path: Path, ends_by: str) -> None:
    """It must not take the journal back: the two would do so for ever."""
    new_world()
    engine = Engine(path)
    with pytest.raises(JournalLockedError, match="another owner"):  # noqa: PT012  at its end
        async with engine, asyncio.timeout(WAIT_S_MAX):
            run = await engine.start(held("a"), id="held")
            await world.reached.wait()
            await anyio.to_thread.run_sync(execute_outside, path, TAKE_OVER)
            if ends_by == "a step":
                world.may_end.set()
            elif ends_by == "a start":
                with pytest.raises(EngineClosedError, match="another owner") as refused:
                    await engine.start(held("a"), id="new")
                assert isinstance(refused.value.__cause__, JournalLockedError)
            with pytest.raises(EngineClosedError, match="another owner"):
                await run.result()
    new_world()
    world.may_end.set()
    async with Engine(path) as again, asyncio.timeout(WAIT_S_MAX):
        assert [each.id async for each in again.iter_runs()] == ["held"]
        assert await again.get("held").result() == "a"
        assert world.reached.is_set(), (
            "its outcome cannot have been recorded by the engine that lost"
        )
