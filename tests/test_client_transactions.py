"""Transactions of several processes on one file, and what else they write meanwhile."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING, Any

import pytest
from waiting import WAIT_S_MAX, until

import durable
from durable import (
    Engine,
    RunConflictError,
    RunNotFoundError,
    RunState,
    Step,
    Transaction,
    TransactionError,
)
from durable.journal.sqlite import SqliteJournal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("only_noticed")

INSERT = "INSERT INTO entry (text) VALUES (?)"

READS = 20
"""So many take far longer than a write does that waits for nobody."""


@durable.mutation
async def add(tx: Transaction, text: str) -> str:
    await tx.execute(INSERT, text)
    return text


@durable.query
async def count(tx: Transaction) -> int:
    found: int = await tx.fetch_value("SELECT count(*) FROM entry")
    return found


@durable.workflow
async def adding(_step: Step, name: str, times: int) -> int:
    for number in range(times):
        await add(f"{name}{number}")
    return await count()


@durable.workflow
async def idle(_step: Step) -> str:
    return "done"


@asynccontextmanager
async def both(path: Path) -> AsyncIterator[tuple[Engine, Engine]]:
    """Open an owner and a client of one journal, with a table of entries."""
    async with Engine(path, drain_timeout=0) as owner, Engine(path, worker=False) as client:
        async with client.transaction() as tx:
            await tx.execute("CREATE TABLE entry (text TEXT UNIQUE) STRICT")
        yield owner, client


async def result(engine: Engine, run_id: str) -> Any:  # noqa: ANN401
    return await engine.get(run_id).result(timeout=WAIT_S_MAX)


async def texts(engine: Engine) -> set[str]:
    async with engine.transaction() as tx:
        return {row["text"] for row in await tx.fetch_all("SELECT text FROM entry")}


async def test_what_a_client_starts_in_a_transaction_is_there_with_it(path: Path) -> None:
    async with both(path) as (owner, client):
        async with client.transaction() as tx:
            await tx.execute(INSERT, "kept")
            run = await client.start(adding("a", 2), id="r", tx=tx)
        assert await run.result(timeout=WAIT_S_MAX) == 3
        with pytest.raises(LookupError):
            await _start_and_fail(client)
        with pytest.raises(RunNotFoundError):
            await owner.status("s")
        async with client.transaction() as tx:
            with pytest.raises(RunConflictError):
                await client.start(adding("x", 1), id="r", tx=tx)
        assert await texts(owner) == {"kept", "a0", "a1"}


async def _start_and_fail(engine: Engine) -> None:
    async with engine.transaction() as tx:
        await tx.execute(INSERT, "lost")
        await engine.start(adding("b", 1), id="s", tx=tx)
        raise LookupError


async def test_what_is_started_in_a_transaction_without_an_owner_is_taken_up(path: Path) -> None:
    async with both(path):
        pass
    async with Engine(path, worker=False) as client:
        async with client.transaction() as tx:
            await tx.execute(INSERT, "kept")
            await client.start(adding("a", 1), id="r", tx=tx)
        assert (await client.status("r")).state is RunState.PENDING
    async with Engine(path) as owner:
        assert await result(owner, "r") == 2


async def test_mutations_while_others_write(path: Path) -> None:
    """Nothing is lost or done twice, and nobody gets an error."""
    async with both(path) as (owner, client), Engine(path) as standby:

        async def write(engine: Engine, name: str) -> None:
            for number in range(10):
                async with engine.transaction() as tx:
                    await tx.execute(INSERT, f"{name}{number}")
                    await engine.start(adding(f"{name}{number}-", 2), id=f"{name}{number}", tx=tx)
                await engine.start(adding(f"{name}.{number}-", 1), id=f"{name}.{number}")

        await asyncio.gather(write(owner, "o"), write(client, "c"), write(standby, "s"))
        for name in "ocs":
            for number in range(10):
                await result(client, f"{name}{number}")
                await result(client, f"{name}.{number}")
        want = {f"{name}{n}" for name in "ocs" for n in range(10)}
        want |= {f"{name}{n}-{k}" for name in "ocs" for n in range(10) for k in range(2)}
        want |= {f"{name}.{n}-0" for name in "ocs" for n in range(10)}
        assert await texts(owner) == want
    assert await asyncio.to_thread(_check_whole, path) == "ok"


def _check_whole(path: Path) -> str:
    with closing(sqlite3.connect(path)) as db:
        return str(db.execute("PRAGMA integrity_check").fetchone()[0])


@pytest.mark.parametrize("who", ["owner", "client"])
async def test_nobody_else_writes_while_a_transaction_is_open(path: Path, who: str) -> None:
    async with both(path) as engines:
        one, other = engines if who == "owner" else reversed(engines)
        async with one.transaction() as tx:
            await tx.execute(INSERT, "first")
            start = asyncio.create_task(other.start(idle(), id="r"))
            write = asyncio.create_task(texts(other))
            assert other._journal is not None
            for _ in range(READS):  # Reading does not wait.
                assert await other._journal.load_run("r") is None
                assert not start.done()
                assert not write.done()
        await start
        assert await write == {"first"}
        assert await result(other, "r") == "done"


@pytest.mark.parametrize("how", ["cancelled", "too long", "closed"])
async def test_a_transaction_that_comes_to_nothing_keeps_nobody_waiting(
    path: Path, how: str
) -> None:
    async with both(path) as (owner, _):
        client = Engine(path, worker=False, drain_timeout=0)
        await client.__aenter__()
        is_open = asyncio.Event()

        async def hold() -> None:
            async with client.transaction(timeout=0.05 if how == "too long" else 5) as tx:
                try:
                    await tx.execute(INSERT, "lost")
                finally:  # It may be too long already.
                    is_open.set()
                await asyncio.get_running_loop().create_future()

        holding = asyncio.create_task(hold())
        await is_open.wait()
        if how == "cancelled":
            holding.cancel()
        if how == "closed":
            await client.__aexit__(None, None, None)
        assert await texts(owner) == set()
        assert await asyncio.wait_for(owner.run(idle()), WAIT_S_MAX) == "done"
        if how != "closed":
            assert await texts(client) == set()
            await client.__aexit__(None, None, None)
        holding.cancel()
        await asyncio.wait({holding})


async def test_a_standby_takes_over_after_its_own_transaction(path: Path) -> None:
    async with Engine(path, drain_timeout=0) as owner:
        standby = Engine(path)
        async with standby:
            async with standby.transaction() as tx:
                await tx.execute("CREATE TABLE entry (text TEXT UNIQUE) STRICT")
                closing = asyncio.create_task(owner.__aexit__(None, None, None))
                journal: Any = standby._journal
                await closing
                await until(lambda: journal._locks.owns)
                await tx.execute(INSERT, "kept")
                await standby.start(adding("a", 1), id="r", tx=tx)
            assert await result(standby, "r") == 2
        await owner.__aenter__()


async def test_a_client_whose_transaction_cannot_begin_has_an_error_and_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durable.journal.sqlite.BUSY_TIMEOUT_S", 0.05)
    async with both(path) as (owner, client):
        async with owner.transaction() as tx:
            await tx.execute(INSERT, "first")
            with pytest.raises(durable.JournalUnavailableError, match="owned by process"):
                async with client.transaction():
                    pass
        assert await texts(owner) == {"first"}
        await until(lambda: client._runner is not None and not client._runner.outage)
        assert await texts(client) == {"first"}


async def test_a_transaction_of_another_engine_is_refused(path: Path) -> None:
    async with both(path) as (owner, client), owner.transaction() as tx:
        with pytest.raises(TransactionError, match="another engine"):
            await client.start(idle(), tx=tx)


async def test_only_the_owner_removes_what_is_old(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeps: list[bool] = []
    list_finished = SqliteJournal.list_finished

    def sweep(journal: SqliteJournal, before_ms: int, limit: int) -> Any:  # noqa: ANN401
        sweeps.append(journal.is_owner)
        return list_finished(journal, before_ms, limit)

    monkeypatch.setattr(SqliteJournal, "list_finished", sweep)
    async with Engine(path, retention=3600) as owner:
        async with Engine(path, retention=0), Engine(path, worker=False, retention=0) as client:
            await client.run(idle(), id="r")
        assert (await owner.status("r")).state is RunState.COMPLETED
    assert sweeps == [True]
