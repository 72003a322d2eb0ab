"""``engine.transaction()`` and what a ``Transaction`` offers, and refuses."""

# ruff: noqa: PT012  what raises is the block, as a whole

from __future__ import annotations

import asyncio
import sqlite3
from contextvars import Context
from typing import TYPE_CHECKING

import aiosqlite
import bank
import pytest
from bank import INSERT, adding, create, opened, texts
from cycles import WAYS, Way, sweep
from waiting import WAIT_S_MAX, until

import durable
from durable import (
    Engine,
    EngineClosedError,
    NonDeterminismError,
    RunConflictError,
    RunFailed,
    RunNotFoundError,
    RunState,
    Step,
    Transaction,
    TransactionError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

HOUR_S = 3600.0

IN_MEMORY = "sqlite://"


@durable.workflow
async def nothing(step: Step, n: int) -> int:
    return n


# --- what it offers ------------------------------------------------------------------------------


async def test_rows_answer_to_column_name_and_to_index(store: Path | str) -> None:
    async with opened(store) as engine, engine.transaction() as tx:
        assert await tx.execute(INSERT, "a") == 1
        assert await tx.executemany(INSERT, [("b",), ("c",)]) == 2
        row = await tx.fetch_one("SELECT id, text FROM entry WHERE text = ?", "b")
        assert row is not None
        assert (row["id"], row["text"], row[0], row[1]) == (2, "b", 2, "b")
        assert (tuple(row), dict(row), len(row)) == ((2, "b"), {"id": 2, "text": "b"}, 2)
        assert repr(row) == "<Row id=2, text='b'>"
        with pytest.raises(KeyError, match="'id', 'text'"):
            row["name"]
        rows = await tx.fetch_all("SELECT id, text FROM entry ORDER BY id")
        assert [each["text"] for each in rows] == ["a", "b", "c"]
        assert rows[1] == row
        assert await tx.fetch_value("SELECT count(*) FROM entry") == 3


async def test_no_row_is_none(store: Path | str) -> None:
    async with opened(store) as engine, engine.transaction() as tx:
        assert await tx.fetch_one("SELECT * FROM entry") is None
        assert await tx.fetch_value("SELECT text FROM entry") is None
        assert await tx.fetch_all("SELECT * FROM entry") == []
        assert await tx.execute("UPDATE entry SET text = 'b'") == 0


async def test_values_are_given_by_place_or_by_name(store: Path | str) -> None:
    async with opened(store) as engine, engine.transaction() as tx:
        await tx.execute("INSERT INTO entry (id, text) VALUES (:id, :text)", {"id": 7, "text": "x"})
        await tx.executemany("INSERT INTO entry (text) VALUES (:text)", [{"text": "y"}])
        assert await tx.fetch_value("SELECT text FROM entry WHERE id = ?", 7) == "x"
        with pytest.raises(TypeError, match="argument of its own"):
            await tx.execute(INSERT, ("z",))


async def test_what_is_written_returns_rows_at_wish(store: Path | str) -> None:
    async with opened(store) as engine:
        async with engine.transaction() as tx:
            assert await tx.fetch_value(f"{INSERT} RETURNING id", "a") == 1
            returned = "INSERT INTO entry (text) VALUES ('b'), ('c') RETURNING text"
            assert [row[0] for row in await tx.fetch_all(returned)] == ["b", "c"]
            first = "INSERT INTO entry (text) VALUES ('d'), ('e') RETURNING text"
            assert await tx.fetch_value(first) == "d"
            assert await tx.execute(f"{INSERT} RETURNING id", "f") == 1
        assert await texts(engine) == ["a", "b", "c", "d", "e", "f"]


async def test_the_driver_s_connection_is_there(store: Path | str) -> None:
    async with opened(store) as engine:
        async with engine.transaction() as tx:
            async with tx.connection.execute(INSERT, ("a",)) as cursor:
                assert cursor.rowcount == 1
            for end in (tx.connection.commit, tx.connection.rollback):
                with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
                    await end()
        with pytest.raises(TransactionError, match="over"):
            _ = tx.connection
        assert await texts(engine) == ["a"]


async def test_a_backup_that_would_wait_for_its_own_transaction_is_refused(
    store: Path | str,
) -> None:
    async with opened(store) as engine, aiosqlite.connect(":memory:") as target:
        async with engine.transaction() as tx:
            with pytest.raises(sqlite3.OperationalError, match="make it in a query"):
                await tx.connection.backup(target)
            await tx.execute(INSERT, "a")
        assert await texts(engine) == ["a"]


async def test_it_commits_at_the_end_and_rolls_back_when_the_block_raises(
    store: Path | str,
) -> None:
    async with opened(store) as engine:
        async with engine.transaction() as tx:
            await tx.execute(INSERT, "kept")
        with pytest.raises(LookupError, match="mine"):
            async with engine.transaction() as tx:
                await tx.execute(INSERT, "lost")
                raise LookupError("mine")
        assert await texts(engine) == ["kept"]


async def test_what_is_committed_outlives_the_engine(path: Path) -> None:
    async with opened(path) as engine, engine.transaction() as tx:
        await tx.execute(INSERT, "a")
    async with Engine(path) as engine:
        assert await texts(engine) == ["a"]


async def test_a_wrong_statement_fails_alone(store: Path | str) -> None:
    """The caller may go on: only what it has raised is undone."""
    async with opened(store) as engine:
        async with engine.transaction() as tx:
            await tx.execute(INSERT, "a")
            with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
                await tx.execute("INSERT INTO entry (text) VALUES ('b'), ('a')")
            with pytest.raises(sqlite3.OperationalError, match="no such table"):
                await tx.fetch_all("SELECT * FROM nowhere")
            with pytest.raises(sqlite3.ProgrammingError):
                await tx.execute(INSERT)
            await tx.execute(INSERT, "c")
        assert await texts(engine) == ["a", "c"]


# --- what it refuses -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        *((sql, "ended by its scope") for sql in ("COMMIT", "ROLLBACK", "BEGIN", "END")),
        ("BEGIN IMMEDIATE", "ended by its scope"),
        ("commit -- quickly", "ended by its scope"),
        ("SAVEPOINT mine", "ended by its scope"),
        ("RELEASE durable_part", "ended by its scope"),
        ("ROLLBACK TO durable_part", "ended by its scope"),
        ("PRAGMA synchronous = OFF", "cannot be set"),
        ("PRAGMA user_version = 7", "cannot be set"),
        ("ATTACH ':memory:' AS other", "attach"),
        ("DELETE FROM durable_run", "journal's own"),
        ("UPDATE durable_owner SET epoch = 0", "journal's own"),
        ("INSERT INTO durable_owner VALUES (2, 2)", "journal's own"),
        ("DROP TABLE durable_step", "journal's own"),
        ("ALTER TABLE durable_run ADD COLUMN mine", "journal's own"),
        ("CREATE TABLE Durable_mine (x)", "journal's own"),
        ("CREATE INDEX mine ON durable_run (name)", "journal's own"),
        ("DROP INDEX durable_run_due", "journal's own"),
        (
            "CREATE TRIGGER mine AFTER INSERT ON durable_run BEGIN SELECT 1; END",
            "journal's own",
        ),
    ],
)
async def test_what_would_harm_the_journal_is_refused(
    store: Path | str, statement: str, why: str
) -> None:
    """It is an error of that statement alone, and says what to do."""
    async with opened(store) as engine:
        async with engine.transaction() as tx:
            await tx.execute(INSERT, "a")
            for _ in range(2):
                with pytest.raises(TransactionError, match=why):
                    await tx.execute(statement)
            await tx.execute(INSERT, "b")
        assert await texts(engine) == ["a", "b"]
        assert await engine.run(nothing(1)) == 1


