"""Cancelling a caller, at whatever await and in whatever way, harms nothing but the call."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import pytest
from cycles import WAYS, Way, cancel_at, sweep
from faults import leaving_nothing

import durable
from durable import Engine, RunState, Step
from durable.journal.sqlite import SqliteJournal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from cycles import Call

    Prepare = Callable[[Engine, str], Awaitable[Call]]

pytestmark = pytest.mark.both_loops

bodies: Counter[str] = Counter()
"""How often the action of each run was called."""

may_end = asyncio.Event()


@durable.action
async def add_one(n: int) -> int:
    bodies[durable.attempt().run_id] += 1
    return n + 1


@durable.action
async def add_two(n: int) -> int:
    await asyncio.sleep(0)
    return n + 2


@durable.action
def add_three(n: int) -> int:
    return n + 3


@durable.action
async def wait() -> int:
    await may_end.wait()
    return 1


@durable.action
async def hang_once() -> int:
    if not durable.attempt().interruptions:
        await asyncio.Event().wait()
    return durable.attempt().interruptions


@durable.workflow
async def hanging(_: Step) -> int:
    return await hang_once()


@durable.workflow
async def waiting(_: Step) -> int:
    return await wait()


@durable.workflow
async def adding(_: Step, n: int) -> int:
    return await add_one(n)


# --- what has to be as before --------------------------------------------------------------------


def check_no_transaction(path: Path) -> None:
    """Fail unless somebody else can write at once."""
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        db.execute("ROLLBACK")


def check_no_reader(path: Path) -> None:
    """Fail when somebody's transaction still needs old pages."""
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as db:
        (is_busy, _, _) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert not is_busy


async def check_usable(engine: Engine, run_id: str) -> None:
    """Start with the same id: it joins the run if there is one, and its action is called once."""
    assert await engine.run(adding(1), id=run_id) == 2
    assert bodies[run_id] == 1
    assert engine._runner is not None
    await engine._runner.writer.wait_until_idle()
    assert engine.statistics().live_runs == 0
    assert engine._path is not None
    await asyncio.to_thread(check_no_transaction, engine._path)


async def check_can_be_opened(path: Path, run_id: str) -> None:
    """Open the journal: its owner is gone, and so is the lock."""
    async with Engine(path) as engine:
        await check_usable(engine, run_id)


