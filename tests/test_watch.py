"""What a run's watchers see, while its own process works on it."""

from __future__ import annotations

import asyncio
import gc
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from clock import ManualClock
from faults import Disk, Fault, leaving_nothing, once_available, opened
from journals import execute_outside
from waiting import WAIT_S_MAX, until, until_open, until_state
from world import held, world

import durable
from durable import (
    Engine,
    EngineClosedError,
    JournalCorruptError,
    JournalUnavailableError,
    Retry,
    RunNotFoundError,
    RunState,
    RunStatus,
    Step,
)
from durable.journal.sqlite import SqliteJournal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

WATCHERS = 1_000


engines: list[Engine] = []


@durable.action(retry=Retry(2, initial_backoff=60, jitter=False))
async def flaky() -> int:
    if durable.attempt().number == 1:
        raise LookupError
    return durable.attempt().number


@durable.workflow
async def napping(step: Step) -> None:
    await step.sleep(7 * 86400, name="nap")


@durable.workflow
async def retrying(_step: Step) -> int:
    return await flaky()


@durable.workflow
async def counting(step: Step, count: int) -> int:
    for number in range(count):
        await step.run(nothing(number))
    return count


@durable.action
async def nothing(number: int) -> int:
    return number


@durable.workflow
async def watching_in_a_body(_step: Step, run_id: str) -> None:
    engines[0].watch(run_id)


def shown(status: RunStatus) -> tuple[str, list[tuple[str, str, int]]]:
    steps = [(step.name.split(":")[-1], str(step.state), step.attempts) for step in status.running]
    return str(status.state), steps


async def following(statuses: AsyncIterator[RunStatus]) -> RunStatus:
    async with asyncio.timeout(WAIT_S_MAX):
        return await anext(statuses)


async def to_the_end(statuses: AsyncIterator[RunStatus]) -> list[RunStatus]:
    async with asyncio.timeout(WAIT_S_MAX):
        return [status async for status in statuses]


async def test_it_shows_where_the_run_stands_then_each_change_then_the_end(path: Path) -> None:
    async with Engine(path) as engine:
        run = await engine.start(held("a"), id="r")
        await world.reached.wait()
        statuses = run.watch()
        first = await following(statuses)
        assert shown(first) == ("running", [("gated", "running", 1)])
        assert first == await run.status()
        world.may_end.set()
        rest = await to_the_end(statuses)
        assert rest[-1] == await run.status()
        assert (rest[-1].state, rest[-1].result) == (RunState.COMPLETED, "a")
        assert len(rest) == 1
        with pytest.raises(StopAsyncIteration):
            await following(statuses)


async def test_attempts_and_back_off_are_changes(path: Path) -> None:
    clock = ManualClock()
    async with opened(path, clock) as engine:
        run = await engine.start(retrying(), run_after=1)
        statuses = run.watch()
        assert shown(await following(statuses)) == ("pending", [])
        clock.advance(1)
        seen: list[Any] = []
        while not seen or seen[-1] != ("running", [("flaky", "pending", 1)]):
            seen.append(shown(await following(statuses)))
        clock.advance(60)
        assert (await to_the_end(statuses))[-1].result == 2
        assert len(set(map(str, seen))) == len(seen), "each shows something new"


async def test_a_run_that_is_over_is_shown_once(path: Path) -> None:
    async with Engine(path) as engine:
        await engine.run(counting(1), id="r")
        assert await to_the_end(engine.watch("r")) == [await engine.status("r")]


async def test_changes_that_are_not_asked_for_are_shown_as_one(path: Path) -> None:
    async with Engine(path) as engine:
        run = await engine.start(counting(0), run_after=1000)
        statuses = run.watch()
        assert (await following(statuses)).state is RunState.PENDING
        other = await engine.start(held("a"))
        mine = other.watch()
        await following(mine)
        world.may_end.set()
        await other.result()
        await until_state(other, RunState.COMPLETED)
        assert [status.state for status in await to_the_end(mine)] == [RunState.COMPLETED]


@pytest.mark.parametrize("count", [1, 20])
async def test_no_watcher_misses_the_end_whenever_it_comes(path: Path, count: int) -> None:
    """A watcher joins at each point of a run's life: after so many turns of the loop."""
    async with Engine(path) as engine:
        for turns in range(40):
            run = await engine.start(counting(count))
            for _ in range(turns):
                await asyncio.sleep(0)
            statuses = await to_the_end(run.watch())
            assert statuses[-1].state is RunState.COMPLETED
            assert [status.state.is_final for status in statuses].count(True) == 1