async def test_tables_may_be_made_and_changed(store: Path | str) -> None:
    async with opened(store) as engine:
        async with engine.transaction() as tx:
            await tx.execute("CREATE TABLE mine (durable_x TEXT)")
            await tx.execute("INSERT INTO mine VALUES ('a')")
            await tx.execute("UPDATE mine SET durable_x = 'b'")
            await tx.execute("ALTER TABLE mine RENAME COLUMN durable_x TO y")
            await tx.execute("ALTER TABLE mine RENAME TO yours")
            await tx.execute("CREATE INDEX yours_y ON yours (y)")
            columns = await tx.fetch_all("PRAGMA table_info(yours)")
            assert [column["name"] for column in columns] == ["y"]
            await tx.execute("DROP TABLE entry")
        assert await engine.run(nothing(1)) == 1
        async with engine.transaction() as tx:
            assert await tx.fetch_value("SELECT y FROM yours") == "b"


async def test_a_trigger_may_not_write_the_journal_either(path: Path) -> None:
    async with opened(path) as engine, engine.transaction() as tx:
        await tx.execute(
            "CREATE TRIGGER sly AFTER INSERT ON entry BEGIN DELETE FROM durable_run; END"
        )
        with pytest.raises(TransactionError, match="journal's own"):
            await tx.execute(INSERT, "a")


