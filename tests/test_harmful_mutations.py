"""Mutations and transactions that would harm the journal's connection, or the engine by it."""

# ruff: noqa: PT012  what raises is the block, as a whole

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import bank
import pytest
from bank import INSERT, adding, hooking, opened, querying, texts, world
from faults import Disk, Fault
from waiting import WAIT_S_MAX

import durable
from durable import (
    Engine,
    JournalUnavailableError,
    RunFailed,
    Step,
    StepState,
    Transaction,
    TransactionError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

ENDLESS = "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"


@pytest.mark.parametrize(
    "pragma", ["wal_checkpoint", "optimize", "incremental_vacuum", "wal_checkpoint(TRUNCATE)"]
)
async def test_a_pragma_that_does_something_is_refused(store: Path | str, pragma: str) -> None:
    async with opened(store) as engine:
        async with engine.transaction() as tx:
            with pytest.raises(TransactionError, match="PRAGMA"):
                await tx.execute(f"PRAGMA {pragma}")
            await tx.execute(INSERT, "kept")
        assert await texts(engine) == ["kept"]


async def test_a_table_that_is_in_use_is_the_statement_s_error(store: Path | str) -> None:
    async def hook(tx: Transaction) -> str:
        await tx.execute("CREATE TABLE busy (x)")
        await tx.execute("INSERT INTO busy VALUES (1), (2)")
        cursor = await tx.connection.execute("SELECT x FROM busy")
        await cursor.fetchone()
        try:
            await tx.execute("DROP TABLE busy")
        except Exception as exc:  # noqa: BLE001  the driver's own
            return str(exc)
        finally:
            await cursor.close()
        return "dropped"

    world.hook = hook
    async with opened(store) as engine:
        assert "locked" in await engine.run(hooking())
        assert world.begun == ["hooked"]


def _as_dict(cursor: Any, row: tuple[Any, ...]) -> dict[str, Any]:  # noqa: ANN401
    return {column[0]: value for column, value in zip(cursor.description, row, strict=True)}


def _set_rows(tx: Transaction) -> None:
    tx.connection.row_factory = _as_dict  # type: ignore[assignment]


def _set_texts(tx: Transaction) -> None:
    tx.connection.text_factory = bytes


@pytest.mark.parametrize("setting", [_set_rows, _set_texts])
async def test_what_is_set_on_the_connection_ends_with_the_transaction(
    store: Path | str, setting: Callable[[Transaction], None]
) -> None:
    async def hook(tx: Transaction) -> None:
        setting(tx)
        await tx.execute(INSERT, "mutation")

    world.hook = hook
    async with opened(store) as engine:
        async with engine.transaction() as tx:
            setting(tx)
            await tx.execute(INSERT, "transaction")
            row = await tx.fetch_one("SELECT text, 1 AS one FROM entry")
            assert row is not None
            assert row["one"] == row[1] == 1
            await engine.start(adding("started"), id="r", tx=tx)
        assert await engine.get("r").result(timeout=WAIT_S_MAX) == 2
        await engine.run(hooking())
        assert await engine.run(adding("after")) == 4
        assert await texts(engine) == ["transaction", "started", "mutation", "after"]
        world.hook = _setting_in_a_query(setting)
        await engine.run(querying())
        assert len(await engine.run(looking())) == 4


def _setting_in_a_query(
    setting: Callable[[Transaction], None],
) -> Callable[[Transaction], Awaitable[None]]:
    async def hook(tx: Transaction) -> None:
        setting(tx)

    return hook


@durable.workflow
async def looking(_step: Step) -> list[str]:
    return await bank.look()


@durable.workflow
async def catching(_step: Step) -> str:
    try:
        await bank.hooked()
    except JournalUnavailableError as exc:
        return str(exc)
    return "nothing raised"


async def test_a_mutation_that_the_storage_always_fails_by_fails(path: Path) -> None:
    """It closes the connection, which is not to be told from a failing storage."""

    async def hook(tx: Transaction) -> None:
        await tx.connection.close()
        await tx.execute(INSERT, "lost")

    world.hook = hook
    async with opened(path) as engine:
        run = await engine.start(catching())
        other = asyncio.create_task(until_acknowledged(engine))
        said = await run.result(timeout=WAIT_S_MAX)
        assert said.startswith("the storage failed 4 times in a row")
        assert world.begun.count("hooked") == 4
        assert await other == ["other"]


async def until_acknowledged(engine: Engine) -> list[str]:
    """Have an entry added by another run; ask again as long as the storage fails."""
    while True:
        try:
            await engine.run(adding("other"), id="other")
            return await texts(engine)
        except JournalUnavailableError:
            await asyncio.sleep(0)


async def test_others_of_its_transaction_do_not_fail_with_it(path: Path) -> None:
    @durable.workflow(name="test_others_of_its_transaction")
    async def flow(step: Step) -> list[Any]:
        calls = [bank.add("a"), bank.hooked(), bank.add("b")]
        return [
            str(each) if isinstance(each, Exception) else each
            for each in await asyncio.gather(*calls, return_exceptions=True)
        ]

    async def hook(tx: Transaction) -> None:
        await tx.connection.close()

    world.hook = hook
    async with opened(path) as engine:
        run = await engine.start(flow(), id="r")
        first, harmful, last = await run.result(timeout=WAIT_S_MAX)
        assert {first, last} == {1, 2}
        assert "4 times in a row" in harmful
        states = [step.state async for step in run.steps()]
        assert states == [StepState.COMPLETED, StepState.FAILED, StepState.COMPLETED]
        assert sorted(await texts(engine)) == ["a", "b"]


@pytest.mark.parametrize("fault", list(Fault))
async def test_a_storage_that_fails_now_and_then_fails_no_mutation(
    path: Path, disk: Disk, fault: Fault
) -> None:
    async with opened(path) as engine:
        count = disk.calls["commit"]
        disk.faults |= {("commit", count + number): fault for number in range(2, 20, 3)}
        run = await engine.start(three_entries(), id="r")
        assert await run.result(timeout=WAIT_S_MAX) == [1, 2, 3]
        assert disk.outages > 1
        disk.faults.clear()
        assert await texts(engine) == ["a", "b", "c"]


@durable.workflow
async def three_entries(_step: Step) -> list[int]:
    return [await bank.add(text) for text in "abc"]


@pytest.mark.slow
async def test_a_statement_that_a_mutation_leaves_to_itself_is_bounded(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durable.runtime.mutation.ABANDON_AFTER_S", 0.05)

    async def hook(tx: Transaction) -> str:
        await tx.execute(INSERT, "lost")
        try:
            await asyncio.wait_for(tx.fetch_value(ENDLESS), 0.01)
        except TimeoutError:
            return "late"
        return "done"

    @durable.workflow(name="test_a_statement_that_is_left")
    async def flow(step: Step) -> str:
        try:
            return str(await step.run(bank.hooked(), timeout=0.1))
        except TimeoutError as exc:
            return str(exc)

    world.hook = hook
    async with opened(path) as engine:
        assert "left to itself" in await engine.run(flow())
        assert await engine.run(adding("a")) == 1


@pytest.mark.slow
async def test_a_statement_that_a_transaction_leaves_to_itself_is_bounded(
    store: Path | str,
) -> None:
    async with opened(store) as engine:
        with pytest.raises(TransactionError, match="took longer"):
            async with engine.transaction(timeout=0.1) as tx:
                await tx.execute(INSERT, "lost")
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(tx.fetch_value(ENDLESS), 0.01)
        assert await engine.run(adding("a")) == 1


async def test_a_statement_that_is_left_to_itself_and_ends_is_waited_for(path: Path) -> None:
    async with opened(path) as engine:
        async with engine.transaction() as tx:
            for number in range(10):
                adding_one = asyncio.ensure_future(tx.execute(INSERT, str(number)))
                await asyncio.sleep(0)
                adding_one.cancel()
        assert await texts(engine) == [str(number) for number in range(10)]


async def test_a_harmful_transaction_of_a_caller_fails_alone(path: Path) -> None:
    async with opened(path) as engine:
        with pytest.raises((JournalUnavailableError, RunFailed)):
            async with engine.transaction() as tx:
                await tx.connection.close()
                await tx.execute(INSERT, "lost")
        assert await until_acknowledged(engine) == ["other"]