async def test_the_first_status_is_no_older_than_what_the_watcher_knows(path: Path) -> None:
    async with Engine(path) as engine:
        run = await engine.start(held("a"))
        await world.reached.wait()
        others = [run.watch() for _ in range(2)]
        for each in others:
            await following(each)
        await run.cancel()  # Acknowledged once it is in the journal; the others are to be told.
        assert (await following(run.watch())).state is RunState.CANCELED
        assert (await to_the_end(others[0]))[-1].state is RunState.CANCELED
        world.may_end.set()


async def test_an_unknown_run_is_not_found(path: Path) -> None:
    async with Engine(path) as engine:
        statuses = engine.watch("nobody")
        with pytest.raises(RunNotFoundError, match="no run 'nobody'"):
            await following(statuses)
        with pytest.raises(ValueError, match="id"):
            engine.watch("")
        run = await engine.start(counting(1), id="nobody")
        assert (await to_the_end(run.watch()))[-1].state is RunState.COMPLETED


async def test_a_run_that_is_removed_before_its_end_is_not_found_any_more(path: Path) -> None:
    async with Engine(path) as engine:
        run = await engine.start(held("a"))
        await world.reached.wait()
        statuses = run.watch()
        await following(statuses)
        assert await run.cleanup(force=True)
        with pytest.raises(RunNotFoundError, match=run.id):
            await following(statuses)
        assert await to_the_end(statuses) == []


async def test_the_end_is_shown_even_if_the_run_is_removed_right_after(path: Path) -> None:
    async with Engine(path) as engine:
        for _ in range(20):
            world.reached.clear()
            world.may_end.clear()
            run = await engine.start(held("a"))
            await world.reached.wait()
            statuses = run.watch()
            await following(statuses)
            world.may_end.set()
            await run.result()
            assert await run.cleanup()
            seen = await to_the_end(statuses)
            assert [status.state for status in seen] == [RunState.COMPLETED]


async def test_a_run_with_the_id_of_a_removed_one_is_watched_by_itself(path: Path) -> None:
    async with Engine(path) as engine:
        run = await engine.start(napping(), id="r")
        old = run.watch()
        await following(old)
        assert await run.cleanup(force=True)
        await engine.start(counting(1), id="r")
        assert (await to_the_end(engine.watch("r")))[-1].result == 1
        with suppress(RunNotFoundError):  # Unless it sees the new one.
            await to_the_end(old)


async def test_a_watch_that_begins_while_a_removed_run_is_read_sees_the_new_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = SqliteJournal.load_statuses
    is_held, go_on = asyncio.Event(), asyncio.Event()

    async def held_when_gone(self: SqliteJournal, run_ids: list[str]) -> Any:  # noqa: ANN401
        found = await load(self, run_ids)
        if "r" not in found and not is_held.is_set():
            is_held.set()
            await go_on.wait()
        return found

    monkeypatch.setattr(SqliteJournal, "load_statuses", held_when_gone)
    async with Engine(path) as engine:
        run = await engine.start(napping(), id="r")
        old = run.watch()
        await following(old)
        assert await run.cleanup(force=True)
        assert engine._runner is not None
        engine._runner.watching.look_again()
        await is_held.wait()
        await engine.start(counting(1), id="r")
        new = engine.watch("r")
        watching = asyncio.create_task(to_the_end(new))
        await asyncio.sleep(0)
        go_on.set()
        assert (await watching)[-1].result == 1


