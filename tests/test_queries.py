"""Queries: one moment of the database, read only, and nobody waits for them."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import aiosqlite
import bank
import pytest
from bank import adding, opened, querying, texts, world
from waiting import WAIT_S_MAX, until

import durable
from durable import (
    Engine,
    RunCanceled,
    RunFailed,
    RunState,
    Step,
    StepKind,
    StepState,
    Transaction,
    TransactionError,
)
from durable.journal.connections import QUERIES_MAX

if TYPE_CHECKING:
    from pathlib import Path

INSERT = "INSERT INTO entry (text) VALUES ('a')"
COUNT = "SELECT count(*) FROM entry"


async def test_a_backup_can_be_made_in_it_of_a_journal_in_a_file(store: Path | str) -> None:
    async with opened(store) as engine, aiosqlite.connect(":memory:") as target:

        async def hook(tx: Transaction) -> None:
            await tx.connection.backup(target)

        world.hook = hook
        await engine.run(adding("there"))
        run = await engine.start(querying())
        if store == "sqlite://":
            with pytest.raises(RunFailed, match="nor of a journal in memory"):
                await run.result(timeout=WAIT_S_MAX)
        else:
            await run.result(timeout=WAIT_S_MAX)
            async with target.execute(COUNT) as cursor:
                assert list(await cursor.fetchall()) == [(1,)]


@pytest.mark.parametrize(
    "statement",
    [
        INSERT,
        "DELETE FROM entry",
        "UPDATE entry SET text = 'b'",
        "CREATE TABLE mine (x)",
        "CREATE TEMP TABLE mine (x)",
        "DROP TABLE entry",
        "PRAGMA query_only = OFF",
        "DELETE FROM durable_run",
        "COMMIT",
    ],
)
async def test_writing_in_it_is_an_error_of_that_step(store: Path | str, statement: str) -> None:
    async def hook(tx: Transaction) -> None:
        await tx.execute(statement)

    world.hook = hook
    async with opened(store) as engine:
        await engine.run(adding("there"))
        run = await engine.start(querying())
        with pytest.raises(RunFailed) as failed:
            await run.result(timeout=WAIT_S_MAX)
        assert isinstance(failed.value.__cause__, TransactionError)
        (step,) = [step async for step in run.steps()]
        assert (step.kind, step.state) == (StepKind.QUERY, StepState.FAILED)
        assert world.begun.count("asking") == 1
        assert await texts(engine) == ["there"]


async def test_it_cannot_start_a_run(store: Path | str) -> None:
    async def hook(tx: Transaction) -> None:
        await engine.start(adding("a"), tx=tx)

    world.hook = hook
    async with opened(store) as engine:
        with pytest.raises(RunFailed, match="only reads"):
            await engine.run(querying())


async def test_it_sees_one_moment_while_others_write(path: Path) -> None:
    """And the others need not wait for it."""
    seen: list[int] = []

    async def hook(tx: Transaction) -> None:
        seen.append(await tx.fetch_value(COUNT))
        await world.may_end.wait()
        seen.append(await tx.fetch_value(COUNT))

    world.hook = hook
    async with opened(path) as engine:
        await engine.run(adding("before"))
        run = await engine.start(querying())
        await until(lambda: seen)
        async with asyncio.timeout(WAIT_S_MAX):
            assert await engine.run(adding("meanwhile")) == 2
            assert len(await texts(engine)) == 2
        assert (await run.status()).state is RunState.RUNNING
        world.may_end.set()
        await run.result(timeout=WAIT_S_MAX)
        assert seen == [1, 1]


async def test_its_moment_is_that_of_its_beginning(path: Path) -> None:
    seen: list[int] = []

    async def hook(tx: Transaction) -> None:
        await world.may_end.wait()
        seen.append(await tx.fetch_value(COUNT))

    world.hook = hook
    async with opened(path) as engine:
        run = await engine.start(querying())
        await until(lambda: world.begun == ["asking"])
        await engine.run(adding("later"))
        world.may_end.set()
        await run.result(timeout=WAIT_S_MAX)
        assert seen == [0]


async def test_it_sees_what_the_steps_before_it_have_written(store: Path | str) -> None:
    @durable.workflow(name="test_it_sees_what_the_steps_before_it_have_written")
    async def flow(step: Step) -> list[list[str]]:
        found: list[list[str]] = []
        for n in range(20):
            await bank.add(f"{n}")
            found.append(await bank.look())
        return found

    async with opened(store) as engine:
        wanted = [[f"{m}" for m in range(n + 1)] for n in range(20)]
        assert await engine.run(flow()) == wanted


async def test_it_sees_nothing_that_is_not_committed(path: Path) -> None:
    seen: list[int] = []

    async def hook(tx: Transaction) -> None:
        seen.append(await tx.fetch_value(COUNT))
        await world.may_end.wait()
        seen.append(await tx.fetch_value(COUNT))

    world.hook = hook
    async with opened(path) as engine:
        run = await engine.start(querying())
        await until(lambda: seen)
        async with engine.transaction() as tx:
            await tx.execute(INSERT)
            world.may_end.set()
            await until(lambda: len(seen) == 2)
        await run.result(timeout=WAIT_S_MAX)
        assert seen == [0, 0]


async def test_several_run_at_once_and_the_others_wait(path: Path) -> None:
    running, most = 0, 0

    async def hook(tx: Transaction) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if len(world.begun) >= QUERIES_MAX:
            world.may_end.set()
        await world.may_end.wait()
        count: int = await tx.fetch_value(COUNT)
        running -= 1
        return count

    world.hook = hook
    async with opened(path) as engine:
        async with asyncio.timeout(WAIT_S_MAX):
            counts = await asyncio.gather(*(engine.run(querying()) for _ in range(20)))
        assert counts == [0] * 20
        assert most == QUERIES_MAX


async def test_it_takes_no_slot(path: Path) -> None:
    async def hook(tx: Transaction) -> int:
        return engine.statistics().running_actions

    world.hook = hook
    async with opened(path, max_parallelism=0) as engine:
        assert await engine.run(querying()) == 0


async def test_it_is_not_retried(store: Path | str) -> None:
    async def hook(tx: Transaction) -> None:
        raise LookupError("mine")

    world.hook = hook

    @durable.workflow(name="test_it_is_not_retried", retry=True)
    async def flow(step: Step) -> str:
        try:
            await step.run(bank.asking(), retry=durable.Retry(initial_backoff=0))
        except LookupError as exc:
            return str(exc.args[0])
        return "nothing raised"

    async with opened(store, retry_actions_by_default=True) as engine:
        assert await engine.run(flow()) == "mine"
        assert world.begun == ["asking"]


async def test_a_wrong_statement_is_the_driver_s_error(store: Path | str) -> None:
    async def hook(tx: Transaction) -> str:
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            await tx.fetch_all("SELECT * FROM nowhere")
        return "caught"

    world.hook = hook
    async with opened(store) as engine:
        assert await engine.run(querying()) == "caught"


async def test_it_knows_its_attempt_and_its_engine(store: Path | str) -> None:
    async def hook(tx: Transaction) -> list[Any]:
        assert Engine.current() is engine
        return [durable.attempt().number, durable.attempt().interruptions]

    world.hook = hook
    async with opened(store) as engine:
        assert await engine.run(querying()) == [1, 0]


async def test_in_a_file_it_may_wait_for_other_runs(path: Path) -> None:
    async def hook(tx: Transaction) -> int:
        return await engine.run(adding("by the query"))

    world.hook = hook
    async with opened(path) as engine:
        assert await engine.run(querying()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("is_in_sql", [False, True])
async def test_one_that_takes_too_long_fails(store: Path | str, *, is_in_sql: bool) -> None:
    endless = (
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
    )

    async def hook(tx: Transaction) -> Any:  # noqa: ANN401
        if is_in_sql:
            return await tx.fetch_value(endless)
        return await asyncio.Event().wait()

    @durable.workflow(name="test_one_that_takes_too_long_fails")
    async def flow(step: Step) -> str:
        try:
            await step.run(bank.asking(), timeout=0.05)
        except TimeoutError:
            return "timed out"
        return "nothing raised"

    world.hook = hook
    async with opened(store) as engine:
        async with asyncio.timeout(WAIT_S_MAX):
            for _ in range(QUERIES_MAX + 1):  # Its connection is given back.
                assert await engine.run(flow()) == "timed out"
            assert await engine.run(adding("a")) == 1


@pytest.mark.parametrize("interrupt", [False, True])
async def test_cancelling_its_run_ends_it(store: Path | str, *, interrupt: bool) -> None:
    ended: list[str] = []

    async def hook(tx: Transaction) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("ended")

    world.hook = hook
    async with opened(store) as engine:
        run = await engine.start(querying())
        await until(lambda: world.begun)
        assert await run.cancel(interrupt=interrupt)
        with pytest.raises(RunCanceled):
            await run.result(timeout=WAIT_S_MAX)
        await until(lambda: ended)


async def test_closing_ends_it_and_the_next_engine_runs_it_again(path: Path) -> None:
    async def hook(tx: Transaction) -> int:
        if len(world.begun) == 1:
            await asyncio.Event().wait()
        return durable.attempt().interruptions

    world.hook = hook
    async with opened(path, drain_timeout=0) as engine:
        run = await engine.start(querying())
        await until(lambda: world.begun)
    async with Engine(path) as engine:
        assert await engine.get(run.id).result(timeout=WAIT_S_MAX) == 1


async def test_its_transaction_is_over_when_it_is(store: Path | str) -> None:
    kept: list[Transaction] = []

    async def hook(tx: Transaction) -> None:
        kept.append(tx)

    world.hook = hook
    async with opened(store) as engine:
        await engine.run(querying())
        with pytest.raises(TransactionError, match="over"):
            await kept[0].fetch_value("SELECT 1")


async def test_a_damaged_table_is_that_step_s_error(path: Path) -> None:
    """Opening the journal again would not mend it, and the runs of others go on."""

    async def hook(tx: Transaction) -> None:
        await tx.fetch_all("SELECT text FROM entry")

    world.hook = hook
    async with opened(path) as engine:
        async with engine.transaction() as tx:
            rows = [(f"{n:0100}",) for n in range(1000)]
            await tx.executemany("INSERT INTO entry (text) VALUES (?)", rows)
            page = await tx.fetch_value("SELECT rootpage FROM sqlite_schema WHERE name = 'entry'")
            size = await tx.fetch_value("PRAGMA page_size")
        await asyncio.to_thread(_damage, path, page, size)
    async with Engine(path) as engine:
        with pytest.raises(RunFailed) as failed:
            await engine.run(querying())
        assert isinstance(failed.value.__cause__, durable.JournalCorruptError)
        assert str(path) in str(failed.value)


def _damage(path: Path, page: int, size: int) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").close()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
