"""Mutations that are called at once: nobody can tell them from those that are called in turn."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from typing import TYPE_CHECKING, Any

import anyio
import bank
import pytest
from bank import INSERT, opened, texts, world
from interpreters import run_python
from waiting import WAIT_S_MAX, until

import durable
from durable import Engine, EngineClosedError, RunFailed, Step, StepState, Transaction
from durable.journal.connections import Writing
from durable.journal.sqlite import SqliteJournal
from durable.runtime.rounds import MutationRound

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from durable.journal.rounds import StatementRound

    Doing = Callable[[Transaction, str], Awaitable[Any]]

HOW = "durable.runtime.rounds.TRUSTED_AFTER"
FROM_THE_FIRST, NEVER = 0, 1_000_000


class Rounds:
    """The rounds that were made: of how many mutations, and which came to their ends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.whole: list[int] = []
        self.broken: list[int] = []
        run = MutationRound.run

        async def noting(together: MutationRound, writing: Writing) -> bool:
            is_whole = await run(together, writing)
            (self.whole if is_whole else self.broken).append(len(together.jobs))
            return is_whole

        monkeypatch.setattr(MutationRound, "run", noting)


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> Rounds:
    """Have mutations called at once, from the first one on."""
    bank.new_world()
    monkeypatch.setattr(HOW, FROM_THE_FIRST)
    return Rounds(monkeypatch)


@durable.mutation
async def put(tx: Transaction, text: str) -> int:
    """Do what is expected: one statement."""
    return await tx.execute(INSERT, text)


@durable.mutation
async def stray(tx: Transaction, text: str) -> Any:  # noqa: ANN401
    """Do what is not."""
    world.begun.append(text)
    return await world.hook(tx, text)


@durable.workflow
async def putting(step: Step, names: list[str]) -> list[Any]:
    """Write all at once, those that begin with an x in another way; return what became of it."""
    calls = [stray(name) if name.startswith("x") else put(name) for name in names]
    results = await asyncio.gather(*calls, return_exceptions=True)
    return [
        f"{type(each).__name__}: {each}".split("0x")[0] if isinstance(each, Exception) else each
        for each in results
    ]


# --- what is expected ----------------------------------------------------------------------------


async def test_they_share_a_call_and_a_commit(store: Path | str, rounds: Rounds) -> None:
    names = [str(number) for number in range(50)]
    async with opened(store) as engine:
        before = engine.statistics().commits
        run = await engine.start(putting(names))
        assert await run.result(timeout=WAIT_S_MAX) == [1] * 50
        assert await texts(engine) == names
        assert rounds.whole == [50]
        assert rounds.broken == []
        # The start with the issue of all; all outcomes but the first; what the body makes of them.
        assert engine.statistics().commits - before <= 5
        states = {step.state async for step in run.steps()}
        assert states == {StepState.COMPLETED}


async def test_a_definition_has_to_be_known_for_that(
    path: Path, monkeypatch: pytest.MonkeyPatch, rounds: Rounds
) -> None:
    monkeypatch.setattr(HOW, 3)
    async with opened(path) as engine:
        assert await engine.run(putting([*"abcdefgh"])) == [1] * 8
        assert rounds.whole == [5]


async def test_a_run_s_mutations_cost_one_commit_each(path: Path, rounds: Rounds) -> None:
    @durable.workflow(name="test_a_run_s_mutations")
    async def flow(step: Step) -> None:
        for number in range(20):
            await put(str(number))

    async with opened(path) as engine:
        before = engine.statistics().commits
        await engine.run(flow())
        assert engine.statistics().commits - before <= 22
        assert len(rounds.whole) == 20


# --- what is not ---------------------------------------------------------------------------------


async def _two_statements(tx: Transaction, text: str) -> int:
    await tx.execute(INSERT, text)
    return await tx.execute(INSERT, text + "2")


async def _reads_what_it_has_written(tx: Transaction, text: str) -> list[str]:
    await tx.execute(INSERT, text)
    return [row["text"] for row in await tx.fetch_all("SELECT text FROM entry WHERE text > 'x'")]