async def test_many_watchers_cost_one_read_a_change(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0
    load = SqliteJournal.load_statuses

    async def counted(self: SqliteJournal, run_ids: list[str]) -> Any:  # noqa: ANN401
        nonlocal reads
        reads += len(run_ids)
        return await load(self, run_ids)

    monkeypatch.setattr(SqliteJournal, "load_statuses", counted)
    async with Engine(path) as engine:
        run = await engine.start(held("a"))
        await world.reached.wait()
        watchers = [run.watch() for _ in range(WATCHERS)]
        firsts = await asyncio.gather(*map(following, watchers))
        assert len({shown(status)[0] for status in firsts}) == 1
        assert reads <= 2
        world.may_end.set()
        ends = await asyncio.gather(*map(to_the_end, watchers))
        assert all(statuses[-1].state is RunState.COMPLETED for statuses in ends)
        assert reads <= 4


async def test_one_watcher_changing_what_it_got_changes_nobody_elses(path: Path) -> None:
    async with Engine(path) as engine:
        run = await engine.start(counting(3), run_after=100)
        first, second = run.watch(), run.watch()
        (await following(first)).args["count"] = 5
        assert (await following(second)).args == {"count": 3}


async def test_closing_the_engine_ends_it_with_an_error(path: Path) -> None:
    async with leaving_nothing():
        async with Engine(path) as engine:
            run = await engine.start(napping())
            statuses, unused = run.watch(), run.watch()
            await following(statuses)
            waiting = asyncio.create_task(following(statuses))
            await asyncio.sleep(0)
        with pytest.raises(EngineClosedError, match="was closed"):
            await waiting
        for each in (statuses, unused):
            with pytest.raises(EngineClosedError):
                await following(each)
        with pytest.raises(EngineClosedError):
            engine.watch(run.id)


async def test_a_run_that_ends_while_the_engine_drains_is_seen_to_end(path: Path) -> None:
    async with Engine(path) as engine:
        run = await engine.start(held("a"))
        await world.reached.wait()
        statuses = run.watch()
        await following(statuses)
        end = asyncio.create_task(to_the_end(statuses))
        runner = engine._runner
        assert runner is not None
        draining = asyncio.create_task(until(lambda: runner.is_closing))
        draining.add_done_callback(lambda _: world.may_end.set())
    assert (await end)[-1].state is RunState.COMPLETED


async def test_a_watcher_that_is_cancelled_loses_nothing(path: Path) -> None:
    async with Engine(path) as engine:
        run = await engine.start(held("a"))
        await world.reached.wait()
        statuses = run.watch()
        await following(statuses)
        for _ in range(3):
            waiting = asyncio.create_task(following(statuses))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        world.may_end.set()
        await run.result()
        assert (await to_the_end(statuses))[-1].state is RunState.COMPLETED


async def test_an_abandoned_iterator_leaves_nothing(path: Path) -> None:
    async with leaving_nothing(), Engine(path) as engine:
        run = await engine.start(napping())
        async for status in run.watch():
            assert status.id == run.id
            break
        statuses = run.watch()
        await following(statuses)
        gone = weakref.ref(statuses)
        del statuses
        gc.collect()
        assert gone() is None
        assert engine._runner is not None
        assert not engine._runner.watching._topics


async def test_watching_in_a_body_is_refused(path: Path) -> None:
    async with Engine(path) as engine:
        engines[:] = [engine]
        with pytest.raises(durable.RunFailed) as failed:
            await engine.run(watching_in_a_body("r"))
        engines.clear()
        assert "engine.watch()" in failed.value.error.message


async def test_a_damaged_row_is_an_error_of_its_own_watchers(path: Path) -> None:
    async with Engine(path) as engine:
        bad = await engine.start(napping(), id="bad")
        good = await engine.start(napping(), id="good")
        await until_open(good)
        statuses = [run.watch() for run in (bad, good)]
        for each in statuses:
            await following(each)
        await until_open(bad)
        damage = "UPDATE durable_run SET state = 'broken' WHERE run_id = 'bad'"
        await asyncio.to_thread(execute_outside, path, damage)
        with pytest.raises(JournalCorruptError, match="bad"):
            await following(bad.watch())
        await good.cancel()
        assert (await to_the_end(statuses[1]))[-1].state is RunState.CANCELED


@pytest.mark.parametrize("fault", list(Fault))
async def test_an_outage_of_the_journal_is_waited_out(
    path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    disk = Disk()
    disk.install(monkeypatch)
    async with Engine(path) as engine:
        run = await engine.start(held("a"), id="r")
        await world.reached.wait()
        statuses = run.watch()
        await following(statuses)
        waiting = asyncio.create_task(to_the_end(statuses))
        disk.broken = fault
        world.may_end.set()
        await until(lambda: disk.outages)
        late = asyncio.create_task(to_the_end(run.watch()))
        with pytest.raises(JournalUnavailableError):
            await engine.start(counting(1), id="x")
        assert not waiting.done()
        assert not late.done()
        disk.broken = None
        assert (await waiting)[-1].state is RunState.COMPLETED
        assert (await late)[-1].state is RunState.COMPLETED
        await once_available(disk, lambda: engine.run(counting(1), id="x"))


async def test_a_read_that_fails_for_good_is_an_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    async def fail(_self: SqliteJournal, _run_ids: list[str]) -> Any:  # noqa: ANN401
        nonlocal tries
        tries += 1
        raise JournalUnavailableError("no disk")

    async with Engine(path) as engine:
        run = await engine.start(napping())
        monkeypatch.setattr("durable.runtime.watching.READ_AGAIN_S", 0.001)
        with monkeypatch.context() as broken:
            broken.setattr(SqliteJournal, "load_statuses", fail)
            with pytest.raises(JournalUnavailableError, match="no disk"):
                await following(run.watch())
        assert tries > 1
        assert (await following(run.watch())).id == run.id
