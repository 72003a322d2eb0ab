"""A second engine on a journal: it waits, serves, and takes over when the first one is gone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import anyio.to_thread
import pytest
from faults import Disk, Fault, leaving_nothing
from waiting import WAIT_S_MAX, until, until_state

import durable
from durable import Engine, JournalLockedError, RunCanceled, RunState, Step
from durable.journal import sqlite
from durable.journal.locks import FileLocks
from durable.journal.ownership import OwnershipLock
from durable.journal.writelock import WriteLock

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("only_noticed")


class Gate:
    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()
        self.begun: list[Engine] = []


gate = Gate()


@pytest.fixture(autouse=True)
def _new_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "gate", Gate())


@durable.action
async def held() -> int:
    gate.begun.append(Engine.current())
    gate.reached.set()
    await gate.open.wait()
    return len(gate.begun)


@durable.action
async def echo(text: str) -> str:
    gate.begun.append(Engine.current())
    return text


@durable.workflow
async def echoing(_step: Step, text: str) -> str:
    return await echo(text)


@durable.workflow
async def holding(_step: Step) -> int:
    return await held()


@durable.workflow
async def napping(step: Step, seconds: float) -> str:
    await step.sleep(seconds)
    return "slept"


def owns(engine: Engine) -> bool:
    assert engine._journal is not None
    return engine._journal.is_owner


async def test_the_second_engine_serves_and_the_first_one_works(path: Path) -> None:
    async with leaving_nothing(), Engine(path) as owner, Engine(path) as standby:
        assert owns(owner)
        assert not owns(standby)
        assert Engine.current() is standby
        assert await standby.run(echoing("a")) == "a"
        assert await durable.run(echoing("b")) == "b"
        assert set(gate.begun) == {owner}


async def test_it_takes_over_when_the_first_one_is_closed(path: Path) -> None:
    async with Engine(path) as standby_first:
        assert owns(standby_first)
    first = Engine(path, drain_timeout=0)
    await first.__aenter__()
    async with Engine(path) as standby:
        run = await first.start(holding(), id="r")
        parked = await standby.start(napping(3600), id="n")
        await gate.reached.wait()
        result = asyncio.create_task(standby.get("r").result(timeout=WAIT_S_MAX))
        watch = asyncio.create_task(_to_the_end(standby, "r"))
        await asyncio.sleep(0)
        assert not owns(standby)
        await first.__aexit__(None, None, None)
        await until(lambda: owns(standby))
        gate.open.set()
        assert await result == 2
        assert gate.begun == [first, standby]
        assert (await watch)[-1].result == 2
        assert run.id == "r"
        assert await standby.cancel("n")
        with pytest.raises(RunCanceled):
            await standby.get(parked.id).result(timeout=WAIT_S_MAX)


async def _to_the_end(engine: Engine, run_id: str) -> list[durable.RunStatus]:
    return [status async for status in engine.watch(run_id)]


async def test_one_of_several_takes_over(path: Path) -> None:
    engines = [Engine(path, drain_timeout=0) for _ in range(4)]
    async with leaving_nothing():
        for engine in engines:
            await engine.__aenter__()
        while engines:
            await until(lambda: sum(map(owns, engines)) == 1)
            owner = next(engine for engine in engines if owns(engine))
            for number, engine in enumerate(engines):
                assert await engine.run(echoing(f"{len(engines)} {number}")) is not None
            assert set(gate.begun) == {owner}
            gate.begun.clear()
            engines.remove(owner)
            await owner.__aexit__(None, None, None)


async def test_calls_that_are_under_way_while_it_takes_over_are_kept(path: Path) -> None:
    first = Engine(path)
    await first.__aenter__()
    async with Engine(path) as standby:
        names = [str(number) for number in range(200)]
        runs = [
            asyncio.create_task(standby.run(echoing(name), id=name if len(name) < 3 else None))
            for name in names
        ]
        await asyncio.sleep(0)
        await first.__aexit__(None, None, None)
        assert await asyncio.gather(*runs) == names
        assert len(gate.begun) == len(names)


async def test_a_standby_sleeps_on_with_what_slept(path: Path) -> None:
    first = Engine(path)
    await first.__aenter__()
    async with Engine(path) as standby:
        run = await standby.start(napping(0.3))
        await first.__aexit__(None, None, None)
        assert await run.result(timeout=WAIT_S_MAX) == "slept"


async def test_an_owner_that_was_replaced_all_the_same_writes_nothing(path: Path) -> None:
    """The lock cannot prevent it: the fence does. What it worked on is done by the other one."""
    engine = Engine(path)
    with pytest.raises(JournalLockedError, match="another owner"):  # noqa: PT012  at its end
        async with engine:
            run = await engine.start(holding(), id="r")
            await gate.reached.wait()
            await anyio.to_thread.run_sync(_lose_lock, engine)
            async with Engine(path) as other, asyncio.timeout(WAIT_S_MAX):
                await until(lambda: owns(other))
                gate.open.set()
                assert await other.get("r").result() in (1, 2)
                with pytest.raises(durable.EngineClosedError):
                    await engine.start(echoing("x"), id="x")
                assert (await other.status("r")).state is RunState.COMPLETED
                assert [each.id async for each in other.iter_runs()] == ["r"]
                assert run.id == "r"


def _lose_lock(engine: Engine) -> None:
    journal = engine._journal
    assert isinstance(journal, sqlite.SqliteJournal)
    locks = journal._locks
    assert isinstance(locks, FileLocks)
    locks.disown()
    locks._is_worker = False  # It would have it back before the other one comes.


async def test_an_outage_of_a_standby_is_its_own(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Engine(path) as owner:
        disk = Disk()
        disk.install(monkeypatch)
        async with Engine(path) as standby:
            disk.broken = Fault.LOST
            with pytest.raises(durable.JournalUnavailableError):
                await standby.start(echoing("a"), id="a")
            assert await owner.run(echoing("b")) == "b"
            disk.broken = None
            await disk.reopened.wait()
            await until(lambda: standby._runner is not None and not standby._runner.outage)
            assert await standby.run(echoing("a"), id="a") == "a"
            assert set(gate.begun) == {owner}


async def test_a_takeover_that_fails_is_tried_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = 2
    take_over = sqlite.SqliteJournal.take_over

    async def fail_first(self: sqlite.SqliteJournal) -> bool:
        nonlocal failures
        if self._locks.owns and failures:
            failures -= 1
            raise durable.JournalUnavailableError("no disk")
        return await take_over(self)

    monkeypatch.setattr(sqlite.SqliteJournal, "take_over", fail_first)
    monkeypatch.setattr("durable.journal.lookout.TELL_S_MAX", 0.1)
    async with Engine(path):
        standby = Engine(path)
        await standby.__aenter__()
        assert not owns(standby)
    await until(lambda: owns(standby))
    assert not failures
    assert await standby.run(echoing("a")) == "a"
    await standby.__aexit__(None, None, None)


async def test_a_lock_on_writing_that_is_held_too_long_is_an_error_that_names_the_owner(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.05)
    lock = WriteLock(path, 1, lambda: "")
    ownership = OwnershipLock(path)
    await anyio.to_thread.run_sync(ownership.try_acquire)
    await anyio.to_thread.run_sync(lock.__enter__)
    with pytest.raises(JournalLockedError, match=r"owned by process \d+ \(this process\)"):
        async with Engine(path):
            pass
    await anyio.to_thread.run_sync(lock.close)
    await anyio.to_thread.run_sync(ownership.release)
    async with Engine(path) as engine:
        assert await engine.run(echoing("a")) == "a"


async def test_a_standby_is_not_told_of_what_only_the_owner_may_do(path: Path) -> None:
    """It claims nothing, even where much is due."""
    async with Engine(path) as owner:
        owner.set_max_parallelism(0)
        async with Engine(path) as standby:
            runs = [await standby.start(echoing(str(number))) for number in range(20)]
            for run in runs:
                await until_state(run, RunState.RUNNING)
            assert standby.statistics().live_runs == 0
            assert owner.statistics().live_runs == len(runs)
            owner.set_max_parallelism(5)
            for run in runs:
                await run.result(timeout=WAIT_S_MAX)
            assert set(gate.begun) == {owner}