@pytest.mark.parametrize("is_caught", [False, True])
async def test_a_statement_that_ends_the_transaction_fails_all_of_it(
    store: Path | str, *, is_caught: bool
) -> None:
    """Going on would write outside of any transaction."""
    async with opened(store) as engine:
        await engine.run(adding("there"))
        with pytest.raises(TransactionError if is_caught else sqlite3.IntegrityError):
            async with engine.transaction() as tx:
                await tx.execute(INSERT, "a")
                try:
                    await tx.execute("INSERT OR ROLLBACK INTO entry (text) VALUES ('there')")
                except sqlite3.IntegrityError:
                    if not is_caught:
                        raise
                with pytest.raises(TransactionError, match="ROLLBACK"):
                    await tx.execute(INSERT, "b")
        assert await texts(engine) == ["there"]


async def test_it_is_over_after_its_block(store: Path | str) -> None:
    async with opened(store) as engine:
        async with engine.transaction() as tx:
            assert repr(tx) == "<Transaction open>"
        assert repr(tx) == "<Transaction over>"
        for ask in (tx.execute, tx.fetch_one, tx.fetch_all, tx.fetch_value):
            with pytest.raises(TransactionError, match="over"):
                await ask("SELECT 1")
        with pytest.raises(TransactionError, match="over"):
            await tx.executemany(INSERT, [("a",)])
        with pytest.raises(TransactionError, match="over"):
            await engine.start(nothing(1), tx=tx)


async def test_the_connection_does_nothing_after_the_block(path: Path) -> None:
    async with opened(path) as engine:
        async with engine.transaction() as tx:
            connection = tx.connection
        with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
            await connection.execute("INSERT INTO entry (text) VALUES ('stray')")
        assert await texts(engine) == []


async def test_calls_that_would_wait_for_the_transaction_are_refused_in_it(
    store: Path | str,
) -> None:
    async with opened(store) as engine:
        run = await engine.start(nothing(1), run_after=HOUR_S)
        async with engine.transaction():
            calls: list[Callable[[], Awaitable[object]]] = [
                lambda: engine.start(nothing(2)),
                lambda: engine.run(nothing(2)),
                run.result,
                run.cancel,
                lambda: engine.cleanup(run.id),
                lambda: engine.transaction().__aenter__(),
            ]
            for call in calls:
                with pytest.raises(TransactionError, match="would wait"):
                    await call()
        assert await engine.run(nothing(3)) == 3


