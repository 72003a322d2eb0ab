"""Dropping a body from memory: the frames of its tasks are closed, however they answer to that."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections import deque
from types import (
    AsyncGeneratorType,
    BuiltinMethodType,
    CoroutineType,
    GeneratorType,
    MethodType,
)
from typing import TYPE_CHECKING, Any

from durable.core.tasks import as_current, unlink

if TYPE_CHECKING:
    from durable.core.loop import WorkflowLoop
    from durable.core.tasks import WorkflowTask

CLOSE_ATTEMPTS_MAX = 100
"""How often a coroutine that answers ``GeneratorExit`` with another await is closed again, and how
often what it tries then is refused."""

_SUSPENDABLE = (CoroutineType, GeneratorType, AsyncGeneratorType)
_HOLDERS = (dict, list, tuple, set, deque, MethodType, BuiltinMethodType)

_unclosable: list[Any] = []
"""Bodies that swallow ``GeneratorExit`` for ever. Freed, they would go on outside of their loop."""


def close_frames(tasks: list[WorkflowTask[Any]], loop: WorkflowLoop) -> None:
    """Close the frames of a loop's tasks, the last one first, as code of that loop."""
    outer_loop = asyncio._get_running_loop()  # noqa: SLF001  the documented hook for loops
    outer_hooks = sys.get_asyncgen_hooks()
    asyncio._set_running_loop(loop)  # noqa: SLF001
    # Else the host's loop would close, in a task of its own, what a ``finally`` leaves half done.
    sys.set_asyncgen_hooks(firstiter=_leave, finalizer=_leave)
    try:
        for task in reversed(tasks):
            silence(task)
            with as_current(task, loop):
                for suspended in reversed(chain(task.get_coro())):
                    # An async generator that is waited for cannot be closed, and does nothing when
                    # it is freed.
                    if not isinstance(suspended, AsyncGeneratorType):
                        _close_coroutine(suspended)
            unlink(task)
            unlink(getattr(task, "_fut_waiter", None))  # What it waits for, as asyncio has it.
    finally:
        sys.set_asyncgen_hooks(*outer_hooks)
        asyncio._set_running_loop(outer_loop)  # noqa: SLF001


def _leave(_generator: object) -> None:
    """Do nothing about an async generator: freed, it runs no more."""


def silence(task: Any) -> None:  # noqa: ANN401  the attribute is asyncio's own
    """Let a task be freed that has not ended, without a report."""
    task._log_destroy_pending = False  # noqa: SLF001


def chain(coro: Any) -> list[Any]:  # noqa: ANN401  any coroutine
    """Return a coroutine and those that it waits for, the innermost last.

    Closing the outermost does not always close the others: an async generator may be in between,
    which is not closed, or an awaitable of a user's own. What is left would be closed by the
    collector, outside of the loop that refuses what it then does.
    """
    found: list[Any] = []
    seen: set[int] = set()
    todo: list[Any] = [coro]
    while todo:
        each = todo.pop()
        if id(each) not in seen:
            seen.add(id(each))
            found.append(each)
            todo += _awaited_by(each)
    return found


def _awaited_by(coro: Any) -> list[Any]:  # noqa: ANN401
    """Return the coroutines and generators that the given one waits for: mostly one, or none."""
    for attribute in ("cr_await", "gi_yieldfrom", "ag_await"):
        awaited = getattr(coro, attribute, None)
        if awaited is not None:
            return [awaited] if isinstance(awaited, _SUSPENDABLE) else _hidden_in(awaited)
    return []


def _hidden_in(awaited: Any) -> list[Any]:  # noqa: ANN401
    """Return those that an awaitable hides.

    ``asend`` does so with its generator, ``__await__`` with its coroutine, and an iterator of a
    user's own with what it holds, be it in a list, by a method or in another iterator.
    """
    found: list[Any] = []
    seen: set[int] = set()
    todo = [awaited]
    while todo:
        holder = todo.pop()
        if id(holder) in seen:
            continue
        seen.add(id(holder))
        for each in gc.get_referents(holder):
            if isinstance(each, _SUSPENDABLE):
                found.append(each)
            elif isinstance(each, _HOLDERS) or _is_iterator(each):
                todo.append(each)
    return found


def _is_iterator(value: object) -> bool:
    return hasattr(type(value), "__next__")


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