async def _raises_before(tx: Transaction, text: str) -> None:
    raise LookupError(text)


async def _raises_after(tx: Transaction, text: str) -> None:
    await tx.execute(INSERT, text)
    raise LookupError(text)


async def _breaks_a_constraint(tx: Transaction, text: str) -> int:
    return await tx.execute(INSERT, "there")


async def _swallows_that_it_does(tx: Transaction, text: str) -> str:
    with contextlib.suppress(sqlite3.IntegrityError):
        await tx.execute(INSERT, "there")
    return text


async def _writes_half_of_many(tx: Transaction, text: str) -> str:
    with contextlib.suppress(sqlite3.IntegrityError):
        await tx.executemany(INSERT, [(text,), ("there",)])
    return text


async def _is_wrong(tx: Transaction, text: str) -> int:
    return await tx.execute("INSERT INTO nothing VALUES (1)")


async def _binds_what_cannot_be_bound(tx: Transaction, text: str) -> int:
    return await tx.execute(INSERT, 2**70)


async def _ends_the_transaction(tx: Transaction, text: str) -> int:
    return await tx.execute("INSERT OR ROLLBACK INTO entry (text) VALUES ('there')")


async def _commits(tx: Transaction, text: str) -> int:
    return await tx.execute("COMMIT")


async def _asks_for_the_connection(tx: Transaction, text: str) -> int:
    cursor = await tx.connection.execute(INSERT, (text,))
    return cursor.rowcount


async def _swallows_all(tx: Transaction, text: str) -> str:
    with contextlib.suppress(BaseException):
        await tx.connection.execute(INSERT, (text,))
    return text


async def _yields(tx: Transaction, text: str) -> int:
    await asyncio.sleep(0)
    return await tx.execute(INSERT, text)


async def _waits(tx: Transaction, text: str) -> int:
    count = await tx.execute(INSERT, text)
    await anyio.sleep(0.001)
    return count


async def _waits_in_a_task(tx: Transaction, text: str) -> int:
    return await asyncio.wait_for(tx.execute(INSERT, text), 10)


async def _has_a_bound(tx: Transaction, text: str) -> int:
    async with asyncio.timeout(10):
        return await tx.execute(INSERT, text)


async def _has_a_bound_of_anyio(tx: Transaction, text: str) -> int:
    with anyio.fail_after(10):
        return await tx.execute(INSERT, text)


async def _has_a_bound_that_is_over(tx: Transaction, text: str) -> int:
    async with asyncio.timeout(0):
        await asyncio.sleep(1)
    return await tx.execute(INSERT, text)


async def _does_two_at_once(tx: Transaction, text: str) -> tuple[int, int]:
    return await asyncio.gather(tx.execute(INSERT, text), tx.execute(INSERT, text + "2"))


async def _cancels_itself(tx: Transaction, text: str) -> int:
    task = asyncio.current_task()
    assert task is not None
    await tx.execute(INSERT, text)
    task.cancel()
    await asyncio.sleep(1)
    return 1


async def _says_that_it_is_cancelled(tx: Transaction, text: str) -> int:
    await tx.execute(INSERT, text)
    raise asyncio.CancelledError


async def _returns_what_cannot_be_encoded(tx: Transaction, text: str) -> object:
    await tx.execute(INSERT, text)
    return object()


async def _starts_a_run(tx: Transaction, text: str) -> str:
    run = await Engine.current().start(bank.adding("by a run"), id=text, tx=tx)
    return run.id


async def _starts_a_run_outside(tx: Transaction, text: str) -> str:
    run = await Engine.current().start(bank.adding("by a run"), id=text)
    return run.id


async def _does_nothing(tx: Transaction, text: str) -> str:
    return f"{text} of {durable.attempt().number}"


async def _cleans_up(tx: Transaction, text: str) -> str:
    try:
        await tx.execute(INSERT, text)
        await asyncio.sleep(0)
    finally:
        await asyncio.sleep(0)
        await tx.execute(INSERT, text + "2")
    return text