async def test_reading_the_journal_in_it_sees_what_is_committed(path: Path) -> None:
    async with opened(path) as engine:
        run = await engine.start(nothing(1), run_after=HOUR_S)
        async with engine.transaction() as tx:
            await engine.start(nothing(2), id="mine", tx=tx)
            assert (await run.status()).state is RunState.PENDING
            with pytest.raises(RunNotFoundError):
                await engine.status("mine")


async def test_in_memory_reading_waits_for_the_transaction(path: Path) -> None:
    async with opened(IN_MEMORY) as engine:
        async with engine.transaction() as tx:
            reading = asyncio.create_task(engine.status("mine"), context=Context())
            with pytest.raises(TransactionError, match="would wait"):
                await engine.status("mine")
            await engine.start(nothing(2), id="mine", tx=tx)
            assert not reading.done()
        assert (await reading).id == "mine"


async def test_a_task_that_outlives_the_transaction_may_call(path: Path) -> None:
    async with opened(path) as engine:
        may_start = asyncio.Event()

        async def later() -> int:
            await may_start.wait()
            return await engine.run(nothing(4))

        async with engine.transaction():
            task = asyncio.create_task(later())
        may_start.set()
        assert await task == 4


async def test_two_engines_have_a_transaction_each(path: Path, tmp_path: Path) -> None:
    async with opened(path) as one, opened(tmp_path / "two.db") as two:
        async with one.transaction() as first, two.transaction() as second:
            await first.execute(INSERT, "one")
            await second.execute(INSERT, "two")
            await two.start(nothing(1), tx=second)
            with pytest.raises(TransactionError, match="another engine"):
                await two.start(nothing(2), tx=first)
        async with one.transaction():
            assert await two.run(nothing(5)) == 5
        assert (await texts(one), await texts(two)) == (["one"], ["two"])


async def test_a_body_has_no_transaction(path: Path) -> None:
    @durable.workflow(name="test_a_body_has_no_transaction")
    async def sly(step: Step) -> None:
        async with Engine.current().transaction():
            pass

    async with Engine(path) as engine:
        with pytest.raises(RunFailed) as failed:
            await engine.run(sly())
        assert isinstance(failed.value.__cause__, durable.StepFailed | NonDeterminismError)
        assert "action" in str(failed.value)


async def test_options_are_checked(path: Path) -> None:
    engine = Engine(path)
    with pytest.raises(EngineClosedError, match="open engine"):
        async with engine.transaction():
            pass
    async with engine:
        with pytest.raises(ValueError, match="more than 0"):
            async with engine.transaction(timeout=0):
                pass
        with pytest.raises(TypeError, match="tx="):
            await engine.start(nothing(1), tx=engine)  # type: ignore[arg-type]


# --- turns ---------------------------------------------------------------------------------------


async def test_transactions_take_turns_in_order(store: Path | str) -> None:
    async with opened(store) as engine:

        async def write(text: str) -> None:
            async with engine.transaction() as tx:
                await tx.execute(INSERT, f"{text} begins")
                await asyncio.sleep(0)
                await tx.execute(INSERT, f"{text} ends")

        await asyncio.gather(*(write(text) for text in "abc"))
        wanted = [f"{text} {what}" for text in "abc" for what in ("begins", "ends")]
        assert await texts(engine) == wanted


async def test_runs_go_on_between_transactions(path: Path) -> None:
    async with opened(path) as engine:

        async def write(text: str) -> None:
            async with engine.transaction() as tx:
                await tx.execute(INSERT, text)

        texts_ = [f"t{n}" for n in range(20)]
        runs = [f"r{n}" for n in range(20)]
        await asyncio.gather(
            *(write(text) for text in texts_), *(engine.run(adding(text)) for text in runs)
        )
        assert sorted(await texts(engine)) == sorted(texts_ + runs)


