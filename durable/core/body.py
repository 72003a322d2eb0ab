"""A body's own task, and how it comes to its end.

A body that has ended is followed by what ``asyncio.run`` does: the tasks still running are
cancelled and awaited, then its async generators are closed.
"""

from __future__ import annotations

import asyncio
import contextlib
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, final

from durable.core.commands import Raised, Returned
from durable.core.places import place_of_body, place_of_error

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from durable.core.loop import WorkflowLoop
    from durable.core.places import Place
    from durable.core.tasks import WorkflowTask


class _Ending(Enum):
    """What of a body is to end next."""

    BODY = auto()
    TASKS = auto()
    GENERATORS = auto()
    DONE = auto()


# By themselves: before Python 3.12 each mention of a member by its class is a slow lookup.
BODY, TASKS, GENERATORS, DONE = _Ending


@final
class Body:
    """A body that runs on its loop.

    Attributes:
        outcome: How it has ended, once it has; its tasks may go on.
    """

    __slots__ = ("_ending", "_loop", "_root", "outcome")

    def __init__(self, loop: WorkflowLoop, coro: Coroutine[Any, Any, object]) -> None:
        self._loop = loop
        self._root: WorkflowTask[Any] | None = loop.spawn_root(coro)
        self._ending = BODY
        self.outcome: Returned | Raised | None = None

    def advance_end(self) -> bool:
        """Once it has ended, end its tasks and then its async generators.

        Returns:
            Whether nothing is left of it.
        """
        if self._ending is BODY:
            root = self._root
            assert root is not None
            if not root.done():
                return False
            self.outcome = _outcome_of(root)
            left, generators = self._loop.unfinished_tasks(), self._loop.open_generators()
            if not left and not generators:
                self._ending = DONE
                return True
            self._ending = TASKS
            if left:
                self._loop.pump(lambda: [task.cancel() for task in left])
        if self._ending is TASKS and not self._loop.unfinished_tasks():
            self._ending = GENERATORS
            generators = self._loop.open_generators()
            if generators:
                self._loop.pump(self._close_generators, generators)
        if self._ending is GENERATORS and not self._loop.unfinished_tasks():
            self._ending = DONE
        return self._ending is DONE

    def _close_generators(self, generators: list[Any]) -> None:
        async def close_all() -> None:
            for generator in generators:
                with contextlib.suppress(Exception):
                    await generator.aclose()

        self._loop.create_task(close_all(), context=self._loop.context)

    def cancel(self) -> None:
        """Cancel its task, and then those that it did not cancel by that.

        So that nothing the body waited for is left: each task gets the cancellation where it waits.
        """
        root = self._root
        assert root is not None
        waiting = [(task, task.cancels_count) for task in self._loop.unfinished_tasks()]
        self._loop.pump(root.cancel)
        if root.done() and self._ending is BODY:
            return  # It ends by this: its tasks are cancelled as at any end, and not twice.
        # Not ``cancelling()``: a task may have taken its cancellation back, or had one before.
        left = [task for task, n in waiting if task.cancels_count == n and not task.done()]
        if left:
            self._loop.pump(lambda: [task.cancel() for task in left])

    def place_of_end(self) -> Place | None:
        """Return where it has ended, if it has."""
        if isinstance(self.outcome, Raised):
            return place_of_error(self.outcome.error)
        if self.outcome is None or self._root is None:
            return None
        return place_of_body(self._root.get_coro())

    def drop(self) -> None:
        """Let its task be freed: the loop is closed."""
        self._root = None


def _outcome_of(task: asyncio.Task[Any]) -> Returned | Raised:
    if task.cancelled():
        return Raised(_cancellation_of(task))
    error = task.exception()
    return Returned(task.result()) if error is None else Raised(error)


def _cancellation_of(task: asyncio.Task[Any]) -> BaseException:
    """Return what a cancelled task has raised, with its text, and where it did."""
    try:
        task.result()
    except asyncio.CancelledError as exc:
        own = exc.__traceback__
        return exc if own is None else exc.with_traceback(own.tb_next)
    raise AssertionError
