"""Whatever users hand in: one clear typed error, nothing lost, and the engine lives on."""

import asyncio
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from odd import (
    BrokenAttributes,
    BrokenClass,
    BrokenDict,
    BrokenStr,
    OddInit,
    containing_itself,
    cyclic,
    generator,
    nested,
    unawaited,
    with_surrogate_attribute,
)

import durable
from durable import (
    ArgumentError,
    Engine,
    NotInWorkflowError,
    PayloadTooLarge,
    Retry,
    RunFailed,
    Step,
    StepState,
)

PAYLOAD_MAX = 1_000


@durable.action
async def echo(value: object) -> object:
    return value


@durable.workflow
async def fine(_step: Step) -> object:
    return await echo("fine")


@asynccontextmanager
async def surviving(path: Path, **options: Any) -> AsyncIterator[Engine]:  # noqa: ANN401
    """Open an engine that must be as good as new after what is done with it, here and reopened."""
    async with Engine(path, **options) as engine:
        yield engine
        assert await engine.run(fine()) == "fine"
    async with Engine(path, **options) as engine:
        assert await engine.run(fine()) == "fine"
        assert [run.id async for run in engine.iter_runs(state="running")] == []


# --- values --------------------------------------------------------------------------------------


async def _async_generator() -> AsyncIterator[int]:
    yield 1


VALUES: dict[str, tuple[Callable[[], object], str]] = {
    "NaN": (lambda: [math.nan], "NaN and infinity have no JSON form"),
    "surrogate": (lambda: {"a": "\ud800"}, "surrogates not allowed"),
    "deep": (nested, "nested too deeply"),
    "cycle": (containing_itself, "nested too deeply, or contains itself"),
    "object": (object, "type object have no JSON form"),
    "lambda": (lambda: nested, "type function have no JSON form"),
    "coroutine": (unawaited, "was an await forgotten"),
    "generator": (generator, "type generator have no JSON form"),
    "async generator": (_async_generator, "type async_generator have no JSON form"),
    "too large": (lambda: "x" * PAYLOAD_MAX, r"more than Engine\(max_payload=1,000\)"),
}


def _error_of(kind: str, otherwise: str) -> str:
    return "durable.PayloadTooLarge" if kind == "too large" else otherwise


def _make(kind: str) -> object:
    value = VALUES[kind][0]()
    if asyncio.iscoroutine(value) and kind != "coroutine":
        value.close()
    return value


@durable.action(retry=Retry(3, initial_backoff=0))
async def bad_result(kind: str) -> object:
    return _make(kind)


@durable.action(retry=Retry(3, initial_backoff=0))
def bad_result_of_thread(kind: str) -> object:
    return _make(kind)


@durable.workflow
async def meeting_bad_values(_step: Step, kind: str) -> list[list[str]]:
    value = _make(kind)
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: echo(value),
        lambda: bad_result(kind),
        lambda: bad_result_of_thread(kind),
    ]
    met: list[list[str]] = []
    for call in calls:
        try:
            await call()
        except durable.DurableError as exc:
            met.append([type(exc).__name__, str(exc)])
    if asyncio.iscoroutine(value):
        value.close()
    return met


@durable.workflow
async def ending_with_a_bad_value(_step: Step, kind: str) -> object:
    return _make(kind)


@pytest.mark.parametrize("kind", VALUES)
async def test_a_value_without_a_faithful_form_fails_its_step_catchably(
    kind: str, path: Path
) -> None:
    async with surviving(path, max_payload=PAYLOAD_MAX) as engine:
        run = await engine.start(meeting_bad_values(kind))
        met = await run.result(timeout=5)
        wrong = _error_of(kind, "ReturnTypeError").removeprefix("durable.")
        at_the_call = _error_of(kind, "ArgumentError").removeprefix("durable.")
        assert [name for name, _ in met] == [at_the_call, wrong, wrong]
        assert all(re.search(VALUES[kind][1], message) for _, message in met)
        steps = [step async for step in run.steps()]
        assert [(step.state, step.attempts) for step in steps] == [(StepState.FAILED, 1)] * 2