@pytest.fixture(autouse=True)
def _new_world(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies.clear()
    monkeypatch.setattr("test_cancellation.may_end", asyncio.Event())


each_way = pytest.mark.parametrize("way", WAYS)


# --- calls of an open engine ---------------------------------------------------------------------


async def start(engine: Engine, run_id: str) -> Call:
    return lambda: engine.start(adding(1), id=run_id)


async def start_without_id(engine: Engine, _: str) -> Call:
    return lambda: engine.start(adding(1))


async def start_later(engine: Engine, run_id: str) -> Call:
    return lambda: engine.start(adding(1), id=run_id, run_after=0.001)


async def start_again(engine: Engine, run_id: str) -> Call:
    await engine.run(adding(1), id=run_id)
    return lambda: engine.start(adding(1), id=run_id)


async def run(engine: Engine, run_id: str) -> Call:
    return lambda: engine.run(adding(1), id=run_id)


async def durable_run(_: Engine, run_id: str) -> Call:
    return lambda: durable.run(adding(1), id=run_id)


async def workflow_outside(_: Engine, __: str) -> Call:
    return lambda: adding(1)


async def action_outside(_: Engine, __: str) -> Call:
    return lambda: add_two(1)


async def sync_action_outside(_: Engine, __: str) -> Call:
    return lambda: add_three(1)


async def result(engine: Engine, run_id: str) -> Call:
    return (await engine.start(adding(1), id=run_id)).result


async def result_of_an_ended_run(engine: Engine, run_id: str) -> Call:
    await engine.run(adding(1), id=run_id)
    return engine.get(run_id).result


async def result_without_waiting(engine: Engine, run_id: str) -> Call:
    await engine.run(adding(1), id=run_id)
    return lambda: engine.get(run_id).result(timeout=0)


async def status(engine: Engine, run_id: str) -> Call:
    return (await engine.start(adding(1), id=run_id)).status


async def list_runs(engine: Engine, _: str) -> Call:
    return lambda: engine.list_runs(state=RunState.COMPLETED)


async def list_steps(engine: Engine, run_id: str) -> Call:
    await engine.start(adding(1), id=run_id)
    return lambda: engine.list_steps(run_id)


async def iter_runs(engine: Engine, _: str) -> Call:
    async def iterate() -> int:
        return len([found async for found in engine.iter_runs()])

    return iterate


async def iter_steps(engine: Engine, run_id: str) -> Call:
    handle = await engine.start(adding(1), id=run_id)

    async def iterate() -> int:
        return len([step async for step in handle.steps()])

    return iterate


CALLS: list[Prepare] = [
    start,
    start_without_id,
    start_later,
    start_again,
    run,
    durable_run,
    workflow_outside,
    action_outside,
    sync_action_outside,
    result,
    result_of_an_ended_run,
    result_without_waiting,
    status,
    list_runs,
    list_steps,
    iter_runs,
    iter_steps,
]


@pytest.mark.slow
@each_way
@pytest.mark.parametrize("prepare", CALLS)
async def test_a_cancelled_call_leaves_the_engine_usable(
    path: Path, way: Way, prepare: Prepare
) -> None:
    async with leaving_nothing(), Engine(path) as engine:
        await sweep(way, partial(prepare, engine), partial(check_usable, engine))
        await asyncio.to_thread(check_no_reader, path)


@each_way
async def test_waiting_for_a_result_can_be_cancelled_and_the_run_goes_on(
    path: Path, way: Way
) -> None:
    async def keep_the_loop_busy() -> None:
        while True:  # noqa: ASYNC110  cycles are what is wanted
            await asyncio.sleep(0)

    async with leaving_nothing(), Engine(path) as engine:
        handle = await engine.start(waiting())
        busy = asyncio.create_task(keep_the_loop_busy())
        for cycle in range(5):
            assert await cancel_at(cycle, way, handle.result)
        busy.cancel()
        may_end.set()
        assert await handle.result() == 1


# --- opening and closing -------------------------------------------------------------------------


@pytest.mark.slow
@each_way
async def test_an_engine_cancelled_while_it_opens_is_closed(path: Path, way: Way) -> None:
    entered: list[Engine] = []

    async def prepare(run_id: str) -> Call:
        async with Engine(path) as engine:
            await engine.start(adding(1), id=run_id, run_after=0.001)

        async def enter() -> None:
            entered.append(await Engine(path).__aenter__())

        return enter

    async def check(run_id: str) -> None:
        while entered:
            await entered.pop().__aexit__(None, None, None)
        await check_can_be_opened(path, run_id)

    async with leaving_nothing():
        await sweep(way, prepare, check)


@pytest.mark.slow
@each_way
async def test_an_engine_cancelled_while_it_closes_is_closed_all_the_same(
    path: Path, way: Way
) -> None:
    """It has work to do: a commit, and an action that it waits for in vain."""

    def file(run_id: str) -> Path:
        return path.with_name(run_id)

    async def prepare(run_id: str) -> Call:
        engine = await Engine(file(run_id), drain_timeout=0.005).__aenter__()
        await engine.start(hanging(), id="hanging")
        await engine.start(adding(1), id=run_id)

        async def leave() -> None:
            await engine.__aexit__(None, None, None)

        return leave

    async def check(run_id: str) -> None:
        async with Engine(file(run_id)) as engine:
            assert await engine.get("hanging").result() == 1
            await check_usable(engine, run_id)

    async with leaving_nothing():
        await sweep(way, prepare, check)


@pytest.mark.slow
@each_way
async def test_a_journal_cancelled_while_it_is_opened_again_can_be_closed(
    path: Path, way: Way
) -> None:
    """By an engine that closes, or by ``asyncio.run``, which cancels all tasks in the end."""
    journals: list[SqliteJournal] = []

    async def prepare(_: str) -> Call:
        journal = SqliteJournal(path)
        journals.append(journal)
        await journal.open()
        return journal.reopen

    async def check(run_id: str) -> None:
        await journals.pop().close()
        await check_can_be_opened(path, run_id)

    async with leaving_nothing():
        await sweep(way, prepare, check)


@pytest.mark.slow
@each_way
async def test_a_cancelled_life_of_an_engine_leaves_the_journal_usable(
    path: Path, way: Way
) -> None:
    async def prepare(run_id: str) -> Call:
        return lambda: durable.run(adding(1), id=run_id, url=path)

    async with leaving_nothing():
        await sweep(way, prepare, partial(check_can_be_opened, path))
