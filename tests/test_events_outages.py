"""Events, and a journal that fails: nothing acknowledged is lost, nothing is consumed twice."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from clock import ManualClock
from cycles import WAYS, Way, sweep
from faults import Disk, Fault, each_to_fail, once_available, opened
from test_events_races import events_of
from waiting import WAIT_S_MAX, until, until_open, until_parked, until_waiting, until_written

import durable
from durable import (
    Engine,
    EventAlreadySentError,
    EventId,
    JournalUnavailableError,
    RunFinishedError,
    Step,
)
from durable.runtime.settings import PARK_AFTER_MS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

PARK_S = 2 * PARK_AFTER_MS / 1000
BOTH = pytest.mark.parametrize("fault", list(Fault))


@durable.action
async def note(value: Any) -> Any:  # noqa: ANN401
    return value


@durable.workflow
async def waiting(step: Step, events: int = 1) -> list[Any]:
    return [await note(await step.wait_event("it")) for _ in range(events)]


async def started(disk: Disk, engine: Engine) -> durable.Run[list[Any]]:
    return await once_available(disk, lambda: engine.start(waiting(3), id="it"))


async def created(disk: Disk, engine: Engine) -> EventId:
    return await once_available(disk, lambda: engine.create_event("it", "it"))


async def send_once(disk: Disk, engine: Engine, event_id: EventId, value: object) -> None:
    """Send by id until it is known to be sent: what a caller does whose journal may fail."""
    try:
        await once_available(disk, lambda: engine.send_event_id(event_id, value))
    except EventAlreadySentError:
        return


@BOTH
@pytest.mark.parametrize("is_parked", [False, True])
async def test_a_send_that_cannot_be_written_is_not_acknowledged(
    path: Path, disk: Disk, fault: Fault, *, is_parked: bool
) -> None:
    """Its outcome is unknown; sending by id again tells, and sends it once."""
    clock = ManualClock()
    async with opened(path, clock) as engine:
        run = await engine.start(waiting(), id="it")
        await until_open(run)
        event_id = await engine.create_event("it", "it")
        if is_parked:
            clock.advance(PARK_S)
            await until_parked(engine)
        disk.faults["commit", disk.calls["commit"] + 1] = fault
        with pytest.raises(JournalUnavailableError):
            await engine.send_event_id(event_id, 1)
        if fault is Fault.KEPT:
            with pytest.raises(EventAlreadySentError):
                await once_available(disk, lambda: engine.send_event_id(event_id, 2))
        else:
            await once_available(disk, lambda: engine.send_event_id(event_id, 1))
        assert await run.result(timeout=WAIT_S_MAX) == [1]


async def test_during_an_outage_a_send_is_refused_at_once(path: Path, disk: Disk) -> None:
    async with opened(path) as engine:
        run = await engine.start(waiting(), id="it")
        await until_open(run)
        disk.broken = Fault.LOST
        with pytest.raises(JournalUnavailableError):
            await run.send_event("it", 1)
        commits = disk.calls["commit"]
        for _ in range(3):
            with pytest.raises(JournalUnavailableError):
                await run.send_event("it", 1)
            with pytest.raises(JournalUnavailableError):
                await engine.create_event("it", "it")
        assert disk.calls["commit"] == commits
        disk.broken = None
        await once_available(disk, lambda: run.send_event("it", 2))
        assert await run.result(timeout=WAIT_S_MAX) == [2]


@pytest.mark.slow
@BOTH
async def test_whichever_commit_fails_each_event_is_consumed_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    for number, disk in each_to_fail(monkeypatch, 7):
        async with opened(path.with_name(f"{number}.db"), ManualClock()) as engine:
            disk.faults["commit", number] = fault
            run = await started(disk, engine)
            ids: list[EventId] = []
            while len(ids) < 3:
                ids.append(await created(disk, engine))
                await send_once(disk, engine, ids[-1], len(ids))
            assert await run.result(timeout=WAIT_S_MAX) == [1, 2, 3]
            rows = await events_of(engine, "it")
            consumed = [value for value, step_number in rows if step_number is not None]
            assert consumed == ["1", "2", "3"]
            steps = [step.event_id async for step in run.steps() if step.kind == "event"]
            assert steps == [str(event_id) for event_id in ids]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_parked", [False, True])
async def test_a_sender_who_is_cancelled_splits_nothing(
    path: Path, way: Way, *, is_parked: bool
) -> None:
    clock = ManualClock()
    async with opened(path, clock) as engine:

        async def prepare(run_id: str) -> Callable[[], Awaitable[object]]:
            run = await engine.start(waiting(), id=run_id)
            await until_open(run)
            if is_parked:
                clock.advance(PARK_S)
                await until_parked(engine)
            return lambda: run.send_event("it", 1)

        async def check(run_id: str) -> None:
            run = engine.get(run_id)
            await until_written(engine)
            if await events_of(engine, run_id) == []:
                await run.send_event("it", 1)
            assert await run.result(timeout=WAIT_S_MAX) == [1]
            assert len(await events_of(engine, run_id)) == 1

        await sweep(way, prepare, check)


async def test_what_a_cancelled_sender_has_handed_over_is_sent(path: Path, disk: Disk) -> None:
    async with opened(path) as engine:
        run = await engine.start(waiting(), id="it")
        await until_open(run)
        commits = disk.calls["commit"]
        disk.answers.clear()
        sending = asyncio.create_task(run.send_event("it", 1))
        await until(lambda: disk.calls["commit"] > commits)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert await events_of(engine, "it") == []
        disk.answers.set()
        assert await run.result(timeout=WAIT_S_MAX) == [1]
        with pytest.raises(RunFinishedError):
            await run.send_event("it", 1)
        assert len(await events_of(engine, "it")) == 1


async def test_a_look_into_a_journal_that_cannot_be_read_is_repeated(
    path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durable.runtime.sends.LOOK_AGAIN_S", 0.001)

    @durable.workflow(name="test_events_outages.by_id")
    async def by_id(step: Step) -> Any:  # noqa: ANN401
        return await step.wait_event(EventId("0" * 32))

    async with opened(path) as engine:
        journal: Any = engine._journal
        load_event, failures = journal.load_event, [0]

        async def failing(event_id: str) -> Any:  # noqa: ANN401
            failures[0] += 1
            if failures[0] < 3:
                msg = "the disk cannot be read"
                raise JournalUnavailableError(msg)
            return await load_event(event_id)

        journal.load_event = failing
        run = await engine.start(by_id())
        with pytest.raises(durable.RunFailed, match="EventNotFoundError"):
            await run.result(timeout=WAIT_S_MAX)
        assert failures == [3]


async def test_a_damaged_event_says_so_to_the_wait_or_leaves_its_run_alone(
    path: Path, disk: Disk
) -> None:
    clock = ManualClock()

    @durable.workflow(name="test_events_outages.by_sent_id")
    async def by_sent_id(step: Step) -> Any:  # noqa: ANN401
        event_id = await step.wait_event(durable.Event("id", EventId))
        return await step.wait_event(event_id)

    async with opened(path, clock) as engine:
        journal: Any = engine._journal
        run = await engine.start(by_sent_id(), id="it")
        event_id = await engine.create_event("it", "it")
        await journal.inner._call(
            journal.inner._writer,
            lambda db: db.execute("UPDATE durable_event SET name = CAST(x'ff' AS TEXT)"),
        )
        await run.send_event("id", event_id)
        with pytest.raises(durable.RunFailed, match=f"JournalCorruptError.*{event_id}"):
            await run.result(timeout=WAIT_S_MAX)


async def test_a_run_whose_events_are_damaged_is_stuck_and_names_it(path: Path, disk: Disk) -> None:
    clock = ManualClock()
    async with opened(path, clock) as engine:
        journal: Any = engine._journal
        run = await engine.start(waiting(), id="it")
        await until_waiting(run, 0)
        await run.send_event("other", 1)
        await journal.inner._call(
            journal.inner._writer,
            lambda db: db.execute("UPDATE durable_event SET value = CAST(x'ff' AS TEXT)"),
        )
    async with opened(path, clock) as engine:
        status = await engine.status("it")
        async with asyncio.timeout(WAIT_S_MAX):
            while status.state != "stuck":
                status = await engine.status("it")
        assert status.error is not None
        assert "the events of run 'it'" in status.error.message
