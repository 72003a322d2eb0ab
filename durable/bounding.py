"""How long a run may take: ``workflow(timeout=)``.

Rules:

- The bound is a durable timer, issued before anything else of the body: its due time is fixed once.
- What a run began with stands: a bound that the code has got or lost since changes nothing for it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from durable.checks import milliseconds
from durable.core.commands import DUE_MS_MAX, Command
from durable.core.errors import RunTimeout
from durable.core.records import TIMEOUT_KEY, StepKind

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from durable.core.execution import Execution


def bounded(
    execution: Execution, body: Coroutine[Any, Any, object], timeout_s: float | None
) -> Coroutine[Any, Any, object]:
    """Return the body, bound in time if its run is."""
    if execution.is_replaying:
        is_bound = execution.recorded(TIMEOUT_KEY) is not None
    else:
        is_bound = timeout_s is not None
    return _bounded(execution, body, timeout_s or 0.0) if is_bound else body


async def _bounded(
    execution: Execution, body: Coroutine[Any, Any, object], timeout_s: float
) -> object:
    task = asyncio.current_task()
    assert task is not None
    due_ms = min(execution.time_ms() + milliseconds(timeout_s), DUE_MS_MAX)
    timer = execution.issue(
        Command(StepKind.SLEEP, "timeout", TIMEOUT_KEY, compares_args=False, due_ms=due_ms)
    )
    # When the body has ended it is withdrawn with all else that is left.
    timer.add_done_callback(lambda _: task.cancel())
    try:
        result = await body
    except asyncio.CancelledError:
        if timer.done() and not execution.is_canceled:
            raise _timed_out() from None
        raise
    if timer.done():
        raise _timed_out()  # It swallowed the cancellation: late is late.
    return result


def _timed_out() -> RunTimeout:
    return RunTimeout("the run took longer than the timeout of its workflow")
