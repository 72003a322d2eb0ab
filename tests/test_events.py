"""Events: what a run is sent, and what its waits get of it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from clock import ManualClock
from faults import opened
from waiting import WAIT_S_MAX, until_open, until_step, until_waiting
from world import echo

import durable
from durable import (
    ArgumentError,
    Engine,
    Event,
    EventError,
    EventId,
    EventTypeError,
    NonDeterminismError,
    PayloadTooLarge,
    RunCanceled,
    RunFailed,
    RunFinishedError,
    RunNotFoundError,
    RunState,
    Step,
    StepKind,
    StepState,
)

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Approval:
    by: str
    cents: int = 0


approval = Event("approval", Approval)
approval_of_old = Event("approval", int)

NAP_S = 10.0


@durable.workflow
async def approved(step: Step) -> Approval:
    return await step.wait_event(approval)


@durable.workflow
async def named(step: Step, name: str = "it", timeout: float | None = None) -> Any:  # noqa: ANN401, ASYNC109
    return await step.wait_event(name, timeout=timeout)


@durable.workflow
async def collecting(step: Step, names: list[str]) -> list[Any]:
    return [await step.wait_event(name) for name in names]


@durable.workflow
async def telling_errors(step: Step, count: int) -> list[str]:
    told: list[str] = []
    for _ in range(count):
        try:
            told.append(f"value {await step.wait_event(approval)}")
        except (EventError, EventTypeError) as exc:
            told.append(f"{type(exc).__name__} {exc}")
    return told


@durable.workflow
async def napping(step: Step) -> Any:  # noqa: ANN401
    await step.sleep(NAP_S)
    return await step.wait_event("it")


# --- a value arrives -----------------------------------------------------------------------------


async def test_a_wait_gets_what_is_sent_to_it(engine: Engine) -> None:
    run = await engine.start(approved())
    await until_open(run)
    event_id = await run.send_event(approval, Approval("ann", 5))
    assert await run.result(timeout=WAIT_S_MAX) == Approval("ann", 5)
    (step,) = [step async for step in run.steps()]
    assert (step.kind, step.name, step.state) == (StepKind.EVENT, "approval", StepState.COMPLETED)
    assert step.kind == "event"
    assert step.event_id == str(event_id)
    assert step.args == {"event": "approval"}
    assert step.result == {"by": "ann", "cents": 5}
    assert step.started_at is not None
    assert step.finished_at is not None


async def test_what_was_sent_before_the_wait_is_there_already(
    engine: Engine, clock: ManualClock
) -> None:
    run = await engine.start(napping())
    await until_open(run)
    await run.send_event("it", 1)
    clock.advance(NAP_S)
    assert await run.result(timeout=WAIT_S_MAX) == 1


async def test_an_open_wait_is_shown_and_takes_no_slot(clock: ManualClock) -> None:
    engine = Engine("sqlite://", max_parallelism=0)
    clock.install(engine)
    async with engine:
        run = await engine.start(approved())
        await until_open(run)
        (step,) = (await run.status()).running
        assert (step.kind, step.state, step.event_id) == ("event", StepState.RUNNING, None)
        assert engine.statistics().queued_actions == engine.statistics().running_actions == 0
        await run.send_event(approval, Approval("ann"))
        assert await run.result(timeout=WAIT_S_MAX) == Approval("ann")


@pytest.mark.parametrize("value", [None, 0, "", [1, {"a": None}], {"b": [True]}, "ä\n"])
async def test_by_its_name_an_event_may_be_any_value(engine: Engine, value: object) -> None:
    run = await engine.start(named())
    await run.send_event("it", value)
    assert await run.result(timeout=WAIT_S_MAX) == value


async def test_the_body_gets_the_decoded_round_trip(engine: Engine) -> None:
    run = await engine.start(named())
    await run.send_event("it", (1, Approval("ann")))
    assert await run.result(timeout=WAIT_S_MAX) == [1, {"by": "ann", "cents": 0}]


async def test_a_name_and_an_event_of_that_name_are_the_same(engine: Engine) -> None:
    run = await engine.start(approved())
    await run.send_event("approval", {"by": "ann"})
    assert await run.result(timeout=WAIT_S_MAX) == Approval("ann")


async def test_each_name_has_its_own_events(engine: Engine) -> None:
    run = await engine.start(collecting(["b", "a"]))
    await until_open(run)
    await run.send_event("a", "to a")
    await until_step(run, "b", StepState.RUNNING)
    await run.send_event("b", "to b")
    assert await run.result(timeout=WAIT_S_MAX) == ["to b", "to a"]


async def test_an_event_is_never_another_run_s(engine: Engine) -> None:
    one, other = await engine.start(named()), await engine.start(named())
    await other.send_event("it", "other")
    await one.send_event("it", "one")
    assert await one.result(timeout=WAIT_S_MAX) == "one"
    assert await other.result(timeout=WAIT_S_MAX) == "other"


async def test_an_action_may_send_to_its_own_run(engine: Engine) -> None:
    @durable.action(name="test_events.sending")
    async def sending() -> EventId:
        return await Engine.current().send_event(durable.attempt().run_id, "it", 7)

    @durable.workflow(name="test_events.sends_to_itself")
    async def sends_to_itself(step: Step) -> Any:  # noqa: ANN401
        event_id = await sending()
        return await step.wait_event(event_id)

    assert await engine.run(sends_to_itself()) == 7


async def test_a_canceled_body_may_wait_while_it_cleans_up(engine: Engine) -> None:
    @durable.workflow(name="test_events.cleans_up")
    async def cleans_up(step: Step) -> None:
        try:
            await step.wait_event("work")
        finally:
            await echo(await step.wait_event("may end"))

    run = await engine.start(cleans_up())
    await until_open(run)
    assert await run.cancel()
    assert (await run.status()).state is RunState.CANCELING
    await run.send_event("work", "late")
    await run.send_event("may end", "now")
    with pytest.raises(RunCanceled):
        await run.result(timeout=WAIT_S_MAX)
    steps = [(step.name, step.state) async for step in run.steps()]
    assert steps[:2] == [("work", StepState.CANCELED), ("may end", StepState.COMPLETED)]


# --- errors --------------------------------------------------------------------------------------


async def test_an_error_that_is_sent_is_raised_at_the_wait(engine: Engine) -> None:
    run = await engine.start(telling_errors(3))
    await run.send_event(approval, error="not today")
    await run.send_event(approval, error=LookupError("no such order"))
    await run.send_event(approval, Approval("ann"))
    assert await run.result(timeout=WAIT_S_MAX) == [
        "EventError not today",
        "EventError LookupError: no such order",
        "value Approval(by='ann', cents=0)",
    ]
    first, second, _ = [step async for step in run.steps()]
    assert first.state is second.state is StepState.FAILED
    assert second.error is not None
    assert second.error.type_name == "durable.EventError"
    assert second.event_id is not None


async def test_an_error_says_what_was_sent_and_where_it_came_from(engine: Engine) -> None:
    run = await engine.start(approved())
    try:
        raise LookupError("gone")  # noqa: TRY301
    except LookupError as exc:
        await run.send_event(approval, error=exc)
    with pytest.raises(RunFailed) as caught:
        await run.result(timeout=WAIT_S_MAX)
    error = caught.value.__cause__
    assert isinstance(error, EventError)
    assert (error.type_name, error.message) == ("LookupError", "gone")
    assert (
        "test_events.py" in str(error.__cause__) or "test_events.py" in caught.value.error.traceback
    )


@pytest.mark.parametrize("text", ["", "\ud800", "x" * 100_000])
async def test_any_text_is_an_error(engine: Engine, text: str) -> None:
    run = await engine.start(telling_errors(1))
    await run.send_event(approval, error=text)
    (told,) = await run.result(timeout=WAIT_S_MAX)
    assert told.startswith("EventError ")
    assert told[11:][:60] in text or text == "\ud800"


async def test_a_value_of_another_type_is_refused_at_the_sender(engine: Engine) -> None:
    run = await engine.start(approved())
    wrong: Any = {"by": 3}
    with pytest.raises(ArgumentError, match=r"event 'approval'.*\$\.by"):
        await run.send_event(approval, wrong)
    anything: Event[Any] = approval
    with pytest.raises(ArgumentError, match="approval"):
        await run.send_event(anything)
    with pytest.raises(ArgumentError, match="no JSON form"):
        await run.send_event("approval", object())
    await run.send_event(approval, Approval("ann"))
    assert await run.result(timeout=WAIT_S_MAX) == Approval("ann")


async def test_a_value_that_does_not_fit_the_wait_is_consumed_and_can_be_caught(
    engine: Engine,
) -> None:
    run = await engine.start(telling_errors(2))
    first = await run.send_event(approval_of_old, 3)
    await run.send_event(approval, Approval("ann"))
    told = await run.result(timeout=WAIT_S_MAX)
    assert told[0].startswith(f"EventTypeError the value of event 'approval' ({first})")
    assert "consumed" in told[0]
    assert told[1] == "value Approval(by='ann', cents=0)"
    step, _ = [step async for step in run.steps()]
    assert (step.state, step.event_id) == (StepState.FAILED, str(first))


async def test_a_value_that_is_too_large_is_refused_at_the_sender() -> None:
    async with Engine("sqlite://", max_payload=100) as engine:
        run = await engine.start(named())
        with pytest.raises(PayloadTooLarge, match="event 'it'"):
            await run.send_event("it", "x" * 200)
        await run.send_event("it", "x")
        assert await run.result(timeout=WAIT_S_MAX) == "x"


async def test_who_sends_to_no_run_is_told(engine: Engine) -> None:
    with pytest.raises(RunNotFoundError, match="'nobody'"):
        await engine.send_event("nobody", "it")
    with pytest.raises(RunNotFoundError, match="'nobody'"):
        await engine.create_event("nobody", "it")


@pytest.mark.parametrize("how", ["completed", "failed", "canceled"])
async def test_who_sends_to_a_run_that_is_over_is_told(engine: Engine, how: str) -> None:
    run = await engine.start(named())
    created = await engine.create_event(run.id, "it")
    if how == "canceled":
        await run.cancel()
    elif how == "failed":
        await run.send_event("it", error="no")
    else:
        await run.send_event("it")
    with suppress(RunCanceled, RunFailed):
        await run.result(timeout=WAIT_S_MAX)
    with pytest.raises(RunFinishedError, match="is over"):
        await run.send_event("it")
    with pytest.raises(RunFinishedError, match="is over"):
        await engine.create_event(run.id, "it")
    with pytest.raises(RunFinishedError, match="is over"):
        await engine.send_event_id(created)
    assert (await run.status()).state == how


async def test_what_is_sent_wrongly_is_refused_with_a_word(engine: Engine) -> None:
    run = await engine.start(named())
    wrong: list[tuple[type[Exception], str, tuple[Any, ...], dict[str, Any]]] = [
        (TypeError, "an event's name", (None,), {}),
        (TypeError, "an event's name", ("",), {}),
        (TypeError, "an event's name", (EventId("0" * 32),), {}),
        (ValueError, "NUL", ("a\0b",), {}),
        (ValueError, "surrogate", ("\ud800",), {}),
        (ValueError, "not both", ("it", 1), {"error": "no"}),
        (TypeError, "text or an exception", ("it",), {"error": 3}),
        (TypeError, "text or an exception", ("it",), {"error": ValueError}),
    ]
    for error, says, args, options in wrong:
        with pytest.raises(error, match=says):
            await run.send_event(*args, **options)
    not_an_id: Any = "0" * 32
    with pytest.raises(TypeError, match=r"EventId\.parse"):
        await engine.send_event_id(not_an_id)
    assert not (await run.status()).state.is_final


async def test_a_body_cannot_send_and_code_outside_of_it_cannot_wait(engine: Engine) -> None:
    steps: list[Step] = []

    @durable.workflow(name="test_events.sending_body")
    async def sending_body(step: Step) -> None:
        steps.append(step)
        await engine.send_event(step.run_id, "it")

    with pytest.raises(RunFailed) as caught:
        await engine.run(sending_body())
    assert isinstance(caught.value.__cause__, NonDeterminismError) or (
        caught.value.error.type_name == "durable.NonDeterminismError"
    )
    with pytest.raises(durable.NotInWorkflowError):
        await steps[0].wait_event("it")


@pytest.mark.parametrize("event", [3, None, "", Approval])
async def test_a_wait_for_no_event_is_the_body_s_error(engine: Engine, event: Any) -> None:  # noqa: ANN401
    @durable.workflow(name="test_events.waits_for_nothing")
    async def waits_for_nothing(step: Step) -> None:
        await step.wait_event(event)

    with pytest.raises(RunFailed, match="TypeError: an event's name"):
        await engine.run(waits_for_nothing())


async def test_a_closed_engine_sends_nothing(engine: Engine) -> None:
    closed = Engine("sqlite://")
    with pytest.raises(durable.EngineClosedError, match=r"send_event\(\)"):
        await closed.send_event("r", "it")
    with pytest.raises(durable.EngineClosedError, match=r"create_event\(\)"):
        await closed.create_event("r", "it")
    with pytest.raises(durable.EngineClosedError, match=r"send_event_id\(\)"):
        await closed.send_event_id(EventId("0" * 32))


# --- Event and EventId themselves ----------------------------------------------------------------


def test_an_event_is_a_name_and_a_type() -> None:
    assert (approval.name, approval.type) == ("approval", Approval)
    assert Event("any").type is Any
    assert "approval" in repr(approval)
    assert "Approval" in repr(approval)


def test_an_event_s_type_has_a_json_form() -> None:
    class Odd:
        pass

    with pytest.raises(TypeError, match="'odd' has no JSON form"):
        Event("odd", Odd)


def test_an_event_id_is_text_and_back() -> None:
    event_id = EventId("0123456789abcdef0123456789abcdef")
    assert EventId.parse(str(event_id)) == event_id
    assert hash(EventId.parse(str(event_id))) == hash(event_id)
    assert str(event_id).isalnum()
    assert msgspec.json.decode(msgspec.json.encode(event_id), type=EventId) == event_id
    changed: Any = event_id
    with pytest.raises(AttributeError):
        changed.id = "other"


@pytest.mark.parametrize("text", ["", "x", "0" * 31, "0" * 33, "0" * 32 + "\n", "G" * 32, None, 3])
def test_what_is_no_event_id_is_refused(text: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match="32 hexadecimal digits"):
        EventId.parse(text)


# --- time-outs -----------------------------------------------------------------------------------


async def test_a_wait_that_times_out_consumes_nothing(engine: Engine, clock: ManualClock) -> None:
    @durable.workflow(name="test_events.in_time_or_later")
    async def in_time_or_later(step: Step) -> list[Any]:
        try:
            await step.wait_event("it", timeout=timedelta(seconds=NAP_S))
        except TimeoutError as exc:
            timed_out = str(exc)
        return [timed_out, await step.wait_event("it")]

    run = await engine.start(in_time_or_later())
    await until_open(run)
    clock.advance(NAP_S - 0.001)
    assert [step.number for step in (await run.status()).running] == [0]
    clock.advance(0.001)
    await until_waiting(run, 1)
    await run.send_event("it", "later")
    assert await run.result(timeout=WAIT_S_MAX) == [
        'no event came in time for the wait {"event":"it"}',
        "later",
    ]
    steps = [step async for step in run.steps()]
    assert [step.state for step in steps] == [StepState.FAILED, StepState.COMPLETED]
    assert [step.event_id is None for step in steps] == [True, False]
    assert steps[0].started_at is not None
    assert steps[0].finished_at == steps[0].started_at + timedelta(seconds=NAP_S)


async def test_an_event_that_comes_in_time_ends_the_timer(
    engine: Engine, clock: ManualClock
) -> None:
    @durable.workflow(name="test_events.in_time")
    async def in_time(step: Step) -> Any:  # noqa: ANN401
        value = await step.wait_event("it", timeout=NAP_S)
        await step.sleep(2 * NAP_S)
        return value

    run = await engine.start(in_time())
    await until_open(run)
    await run.send_event("it", "in time")
    await until_step(run, "sleep", StepState.RUNNING)
    clock.advance(2 * NAP_S)
    assert await run.result(timeout=WAIT_S_MAX) == "in time"
    assert len([step async for step in run.steps()]) == 2


@pytest.mark.parametrize("seconds", [0, -1.0])
async def test_a_wait_without_any_time_takes_what_is_there(
    engine: Engine, clock: ManualClock, seconds: float
) -> None:
    @durable.workflow(name=f"test_events.polling.{seconds}")
    async def polling(step: Step) -> list[Any]:
        got: list[Any] = []
        await step.sleep(NAP_S)
        while True:
            try:
                got.append(await step.wait_event("it", timeout=seconds))
            except TimeoutError:
                return got

    run = await engine.start(polling())
    await until_open(run)
    await run.send_event("it", 1)
    await run.send_event("it", 2)
    clock.advance(NAP_S)
    assert await run.result(timeout=WAIT_S_MAX) == [1, 2]


async def test_a_wait_for_ever_is_one(engine: Engine, clock: ManualClock) -> None:
    run = await engine.start(named("it", 1e18))
    await until_open(run)
    clock.advance(50 * 365 * 86400)
    await run.send_event("it", "after fifty years")
    assert await run.result(timeout=WAIT_S_MAX) == "after fifty years"


async def test_asyncio_s_own_timeout_withdraws_a_wait(engine: Engine, clock: ManualClock) -> None:
    @durable.workflow(name="test_events.withdrawing")
    async def withdrawing(step: Step) -> Any:  # noqa: ANN401
        try:
            async with asyncio.timeout(NAP_S):
                await step.wait_event("it")
        except TimeoutError:
            return await step.wait_event("it")

    run = await engine.start(withdrawing())
    await until_open(run)
    clock.advance(NAP_S)
    await until_step(run, "timer", StepState.COMPLETED)
    await run.send_event("it", "second")
    assert await run.result(timeout=WAIT_S_MAX) == "second"
    waits = [step async for step in run.steps() if step.kind == "event"]
    assert [step.state for step in waits] == [StepState.CANCELED, StepState.COMPLETED]


async def test_many_events_are_consumed_in_order_at_a_fair_cost(path: Path) -> None:
    """One by one, and when they wait all at once."""
    names = ["it"] * 300
    async with opened(path) as engine:
        run = await engine.start(collecting(names))
        await asyncio.gather(*(run.send_event("it", n) for n in range(len(names))))
        assert await run.result(timeout=WAIT_S_MAX) == list(range(len(names)))