STRAYS: list[Doing] = [
    _two_statements,
    _reads_what_it_has_written,
    _raises_before,
    _raises_after,
    _breaks_a_constraint,
    _swallows_that_it_does,
    _writes_half_of_many,
    _is_wrong,
    _binds_what_cannot_be_bound,
    _ends_the_transaction,
    _commits,
    _asks_for_the_connection,
    _swallows_all,
    _yields,
    _waits,
    _waits_in_a_task,
    _has_a_bound,
    _has_a_bound_of_anyio,
    _has_a_bound_that_is_over,
    _does_two_at_once,
    _cancels_itself,
    _says_that_it_is_cancelled,
    _returns_what_cannot_be_encoded,
    _starts_a_run,
    _starts_a_run_outside,
    _does_nothing,
    _cleans_up,
]

PLACES = {
    "first": ["x1", "a", "b", "c"],
    "between": ["a", "b", "x1", "c", "d"],
    "last": ["a", "b", "c", "x1"],
    "two": ["a", "x1", "x2", "b"],
    "alone": ["x1"],
}


async def _come_to(store: Path | str, names: list[str]) -> tuple[Any, list[str], list[str]]:
    """Return the results, what is in the table, and the states of the steps."""
    async with opened(store) as engine:
        await engine.run(putting(["there"]), id="before")
        run = await engine.start(putting(names), id="r")
        results = await run.result(timeout=WAIT_S_MAX)
        states = [step.state.value async for step in run.steps()]
        async for other in engine.iter_runs():
            with contextlib.suppress(RunFailed):
                await engine.get(other.id).result(timeout=WAIT_S_MAX)
        return results, await texts(engine), states


@pytest.mark.parametrize("doing", STRAYS, ids=lambda doing: doing.__name__)
@pytest.mark.parametrize("place", PLACES)
async def test_whatever_one_does_is_as_if_it_were_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: Rounds, doing: Doing, place: str
) -> None:
    world.hook = doing
    found = await _come_to(tmp_path / "rounds.db", PLACES[place])
    assert rounds.whole or rounds.broken, "nothing was called at once"
    monkeypatch.setattr(HOW, NEVER)
    rounds.whole.clear()
    assert found == await _come_to(tmp_path / "turns.db", PLACES[place])
    assert not rounds.whole


async def test_who_is_not_as_expected_is_called_by_itself_for_longer_and_longer(
    path: Path, rounds: Rounds
) -> None:
    world.hook = _two_statements
    async with opened(path) as engine:
        for number in range(12):
            assert await engine.run(putting([f"x{number}"])) == [1]
        # In a round, and alone: then one alone, then a round; then three; and so on.
        assert len(rounds.broken) == 1
        assert len(world.begun) == 13


@pytest.mark.parametrize("count", [0, 1, 3, 6])
async def test_a_body_that_wants_one_result_leaves_the_others_done_or_undone(
    path: Path, rounds: Rounds, count: int
) -> None:
    @durable.workflow(name="test_a_body_that_wants_one_result")
    async def flow(step: Step) -> int:
        first = asyncio.create_task(put("first"))
        others = [asyncio.create_task(put(str(number))) for number in range(count)]
        done, _ = await asyncio.wait({first, *others}, return_when=asyncio.FIRST_COMPLETED)
        for task in others:
            task.cancel()
        return len(done)

    async with opened(path) as engine:
        run = await engine.start(flow())
        assert await run.result(timeout=WAIT_S_MAX) == 1
        steps = [step async for step in run.steps() if step.state is StepState.COMPLETED]
        assert sorted(str(step.args["text"]) for step in steps) == sorted(await texts(engine))


