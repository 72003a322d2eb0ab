"""Which wait gets which event: each event once, in order, and none is lost with its wait."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from clock import ManualClock
from waiting import WAIT_S_MAX, until, until_open, until_step, until_waiting

import durable
from durable import Engine, Run, Step, StepState

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

NAP_S = 10.0

gate = asyncio.Event()


@pytest.fixture(autouse=True)
def _new_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_events_order.gate", asyncio.Event())


async def a_run_of(engine: Engine, body: Callable[[Step], Coroutine[Any, Any, Any]]) -> Run[Any]:
    """Start a body that is written within a test."""
    name = f"test_events_order.{body.__qualname__}"
    return await engine.start(durable.workflow(name=name)(body)())


@durable.action
async def gated() -> None:
    await gate.wait()


async def consumed_by(run: Run[Any]) -> list[str | None]:
    return [step.event_id async for step in run.steps() if step.kind == "event"]


async def test_waits_get_the_events_of_a_name_in_the_order_of_sending(engine: Engine) -> None:
    async def in_order(step: Step) -> list[Any]:
        await gated()
        return [await step.wait_event("it") for _ in range(5)]

    run = await a_run_of(engine, in_order)
    for n in range(5):
        await run.send_event("it", n)
        await run.send_event("other", n)
    gate.set()
    assert await run.result(timeout=WAIT_S_MAX) == list(range(5))


async def test_waits_at_the_same_time_are_served_in_the_order_of_issue(engine: Engine) -> None:
    async def at_once(step: Step) -> list[Any]:
        return await asyncio.gather(*(step.wait_event("it") for _ in range(5)))

    run = await a_run_of(engine, at_once)
    await until_open(run)
    for n in range(5):
        await run.send_event("it", n)
    assert await run.result(timeout=WAIT_S_MAX) == list(range(5))


async def test_waits_at_the_same_time_share_what_was_sent_before(engine: Engine) -> None:
    async def at_once(step: Step) -> list[Any]:
        await gated()
        return await asyncio.gather(*(step.wait_event("it") for _ in range(3)))

    run = await a_run_of(engine, at_once)
    sent = [await run.send_event("it", n) for n in range(3)]
    gate.set()
    assert await run.result(timeout=WAIT_S_MAX) == [0, 1, 2]
    assert await consumed_by(run) == [str(event_id) for event_id in sent]


async def test_the_loser_of_a_race_leaves_its_event(engine: Engine) -> None:
    """Both were sent at once, and the body takes the first of the two only."""

    async def racing(step: Step) -> list[Any]:
        await gated()
        waits = [asyncio.create_task(step.wait_event(name)) for name in ("a", "b")]
        done, left = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in left:
            wait.cancel()
        won = [wait.result() for wait in done]
        return [*won, await step.wait_event("b")]

    run = await a_run_of(engine, racing)
    await run.send_event("a", "first")
    await run.send_event("b", "second")
    gate.set()
    assert await run.result(timeout=WAIT_S_MAX) == ["first", "second"]


async def test_a_withdrawn_wait_leaves_its_event_in_its_place(engine: Engine) -> None:
    """The first wait is withdrawn when its event was there: the second gets the first event."""

    async def withdrawing(step: Step) -> list[Any]:
        first = asyncio.create_task(step.wait_event("it"))
        second = asyncio.create_task(step.wait_event("it"))

        async def withdraw() -> None:
            await step.wait_event("now")
            first.cancel()

        await asyncio.gather(withdraw(), gated())
        return [await second, await step.wait_event("it"), first.cancelled()]

    run = await a_run_of(engine, withdrawing)
    await until_step(run, gated.name, StepState.RUNNING)
    # In one commit, so that all three are there before the body hears of any.
    await asyncio.gather(
        run.send_event("now"), run.send_event("it", "first"), run.send_event("it", "second")
    )
    gate.set()
    assert await run.result(timeout=WAIT_S_MAX) == ["first", "second", True]


async def test_an_event_whose_wait_is_withdrawn_goes_to_the_next_open_one(engine: Engine) -> None:
    async def handing_on(step: Step) -> list[Any]:
        first = asyncio.create_task(step.wait_event("it"))
        second = asyncio.create_task(step.wait_event("it"))
        await step.wait_event("now")
        first.cancel()
        return [await second]

    run = await a_run_of(engine, handing_on)
    await until_waiting(run, 0)
    await asyncio.gather(run.send_event("now"), run.send_event("it", "only"))
    assert await run.result(timeout=WAIT_S_MAX) == ["only"]


async def test_the_first_delivery_decides_between_an_event_and_its_time_out(
    engine: Engine, clock: ManualClock
) -> None:
    async def in_time(step: Step) -> Any:  # noqa: ANN401
        try:
            return ["in time", await step.wait_event("it", timeout=NAP_S)]
        except TimeoutError:
            return ["too late", await step.wait_event("it")]

    for first in ("event", "time-out"):
        run = await a_run_of(engine, in_time)
        await until_open(run)
        sending = asyncio.create_task(run.send_event("it", first))
        if first == "event":
            await sending
        clock.advance(NAP_S)
        await sending
        result = await run.result(timeout=WAIT_S_MAX)
        assert result == ["in time" if first == "event" else "too late", first]
        events = [step async for step in run.steps() if step.kind == "event"]
        assert [event.event_id for event in events][-1] is not None


async def test_a_time_out_frees_the_place_for_the_next_wait(
    engine: Engine, clock: ManualClock
) -> None:
    async def two_of_them(step: Step) -> list[Any]:
        short = asyncio.create_task(step.wait_event("it", timeout=NAP_S))
        long = asyncio.create_task(step.wait_event("it"))
        results = await asyncio.gather(short, long, return_exceptions=True)
        return [type(result).__name__ for result in results]

    run = await a_run_of(engine, two_of_them)
    await until_open(run)
    clock.advance(NAP_S)
    await until_waiting(run, 1)
    await run.send_event("it", "for the long one")
    assert await run.result(timeout=WAIT_S_MAX) == ["TimeoutError", "str"]


async def test_a_body_that_shields_its_wait_keeps_it(engine: Engine, clock: ManualClock) -> None:
    async def shielding(step: Step) -> list[Any]:
        wait = asyncio.create_task(step.wait_event("it"))
        try:
            async with asyncio.timeout(NAP_S):
                await asyncio.shield(wait)
        except TimeoutError:
            return ["late", await wait]
        return ["in time"]

    run = await a_run_of(engine, shielding)
    await until_open(run)
    clock.advance(NAP_S)
    await until_step(run, "timer", StepState.COMPLETED)
    await run.send_event("it", "value")
    assert await run.result(timeout=WAIT_S_MAX) == ["late", "value"]
    assert len(await consumed_by(run)) == 1


async def test_a_flood_reaches_a_queue_of_the_body_in_order(engine: Engine) -> None:
    count = 50

    async def pumping(step: Step) -> list[Any]:
        queue: asyncio.Queue[Any] = asyncio.Queue()

        async def receive() -> None:
            for _ in range(count):
                await queue.put(await step.wait_event("it"))

        async with asyncio.TaskGroup() as group:
            group.create_task(receive())
            return [await queue.get() for _ in range(count)]

    run = await a_run_of(engine, pumping)
    for n in range(count):
        await run.send_event("it", n)
    assert await run.result(timeout=WAIT_S_MAX) == list(range(count))


async def test_what_nobody_waits_for_stays_until_the_run_is_removed(engine: Engine) -> None:
    async def waiting_for_one(step: Step) -> Any:  # noqa: ANN401
        return await step.wait_event("it")

    run = await a_run_of(engine, waiting_for_one)
    # In one commit: when the first of them is consumed, the others are there.
    await asyncio.gather(*(run.send_event(name, name) for name in ("else", "it", "it")))
    assert await run.result(timeout=WAIT_S_MAX) == "it"
    runner = engine._runner
    assert runner is not None
    await until(lambda: runner.live_runs_count == 0)
    journal: Any = engine._journal
    rows = await journal._read(
        lambda db: db.execute("SELECT name, step_number FROM durable_event ORDER BY seq").fetchall()
    )
    assert rows == [("else", None), ("it", 0), ("it", None)]
    assert await run.cleanup()
    left = await journal._read(lambda db: db.execute("SELECT * FROM durable_event").fetchall())
    assert left == []
