"""``send_event(tx=)``: an event is sent by the commit of a caller's transaction, or not at all."""

# ruff: noqa: PT012  what raises is the block, as a whole

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import TYPE_CHECKING, Any

import bank
import pytest
from bank import INSERT, hooking, opened, querying, texts
from clock import ManualClock
from faults import MONTH_S, Disk, Fault, crashing, once_available
from waiting import WAIT_S_MAX, until, until_open, until_waiting

import durable
from durable import (
    ArgumentError,
    Engine,
    Event,
    EventId,
    JournalUnavailableError,
    RunFailed,
    RunFinishedError,
    RunNotFoundError,
    Step,
    Transaction,
    TransactionError,
)
from durable.runtime.settings import PARK_AFTER_MS

if TYPE_CHECKING:
    from pathlib import Path

PARK_S = 2 * PARK_AFTER_MS / 1000
PAID = Event("paid", int)
BOTH = pytest.mark.parametrize("fault", list(Fault))


@durable.workflow
async def collecting(step: Step, count: int) -> list[Any]:
    return [await step.wait_event("paid") for _ in range(count)]


@durable.workflow
async def in_time(step: Step) -> Any:  # noqa: ANN401
    return await step.wait_event("paid", timeout=MONTH_S)


async def test_an_event_is_sent_by_the_commit_of_the_caller_s_rows(store: Path | str) -> None:
    async with opened(store) as engine:
        run = await engine.start(collecting(1))
        ended = asyncio.create_task(run.result(timeout=WAIT_S_MAX), context=Context())
        async with engine.transaction() as tx:
            await tx.execute(INSERT, "order")
            event_id = await engine.send_event(run.id, PAID, 500, tx=tx)
            assert isinstance(event_id, EventId)
            assert await tx.fetch_value("SELECT count(*) FROM entry") == 1
            assert not ended.done()
        assert await ended == [500]
        assert [step.event_id async for step in run.steps()] == [str(event_id)]
        assert await texts(engine) == ["order"]


async def test_an_event_vanishes_with_the_caller_s_rows(store: Path | str) -> None:
    async with opened(store) as engine:
        run = await engine.start(collecting(1))
        with pytest.raises(LookupError):
            async with engine.transaction() as tx:
                await tx.execute(INSERT, "order")
                event_id = await run.send_event(PAID, 1, tx=tx)
                raise LookupError
        assert await texts(engine) == []
        with pytest.raises(durable.EventNotFoundError):
            await engine.send_event_id(event_id, 1)
        await run.send_event(PAID, 2)
        assert await run.result(timeout=WAIT_S_MAX) == [2]


async def test_a_run_that_left_memory_is_woken_by_the_commit(path: Path) -> None:
    clock = ManualClock()
    engine = Engine(path)
    clock.install(engine)
    async with engine:
        run = await engine.start(collecting(1))
        await until_open(run)
        clock.advance(PARK_S)
        await until(lambda: engine.statistics().live_runs == 0)
        async with engine.transaction() as tx:
            await run.send_event(PAID, 7, tx=tx)
        assert await run.result(timeout=WAIT_S_MAX) == [7]


async def test_a_run_of_the_same_transaction_gets_it(store: Path | str) -> None:
    async with opened(store) as engine:
        async with engine.transaction() as tx:
            run = await engine.start(collecting(2), tx=tx)
            await run.send_event("paid", 1, tx=tx)
            await run.send_event("paid", 2, tx=tx)
        assert await run.result(timeout=WAIT_S_MAX) == [1, 2]


async def test_events_in_and_outside_of_transactions_keep_the_order_of_sending(
    store: Path | str,
) -> None:
    async with opened(store) as engine:
        run = await engine.start(collecting(4))
        await run.send_event("paid", 1)
        async with engine.transaction() as tx:
            await run.send_event("paid", 2, tx=tx)
            await run.send_event("paid", 3, tx=tx)
        await run.send_event("paid", 4)
        assert await run.result(timeout=WAIT_S_MAX) == [1, 2, 3, 4]


async def test_one_sent_before_the_commit_is_in_time(store: Path | str) -> None:
    async with opened(store) as engine:
        run = await engine.start(in_time())
        async with engine.transaction() as tx:
            await run.send_event("paid", "yes", tx=tx)
        assert await run.result(timeout=WAIT_S_MAX) == "yes"


async def test_what_cannot_be_sent_leaves_the_transaction_as_it_was(store: Path | str) -> None:
    async with opened(store, max_payload=1000) as engine:
        await engine.run(collecting(0), id="over")
        run = await engine.start(collecting(1), id="waits")
        send: Any = engine.send_event
        async with engine.transaction() as tx:
            with pytest.raises(RunNotFoundError, match="nowhere"):
                await engine.send_event("nowhere", "paid", tx=tx)
            with pytest.raises(RunFinishedError, match="over"):
                await engine.send_event("over", "paid", tx=tx)
            with pytest.raises(ArgumentError, match="paid"):
                await send("waits", PAID, "much", tx=tx)
            with pytest.raises(durable.PayloadTooLarge):
                await engine.send_event("waits", "paid", "x" * 2000, tx=tx)
            with pytest.raises(TypeError, match="tx"):
                await send("waits", PAID, 1, tx="tx")
            await tx.execute(INSERT, "kept")
            await run.send_event(PAID, 1, tx=tx)
        assert await run.result(timeout=WAIT_S_MAX) == [1]
        assert await texts(engine) == ["kept"]


