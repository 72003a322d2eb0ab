"""Mutations, queries and transactions, while the journal fails or the process dies."""

# ruff: noqa: PT012  what raises is the block, as a whole

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import bank
import pytest
from bank import ALL_KINDS, INSERT, adding, all_kinds, opened, querying, texts, world
from faults import Disk, Fault, crashing, each_to_fail, leaving_nothing, once_available
from journals import execute_outside
from waiting import WAIT_S_MAX, until

from durable import (
    Engine,
    JournalLockedError,
    JournalUnavailableError,
    RunNotFoundError,
    StepState,
    Transaction,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

BOTH = pytest.mark.parametrize("fault", list(Fault))
CRASHES = 60


async def check(engine: Engine, run_id: str) -> None:
    """See that the run came to its end, and each effect of its steps is there once."""
    found = await engine.get(run_id).result(timeout=WAIT_S_MAX)
    assert sorted(found) == sorted(ALL_KINDS)
    assert sorted(await texts(engine)) == sorted(ALL_KINDS)
    steps = [step async for step in engine.iter_steps(run_id)]
    states = Counter(step.state for step in steps)
    assert states == {StepState.COMPLETED: len(steps) - 1, StepState.FAILED: 1}


# --- the journal fails ---------------------------------------------------------------------------


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("what", ["commit", "begin"])
async def test_whichever_write_fails_each_mutation_has_its_effect_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, what: str, fault: Fault
) -> None:
    if what == "begin" and fault is Fault.KEPT:
        pytest.skip("as failed: what was begun and is not committed is rolled back")
    for number, disk in each_to_fail(monkeypatch, 5):
        bank.new_world()
        async with opened(path.with_name(f"{number}.db")) as engine:
            disk.faults[what, disk.calls[what] + number] = fault
            run = await once_available(disk, lambda: engine.start(all_kinds(), id="it"))
            await run.result(timeout=WAIT_S_MAX)
            disk.faults.clear()
            await check(engine, run.id)


@BOTH
@pytest.mark.parametrize("what", ["commit", "begin"])
async def test_a_transaction_that_fails_is_unknown_and_whole(
    path: Path, disk: Disk, what: str, fault: Fault
) -> None:
    async with opened(path) as engine:
        disk.faults[what, disk.calls[what] + 1] = fault if what == "commit" else Fault.LOST
        with pytest.raises(JournalUnavailableError):
            async with engine.transaction() as tx:
                await tx.execute(INSERT, "a")
                await engine.start(adding("b"), id="mine", tx=tx)
        is_kept = what == "commit" and fault is Fault.KEPT

        async def look() -> list[str]:
            return await texts(engine)

        found = await once_available(disk, look)
        assert ("a" in found) == is_kept
        if is_kept:
            assert await engine.get("mine").result(timeout=WAIT_S_MAX) == 2
        else:
            with pytest.raises(RunNotFoundError):
                await engine.status("mine")


async def test_during_an_outage_a_transaction_is_refused_at_once(path: Path, disk: Disk) -> None:
    async with opened(path) as engine:
        disk.broken = Fault.LOST
        for _ in range(3):
            with pytest.raises(JournalUnavailableError):
                async with engine.transaction():
                    pass
        disk.broken = None

        async def write() -> None:
            async with engine.transaction() as tx:
                await tx.execute(INSERT, "a")

        await once_available(disk, write)
        assert await texts(engine) == ["a"]


async def test_one_that_waits_when_the_journal_fails_is_told(path: Path, disk: Disk) -> None:
    async with opened(path) as engine:
        disk.answers.clear()
        disk.faults["commit", disk.calls["commit"] + 1] = Fault.LOST
        start = asyncio.create_task(engine.start(adding("a"), id="it"))
        await until(lambda: disk.calls["commit"] > 1)
        waiting = asyncio.create_task(texts(engine))
        for _ in range(5):
            await asyncio.sleep(0)
        disk.answers.set()
        for task in (start, waiting):
            with pytest.raises(JournalUnavailableError):
                await task


