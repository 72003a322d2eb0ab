"""A failed commit acknowledges nothing, and the engine goes on by itself after the disk does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections import Counter
from itertools import count
from typing import TYPE_CHECKING

import pytest
import structlog

import durable
from clock import ManualClock
from durable import (
    Engine,
    JournalUnavailableError,
    OutcomeUnknown,
    Retry,
    RunState,
    Step,
    StepState,
)
from faults import (
    WAIT_S_MAX,
    Disk,
    Fault,
    FaultyJournal,
    at_cycle,
    crashing,
    leaving_nothing,
    until,
    until_step,
)

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

BOTH = pytest.mark.parametrize("fault", list(Fault))


class World:
    """What the actions of this module do, and what is wrong with it."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.begun: Counter[tuple[str, str, int]] = Counter()
        self.wrong: list[str] = []
        self.may_go_on = asyncio.Event()

    def begin(self) -> None:
        attempt = durable.attempt()
        at = (attempt.run_id, attempt.step_key)
        if at in self.disk.settled:
            self.wrong.append(f"{attempt} began after its outcome was recorded")
        if (*at, attempt.number) not in self.disk.begun:
            self.wrong.append(f"{attempt} began before that was recorded")
        self.begun[*at, attempt.number] += 1


world: World


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return new_disk(monkeypatch)


@pytest.fixture(autouse=True)
def _logs_go_to_the_standard_library() -> None:
    structlog.reset_defaults()


def new_disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    disk.install(monkeypatch)
    monkeypatch.setattr(sys.modules[__name__], "world", World(disk), raising=False)
    return disk


@durable.action(retry=Retry(max_attempts=3, initial_backoff=0, jitter=False))
async def fail_once(n: int) -> int:
    world.begin()
    if durable.attempt().number == 1:
        raise ValueError(n)
    return n


@durable.action(retry=False)
async def at_most_once(n: int) -> int:
    world.begin()
    return n


@durable.action
def in_thread(n: int) -> int:
    world.begin()
    return n


@durable.action
async def endless() -> None:
    world.begin()
    await asyncio.Event().wait()


@durable.action
async def gated(n: int) -> int:
    world.begin()
    await world.may_go_on.wait()
    return n


@durable.action(retry=False)
async def gated_at_most_once(n: int) -> int:
    world.begin()
    await world.may_go_on.wait()
    return n


@durable.workflow
async def everything(step: Step, n: int) -> int:
    total = await fail_once(n)
    for part in await asyncio.gather(at_most_once(n), in_thread(n), in_thread(n)):
        total += part
    loser = asyncio.create_task(endless())
    total += await at_most_once(n)
    loser.cancel()
    await step.sleep(0)
    left_over = asyncio.create_task(endless())
    total += await in_thread(n)
    assert not left_over.done()
    return total


@durable.workflow
async def wait_at_the_gate(_: Step, n: int) -> int:
    return await gated(n) + await in_thread(n)


@durable.workflow
async def interrupted(_: Step, n: int) -> str:
    first = asyncio.create_task(gated(n))
    try:
        said = str(await gated_at_most_once(n))
    except OutcomeUnknown:
        said = "unknown"
    return f"{said} {await first} {await at_most_once(n)} {await fail_once(n)}"


async def start_until_acknowledged(engine: Engine, disk: Disk, n: int) -> int:
    """Do what a user has to after an unknown outcome: ask again with the same id."""
    while True:
        try:
            run = await engine.start(everything(n), id=f"run-{n}")
        except JournalUnavailableError:
            await asyncio.sleep(0)
            continue
        assert run.id in disk.runs, "acknowledged, but not written"
        result = await run.result()
        assert run.id in disk.ended, "told its end, but that is not written"
        return result


async def run_everything(path: Path | str, disk: Disk) -> None:
    async with Engine(path, max_parallelism=4) as engine, asyncio.timeout(WAIT_S_MAX):
        results = await asyncio.gather(
            start_until_acknowledged(engine, disk, 1), start_until_acknowledged(engine, disk, 2)
        )
        assert results == [6, 12]
        # Also what the failed commit was to end: the loser of the race, the task left over.
        await until(lambda: engine.statistics().running_actions == 0)
        assert engine.statistics().live_runs == 0
        page = await engine.list_runs()
        assert [run.state for run in page.items] == [RunState.COMPLETED] * 2
    assert world.wrong == []
    assert set(world.begun.values()) == {1}, "an attempt was made twice, and nothing had crashed"


# --- each write of a fixed program ---------------------------------------------------------------