async def test_a_transaction_that_is_over_or_another_s_sends_nothing(
    path: Path, tmp_path: Path
) -> None:
    async with opened(path) as engine, Engine(tmp_path / "other.db") as other:
        run = await engine.start(collecting(1))
        async with engine.transaction() as tx:
            pass
        with pytest.raises(TransactionError, match="over"):
            await run.send_event(PAID, 1, tx=tx)
        async with other.transaction() as foreign:
            with pytest.raises(TransactionError, match="another engine's"):
                await run.send_event(PAID, 2, tx=foreign)
        await run.send_event(PAID, 3)
        assert await run.result(timeout=WAIT_S_MAX) == [3]


async def test_a_query_sends_nothing(store: Path | str) -> None:
    async with opened(store) as engine:
        waiting = await engine.start(collecting(1))

        async def send(tx: Transaction) -> None:
            await waiting.send_event(PAID, 1, tx=tx)

        bank.world.hook = send
        with pytest.raises(RunFailed) as failed:
            await engine.run(querying())
        assert isinstance(failed.value.__cause__, TransactionError)
        assert "reads" in str(failed.value.__cause__)


async def test_a_mutation_sends_with_its_own_writes(store: Path | str) -> None:
    """One that raises has sent nothing."""
    async with opened(store) as engine:
        waiting = await engine.start(collecting(1))

        async def send(tx: Transaction) -> None:
            await tx.execute(INSERT, "order")
            await waiting.send_event(PAID, len(bank.world.begun), tx=tx)
            if len(bank.world.begun) == 1:
                raise LookupError

        bank.world.hook = send
        with pytest.raises(RunFailed):
            await engine.run(hooking())
        await engine.run(hooking())
        assert await waiting.result(timeout=WAIT_S_MAX) == [2]
        assert await texts(engine) == ["order"]


async def test_a_cancel_in_the_transaction_s_time_comes_after_the_event(path: Path) -> None:
    """The event was sent to a run that was not over; it went with the run."""
    async with opened(path) as engine:
        run = await engine.start(collecting(1))
        await until_open(run)
        async with engine.transaction() as tx:
            cancelling = asyncio.create_task(run.cancel(), context=Context())
            await asyncio.sleep(0)
            await run.send_event(PAID, 1, tx=tx)
        assert await cancelling is True
        with pytest.raises(durable.RunCanceled):
            await run.result(timeout=WAIT_S_MAX)
        with pytest.raises(RunFinishedError):
            await run.send_event(PAID, 2)


async def test_what_a_client_s_transaction_sends_reaches_the_owner(path: Path) -> None:
    async with opened(path) as engine, Engine(path, worker=False) as client:
        run = await engine.start(collecting(2))
        await until_open(run)
        async with client.transaction() as tx:
            await tx.execute(INSERT, "order")
            await client.send_event(run.id, PAID, 1, tx=tx)
        await until_waiting(run, 1)
        with pytest.raises(LookupError):
            async with client.transaction() as tx:
                await client.send_event(run.id, PAID, 2, tx=tx)
                raise LookupError
        await run.send_event(PAID, 3)
        assert await run.result(timeout=WAIT_S_MAX) == [1, 3]
        assert await texts(engine) == ["order"]


async def test_it_survives_a_crash_after_the_commit(path: Path) -> None:
    async with crashing(path) as engine:
        await bank.create(engine)
        await engine.start(collecting(1), id="r")
        engine.set_max_parallelism(0)
        async with engine.transaction() as tx:
            await tx.execute(INSERT, "order")
            await engine.send_event("r", PAID, 1, tx=tx)
    async with opened(path) as engine:
        assert await engine.get("r").result(timeout=WAIT_S_MAX) == [1]
        assert await texts(engine) == ["order"]


@BOTH
@pytest.mark.parametrize("commit", range(1, 9))
async def test_rows_and_event_are_one_whatever_commit_fails(
    path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, commit: int
) -> None:
    """It is asked again until it is acknowledged; whether it was done before is read from a row."""
    disk = Disk()
    disk.install(monkeypatch)
    async with opened(path) as engine:
        disk.faults["commit", disk.calls["commit"] + commit] = fault

        async def pay() -> None:
            async with engine.transaction() as tx:
                if await tx.fetch_value("SELECT 1 FROM entry WHERE text = 'paid'") is None:
                    await tx.execute(INSERT, "paid")
                    await engine.send_event("r", PAID, 1, tx=tx)

        run = await once_available(disk, lambda: engine.start(collecting(2), id="r"))
        await once_available(disk, pay)
        await until_waiting_in_outages(disk, engine)
        with pytest.raises(TimeoutError):
            await once_available(disk, lambda: run.result(timeout=0))
        await once_available(disk, run.cancel)
        assert [step.result async for step in run.steps()] == [1, None]


async def until_waiting_in_outages(disk: Disk, engine: Engine) -> None:
    await once_available(disk, lambda: until_waiting(engine.get("r"), 1))


async def test_a_failing_disk_fails_the_transaction(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk()
    disk.install(monkeypatch)
    async with opened(path) as engine:
        run = await engine.start(collecting(1))
        await until_open(run)
        disk.faults["commit", disk.calls["commit"] + 1] = Fault.LOST
        with pytest.raises(JournalUnavailableError):
            async with engine.transaction() as tx:
                await run.send_event(PAID, 1, tx=tx)
        await disk.reopened.wait()
        await once_available(disk, lambda: run.send_event(PAID, 2))
        assert await run.result(timeout=WAIT_S_MAX) == [2]