@pytest.mark.parametrize("kind", VALUES)
async def test_a_body_that_returns_such_a_value_has_failed(kind: str, path: Path) -> None:
    async with surviving(path, max_payload=PAYLOAD_MAX) as engine:
        with pytest.raises(RunFailed, match=VALUES[kind][1]) as info:
            await engine.run(ending_with_a_bad_value(kind))
        assert info.value.error.type_name == _error_of(kind, "durable.ReturnTypeError")


@pytest.mark.parametrize("kind", VALUES)
async def test_a_start_with_such_a_value_writes_nothing(kind: str, path: Path) -> None:
    @durable.workflow(name="taking anything")
    async def taking(_step: Step, value: object) -> object:
        return value

    async with surviving(path, max_payload=PAYLOAD_MAX) as engine:
        value = _make(kind)
        error = PayloadTooLarge if kind == "too large" else ArgumentError
        with pytest.raises(error, match=VALUES[kind][1]):
            await engine.start(taking(value))
        if asyncio.iscoroutine(value):
            value.close()
        assert [run async for run in engine.iter_runs()] == []


@pytest.mark.parametrize("value", ["a\0b", {"\0": "\N{PILE OF POO}"}, "\u2028\x7f", "'; --"])
async def test_odd_text_comes_back_as_it_was(value: object, path: Path) -> None:
    @durable.workflow(name="odd text")
    async def odd_text(step: Step, value: object) -> list[object]:
        return [value, await echo(value), await step.run(echo(value), name="a\tb\n")]

    async with surviving(path) as engine:
        run = await engine.start(odd_text(value))
        assert await run.result(timeout=5) == [value] * 3
        assert [step.name async for step in run.steps()] == [echo.name, "a\tb\n"]


# --- exceptions ----------------------------------------------------------------------------------


EXCEPTIONS: dict[str, Callable[[], BaseException]] = {
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "CancelledError": asyncio.CancelledError,
    "StopAsyncIteration": StopAsyncIteration,
    "StopIteration": lambda: StopIteration(5),
    "ExceptionGroup": lambda: ExceptionGroup("g", [ValueError(1)]),
    "BaseExceptionGroup": lambda: BaseExceptionGroup("g", [SystemExit(1)]),
    "NonDeterminismError": lambda: durable.NonDeterminismError("mine"),
    "odd __init__": lambda: OddInit(1, b=2),
    "broken __str__": BrokenStr,
    "broken __dict__": BrokenDict,
    "broken attributes": BrokenAttributes,
    "broken class": BrokenClass,
    "surrogate attribute": with_surrogate_attribute,
    "cyclic cause": cyclic,
    "NUL": lambda: ValueError("a\0b"),
    "surrogate": lambda: ValueError("\ud800"),
    "NaN": lambda: ValueError(math.nan),
    "deep": lambda: ValueError(nested()),
    "huge": lambda: ValueError("x" * 5_000_000),
}


def _exception(kind: str) -> BaseException:
    return EXCEPTIONS[kind]()


@durable.action
async def odd_raise(kind: str) -> None:
    raise _exception(kind)


@durable.action
def odd_raise_in_thread(kind: str) -> None:
    raise _exception(kind)


@durable.workflow
async def raising(_step: Step, kind: str, where: str) -> str:
    if where == "body":
        raise _exception(kind)
    try:
        await (odd_raise(kind) if where == "action" else odd_raise_in_thread(kind))
    except Exception as exc:  # noqa: BLE001  whichever it is
        return type(exc).__name__
    return "nothing"


@pytest.mark.parametrize("where", ["action", "thread", "body"])
@pytest.mark.parametrize("kind", EXCEPTIONS)
async def test_whatever_is_raised_the_run_ends_and_the_engine_lives_on(
    kind: str, where: str, path: Path
) -> None:
    async with surviving(path) as engine:
        run = await engine.start(raising(kind, where), id="r")
        if where == "body":
            with pytest.raises(RunFailed):
                await run.result(timeout=5)
        else:
            assert await run.result(timeout=5) != "nothing"
            (step,) = [step async for step in run.steps()]
            assert (step.state, step.error is not None) == (StepState.FAILED, True)
        assert (await run.status()).state.is_final