@pytest.mark.slow
async def test_one_that_takes_too_long_is_rolled_back(store: Path | str) -> None:
    """Nothing is committed while it is open: it must not stand in the way for ever."""
    async with opened(store) as engine:
        with pytest.raises(TransactionError, match=r"longer than 0.05 s"):
            async with engine.transaction(timeout=0.05) as tx:
                await tx.execute(INSERT, "lost")
                assert await engine_is_free(engine)
                with pytest.raises(TransactionError, match="longer than"):
                    await tx.execute(INSERT, "more")
        with pytest.raises(LookupError):
            async with engine.transaction(timeout=0.05) as tx:
                await engine_is_free(engine)
                raise LookupError
        assert await texts(engine) == []


async def engine_is_free(engine: Engine) -> bool:
    """Wait until a run gets through that asks from elsewhere."""
    task = asyncio.create_task(engine.run(nothing(1)), context=Context())
    async with asyncio.timeout(WAIT_S_MAX):
        return await task == 1


@pytest.mark.slow
async def test_a_statement_that_takes_too_long_is_interrupted(store: Path | str) -> None:
    endless = (
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
    )
    async with opened(store) as engine:
        with pytest.raises(TransactionError):
            async with engine.transaction(timeout=0.05) as tx:
                await tx.execute(INSERT, "lost")
                await tx.fetch_all(endless)
        async with asyncio.timeout(WAIT_S_MAX):
            assert await texts(engine) == []


async def test_closing_waits_for_an_open_transaction(path: Path) -> None:
    async with opened(path) as engine:
        begun, may_end = asyncio.Event(), asyncio.Event()

        async def write() -> None:
            async with engine.transaction() as tx:
                begun.set()
                await may_end.wait()
                await tx.execute(INSERT, "late")

        task = asyncio.create_task(write())
        await begun.wait()
        asyncio.get_running_loop().call_soon(may_end.set)
    await task
    async with Engine(path) as engine:
        assert await texts(engine) == ["late"]


async def test_one_that_outlasts_the_closing_is_rolled_back(path: Path) -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()
    async with opened(path, drain_timeout=0) as engine:

        async def write() -> None:
            async with engine.transaction() as tx:
                await tx.execute(INSERT, "lost")
                begun.set()
                await may_end.wait()
                with pytest.raises(TransactionError, match="closed"):
                    await tx.execute(INSERT, "more")

        async def wait_in_vain() -> None:
            async with engine.transaction():
                pass

        tasks = [asyncio.create_task(write()), asyncio.create_task(wait_in_vain())]
        await begun.wait()
    may_end.set()
    for error in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(error, EngineClosedError)
    async with Engine(path) as engine:
        assert await texts(engine) == []


# --- cancelled callers ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("place", ["file", "memory"])
async def test_a_caller_may_be_cancelled_at_any_moment(path: Path, way: Way, place: str) -> None:
    """It has written all or nothing, and the next one gets its turn."""
    async with opened(path if place == "file" else IN_MEMORY) as engine:

        async def prepare(run_id: str) -> Callable[[], Awaitable[object]]:
            async def write() -> None:
                async with engine.transaction() as tx:
                    await tx.execute(INSERT, f"{run_id} 1")
                    await engine.start(nothing(1), id=run_id, tx=tx)
                    await tx.execute(INSERT, f"{run_id} 2")

            return write

        async def check(run_id: str) -> None:
            async with asyncio.timeout(WAIT_S_MAX), engine.transaction() as tx:
                found = await tx.fetch_all(
                    "SELECT text FROM entry WHERE text LIKE ?", f"{run_id} %"
                )
            assert len(found) in (0, 2)
            if found:
                assert await engine.get(run_id).result(timeout=WAIT_S_MAX) == 1
            else:
                with pytest.raises(RunNotFoundError):
                    await engine.status(run_id)

        await sweep(way, prepare, check)


# --- starts within -------------------------------------------------------------------------------


async def test_a_start_is_committed_with_the_caller_s_rows(store: Path | str) -> None:
    async with opened(store) as engine:
        async with engine.transaction() as tx:
            await tx.execute(INSERT, "order")
            run = await engine.start(adding("by the run"), id="r", tx=tx)
            assert run.id == "r"
            assert bank.world.begun == []
        assert await run.result(timeout=WAIT_S_MAX) == 2
        assert await texts(engine) == ["order", "by the run"]


