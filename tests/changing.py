"""A workflow whose body is the code of the day, for tests of what a run does after a restart."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import pytest
from waiting import WAIT_S_MAX

import durable
from durable import RunFailed, Step

if TYPE_CHECKING:
    from durable import Engine, Run

Code = Callable[[Step], Coroutine[None, None, Any]]

HOUR_S = 3_600.0


class Day:
    """What actions have done, what they are to do, and the body's code."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()
        self.failing: set[str] = set()
        self.held: set[str] = set()
        self.may_end = asyncio.Event()
        self.code: Code | None = None


today = Day()


def new_day() -> None:
    """Forget what was done."""
    today.__init__()  # type: ignore[misc]


@durable.action
async def act(text: str) -> str:
    today.begun[text] += 1
    if text in today.held:
        await today.may_end.wait()
    if text in today.failing:
        raise ValueError(text)
    return text


@durable.workflow
async def changing(step: Step) -> Any:  # noqa: ANN401
    assert today.code is not None
    return await today.code(step)


async def fail(engine: Engine, code: Code, *failing: str) -> Run[Any]:
    """Let a run fail by these actions, which succeed from then on."""
    today.code = code
    today.failing |= set(failing)
    run = await engine.start(changing())
    with pytest.raises(RunFailed):
        await run.result(timeout=WAIT_S_MAX)
    today.failing.clear()
    today.begun.clear()
    return run


async def complete(engine: Engine, code: Code) -> Run[Any]:
    """Let a run complete."""
    today.code = code
    run = await engine.start(changing())
    await run.result(timeout=WAIT_S_MAX)
    today.begun.clear()
    return run