async def test_what_is_withdrawn_while_its_statement_is_made_is_undone(
    path: Path, monkeypatch: pytest.MonkeyPatch, rounds: Rounds
) -> None:
    """The others of its round are done, though each is called again."""
    do_round = Writing.do_round

    async def while_the_body_goes_on(
        writing: Writing, statements: StatementRound, s_max: float
    ) -> bool:
        is_good = await do_round(writing, statements, s_max)
        world.may_end.set()
        await until(lambda: "withdrawn" in world.begun)
        return is_good

    @durable.action(name="test_what_is_withdrawn:act")
    async def wait_for_the_round() -> None:
        await world.may_end.wait()

    @durable.workflow(name="test_what_is_withdrawn")
    async def flow(step: Step) -> list[str]:
        unwanted = asyncio.create_task(put("unwanted"))
        wanted = [asyncio.create_task(put(text)) for text in "ab"]
        await wait_for_the_round()
        unwanted.cancel()
        world.begun.append("withdrawn")
        await asyncio.wait({unwanted, *wanted})
        return [task.get_name() for task in wanted if not task.cancelled()]

    monkeypatch.setattr(Writing, "do_round", while_the_body_goes_on)
    async with opened(path) as engine:
        run = await engine.start(flow())
        assert len(await run.result(timeout=WAIT_S_MAX)) == 2
        assert await texts(engine) == ["a", "b"]
        states = [step.state async for step in run.steps() if step.kind == "mutation"]
        assert states == [StepState.CANCELED, StepState.COMPLETED, StepState.COMPLETED]
        assert (rounds.broken, rounds.whole) == ([3], [2])


async def test_what_takes_long_is_left_for_the_next_transaction(
    path: Path, monkeypatch: pytest.MonkeyPatch, rounds: Rounds
) -> None:
    """A round holds all commits up: it does no more than it can in a short time."""
    monkeypatch.setattr("durable.journal.rounds.ROUND_S_MAX", 0.0)
    async with opened(path) as engine:
        assert await engine.run(putting([*"abcd"])) == [1] * 4
        assert await texts(engine) == [*"abcd"]
        assert rounds.whole == [4, 3, 2, 1]


FOREVER = (
    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
    "INSERT INTO entry (text) SELECT i FROM n WHERE i < 0"
)


async def test_a_statement_without_end_is_cut_short(
    path: Path, monkeypatch: pytest.MonkeyPatch, rounds: Rounds
) -> None:
    monkeypatch.setattr("durable.runtime.rounds.STATEMENTS_S_MAX", 0.05)

    async def hook(tx: Transaction, text: str) -> int:
        return await (tx.execute(FOREVER) if len(world.begun) == 1 else tx.execute(INSERT, text))

    world.hook = hook
    async with opened(path) as engine:
        results = await engine.run(putting(["a", "x1", "b"]))
        assert results[::2] == [1, 1]
        assert (await texts(engine))[0] == "a"
        assert rounds.broken == [3]


async def test_a_time_out_of_one_s_own_cuts_a_statement_short(path: Path, rounds: Rounds) -> None:
    async def hook(tx: Transaction, text: str) -> str | int:
        if len(world.begun) > 1:
            return await tx.execute(INSERT, text)
        async with asyncio.timeout(0.05):
            await tx.execute(FOREVER)
        return "not cut short"

    world.hook = hook
    async with opened(path) as engine, asyncio.timeout(WAIT_S_MAX):
        assert await engine.run(putting(["a", "x1", "b"])) == [1, 1, 1]
        assert rounds.broken == [3]


async def test_an_engine_closes_in_the_middle_of_a_statement(path: Path, rounds: Rounds) -> None:
    async def hook(tx: Transaction, text: str) -> int:
        return await tx.execute(FOREVER)

    world.hook = hook
    async with asyncio.timeout(WAIT_S_MAX / 2):
        async with opened(path, drain_timeout=0.01) as engine:
            run = await engine.start(putting(["a", "x1"]), id="it")
            await until(lambda: world.begun)
        with pytest.raises(EngineClosedError):
            await run.result()
        world.hook = lambda tx, text: tx.execute(INSERT, text)
        async with Engine(path) as engine:
            assert await engine.get("it").result() == [1, 1]