@pytest.mark.slow
@BOTH
async def test_whichever_commit_fails_all_runs_end_well(
    path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    """Running actions outlive the outage: their outcome is kept, they are not run again."""
    for number in count(1):
        disk = new_disk(monkeypatch)
        disk.faults["commit", number] = fault
        await run_everything(path.with_name(f"{number}.db"), disk)
        if not disk.outages:
            break
    assert number > 10, "the sweep has come past the end of the program"


@pytest.mark.slow
@BOTH
async def test_whichever_write_of_a_recovery_fails_nothing_begins_twice(
    path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    """What ran when the last process died is interrupted, however often the journal then fails."""
    for what in ("claim", "commit"):
        for number in count(1):
            disk = new_disk(monkeypatch)
            file = path.with_name(f"{what}{number}.db")
            async with crashing(file) as engine:
                run = await engine.start(interrupted(7), id="it")
                await until(lambda: len(world.begun) == 2)
            disk.faults[what, disk.calls[what] + number] = fault
            world.may_go_on.set()
            async with Engine(file) as engine:
                assert await engine.get(run.id).result(timeout=WAIT_S_MAX) == "unknown 7 7 7"
                steps = [step async for step in engine.iter_steps(run.id)]
            assert {step.name: step.attempts for step in steps} == {
                gated.name: 1,
                gated_at_most_once.name: 1,
                at_most_once.name: 1,
                fail_once.name: 2,
            }
            assert world.wrong == []
            keys = {step.name: step.key for step in steps}
            assert world.begun == {
                ("it", keys[gated.name], 1): 2,  # the crash
                ("it", keys[gated_at_most_once.name], 1): 1,
                ("it", keys[at_most_once.name], 1): 1,
                ("it", keys[fail_once.name], 1): 1,
                ("it", keys[fail_once.name], 2): 1,
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
            await engine.start(everything(1), id="it")
        await until(lambda: disk.calls["claim"] == 2)
        assert (await engine.list_runs()).items == []
        assert await engine.run(everything(1), id="it") == 6
    assert world.wrong == []


async def test_a_start_of_unknown_outcome_is_found_by_its_id(path: Path, disk: Disk) -> None:
    """The commit had reached the disk: nobody asks again, and the run is worked on all the same."""
    disk.faults["commit", 1] = Fault.KEPT
    async with Engine(path) as engine:
        with pytest.raises(JournalUnavailableError):
            await engine.start(everything(1), id="it")
        await until(lambda: "it" in disk.ended)
        run = await engine.start(everything(1), id="it")
        assert await run.result() == 6
        assert len((await engine.list_runs()).items) == 1
    assert set(world.begun.values()) == {1}


async def test_what_waits_behind_a_failed_commit_fails_with_it(path: Path, disk: Disk) -> None:
    async with Engine(path) as engine:
        disk.answers.clear()
        disk.faults["commit", 1] = Fault.LOST
        first = asyncio.create_task(engine.start(everything(1), id="1"))
        await until(lambda: disk.calls["commit"])
        behind = [
            asyncio.create_task(engine.start(everything(2), id="2")),
            asyncio.create_task(engine.start(everything(3), id="3", run_after=0.001)),
        ]
        joined = asyncio.create_task(engine.start(everything(1), id="1"))
        await until(lambda: engine._runner and len(engine._runner._starting) == 3)
        disk.answers.set()
        for start in (first, joined, *behind):
            with pytest.raises(JournalUnavailableError):
                await start
        await until(lambda: disk.calls["claim"] == 2)
        assert (await engine.list_runs()).items == []
        for n in (1, 2, 3):
            assert await engine.run(everything(n), id=str(n)) == 6 * n
    assert set(world.begun.values()) == {1}


async def test_during_an_outage_starts_fail_at_once(
    path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    """Waiters wait on, the running action goes on, and the log says what is the matter."""
    async with Engine(path, max_parallelism=1) as engine:
        run = await engine.start(wait_at_the_gate(1), id="it")
        waiting = asyncio.create_task(run.result())
        await until(lambda: world.begun)

        disk.broken = Fault.LOST
        for run_id in ("other", None):
            with pytest.raises(JournalUnavailableError):
                await engine.start(everything(2), id=run_id)
        await until(lambda: disk.calls["reopen"] > 2)
        commits = disk.calls["commit"]
        async with asyncio.timeout(WAIT_S_MAX):
            for run_id in ("other", None):
                with pytest.raises(JournalUnavailableError):
                    await engine.start(everything(2), id=run_id)
        assert disk.calls["commit"] == commits, "they waited for a commit"
        world.may_go_on.set()
        await until(lambda: engine.statistics().running_actions == 0)
        assert not waiting.done()
        assert [r.message.split()[2] for r in caplog.records] == ["durable.journal_failed"]
        assert caplog.records[0].levelname == "ERROR"

        disk.broken = None
        assert await waiting == 2
        assert caplog.records[-1].levelname == "WARNING"
        assert "durable.journal_restored" in caplog.records[-1].message
        assert await engine.run(everything(2), id="other") == 12
    assert set(world.begun.values()) == {1}, "an action ran again"


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


# --- closing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_running", [True, False])
async def test_an_engine_closes_in_the_middle_of_an_outage(
    path: Path, disk: Disk, *, is_running: bool
) -> None:
    async with asyncio.timeout(WAIT_S_MAX):
        async with Engine(path, drain_timeout=0.01) as engine:
            run = await engine.start(wait_at_the_gate(1), id="it")
            waiting = asyncio.create_task(run.result())
            await until(lambda: world.begun)
            disk.broken = Fault.LOST
            with contextlib.suppress(JournalUnavailableError):
                await engine.start(everything(2))
            await until(lambda: disk.calls["reopen"] > 1)
            if not is_running:
                world.may_go_on.set()
                await until(lambda: engine.statistics().running_actions == 0)
        with pytest.raises(durable.EngineClosedError):
            await waiting
        disk.broken = None
        world.may_go_on.set()
        async with Engine(path) as engine:
            assert await engine.get("it").result() == 2


async def test_a_running_action_that_ends_while_closing_is_recorded_after_the_outage(
    path: Path, disk: Disk
) -> None:
    """Draining waits for the disk too, as long as it waits at all."""
    async with Engine(path) as engine:
        await engine.start(wait_at_the_gate(1), id="it")
        await until(lambda: world.begun)
        disk.broken = Fault.LOST
        with pytest.raises(JournalUnavailableError):
            await engine.start(everything(2))
        closing = asyncio.create_task(engine.__aexit__(None, None, None))
        world.may_go_on.set()
        await until(lambda: engine.statistics().running_actions == 0)
        disk.broken = None
        await closing
        await engine.__aenter__()
        assert await engine.get("it").result(timeout=WAIT_S_MAX) == 2
    assert set(world.begun.values()) == {1}, "its outcome was lost"


@pytest.mark.slow
async def test_an_engine_may_close_at_any_moment_of_a_reopening(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections that are half open, and their threads, are closed with it."""
    async with leaving_nothing():
        for cycle in count():
            disk = new_disk(monkeypatch)
            engine = await Engine(path, drain_timeout=0).__aenter__()
            disk.faults["commit", 1] = Fault.LOST
            with pytest.raises(JournalUnavailableError):
                await engine.start(everything(1))
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
        assert await durable.run(measure_it("a"), url=path) == 1


# --- disks that are really full ------------------------------------------------------------------


@durable.action
async def measure(text: str) -> int:
    return len(text)


@durable.workflow
async def measure_it(_: Step, text: str) -> int:
    return await measure(text)


TEXT = "x" * 100_000


async def measured(engine: Engine, run_id: str) -> int:
    """Ask until it is acknowledged, always with the same id."""
    async with asyncio.timeout(WAIT_S_MAX):
        while True:
            try:
                return await engine.run(measure_it(TEXT), id=run_id)
            except JournalUnavailableError:
                await asyncio.sleep(0)


async def test_a_full_database_acknowledges_nothing_and_is_worked_on_afterwards(
    path: Path, disk: Disk
) -> None:
    """SQLite's own SQLITE_FULL: the bound ends with the connection, so when it is opened again."""
    async with Engine(path) as engine:
        assert await measured(engine, "first") == len(TEXT)
        run = await engine.start(wait_at_the_gate(1))
        await until(lambda: world.begun)
        for number in range(3):
            assert isinstance(engine._journal, FaultyJournal)
            writer = engine._journal.inner._writer
            assert writer is not None
            # As many pages as there are.
            await (await writer.execute("PRAGMA max_page_count = 1")).close()
            with pytest.raises(JournalUnavailableError, match="SQLITE_FULL"):
                await engine.start(measure_it(TEXT), id=f"big-{number}")
            assert await measured(engine, f"big-{number}") == len(TEXT)
        world.may_go_on.set()
        assert await run.result(timeout=WAIT_S_MAX) == 2
    assert disk.calls["reopen"] == 3
    assert set(world.begun.values()) == {1}


async def fill_the_disk(path: Path) -> None:
    """In a process of its own: forbid it to write further into files, then allow it again."""
    import resource  # noqa: PLC0415  not on Windows

    async with Engine(path) as engine:
        assert await measured(engine, "small") == len(TEXT)
        written = max(file.stat().st_size for file in path.parent.iterdir())  # noqa: ASYNC240
        resource.setrlimit(resource.RLIMIT_FSIZE, (written, resource.RLIM_INFINITY))
        for _ in range(3):
            with pytest.raises(JournalUnavailableError):
                await engine.start(measure_it(TEXT), id="big")
        assert [run.id for run in (await engine.list_runs()).items] == ["small"]
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        assert await measured(engine, "big") == len(TEXT)


@pytest.mark.slow
def test_a_process_that_may_write_no_more_goes_on_when_it_may(path: Path) -> None:
    pytest.importorskip("resource")
    code = (
        "import asyncio, pathlib, sys, test_outages as t;"
        "asyncio.run(t.fill_the_disk(pathlib.Path(sys.argv[1])))"
    )
    places = os.pathsep.join(sys.path)
    child = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code, str(path)],
        env=os.environ | {"PYTHONPATH": places},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert "durable.journal_failed" in child.stderr
