"""A failed commit acknowledges nothing, and the engine goes on by itself after the disk does."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from itertools import count
from pathlib import Path

import outage_program as program
import pytest
import structlog
from clock import ManualClock
from cycles import at_cycle
from faults import Disk, Fault, crashing, leaving_nothing, once_available
from waiting import WAIT_S_MAX, until, until_step

import durable
from durable import Engine, JournalUnavailableError, RunState, Step, StepState

BOTH = pytest.mark.parametrize("fault", list(Fault))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return program.new_disk(monkeypatch)


@pytest.fixture(autouse=True)
def _logs_go_to_the_standard_library() -> None:
    structlog.reset_defaults()


async def result_of_everything(engine: Engine, disk: Disk, n: int) -> int:
    start = partial(engine.start, program.everything(n), id=f"run-{n}")
    run = await once_available(disk, start)
    assert run.id in disk.runs, "acknowledged, but not written"
    result = await run.result()
    assert run.id in disk.ended, "told its end, but that is not written"
    return result


async def run_everything(path: Path | str, disk: Disk) -> None:
    async with Engine(path, max_parallelism=4) as engine, asyncio.timeout(WAIT_S_MAX):
        results = await asyncio.gather(
            result_of_everything(engine, disk, 1), result_of_everything(engine, disk, 2)
        )
        assert [*results] == [6, 12]
        # Also what the failed commit was to end: the loser of the race, the task left over.
        await until(lambda: engine.statistics().running_actions == 0)
        assert engine.statistics().live_runs == 0
        page = await engine.list_runs()
        assert [run.state for run in page.items] == [RunState.COMPLETED] * 2
    assert program.world.wrong == []
    assert set(program.world.begun.values()) == {1}, (
        "an attempt was made twice, and nothing had crashed"
    )


# --- each write of a fixed program ---------------------------------------------------------------


@pytest.mark.slow
@BOTH
async def test_whichever_commit_fails_all_runs_end_well(
    path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    """Running actions outlive the outage: their outcome is kept, they are not run again."""
    for number in count(1):
        disk = program.new_disk(monkeypatch)
        disk.faults["commit", number] = fault
        await run_everything(path.with_name(f"{number}.db"), disk)
        if not disk.outages:
            break
    assert number > 6, "the sweep has come past the end of the program"


@pytest.mark.slow
@BOTH
async def test_whichever_write_of_a_recovery_fails_nothing_begins_twice(
    path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    """What ran when the last process died is interrupted, however often the journal then fails."""
    for what in ("claim", "commit"):
        for number in count(1):
            disk = program.new_disk(monkeypatch)
            file = path.with_name(f"{what}{number}.db")
            async with crashing(file) as engine:
                run = await engine.start(program.interrupted(7), id="it")
                await until(lambda: len(program.world.begun) == 2)
            disk.faults[what, disk.calls[what] + number] = fault
            program.world.may_go_on.set()
            async with Engine(file) as engine:
                assert await engine.get(run.id).result(timeout=WAIT_S_MAX) == "unknown 7 7 7"
                steps = [step async for step in engine.iter_steps(run.id)]
            assert {step.name: step.attempts for step in steps} == {
                program.gated.name: 1,
                program.gated_at_most_once.name: 1,
                program.at_most_once.name: 1,
                program.fail_once.name: 2,
            }
            assert program.world.wrong == []
            keys = {step.name: step.key for step in steps}
            assert program.world.begun == {
                ("it", keys[program.gated.name], 1): 2,  # the crash
                ("it", keys[program.gated_at_most_once.name], 1): 1,
                ("it", keys[program.at_most_once.name], 1): 1,
                ("it", keys[program.fail_once.name], 1): 1,
                ("it", keys[program.fail_once.name], 2): 1,
            }
            if not disk.outages:
                break


@BOTH
async def test_a_journal_in_memory_outlives_a_failed_commit(disk: Disk, fault: Fault) -> None:
    disk.faults["commit", 2] = fault
    await run_everything("sqlite://", disk)
    assert disk.outages == 1


@BOTH
async def test_outages_may_follow_each_other(path: Path, disk: Disk, fault: Fault) -> None:
    disk.faults = {("commit", number): fault for number in (2, 3, 4, 8, 9)}
    disk.faults["claim", 3] = fault
    await run_everything(path, disk)
    assert disk.outages == 6


async def test_reopening_is_tried_until_it_succeeds(path: Path, disk: Disk) -> None:
    disk.faults["commit", 3] = Fault.LOST
    disk.reopen_failures = 5
    await run_everything(path, disk)
    assert disk.calls["reopen"] == 6


# --- what callers see ----------------------------------------------------------------------------


async def test_a_start_that_was_not_written_is_not_acknowledged(path: Path, disk: Disk) -> None:
    disk.faults["commit", 1] = Fault.LOST
    async with Engine(path) as engine:
        with pytest.raises(JournalUnavailableError, match="commit 1 failed"):
            await engine.start(program.everything(1), id="it")
        await until(lambda: disk.calls["claim"] == 2)
        assert (await engine.list_runs()).items == []
        assert await engine.run(program.everything(1), id="it") == 6
    assert program.world.wrong == []


async def test_a_start_of_unknown_outcome_is_found_by_its_id(path: Path, disk: Disk) -> None:
    """The commit had reached the disk: nobody asks again, and the run is worked on all the same."""
    disk.faults["commit", 1] = Fault.KEPT
    async with Engine(path) as engine:
        with pytest.raises(JournalUnavailableError):
            await engine.start(program.everything(1), id="it")
        await until(lambda: "it" in disk.ended)
        run = await engine.start(program.everything(1), id="it")
        assert await run.result() == 6
        assert len((await engine.list_runs()).items) == 1
    assert set(program.world.begun.values()) == {1}


async def test_what_waits_behind_a_failed_commit_fails_with_it(path: Path, disk: Disk) -> None:
    async with Engine(path) as engine:
        disk.answers.clear()
        disk.faults["commit", 1] = Fault.LOST
        first = asyncio.create_task(engine.start(program.everything(1), id="1"))
        await until(lambda: disk.calls["commit"])
        behind = [
            asyncio.create_task(engine.start(program.everything(2), id="2")),
            asyncio.create_task(engine.start(program.everything(3), id="3", run_after=0.001)),
        ]
        joined = asyncio.create_task(engine.start(program.everything(1), id="1"))
        await until(lambda: engine._runner and len(engine._runner.starts._starting) == 3)
        disk.answers.set()
        for start in (first, joined, *behind):
            with pytest.raises(JournalUnavailableError):
                await start
        await until(lambda: disk.calls["claim"] == 2)
        assert (await engine.list_runs()).items == []
        for n in (1, 2, 3):
            assert await engine.run(program.everything(n), id=str(n)) == 6 * n
    assert set(program.world.begun.values()) == {1}


async def test_during_an_outage_starts_fail_at_once(
    path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    """Waiters wait on, the running action goes on, and the log says what is the matter."""
    async with Engine(path, max_parallelism=1) as engine:
        run = await engine.start(program.wait_at_the_gate(1), id="it")
        waiting = asyncio.create_task(run.result())
        await until(lambda: program.world.begun)

        disk.broken = Fault.LOST
        for run_id in ("other", None):
            with pytest.raises(JournalUnavailableError):
                await engine.start(program.everything(2), id=run_id)
        await until(lambda: disk.calls["reopen"] > 2)
        commits = disk.calls["commit"]
        asked_meanwhile = asyncio.create_task(run.result())
        async with asyncio.timeout(WAIT_S_MAX):
            for run_id in ("other", None):
                with pytest.raises(JournalUnavailableError):
                    await engine.start(program.everything(2), id=run_id)
            with pytest.raises(TimeoutError, match="did not end within 0 s"):
                await run.result(timeout=0)
        assert disk.calls["commit"] == commits, "they waited for a commit"
        program.world.may_go_on.set()
        await until(lambda: engine.statistics().running_actions == 0)
        assert not waiting.done()
        assert [r.message.split()[2] for r in caplog.records] == ["durable.journal_failed"]
        assert caplog.records[0].levelname == "ERROR"

        disk.broken = None
        assert await waiting == await asked_meanwhile == 2
        assert caplog.records[-1].levelname == "WARNING"
        assert "durable.journal_restored" in caplog.records[-1].message
        assert await engine.run(program.everything(2), id="other") == 12
    assert set(program.world.begun.values()) == {1}, "an action ran again"


async def test_a_timer_that_fell_due_during_an_outage_fires_after_it(
    path: Path, disk: Disk
) -> None:
    @durable.workflow(name="outages.sleep")
    async def sleep(step: Step) -> float:
        begun = step.now()
        await step.sleep(20)
        return (step.now() - begun).total_seconds()

    clock = ManualClock()
    engine = Engine(path)
    clock.install(engine)
    async with engine:
        run = await engine.start(sleep())
        await until_step(run, "sleep", StepState.RUNNING)
        disk.broken = Fault.LOST
        with pytest.raises(JournalUnavailableError):
            await engine.start(sleep())
        clock.advance(60)
        disk.broken = None
        assert await run.result(timeout=WAIT_S_MAX) == 60


async def test_a_journal_whose_file_was_removed_acknowledges_nothing(
    path: Path, disk: Disk
) -> None:
    """SQLite would go on, in a file that nobody finds."""
    moved = path.with_name("moved.db")
    async with Engine(path) as engine:
        await engine.run(program.measure_it("a"), id="before")
        await asyncio.to_thread(path.rename, moved)
        with pytest.raises(JournalUnavailableError, match="removed"):
            await engine.run(program.measure_it("a"), id="while it is gone")
        await asyncio.to_thread(moved.rename, path)
        again = partial(engine.run, program.measure_it("a"), id="when it is back")
        assert await once_available(disk, again) == 1
        found = [run.id async for run in engine.iter_runs()]
    assert found == ["before", "when it is back"]


@pytest.mark.parametrize("is_empty", [True, False])
async def test_a_journal_that_another_was_put_in_place_of_is_waited_for(
    path: Path, disk: Disk, *, is_empty: bool
) -> None:
    other, moved = path.with_name("other.db"), path.with_name("moved.db")
    if is_empty:
        await asyncio.to_thread(other.touch)
    else:
        async with Engine(other) as engine:
            await engine.run(program.measure_it("a"), id="of the other")
    async with Engine(path) as engine:
        await engine.run(program.measure_it("a"), id="before")
        await asyncio.to_thread(_rename_journal, path, moved)
        await asyncio.to_thread(_rename_journal, other, path)
        with pytest.raises(JournalUnavailableError, match="replaced"):
            await engine.start(program.measure_it("a"), id="meanwhile")
        count = disk.calls["reopen"]
        # The next one begins when one has failed.
        await until(lambda: disk.calls["reopen"] > count + 1)
        with pytest.raises(JournalUnavailableError):
            await engine.start(program.measure_it("a"), id="meanwhile")
        # SQLite must not have a file open whose name changes: it knows its log by name.
        disk.broken = Fault.LOST
        count = disk.calls["reopen"]
        await until(lambda: disk.calls["reopen"] > count + 1)
        await asyncio.to_thread(_rename_journal, path, other)
        await asyncio.to_thread(_rename_journal, moved, path)
        disk.broken = None
        again = partial(engine.run, program.measure_it("a"), id="when it is back")
        assert await once_available(disk, again) == 1
        found = [run.id async for run in engine.iter_runs()]
    assert found == ["before", "when it is back"]
    if is_empty:
        assert not (await asyncio.to_thread(other.stat)).st_size
        return
    async with Engine(other) as engine:
        assert [run.id async for run in engine.iter_runs()] == ["of the other"]


def _rename_journal(path: Path, to: Path) -> None:
    for ending in ("", "-wal", "-shm"):
        file = path.with_name(path.name + ending)
        if file.exists():
            file.rename(to.with_name(to.name + ending))


# --- closing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_running", [True, False])
async def test_an_engine_closes_in_the_middle_of_an_outage(
    path: Path, disk: Disk, *, is_running: bool
) -> None:
    async with asyncio.timeout(WAIT_S_MAX):
        async with Engine(path, drain_timeout=0.01) as engine:
            run = await engine.start(program.wait_at_the_gate(1), id="it")
            waiting = asyncio.create_task(run.result())
            await until(lambda: program.world.begun)
            disk.broken = Fault.LOST
            with contextlib.suppress(JournalUnavailableError):
                await engine.start(program.everything(2))
            await until(lambda: disk.calls["reopen"] > 1)
            if not is_running:
                program.world.may_go_on.set()
                await until(lambda: engine.statistics().running_actions == 0)
        with pytest.raises(durable.EngineClosedError):
            await waiting
        disk.broken = None
        program.world.may_go_on.set()
        async with Engine(path) as engine:
            assert await engine.get("it").result() == 2


@pytest.mark.parametrize("begins_while_closing", [False, True])
async def test_closing_does_not_wait_for_a_journal_that_is_to_get_nothing(
    path: Path, disk: Disk, *, begins_while_closing: bool
) -> None:
    engine = await Engine(path, drain_timeout=3600).__aenter__()
    disk.broken = Fault.LOST
    if begins_while_closing:
        disk.answers.clear()
    start = asyncio.create_task(engine.start(program.everything(1)))
    await until(lambda: disk.calls["commit" if begins_while_closing else "reopen"])
    closing = asyncio.create_task(engine.__aexit__(None, None, None))
    await until(lambda: engine._runner is None or engine._runner._is_closing)
    disk.answers.set()
    try:
        await until(closing.done)
    finally:
        disk.broken = None  # Else it would wait for an hour.
        await closing
    with pytest.raises(JournalUnavailableError):
        await start


@pytest.mark.parametrize("ends_while_closing", [False, True])
async def test_the_outcome_of_an_action_is_recorded_after_the_outage(
    path: Path, disk: Disk, *, ends_while_closing: bool
) -> None:
    """Draining waits for the disk too, as long as it waits at all."""

    async def end_the_action() -> None:
        program.world.may_go_on.set()
        await until(lambda: engine.statistics().running_actions == 0)

    async with Engine(path) as engine:
        await engine.start(program.wait_at_the_gate(1), id="it")
        await until(lambda: program.world.begun)
        disk.broken = Fault.LOST
        with pytest.raises(JournalUnavailableError):
            await engine.start(program.everything(2))
        if not ends_while_closing:
            await end_the_action()
        closing = asyncio.create_task(engine.__aexit__(None, None, None))
        if ends_while_closing:
            await end_the_action()
        reopenings = disk.calls["reopen"]
        await until(lambda: closing.done() or disk.calls["reopen"] > reopenings + 2)
        assert not closing.done()
        disk.broken = None
        await closing
        await engine.__aenter__()
        assert await engine.get("it").result(timeout=WAIT_S_MAX) == 2
    assert set(program.world.begun.values()) == {1}, "its outcome was lost"


@pytest.mark.slow
async def test_an_engine_may_close_at_any_moment_of_a_reopening(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections that are half open, and their threads, are closed with it."""
    async with leaving_nothing():
        for cycle in count():
            disk = program.new_disk(monkeypatch)
            engine = await Engine(path, drain_timeout=0).__aenter__()
            disk.faults["commit", 1] = Fault.LOST
            with pytest.raises(JournalUnavailableError):
                await engine.start(program.everything(1))
            now = asyncio.Event()
            waiting = [asyncio.create_task(event.wait()) for event in (now, disk.reopened)]
            with at_cycle(cycle, now.set):
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            is_reopened = disk.reopened.is_set()
            await engine.__aexit__(None, None, None)
            for task in waiting:
                task.cancel()
            if is_reopened:
                break
        assert cycle > 5
        assert await durable.run(program.measure_it("a"), url=path) == 1
