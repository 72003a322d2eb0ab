"""Forced removals by those who do not own the journal, when the owner has just died."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from faults import leaving_nothing
from waiting import WAIT_S_MAX, until
from world import echoing, held, world

import durable
from durable import Engine, RunNotFoundError, Step
from durable.journal import fence
from durable.journal.ownership import OwnershipLock

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("only_noticed")

COUNT = 8


@durable.workflow
async def napping(step: Step) -> None:
    await step.sleep(3600)


def owns(engine: Engine) -> bool:
    assert engine._journal is not None
    return engine._journal.is_owner


def is_owned(path: Path) -> bool:
    lock = OwnershipLock(path)
    is_free = lock.try_acquire()
    lock.release()
    return not is_free


async def left_by_a_dead_owner(path: Path) -> None:
    """Leave a run that was worked on, and others that sleep."""
    async with Engine(path, drain_timeout=0) as owner:
        await owner.start(held("a"), id="r")
        for number in range(COUNT):
            await owner.start(napping(), id=str(number))
        await world.reached.wait()


class Ending:
    def __init__(self) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.count = 0


@pytest.fixture
def ending(path: Path, monkeypatch: pytest.MonkeyPatch) -> Ending:
    """What a client does to claims of the dead, held until the test lets it go on."""
    end = Ending()
    end_ownership = fence.end_ownership

    def held_up(db: sqlite3.Connection) -> None:
        end.begun.set()
        assert end.may_end.wait(WAIT_S_MAX)
        assert is_owned(path)
        end.count += 1
        end_ownership(db)

    monkeypatch.setattr(fence, "end_ownership", held_up)
    return end


# --- by a standby --------------------------------------------------------------------------------


async def test_a_standby_that_takes_over_meanwhile_removes_the_run_itself(path: Path) -> None:
    owner = await Engine(path, drain_timeout=0).__aenter__()
    async with leaving_nothing(), Engine(path) as standby, asyncio.timeout(WAIT_S_MAX):
        await owner.start(held("a"), id="r")
        await world.reached.wait()
        await owner.__aexit__(None, None, None)
        assert not owns(standby)
        assert await standby.cleanup("r", force=True) is True
        with pytest.raises(RunNotFoundError):
            await standby.status("r")
        await until(lambda: owns(standby))
        assert await standby.cleanup("r", force=True) is False


async def test_a_standby_takes_over_once_however_many_runs_it_removes(path: Path) -> None:
    owner = await Engine(path, drain_timeout=0).__aenter__()
    async with leaving_nothing(), Engine(path) as standby, asyncio.timeout(WAIT_S_MAX):
        for number in range(COUNT):
            await owner.start(held(str(number)), id=str(number))
        await until(lambda: len(world.begun) == COUNT)
        await owner.__aexit__(None, None, None)
        removing = (standby.cleanup(str(number), force=True) for number in range(COUNT))
        assert await asyncio.gather(*removing) == [True] * COUNT
        await until(lambda: owns(standby))
        assert await standby.run(echoing("b")) == "b"


# --- by a client ---------------------------------------------------------------------------------


async def _until_begun(ending: Ending) -> None:
    assert await asyncio.to_thread(ending.begun.wait, WAIT_S_MAX)


async def test_a_client_holds_the_journal_as_long_as_it_ends_what_the_dead_held(
    path: Path, ending: Ending
) -> None:
    """Whether its caller is still there or not: an owner that came in between would be fenced."""
    await left_by_a_dead_owner(path)
    async with Engine(path, worker=False) as client, asyncio.timeout(WAIT_S_MAX):
        removing = asyncio.create_task(client.cleanup("r", force=True))
        await _until_begun(ending)
        removing.cancel()
        await asyncio.wait({removing}, timeout=0)
        assert not removing.done()
        opening = asyncio.create_task(Engine(path).__aenter__())
        ending.may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await removing
        worker = await opening
        world.may_end.set()
        await until(lambda: owns(worker))
        assert await worker.run(echoing("b")) == "b"
        await worker.__aexit__(None, None, None)


async def test_a_client_never_becomes_the_owner_by_that(path: Path, ending: Ending) -> None:
    await left_by_a_dead_owner(path)
    async with Engine(path, worker=False) as client, asyncio.timeout(WAIT_S_MAX):
        journal: Any = client._journal
        removing = asyncio.create_task(client.cleanup("r", force=True))
        await _until_begun(ending)
        assert await asyncio.to_thread(is_owned, path)
        assert await journal.take_over() is False
        assert not owns(client)
        ending.may_end.set()
        assert await removing is True
        assert not owns(client)
        assert not await asyncio.to_thread(is_owned, path)
    assert world.begun == {"a": 1}


async def test_a_client_that_removes_several_runs_at_once_ends_it_under_the_lock_each_time(
    path: Path, ending: Ending
) -> None:
    await left_by_a_dead_owner(path)
    async with Engine(path, worker=False) as client, asyncio.timeout(WAIT_S_MAX):
        removing = [
            asyncio.create_task(client.cleanup(run_id, force=True))
            for run_id in ("r", *map(str, range(COUNT)))
        ]
        await _until_begun(ending)
        ending.may_end.set()
        assert await asyncio.gather(*removing) == [True] * (COUNT + 1)
    assert ending.count > 0
