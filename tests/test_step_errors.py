"""What a body gets when its steps fail: the same exception, live and whenever it is replayed."""

from __future__ import annotations

import asyncio
import contextlib
import decimal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults import MONTH_S, live_and_replayed
from odd import cyclic
from waiting import WAIT_S_MAX

import durable
from durable import Engine, RunFailed, Step, StepFailed

seen: list[Any] = []


class PlainError(Exception):
    """Nothing of its own."""


class CodedError(Exception):
    """It takes something else than its ``args``, and carries it."""

    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(f"code {code}")
        self.code = code
        self.hint = hint


class TwoPartError(Exception):
    def __init__(self, first: str, second: list[int]) -> None:
        super().__init__(first, second)
        self.first = first


class OddArgument:
    """It has no JSON."""

    def __repr__(self) -> str:
        return "odd"


class FinalError(BaseException):
    """No ``Exception``: nothing that a body is to catch by accident."""


def local_error() -> Exception:
    class LocalError(Exception):
        pass

    return LocalError("local")


def broken_error() -> Exception:
    class BrokenTextError(Exception):
        def __str__(self) -> str:
            msg = "no text"
            raise RuntimeError(msg)

    return BrokenTextError("x")


def noted_error() -> Exception:
    error = ValueError("noted")
    error.add_note("a note")
    return error


AS_ITSELF: dict[str, Callable[[], BaseException]] = {
    "builtin": lambda: ValueError("wrong", 1),
    "no arguments": KeyError,
    "key": lambda: KeyError("key"),
    "a tuple as a key": lambda: KeyError(("a", (1, 2))),
    "module": lambda: PlainError("plain"),
    "odd init": lambda: CodedError(7, hint="look there"),
    "two parts": lambda: TwoPartError("first", [1, 2]),
    "file": lambda: FileNotFoundError(2, "No such file", "/some/where"),
    "two files": lambda: OSError(18, "Invalid link", "/from", None, "/to"),
    "raises": lambda: decimal.InvalidOperation("declared"),
    "timeout": lambda: TimeoutError("late"),
    "durable": lambda: durable.NonRetryable("never"),
    "cyclic": cyclic,
    "noted": noted_error,
}

AS_STEP_FAILED: dict[str, Callable[[], BaseException]] = {
    "local class": local_error,
    "unencodable": lambda: ValueError(OddArgument()),
    "a tuple and a list in it": lambda: ValueError((1, [2])),
    "broken text": broken_error,
    "group": lambda: ExceptionGroup("some", [ValueError("one"), PlainError("two")]),
    "elsewhere": lambda: decimal.DivisionByZero("not declared"),
    "surrogate": lambda: ValueError("\ud800"),
    "no exception": lambda: FinalError("base"),
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": lambda: KeyboardInterrupt("pressed"),
    "GeneratorExit": lambda: GeneratorExit("closed"),
    "CancelledError": lambda: asyncio.CancelledError("by myself"),
    "StopAsyncIteration": lambda: StopAsyncIteration("no more"),
}

FACTORIES = AS_ITSELF | AS_STEP_FAILED


@durable.action(raises=(decimal.InvalidOperation,))
async def fail(how: str) -> None:
    raise FACTORIES[how]()  # noqa: RSE102  a call: it makes one


@durable.action(raises=(decimal.InvalidOperation,))
def fail_in_thread(how: str) -> None:
    raise FACTORIES[how]()  # noqa: RSE102  a call: it makes one


@durable.action
def stop_iteration() -> None:
    raise StopIteration("no more")


def shown(exc: BaseException) -> tuple[object, ...]:
    attributes = {key: value for key, value in vars(exc).items() if key != "__notes__"}
    return (type(exc), str(exc), exc.args, attributes, str(exc.__cause__))


@durable.workflow
async def catching(step: Step, how: str, where: str) -> None:
    calls = {"async": fail(how), "thread": fail_in_thread(how), "stop": stop_iteration()}
    try:
        await calls[where]
    except Exception as exc:  # noqa: BLE001  whatever reaches a body
        seen.append(shown(exc))
    await step.sleep(MONTH_S)


@pytest.mark.parametrize("where", ["async", "thread"])
@pytest.mark.parametrize("how", AS_ITSELF)
async def test_an_exception_that_can_be_made_again_reaches_the_body_as_itself(
    path: Path, how: str, where: str
) -> None:
    live, replayed = await live_and_replayed(path, catching(how, where), seen)
    *expected, _ = shown(AS_ITSELF[how]())
    assert list(live[:-1]) == expected
    assert live == replayed
    function = "in fail" if where == "async" else "in fail_in_thread"
    assert function in live[-1], "its cause is the traceback of the original"
    assert "raise FACTORIES[how]()" in live[-1]


@pytest.mark.parametrize("where", ["async", "thread"])
@pytest.mark.parametrize("how", AS_STEP_FAILED)
async def test_any_other_exception_reaches_the_body_as_a_failed_step(
    path: Path, how: str, where: str
) -> None:
    """The engine lives on, whatever it was."""
    live, replayed = await live_and_replayed(path, catching(how, where), seen)
    assert live == replayed
    cls, _, _, attributes, cause = live
    assert cls is StepFailed
    original = AS_STEP_FAILED[how]()
    assert attributes["type_name"].endswith(type(original).__qualname__)
    with contextlib.suppress(RuntimeError):
        text = str(original).encode(errors="backslashreplace").decode()
        assert attributes["message"] == text
    assert "raise FACTORIES[how]()" in cause


async def test_what_no_coroutine_can_raise_reaches_the_body_as_a_failed_step(path: Path) -> None:
    live, replayed = await live_and_replayed(path, catching("builtin", "stop"), seen)
    assert live == replayed
    assert live[0] is StepFailed
    assert live[1] == "StopIteration: no more"


@durable.workflow
async def failing(_: Step, how: str) -> None:
    await fail(how)


@pytest.mark.parametrize(
    ("how", "type_name"), [("odd init", "test_step_errors.CodedError"), ("file", None)]
)
async def test_the_run_fails_with_what_its_step_failed_with(
    path: Path, how: str, type_name: str | None
) -> None:
    """So says every reader: the waiter, the status, the step."""
    async with Engine(path) as engine:
        run = await engine.start(failing(how))
        with pytest.raises(RunFailed) as caught:
            await run.result(timeout=WAIT_S_MAX)
        status = await run.status()
        (step,) = [step async for step in run.steps()]
    assert caught.value.run_id == run.id
    assert caught.value.error == status.error
    assert status.error is not None
    assert status.error.type_name == (type_name or "FileNotFoundError")
    assert step.error is not None
    assert step.error.message == status.error.message == str(FACTORIES[how]())
    assert caught.value.__cause__ is not None
    assert shown(caught.value.__cause__)[:-1] == shown(FACTORIES[how]())[:-1]