async def test_a_start_vanishes_with_the_caller_s_rows(store: Path | str) -> None:
    async with opened(store) as engine:
        with pytest.raises(LookupError):
            async with engine.transaction() as tx:
                await tx.execute(INSERT, "order")
                run = await engine.start(adding("by the run"), tx=tx)
                raise LookupError
        with pytest.raises(RunNotFoundError):
            await run.result(timeout=WAIT_S_MAX)
        assert await texts(engine) == []
        assert bank.world.begun == []


async def test_a_start_within_knows_its_id(store: Path | str) -> None:
    async with opened(store) as engine:
        await engine.run(nothing(1), id="there")
        async with engine.transaction() as tx:
            assert (await engine.start(nothing(1), id="there", tx=tx)).id == "there"
            with pytest.raises(RunConflictError, match="there"):
                await engine.start(nothing(2), id="there", tx=tx)
            await engine.start(nothing(3), id="new", tx=tx)
            await engine.start(nothing(3), id="new", tx=tx)
            with pytest.raises(RunConflictError, match="new"):
                await engine.start(adding("x"), id="new", tx=tx)
            await tx.execute(INSERT, "kept")
        assert await engine.get("new").result(timeout=WAIT_S_MAX) == 3
        assert await engine.run(nothing(3), id="new") == 3
        assert await texts(engine) == ["kept"]


async def test_starts_of_one_id_in_and_outside_of_a_transaction_are_one_run(path: Path) -> None:
    """The one outside waits for its commit behind the transaction, with the body begun."""
    async with opened(path) as engine:
        for n in range(10):
            run_id = f"r{n}"
            async with engine.transaction() as tx:
                outside = asyncio.create_task(
                    engine.run(adding(run_id), id=run_id), context=Context()
                )
                for _ in range(n):
                    await asyncio.sleep(0)
                await engine.start(adding(run_id), id=run_id, tx=tx)
            async with asyncio.timeout(WAIT_S_MAX):
                assert await outside == n + 1
                assert await engine.get(run_id).result() == n + 1
        assert len(await texts(engine)) == 10


async def test_a_delayed_start_within_waits_for_its_time(path: Path) -> None:
    async with opened(path) as engine:
        async with engine.transaction() as tx:
            run = await engine.start(nothing(1), run_after=HOUR_S, tx=tx)
        assert (await run.status()).state is RunState.PENDING
        async with engine.transaction() as tx:
            run = await engine.start(nothing(2), run_after=0.01, tx=tx)
        assert await run.result(timeout=WAIT_S_MAX) == 2


async def test_a_mutation_s_function_works_in_a_transaction(store: Path | str) -> None:
    async with opened(store) as engine:
        async with engine.transaction() as tx:
            assert await bank.add.fn(tx, "a") == 1
            assert await bank.look.fn(tx) == ["a"]
        assert await texts(engine) == ["a"]


async def test_the_function_of_a_mutation_has_no_attempt_outside_of_steps(path: Path) -> None:
    async def ask(tx: Transaction) -> None:
        durable.attempt()

    async with opened(path) as engine:
        with pytest.raises(durable.NotInWorkflowError, match="attempt"):
            async with engine.transaction() as tx:
                await ask(tx)


async def test_an_action_may_have_a_transaction(path: Path) -> None:
    @durable.action(name="test_an_action_may_have_a_transaction")
    async def write() -> None:
        async with Engine.current().transaction() as tx:
            await tx.execute(INSERT, "by the action")

    @durable.workflow(name="test_an_action_may_have_a_transaction")
    async def flow(step: Step) -> None:
        await write()

    async with Engine(path) as engine:
        await create(engine)
        await engine.run(flow())
        assert await texts(engine) == ["by the action"]
        await until(lambda: engine.statistics().running_actions == 0)
