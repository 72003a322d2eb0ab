"""Events that are created before they are sent, and waits for just one of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from clock import ManualClock
from cycles import at_cycle
from faults import opened
from waiting import WAIT_S_MAX, until_open, until_parked, until_waiting

import durable
from durable import (
    Engine,
    Event,
    EventAlreadySentError,
    EventConsumedError,
    EventError,
    EventId,
    EventNotFoundError,
    EventTypeError,
    Step,
)

if TYPE_CHECKING:
    from pathlib import Path

NAP_S = 10.0
MONTH_S = 30 * 86400.0
CYCLES = 30


@dataclass
class Approval:
    by: str


approval = Event("approval", Approval)


@durable.action
async def ask(run_id: str, name: str = "it") -> EventId:
    """Create an event, as an action does that mails a link with it."""
    return await Engine.current().create_event(run_id, name)


@durable.workflow
async def asking(step: Step) -> Any:  # noqa: ANN401
    event_id = await ask(step.run_id)
    return await step.wait_event(event_id)


@durable.workflow
async def waiting_for(step: Step, event_id: EventId) -> Any:  # noqa: ANN401
    return await step.wait_event(event_id)


@durable.workflow
async def telling(step: Step) -> list[Any]:
    """Await the ids that it is sent, one by one, and tell what came of each."""
    told: list[Any] = []
    while True:
        event_id = await step.wait_event(Event("id", EventId | None))
        if event_id is None:
            return told
        try:
            told.append(await step.wait_event(event_id))
        except (EventError, EventNotFoundError, EventConsumedError) as exc:
            told.append(type(exc).__name__)


async def test_an_id_travels_and_is_awaited(engine: Engine) -> None:
    run = await engine.start(asking())
    await until_waiting(run, 1)
    (step,) = (await run.status()).running
    assert step.event_id is not None
    assert step.args == {"event_id": step.event_id}
    event_id = EventId.parse(step.event_id)
    await engine.send_event_id(event_id, {"yes": True})
    assert await run.result(timeout=WAIT_S_MAX) == {"yes": True}
    _, waited = [step async for step in run.steps()]
    assert (waited.kind, waited.event_id) == ("event", str(event_id))


async def test_an_event_that_was_sent_by_name_can_be_awaited_by_its_id(engine: Engine) -> None:
    """And the one before it stays for who waits by name."""

    @durable.workflow(name="test_events_ids.picking")
    async def picking(step: Step) -> list[Any]:
        event_id = await step.wait_event(Event("which", EventId))
        return [await step.wait_event(event_id), await step.wait_event("it")]

    run = await engine.start(picking())
    await run.send_event("it", "first")
    second = await run.send_event("it", "second")
    await run.send_event("which", second)
    assert await run.result(timeout=WAIT_S_MAX) == ["second", "first"]


async def test_a_created_event_may_be_awaited_by_its_name(engine: Engine) -> None:
    """In the order of sending, not of creation."""

    @durable.workflow(name="test_events_ids.by_name")
    async def by_name(step: Step) -> list[Any]:
        return [
            await step.wait_event("it"),
            await step.wait_event("it"),
            await step.wait_event("it"),
        ]

    run = await engine.start(by_name())
    first, second = [await engine.create_event(run.id, "it") for _ in range(2)]
    await engine.send_event_id(second, "second")
    await run.send_event("it", "by name")
    await engine.send_event_id(first, "first")
    assert await run.result(timeout=WAIT_S_MAX) == ["second", "by name", "first"]


async def test_an_event_that_is_awaited_by_its_id_is_kept_from_other_waits(engine: Engine) -> None:
    @durable.workflow(name="test_events_ids.both")
    async def both(step: Step) -> list[Any]:
        event_id = await ask(step.run_id)
        return list(await asyncio.gather(step.wait_event("it"), step.wait_event(event_id)))

    run = await engine.start(both())
    await until_waiting(run, 1)
    by_id = next(s.event_id for s in (await run.status()).running if s.event_id is not None)
    await engine.send_event_id(EventId.parse(by_id), "by id")
    await run.send_event("it", "by name")
    assert await run.result(timeout=WAIT_S_MAX) == ["by name", "by id"]


@durable.workflow
async def by_name_and_by_id(step: Step) -> list[Any]:
    event_id = await step.wait_event(Event("which", EventId))
    return list(await asyncio.gather(step.wait_event("it"), step.wait_event(event_id)))


async def test_of_what_was_sent_before_the_wait_by_id_gets_its_own(engine: Engine) -> None:
    """Although the wait by name was issued first, and the event of the other was sent first."""
    run = await engine.start(by_name_and_by_id())
    first = await run.send_event("it", "by id")
    await run.send_event("it", "by name")
    await run.send_event("which", first)
    assert await run.result(timeout=WAIT_S_MAX) == ["by name", "by id"]


async def test_a_wait_by_name_goes_on_when_one_by_id_gets_the_only_event(engine: Engine) -> None:
    run = await engine.start(by_name_and_by_id())
    first = await run.send_event("it", "by id")
    await run.send_event("which", first)
    await until_waiting(run, 1)
    steps = (await run.status()).running
    while len(steps) > 1:
        steps = (await run.status()).running
    assert [(step.name, step.event_id) for step in steps] == [("it", None)]
    await run.send_event("it", "by name")
    assert await run.result(timeout=WAIT_S_MAX) == ["by name", "by id"]


async def test_an_error_may_be_sent_by_id(engine: Engine) -> None:
    run = await engine.start(telling())
    event_id = await engine.create_event(run.id, "it")
    await engine.send_event_id(event_id, error="no")
    await run.send_event("id", event_id)
    await run.send_event("id")
    assert await run.result(timeout=WAIT_S_MAX) == ["EventError"]


async def test_an_event_is_sent_once(engine: Engine) -> None:
    run = await engine.start(telling())
    event_id = await engine.create_event(run.id, "it")
    await engine.send_event_id(event_id, 1)
    with pytest.raises(EventAlreadySentError, match=f"{event_id}.*'it'.*was sent before"):
        await engine.send_event_id(event_id, 2)
    sent = await run.send_event("it", 3)
    with pytest.raises(EventAlreadySentError):
        await engine.send_event_id(sent, 4)
    for each in (event_id, sent, None):
        await run.send_event("id", each)
    assert await run.result(timeout=WAIT_S_MAX) == [1, 3]
    with pytest.raises(EventAlreadySentError):
        await engine.send_event_id(event_id, 5)


async def test_of_many_who_send_one_event_one_does(engine: Engine) -> None:
    run = await engine.start(telling())
    event_id = await engine.create_event(run.id, "it")
    outcomes = await asyncio.gather(
        *(engine.send_event_id(event_id, n) for n in range(10)), return_exceptions=True
    )
    assert outcomes.count(None) == 1
    assert sum(isinstance(each, EventAlreadySentError) for each in outcomes) == 9
    await run.send_event("id", event_id)
    await run.send_event("id")
    assert await run.result(timeout=WAIT_S_MAX) == [outcomes.index(None)]


@pytest.mark.slow
async def test_a_canceled_sender_does_not_let_another_send_the_same_event(
    path: Path, clock: ManualClock
) -> None:
    """It is cancelled in each cycle of the loop: what it has begun is not done twice."""
    async with opened(path, clock) as engine:
        run = await engine.start(telling())
        expected: list[int] = []
        for cycle in range(CYCLES):
            event_id = await engine.create_event(run.id, "it")
            first = asyncio.create_task(engine.send_event_id(event_id, 1))
            with at_cycle(cycle, first.cancel):
                await asyncio.wait([first])
            try:
                await engine.send_event_id(event_id, 2)
            except EventAlreadySentError:
                expected.append(1)
            else:
                assert first.cancelled()
                expected.append(2)
            await run.send_event("id", event_id)
        await run.send_event("id")
        assert await run.result(timeout=WAIT_S_MAX) == expected
        assert set(expected) == {1, 2}


async def test_an_unknown_id_is_not_found(engine: Engine) -> None:
    with pytest.raises(EventNotFoundError, match="check the id"):
        await engine.send_event_id(EventId("0" * 32))
    run = await engine.start(telling())
    await run.send_event("id", EventId("0" * 32))
    await run.send_event("id", EventId("no id at all"))
    await run.send_event("id")
    assert await run.result(timeout=WAIT_S_MAX) == ["EventNotFoundError"] * 2


async def test_the_id_of_a_removed_run_is_not_found(engine: Engine) -> None:
    run = await engine.start(telling())
    event_id = await engine.create_event(run.id, "it")
    assert await run.cleanup(force=True)
    with pytest.raises(EventNotFoundError):
        await engine.send_event_id(event_id)


async def test_another_run_s_id_cannot_be_awaited(engine: Engine) -> None:
    one, other = await engine.start(telling()), await engine.start(telling())
    created = await engine.create_event(other.id, "it")
    sent = await other.send_event("it", "other's")
    for event_id in (created, sent, None):
        await one.send_event("id", event_id)
    assert await one.result(timeout=WAIT_S_MAX) == ["EventNotFoundError"] * 2
    for event_id in (sent, None):
        await other.send_event("id", event_id)
    assert await other.result(timeout=WAIT_S_MAX) == ["other's"]


async def test_a_consumed_id_cannot_be_awaited(engine: Engine) -> None:
    run = await engine.start(telling())
    event_id = await run.send_event("it", 1)
    for each in (event_id, event_id, None):
        await run.send_event("id", each)
    assert await run.result(timeout=WAIT_S_MAX) == [1, "EventConsumedError"]


async def test_an_id_is_awaited_once_at_a_time(engine: Engine, clock: ManualClock) -> None:
    @durable.workflow(name="test_events_ids.twice")
    async def twice(step: Step) -> list[Any]:
        event_id = await ask(step.run_id)
        first = asyncio.create_task(step.wait_event(event_id, timeout=NAP_S))
        await asyncio.sleep(0)
        try:
            await step.wait_event(event_id)
        except EventConsumedError as exc:
            told = str(exc)
        try:
            await first
        except TimeoutError:  # Then it is free again.
            return [told, await step.wait_event(event_id)]
        return []

    run = await engine.start(twice())
    await until_waiting(run, 1)
    clock.advance(NAP_S)
    await until_waiting(run, 3)
    event_id = (await run.status()).running[0].event_id
    await engine.send_event_id(EventId.parse(event_id or ""), "late")
    told, value = await run.result(timeout=WAIT_S_MAX)
    assert "already" in told
    assert value == "late"


async def test_a_wait_by_id_may_time_out(engine: Engine, clock: ManualClock) -> None:
    @durable.workflow(name="test_events_ids.in_time")
    async def in_time(step: Step) -> Any:  # noqa: ANN401
        event_id = await ask(step.run_id)
        try:
            return await step.wait_event(event_id, timeout=NAP_S)
        except TimeoutError:
            return ["too late", await step.wait_event("it")]

    run = await engine.start(in_time())
    await until_waiting(run, 1)
    event_id = (await run.status()).running[0].event_id
    clock.advance(NAP_S)
    await until_waiting(run, 2)
    await engine.send_event_id(EventId.parse(event_id or ""), "late")
    assert await run.result(timeout=WAIT_S_MAX) == ["too late", "late"]


async def test_an_id_s_value_is_any_and_a_name_s_is_checked(engine: Engine) -> None:
    @durable.workflow(name="test_events_ids.checked")
    async def checked(step: Step) -> list[Any]:
        try:
            await step.wait_event(approval)
        except EventTypeError:
            told = "wrong"
        return [told, (await step.wait_event(approval)).by]

    run = await engine.start(checked())
    for value in ("no approval", {"by": "ann"}):
        await engine.send_event_id(await engine.create_event(run.id, approval), value)
    assert await run.result(timeout=WAIT_S_MAX) == ["wrong", "ann"]


async def test_a_look_up_that_takes_long_does_not_keep_a_run_in_memory(
    path: Path, clock: ManualClock
) -> None:
    """Its idle time is over when the journal at last answers."""
    async with opened(path, clock) as engine:
        journal: Any = engine._journal
        load_event, answers = journal.load_event, asyncio.Event()

        async def late(event_id: str) -> Any:  # noqa: ANN401
            found = await load_event(event_id)
            await answers.wait()
            return found

        run = await engine.start(asking(), id="it")
        journal.load_event = late
        await until_waiting(run, 1)
        clock.advance(MONTH_S)
        assert engine.statistics().live_runs == 1
        answers.set()
        await until_parked(engine, clock)


async def test_a_run_that_waits_by_id_comes_back_from_the_journal(
    path: Path, clock: ManualClock
) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(asking(), id="it")
        await until_waiting(run, 1)
        event_id = EventId.parse((await run.status()).running[0].event_id or "")
        await until_parked(engine, clock)
        await engine.send_event_id(event_id, "from the journal")
        assert await run.result(timeout=WAIT_S_MAX) == "from the journal"


@pytest.mark.parametrize("kind", ["unknown", "consumed"])
async def test_a_wrong_id_is_found_out_after_a_crash_too(
    path: Path, clock: ManualClock, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies between the commit of the wait and the look into the journal."""
    monkeypatch.setattr("durable.runtime.sends.Sends.look_up", lambda *_: None)
    async with opened(path, clock, drain_timeout=0) as engine:
        run = await engine.start(telling(), id="it")
        event_id = EventId("0" * 32)
        if kind == "consumed":
            event_id = await run.send_event("it", 1)
            await run.send_event("id", event_id)
        await run.send_event("id", event_id)
        await until_open(run)
        await until_waiting(run, 1 if kind == "unknown" else 3)
    monkeypatch.undo()
    async with opened(path, clock) as engine:
        run = engine.get("it")
        await run.send_event("id")
        told = await run.result(timeout=WAIT_S_MAX)
        assert (
            told == {"unknown": ["EventNotFoundError"], "consumed": [1, "EventConsumedError"]}[kind]
        )
