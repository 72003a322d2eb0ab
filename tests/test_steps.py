"""Steps: how often an action is tried, when, and what a crash makes of that."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from attempts import World
from clock import START_MS, ManualClock
from faults import crashing, opened
from waiting import WAIT_S_MAX, until, until_step

import durable
from durable import (
    ArgumentError,
    Engine,
    NonRetryable,
    PayloadTooLarge,
    Retry,
    ReturnTypeError,
    RunFailed,
    Step,
    StepState,
)

START = datetime.fromtimestamp(START_MS / 1000, UTC)

AT_ONCE = Retry(max_attempts=3, initial_backoff=0)
SLOWLY = Retry(max_attempts=3, initial_backoff=10, base=2, jitter=False)


world = World()


@pytest.fixture(autouse=True)
def _new_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_steps.world", World())


@durable.action
async def fail() -> None:
    raise ValueError(world.begin().number)


@durable.action
async def fail_twice() -> int:
    if world.begin().number <= 2:
        raise ValueError(durable.attempt().number)
    return durable.attempt().number


@durable.action
async def note() -> int:
    return world.begin().number


# --- whose policy --------------------------------------------------------------------------------

# Each row says for step, action, workflow and engine what they say, and how many attempts are made.
POLICIES: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any], int]] = [
    ({}, {}, {}, {}, 1),
    ({}, {}, {}, {"retry": Retry(4, 0)}, 1),
    ({}, {}, {}, {"retry": Retry(4, 0), "retry_actions_by_default": True}, 4),
    ({}, {}, {"retry": Retry(2, 0)}, {"retry_actions_by_default": True}, 2),
    ({}, {}, {"retry_actions_by_default": True}, {"retry": Retry(4, 0)}, 4),
    ({}, {}, {"retry_actions_by_default": False}, {"retry_actions_by_default": True}, 1),
    ({}, {"retry": True}, {}, {"retry": Retry(4, 0)}, 4),
    ({}, {"retry": True}, {"retry": Retry(2, 0)}, {}, 2),
    ({}, {"retry": Retry(3, 0)}, {"retry": Retry(2, 0)}, {}, 3),
    ({}, {"retry": False}, {"retry_actions_by_default": True}, {}, 1),
    ({"retry": True}, {"retry": Retry(3, 0)}, {"retry": Retry(2, 0)}, {}, 3),
    ({"retry": True}, {"retry": False}, {"retry": Retry(2, 0)}, {}, 2),
    ({"retry": Retry(5, 0)}, {"retry": Retry(3, 0)}, {"retry": Retry(2, 0)}, {}, 5),
    ({"retry": Retry(5, 0)}, {"retry": False}, {}, {}, 5),
    ({"retry": False}, {"retry": Retry(3, 0)}, {}, {"retry_actions_by_default": True}, 1),
]


@pytest.mark.parametrize("number", range(len(POLICIES)))
async def test_the_nearest_policy_decides(path: Path, number: int) -> None:
    of_step, of_action, of_workflow, of_engine, attempts = POLICIES[number]
    action = durable.action(name=f"steps.policy_{number}", **of_action)(fail.fn)

    @durable.workflow(name=f"steps.policies_{number}", **of_workflow)
    async def body(step: Step) -> None:
        await (step.run(action(), **of_step) if of_step else action())

    async with Engine(path, **of_engine) as engine:
        run = await engine.start(body())
        with pytest.raises(RunFailed, match=f"ValueError: {attempts}"):
            await run.result(timeout=WAIT_S_MAX)
        (info,) = [step async for step in run.steps()]
    assert world.numbers == list(range(1, attempts + 1))
    assert (info.state, info.attempts) == (StepState.FAILED, attempts)
    assert info.error is not None
    assert (info.error.type_name, info.error.message) == ("ValueError", str(attempts))


# --- back-off ------------------------------------------------------------------------------------


@durable.workflow
async def retried_slowly(step: Step) -> list[float]:
    begun = step.now()
    number = await step.run(fail_twice(), retry=SLOWLY)
    return [number, (step.now() - begun).total_seconds()]


async def test_attempts_are_made_when_they_are_due_and_not_before(
    path: Path, clock: ManualClock
) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(retried_slowly())
        for number, wait in ((1, 10), (2, 20)):
            info = await until_attempted(run, fail_twice.name, number)
            assert info.error is not None, "why it is tried again"
            assert info.error.message == str(number)
            clock.advance(wait - 0.001)
            await nothing_more(engine, number)
            clock.advance(0.001)
            await until(lambda number=number: len(world.attempts) == number + 1)  # type: ignore[misc]
        assert await run.result(timeout=WAIT_S_MAX) == [3, 30]
    assert len({attempt.idempotency_key for attempt in world.attempts}) == 1
    assert [attempt.interruptions for attempt in world.attempts] == [0, 0, 0]


async def until_attempted(run: durable.Run[Any], name: str, attempts: int) -> durable.StepInfo:
    """Wait until that many attempts have failed and the next one is waited for."""
    async with asyncio.timeout(WAIT_S_MAX):
        while True:
            info = await until_step(run, name, StepState.PENDING)
            if info.attempts == attempts:
                return info


@durable.workflow
async def noting(_: Step) -> int:
    return await note()


async def nothing_more(engine: Engine, count: int) -> None:
    """Check that no more than so many attempts begin, by something that goes the whole way."""
    await engine.run(noting())
    world.attempts.pop()
    assert len(world.attempts) == count


@pytest.mark.parametrize("away", [4, 10, 1000])
async def test_a_crash_in_back_off_keeps_the_attempt_and_its_time(
    path: Path, clock: ManualClock, away: float
) -> None:
    """A restart neither extends the wait nor skips it."""
    async with crashing(path, clock) as engine:
        run = await engine.start(retried_slowly(), id="it")
        await until_attempted(run, fail_twice.name, 1)
    clock.advance(away)
    async with opened(path, clock) as engine:
        run = engine.get("it")
        if away < 10:
            await until_step(run, fail_twice.name, StepState.PENDING)
            await nothing_more(engine, 1)
            clock.advance(10 - away - 0.001)
            await nothing_more(engine, 1)
            clock.advance(0.001)
        await until_attempted(run, fail_twice.name, 2)
        clock.advance(20)
        assert await run.result(timeout=WAIT_S_MAX) == [3, max(away, 10) + 20]
    assert world.numbers == [1, 2, 3]
    assert [attempt.interruptions for attempt in world.attempts] == [0, 0, 0]


# --- what is not tried again ---------------------------------------------------------------------


@durable.action(retry=AT_ONCE)
async def give_up(how: str) -> None:
    world.begin()
    if how == "said":
        raise NonRetryable("no use")
    reason = LookupError("the reason")
    if how == "from":
        raise NonRetryable from reason
    raise NonRetryable("said") from reason


@durable.action(retry=AT_ONCE)
async def return_wrongly(text: Any) -> int:  # noqa: ANN401  so that no type checker objects
    world.begin()
    result: int = text
    return result


@durable.action(retry=AT_ONCE)
async def return_much(count: int) -> str:
    world.begin()
    return "x" * count


@durable.workflow
async def catching(_: Step, what: str) -> str:
    calls: dict[str, durable.Call[Any]] = {
        "type": return_wrongly("text"),
        "size": return_much(2_000),
    }
    try:
        await calls.get(what, give_up(what))
    except (NonRetryable, ReturnTypeError, PayloadTooLarge) as exc:
        return f"{type(exc).__name__}: {exc}"
    return "nothing"


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("said", "NonRetryable: no use"),
        ("from", "NonRetryable: the reason"),
        ("both", "NonRetryable: said"),
        ("type", "ReturnTypeError: the result of test_steps:return_wrongly: Expected `int`"),
        ("size", "PayloadTooLarge: the result of test_steps:return_much: 2,002 bytes"),
    ],
)
async def test_what_would_not_help_ends_the_step_at_once(path: Path, what: str, said: str) -> None:
    async with Engine(path, max_payload=1_000) as engine:
        assert (await engine.run(catching(what))).startswith(said)
    assert world.numbers == [1]


@durable.workflow
async def calling_wrongly(step: Step) -> list[str]:
    said: list[str] = []
    many: Any = "many"
    for call in (return_much(many), return_wrongly("x" * 2_000)):
        for awaited in (call, step.run(call)):
            try:
                await awaited
            except (ArgumentError, PayloadTooLarge) as exc:
                said.append(type(exc).__name__)
    return [*said, str(await note())]


async def test_wrong_arguments_are_refused_in_the_body_before_anything_is_written(
    path: Path,
) -> None:
    async with Engine(path, max_payload=1_000) as engine:
        run = await engine.start(calling_wrongly())
        wrong = ["ArgumentError"] * 2 + ["PayloadTooLarge"] * 2
        assert await run.result(timeout=WAIT_S_MAX) == [*wrong, "1"]
        assert [step.name async for step in run.steps()] == [note.name]


# --- time-outs -----------------------------------------------------------------------------------


@durable.action(timeout=0.01, retry=Retry(2, 0))
async def late() -> None:
    attempt = world.begin()
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        world.attempts.append(attempt)


@durable.action(timeout=0.01)
async def late_by_default() -> str:
    await asyncio.sleep(0.02)
    return "in time"


@durable.action(timeout=WAIT_S_MAX)
async def time_out_by_itself() -> None:
    raise TimeoutError("my own")


@durable.workflow
async def timing_out(step: Step) -> list[str]:
    said: list[str] = []
    for call in (late(), time_out_by_itself()):
        try:
            await call
        except TimeoutError as exc:
            said.append(str(exc))
    said.append(await step.run(late_by_default(), timeout=timedelta(seconds=WAIT_S_MAX)))
    return said


async def test_a_time_out_bounds_one_attempt(path: Path) -> None:
    """The action is cancelled once, as asyncio has it: it may await while it cleans up."""
    async with Engine(path) as engine:
        assert await engine.run(timing_out()) == [
            "the attempt took longer than its timeout of 0.01 s",
            "my own",
            "in time",
        ]
    assert world.numbers == [1, 1, 2, 2], "both attempts, and both clean-ups"


# --- delays --------------------------------------------------------------------------------------


@durable.workflow
async def delayed(step: Step, how: str) -> float:
    begun = step.now()
    match how:
        case "seconds":
            await step.run(note(), run_after=100)
        case "timedelta":
            await step.run(note(), run_after=timedelta(seconds=100))
        case "at":
            await step.run(note(), run_at=begun + timedelta(seconds=100))
        case _:
            tokyo = (begun + timedelta(seconds=100)).astimezone(None)
            await step.run(note(), run_at=tokyo)
    return (step.now() - begun).total_seconds()


@pytest.mark.parametrize("how", ["seconds", "timedelta", "at", "elsewhere"])
@pytest.mark.parametrize("crashes", [False, True])
async def test_a_delayed_step_begins_at_its_time(
    path: Path, clock: ManualClock, how: str, *, crashes: bool
) -> None:
    """It is fixed once: a restart does not extend it."""
    async with crashing(path, clock) as engine:
        run = await engine.start(delayed(how), id="it")
        await until_step(run, note.name, StepState.PENDING)
        clock.advance(60)
        if not crashes:
            await nothing_more(engine, 0)
            clock.advance(40)
            assert await run.result(timeout=WAIT_S_MAX) == 100
    if crashes:
        async with opened(path, clock) as engine:
            run = engine.get("it")
            await until_step(run, note.name, StepState.PENDING)
            clock.advance(39.999)
            await nothing_more(engine, 0)
            clock.advance(0.001)
            assert await run.result(timeout=WAIT_S_MAX) == 100
    assert len(world.attempts) == 1


@durable.workflow
async def delayed_wrongly(step: Step) -> list[str]:
    said: list[str] = []
    wrong: list[dict[str, Any]] = [
        {"run_after": 1, "run_at": START},
        {"run_at": START.replace(tzinfo=None)},
        {"run_at": 5},
        {"run_after": "soon"},
        {"retry": 3},
        {"timeout": 0},
        {"name": ""},
    ]
    for options in wrong:
        try:
            await step.run(note(), **options)
        except (ValueError, TypeError) as exc:
            said.append(type(exc).__name__)
    await step.run(note(), run_after=-5)
    await step.run(note(), run_at=START - timedelta(days=1))
    return said


async def test_wrong_options_of_a_step_are_refused_and_what_is_past_is_due(path: Path) -> None:
    async with Engine(path) as engine:
        run = await engine.start(delayed_wrongly())
        assert await run.result(timeout=WAIT_S_MAX) == [
            "ValueError",
            "ValueError",
            "TypeError",
            "TypeError",
            "TypeError",
            "ValueError",
            "TypeError",
        ]
        assert len([step async for step in run.steps()]) == 2
