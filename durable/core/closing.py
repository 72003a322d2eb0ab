"""Dropping a body from memory: the frames of its tasks are closed, however they answer to that."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from durable.core.tasks import as_current, unlink

if TYPE_CHECKING:
    from durable.core.loop import WorkflowLoop
    from durable.core.tasks import WorkflowTask

CLOSE_ATTEMPTS_MAX = 100
"""How often a coroutine that answers ``GeneratorExit`` with another await is closed again, and how
often what it tries then is refused."""

_unclosable: list[Any] = []
"""Bodies that swallow ``GeneratorExit`` for ever. Freed, they would go on outside of their loop."""


def close_frames(tasks: list[WorkflowTask[Any]], loop: WorkflowLoop) -> None:
    """Close the frames of a loop's tasks, the last one first, as code of that loop."""
    outer_loop = asyncio._get_running_loop()  # noqa: SLF001  the documented hook for loops
    asyncio._set_running_loop(loop)  # noqa: SLF001
    try:
        for task in reversed(tasks):
            silence(task)
            with as_current(task, loop):
                _close_coroutine(task.get_coro())
            unlink(task)
            unlink(getattr(task, "_fut_waiter", None))  # What it waits for, as asyncio has it.
    finally:
        asyncio._set_running_loop(outer_loop)  # noqa: SLF001


def silence(task: Any) -> None:  # noqa: ANN401  the attribute is asyncio's own
    """Let a task be freed that has not ended, without a report."""
    task._log_destroy_pending = False  # noqa: SLF001


def _close_coroutine(coro: Any) -> None:  # noqa: ANN401  any coroutine
    for _ in range(CLOSE_ATTEMPTS_MAX):
        try:
            coro.close()
        except RuntimeError:
            continue  # It answered with another await: close that too.
        except BaseException:  # noqa: BLE001  its attributes may be properties that raise anything
            return
        return
    _unclosable.append(coro)