@pytest.mark.parametrize("kind", ["SystemExit", "GeneratorExit", "CancelledError"])
async def test_an_action_cannot_end_the_engine_nor_unwind_the_body(kind: str, path: Path) -> None:
    async with surviving(path) as engine:
        for where in ("action", "thread"):
            assert await engine.run(raising(kind, where)) == "StepFailed"


@durable.workflow
async def raise_in_callbacks(step: Step) -> str:
    loop = asyncio.get_running_loop()
    loop.call_soon(lambda: 1 / 0)
    task = asyncio.create_task(odd_raise("odd __init__"))
    task.add_done_callback(lambda done: done.result())
    await step.sleep(0)
    await asyncio.wait([task])
    return "went on"


async def test_exceptions_in_a_body_s_callbacks_are_logged_and_the_run_goes_on(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with surviving(path) as engine:
        run = await engine.start(raise_in_callbacks())
        assert await run.result(timeout=5) == "went on"
    assert "ZeroDivisionError: division by zero" in caplog.text
    assert "OddInit: 1 and 2" in caplog.text


# --- misused in a body ---------------------------------------------------------------------------

MISUSES: dict[str, tuple[Callable[[Step], Awaitable[object]], str]] = {
    "no call": (lambda step: step.run(5), "TypeError: step.run() takes a call, such as"),  # type: ignore[arg-type]
    "a definition": (lambda step: step.run(echo), "TypeError: step.run() takes a call"),  # type: ignore[arg-type]
    "empty name": (lambda step: step.run(echo(1), name=""), "TypeError: a step's name is text"),
    "odd name": (lambda step: step.run(echo(1), name="\ud800"), "ValueError: a step's name has"),
    "sleep's name": (lambda step: step.sleep(1, name=5), "TypeError: a step's name is text"),  # type: ignore[arg-type]
    "retry": (lambda step: step.run(echo(1), retry=3), "TypeError: retry= is True, False or"),  # type: ignore[arg-type]
    "timeout": (lambda step: step.run(echo(1), timeout=0), "ValueError: timeout= is more than"),
    "two delays": (
        lambda step: step.run(echo(1), run_after=1, run_at=datetime.now(UTC)),
        "ValueError: give run_after= or run_at=, not both",
    ),
    "naive": (
        lambda step: step.sleep_until(datetime(2026, 1, 1)),  # noqa: DTZ001
        "ValueError: when is an aware datetime",
    ),
    "no time": (lambda step: step.sleep_until(5), "TypeError: when is a datetime, not 5"),  # type: ignore[arg-type]
    "no delay": (lambda step: step.sleep("5"), "TypeError: delay is seconds or a timedelta"),  # type: ignore[arg-type]
    "NaN": (lambda step: step.sleep(math.nan), "ValueError: delay is not a number"),
    "asyncio's NaN": (lambda _step: asyncio.sleep(math.nan), "ValueError: "),
}


@durable.workflow
async def misusing(step: Step, what: str) -> str:
    try:
        await MISUSES[what][0](step)
    except (TypeError, ValueError) as exc:
        return f"{type(exc).__name__}: {exc}"
    return "nothing was raised"


@pytest.mark.parametrize("what", MISUSES)
async def test_a_wrong_option_can_be_caught_and_writes_nothing(what: str, path: Path) -> None:
    async with surviving(path) as engine:
        run = await engine.start(misusing(what))
        assert (await run.result(timeout=5)).startswith(MISUSES[what][1])
        assert [step async for step in run.steps()] == []


kept: dict[str, Step] = {}


@durable.action
async def use_kept_step() -> str:
    try:
        await kept["step"].sleep(1)
    except NotInWorkflowError as exc:
        return str(exc)
    return "it slept"


@durable.workflow
async def keeping(step: Step) -> str:
    kept["step"] = step
    return await use_kept_step()


async def test_a_step_works_only_in_its_own_body(path: Path) -> None:
    expected = "this step works only in its own workflow's body: hand values to other code"
    async with surviving(path) as engine:
        assert (await engine.run(keeping())).startswith(expected)
        for call in (kept["step"].sleep(1), kept["step"].run(echo(1))):
            with pytest.raises(NotInWorkflowError, match=expected):
                await call
    with pytest.raises(NotInWorkflowError, match=r"durable\.attempt\(\) works in an action"):
        durable.attempt()