@pytest.mark.parametrize("has_begun", [True, False])
async def test_a_time_out_while_the_transaction_is_waited_for_is_its_own(
    path: Path, monkeypatch: pytest.MonkeyPatch, rounds: Rounds, *, has_begun: bool
) -> None:
    """Its time goes on, while another process writes; then it is called again, by itself."""
    begin = SqliteJournal.begin

    async def begin_late(journal: SqliteJournal) -> Writing:
        await until(lambda: "late" in world.begun)
        return await begin(journal)

    async def hook(tx: Transaction, text: str) -> int:
        if world.begun.count(text) > 1:
            return await tx.execute(INSERT, text)
        task = asyncio.current_task()
        assert task is not None
        if has_begun:
            asyncio.get_running_loop().call_soon(task.cancel)
            asyncio.get_running_loop().call_soon(world.begun.append, "late")
        else:
            task.cancel()
            world.begun.append("late")
        return await tx.execute(INSERT, text)

    world.hook = hook
    async with opened(path) as engine:
        monkeypatch.setattr(SqliteJournal, "begin", begin_late)
        assert await engine.run(putting(["a", "x1", "b"])) == [1, 1, 1]
        assert rounds.broken == [3]


async def test_what_the_application_waits_for_too_is_not_cancelled(
    path: Path, rounds: Rounds
) -> None:
    loaded = asyncio.create_task(world.may_end.wait())
    promised: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def hook(tx: Transaction, text: str) -> str:
        if len(world.begun) > 1:
            world.may_end.set()
        await loaded
        if not promised.done():
            asyncio.get_running_loop().call_soon(promised.set_result, "promised")
        await tx.execute(INSERT, text)
        return await promised

    world.hook = hook
    async with opened(path) as engine:
        assert await engine.run(putting(["a", "x1", "b"])) == [1, "promised", 1]
        assert loaded.result()


async def test_who_has_its_statement_made_by_a_task_is_never_known(
    path: Path, monkeypatch: pytest.MonkeyPatch, rounds: Rounds
) -> None:
    """It would go on when it is called off, and what becomes of it is nobody's."""
    monkeypatch.setattr(HOW, 1)

    async def by_a_task(tx: Transaction, text: str) -> int:
        return await asyncio.create_task(tx.execute(INSERT, text))

    world.hook = by_a_task
    async with opened(path) as engine:
        for number in range(4):
            await engine.run(putting([f"x{number}"]))
        assert rounds.broken == rounds.whole == []


async def test_ctrl_c_in_one_is_the_host_s(path: Path) -> None:
    ended = await asyncio.to_thread(run_python, "-W", "error", "-c", CTRL_C, path)
    assert (ended.returncode, ended.stdout) == (0, "Ctrl-C\nCtrl-C\n"), ended.stderr
    assert "RuntimeError" not in ended.stderr
    async with Engine(path, worker=False) as client, client.transaction() as tx:
        assert await tx.fetch_value("SELECT count(*) FROM entry") == 1


CTRL_C = """
import asyncio, os, signal, sys
from pathlib import Path
import durable
import durable.runtime.rounds
from durable import Engine, Step, Transaction

durable.runtime.rounds.TRUSTED_AFTER = 1

@durable.mutation(name="put")
async def put(tx: Transaction, is_interrupted: bool) -> None:
    await tx.execute("INSERT INTO entry (x) VALUES (1)")
    if is_interrupted:
        signal.raise_signal(signal.SIGINT)

@durable.workflow(name="putting")
async def putting(step: Step) -> None:
    await put(False)
    await asyncio.gather(put(False), put(True), put(False))

async def main() -> None:
    async with Engine(Path(sys.argv[1])) as engine:
        async with engine.transaction() as tx:
            await tx.execute("CREATE TABLE entry (x)")
        await engine.run(putting())

loop = asyncio.new_event_loop()
task = loop.create_task(main())
for _ in range(2):
    try:
        loop.run_until_complete(task)
    except KeyboardInterrupt:
        print("Ctrl-C", flush=True)
os._exit(0)  # Not by the end of the loop: anyio's threads would wait for that.
"""
