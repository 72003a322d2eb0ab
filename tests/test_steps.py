"""Steps: how often an action is tried, when, and what a crash makes of that."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import durable
from clock import START_MS, ManualClock
from durable import (
    ArgumentError,
    Attempt,
    Engine,
    NonRetryable,
    OutcomeUnknown,
    PayloadTooLarge,
    Retry,
    ReturnTypeError,
    RunFailed,
    Step,
    StepInterrupted,
    StepState,
)
from faults import WAIT_S_MAX, crashing, until, until_step

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

START = datetime.fromtimestamp(START_MS / 1000, UTC)

AT_ONCE = Retry(max_attempts=3, initial_backoff=0)
SLOWLY = Retry(max_attempts=3, initial_backoff=10, base=2, jitter=False)


class World:
    """What the actions of a test see and do."""

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []
        self.may_end = asyncio.Event()

    @property
    def numbers(self) -> list[int]:
        return [attempt.number for attempt in self.attempts]

    def begin(self) -> Attempt:
        self.attempts.append(durable.attempt())
        return self.attempts[-1]


world = World()


@pytest.fixture(autouse=True)
def _new_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_steps.world", World())


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@asynccontextmanager
async def opened(path: Path, clock: ManualClock, **options: Any) -> AsyncIterator[Engine]:  # noqa: ANN401  the engine's
    engine = Engine(path, **options)
    clock.install(engine)
    async with engine:
        yield engine


@durable.action
async def fail() -> None:
    raise ValueError(world.begin().number)


@durable.action
async def fail_twice() -> int:
    if world.begin().number <= 2:
        raise ValueError(durable.attempt().number)
    return durable.attempt().number


@durable.action
async def hang() -> str:
    """Hang, but for when the test lets it end."""
    attempt = world.begin()
    await world.may_end.wait()
    return f"{attempt.number} {attempt.interruptions}"


@durable.action(retry=False)
async def hang_at_most_once() -> str:
    world.begin()
    await world.may_end.wait()
    return "done"


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
    try:
        raise LookupError("the reason")
    except LookupError as exc:
        if how == "from":
            raise NonRetryable from exc
        raise NonRetryable("said") from exc


@durable.action(retry=AT_ONCE)
async def return_wrongly(text: str) -> int:
    world.begin()
    return text  # type: ignore[return-value]  that is the point


@durable.action(retry=AT_ONCE)
async def return_much(count: int) -> str:
    world.begin()
    return "x" * count


@durable.workflow
async def catching(_: Step, what: str) -> str:
    calls = {
        "said": lambda: give_up("said"),
        "from": lambda: give_up("from"),
        "both": lambda: give_up("both"),
        "type": lambda: return_wrongly("text"),
        "size": lambda: return_much(2_000),
    }
    try:
        await calls[what]()
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
        ("size", "PayloadTooLarge: the result of test_steps:return_much take 2,002 bytes"),
    ],
)
async def test_what_would_not_help_ends_the_step_at_once(path: Path, what: str, said: str) -> None:
    async with Engine(path, max_payload=1_000) as engine:
        assert (await engine.run(catching(what))).startswith(said)
    assert world.numbers == [1]


@durable.workflow
async def calling_wrongly(step: Step) -> list[str]:
    said: list[str] = []
    for call in (return_much("many"), return_wrongly("x" * 2_000)):  # type: ignore[arg-type]
        for make in (lambda call=call: call, lambda call=call: step.run(call)):  # type: ignore[misc]
            try:
                await make()
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
async def late(cleaned_up: bool) -> None:  # noqa: FBT001  an argument of a step
    attempt = world.begin()
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if cleaned_up:
            world.attempts.append(attempt)


@durable.action(timeout=0.01)
async def late_by_default() -> str:
    await asyncio.wait([asyncio.create_task(world.may_end.wait())], timeout=0.05)
    return "in time"


@durable.action(timeout=WAIT_S_MAX)
async def time_out_by_itself() -> None:
    raise TimeoutError("my own")


@durable.workflow
async def timing_out(step: Step) -> list[str]:
    said: list[str] = []
    for call in (late(cleaned_up=True), time_out_by_itself()):
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


# --- interrupted by a crash ----------------------------------------------------------------------


@durable.workflow
async def hanging(step: Step, retry: bool | None) -> str:  # noqa: FBT001  an argument of a run
    try:
        return await step.run(hang(), retry=retry)
    except OutcomeUnknown as exc:
        return f"unknown: {exc}"


@durable.workflow(retry=False)
async def hanging_in_a_workflow_without_retries(_: Step) -> str:
    return await hang()


@durable.workflow
async def hanging_at_most_once(step: Step, retry: bool | None) -> str:  # noqa: FBT001
    try:
        return await step.run(hang_at_most_once(), retry=retry)
    except OutcomeUnknown:
        return "unknown"


async def crash_in(path: Path, call: durable.Call[Any], times: int = 1) -> None:
    for time in range(times):
        async with crashing(path) as engine:
            await engine.start(call, id="it")
            await until(lambda time=time: len(world.attempts) == time + 1)  # type: ignore[misc]


@pytest.mark.parametrize(
    "call", [hanging(None), hanging(True), hanging_in_a_workflow_without_retries()]
)
async def test_an_interrupted_attempt_is_made_again_under_its_number(
    path: Path, call: durable.Call[str]
) -> None:
    """The policy counts tries, not crashes: even where nothing is ever retried."""
    await crash_in(path, call, times=3)
    world.may_end.set()
    async with Engine(path) as engine:
        assert await engine.run(call, id="it") == "1 3"
        (info,) = [step async for step in engine.iter_steps("it")]
    assert info.attempts == 1
    assert [attempt.interruptions for attempt in world.attempts] == [0, 1, 2, 3]
    assert world.numbers == [1, 1, 1, 1]
    assert {attempt.idempotency_key for attempt in world.attempts} == {f"it:{info.key}"}
    assert {attempt.step_key for attempt in world.attempts} == {info.key}


@pytest.mark.parametrize("call", [hanging(False), hanging_at_most_once(None)])
async def test_at_most_once_an_interrupted_step_fails(path: Path, call: durable.Call[str]) -> None:
    await crash_in(path, call)
    world.may_end.set()
    async with Engine(path) as engine:
        assert (await engine.run(call, id="it")).startswith("unknown")
        (info,) = [step async for step in engine.iter_steps("it")]
    assert len(world.attempts) == 1
    assert info.error is not None
    assert info.error.type_name == "durable.OutcomeUnknown"


async def test_the_step_has_the_last_word_about_at_most_once(path: Path) -> None:
    await crash_in(path, hanging_at_most_once(True))
    world.may_end.set()
    async with Engine(path) as engine:
        assert await engine.run(hanging_at_most_once(True), id="it") == "done"
    assert len(world.attempts) == 2


async def test_at_most_once_a_step_that_was_only_queued_is_run(path: Path) -> None:
    async with crashing(path, max_parallelism=0) as engine:
        run = await engine.start(hanging_at_most_once(None), id="it")
        await until_step(run, hang_at_most_once.name, StepState.PENDING)
    world.may_end.set()
    async with Engine(path) as engine:
        assert await engine.get("it").result(timeout=WAIT_S_MAX) == "done"
    assert len(world.attempts) == 1


async def test_a_step_that_is_interrupted_too_often_fails(path: Path) -> None:
    """A poison step would otherwise kill each process that takes the run up."""
    await crash_in(path, hanging_in_a_workflow_without_retries(), times=3)
    async with Engine(path, max_interruptions=2) as engine:
        with pytest.raises(RunFailed) as caught:
            await engine.get("it").result(timeout=WAIT_S_MAX)
    assert isinstance(caught.value.__cause__, StepInterrupted)
    assert "3 times" in str(caught.value.__cause__)
    assert len(world.attempts) == 3


@durable.workflow
async def hanging_in_the_second_attempt(step: Step) -> str:
    return await step.run(fail_then_hang(), retry=AT_ONCE)


@durable.action
async def fail_then_hang() -> str:
    attempt = world.begin()
    if attempt.number == 1:
        raise ValueError
    await world.may_end.wait()
    return f"{attempt.number} {attempt.interruptions}"


async def test_a_crash_in_a_later_attempt_keeps_its_number(path: Path) -> None:
    async with crashing(path) as engine:
        await engine.start(hanging_in_the_second_attempt(), id="it")
        await until(lambda: world.numbers == [1, 2])
    world.may_end.set()
    async with Engine(path) as engine:
        assert await engine.get("it").result(timeout=WAIT_S_MAX) == "2 1"
    assert world.numbers == [1, 2, 2]


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