async def test_a_query_outlives_an_outage(path: Path, disk: Disk) -> None:
    """It is read again, on a new connection; its body sees nothing of that."""

    async def hook(tx: Transaction) -> int:
        await tx.fetch_value("SELECT 1")
        if len(world.begun) == 1:
            world.begun.append("reading")
            await world.may_end.wait()
        found: int = await tx.fetch_value("SELECT count(*) FROM entry")
        return found

    world.hook = hook
    async with opened(path) as engine:
        run = await engine.start(querying())
        await until(lambda: "reading" in world.begun)
        disk.faults["commit", disk.calls["commit"] + 1] = Fault.LOST
        await once_available(disk, lambda: engine.start(adding("a"), id="other"))
        assert disk.outages == 1
        await engine.get("other").result(timeout=WAIT_S_MAX)
        world.may_end.set()
        assert await run.result(timeout=WAIT_S_MAX) == 1
        assert disk.outages == 1


async def test_a_storage_error_under_a_query_opens_the_journal_again(
    path: Path, disk: Disk
) -> None:
    async def hook(tx: Transaction) -> int:
        if len(world.begun) == 1:
            world.begun.append("failing")
            scope = tx._scope
            scope.failure = JournalUnavailableError("the test's")
            raise scope.failure
        return await tx.fetch_value("SELECT count(*) FROM entry")  # type: ignore[no-any-return]

    world.hook = hook
    async with opened(path) as engine:
        await engine.run(adding("a"))
        world.begun.clear()
        assert await engine.run(querying()) == 1
        assert disk.calls["reopen"] == 1
        assert world.begun == ["asking", "failing", "asking"]


# --- the process dies ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("place", "stride"), [("run", 130), ("transaction", 40)])
async def test_wherever_the_engine_is_cut_off_it_is_all_or_nothing(
    path: Path, place: str, stride: int
) -> None:
    """Each time so many more cycles of the loop from the start."""
    async with leaving_nothing():
        for crash in range(CRASHES):
            bank.new_world()
            file = path.with_name(f"{crash}.db")
            async with opened(file):
                pass
            async with crashing(file) as engine:
                asking: Callable[[], Awaitable[object]] = (
                    (lambda: engine.start(all_kinds(), id="it"))
                    if place == "run"
                    else (lambda: _start_within(engine))
                )
                task = asyncio.ensure_future(_quietly(asking))
                for _ in range(crash * stride):
                    await asyncio.sleep(0)
            is_acked = await task
            async with Engine(file) as engine:
                try:
                    await check(engine, "it")
                except RunNotFoundError:
                    assert not is_acked
                    assert await texts(engine) == []


async def _start_within(engine: Engine) -> None:
    async with engine.transaction() as tx:
        await engine.start(all_kinds(), id="it", tx=tx)


async def _quietly(ask: Callable[[], Awaitable[object]]) -> bool:
    try:
        await ask()
    except Exception:  # noqa: BLE001  the engine is closed under it
        return False
    return True


async def test_a_swallowed_storage_error_fails_the_whole_transaction(
    path: Path, disk: Disk
) -> None:
    async with opened(path) as engine:
        with pytest.raises(JournalUnavailableError, match="the test's"):
            async with engine.transaction() as tx:
                await tx.execute(INSERT, "lost")
                tx._scope.failure = JournalUnavailableError("the test's")
        runner = engine._runner
        assert runner is not None
        await until(lambda: disk.calls["reopen"] and runner.writer.outage is None)
        assert await engine.run(adding("a")) == 1
        assert disk.calls["reopen"] == 1


async def test_an_owner_that_was_replaced_writes_nothing(path: Path) -> None:
    sql = "UPDATE durable_owner SET epoch = epoch + 1"
    with pytest.raises(JournalLockedError):
        async with opened(path) as engine:
            await asyncio.to_thread(execute_outside, path, sql)
            with pytest.raises(JournalUnavailableError, match="another owner"):
                async with engine.transaction() as tx:
                    await tx.execute(INSERT, "stale")
    async with Engine(path) as engine:
        assert await texts(engine) == []
