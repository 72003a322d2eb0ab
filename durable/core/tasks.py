"""The futures and tasks of a body's loop.

They hash by their creation number, so that the sets of ``asyncio.wait``, ``as_completed`` and the
like are iterated in the same order on replay.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import contextmanager
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar, cast, final
from zlib import crc32

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Awaitable, Callable, Coroutine, Generator
    from types import CodeType

    from durable.core.loop import WorkflowLoop

T = TypeVar("T")

PATH_CHARS_MAX = 64
"""Task paths longer than this are shortened to a digest, so that recursion stays cheap."""


_Future: Any = asyncio.Future


def first_number(run_id: str) -> int:
    """Return where the creation numbers of a run's objects begin, far from other runs' ones.

    asyncio keeps the tasks of all loops in one set, in which equal hashes collide.
    """
    return crc32(run_id.encode()) << 20


class WorkflowFuture(asyncio.Future[T]):
    """A future of a body's loop."""

    __slots__ = ("number",)

    def __init__(self, loop: WorkflowLoop) -> None:
        self.number = loop.next_number()
        _Future.__init__(self, loop=loop)  # super() takes a while before Python 3.12

    def __hash__(self) -> int:
        return self.number


@final
class WorkflowTask(asyncio.Task[T]):
    """A task of a body's loop.

    Attributes:
        cancels_count: How often it was cancelled, heeded or not.
        path: Its place among the body's tasks: the root is ``0``, its second child ``0.1``.
        commands_count: How many commands it has issued.
        children_count: How many tasks it has created.
        context: The context that it runs in.
    """

    __slots__ = ("cancels_count", "children_count", "commands_count", "context", "number", "path")

    def __init__(
        self,
        coro: Coroutine[Any, Any, T],
        *,
        loop: WorkflowLoop,
        path: str,
        name: str | None,
        context: contextvars.Context | None,
    ) -> None:
        self.number = loop.next_number()
        self.path = path
        self.cancels_count = 0
        self.commands_count = 0
        self.children_count = 0
        # asyncio's would copy it as well, and does not tell before Python 3.12.
        self.context = copy_context() if context is None else context
        super().__init__(coro, loop=loop, name=name or f"Task-{path}", context=self.context)

    def __hash__(self) -> int:
        return self.number

    def cancel(self, msg: object = None) -> bool:
        self.cancels_count += 1
        return super().cancel(msg)


@final
class BodyHandle(asyncio.Handle):
    """A callback that is ready to run on a body's loop."""

    __slots__ = ()

    def __init__(
        self,
        callback: Callable[..., object],
        args: tuple[object, ...],
        loop: WorkflowLoop,
        context: contextvars.Context | None,
    ) -> None:
        # What asyncio's does, save to ask whether it is being debugged, which takes longer.
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = None
        self._source_traceback = None


@final
class CallbacksScope:
    """Issues numbers to what is done outside of any task: in callbacks."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.commands_count = 0
        self.children_count = 0


def next_child_path(scope: WorkflowTask[Any] | CallbacksScope) -> str:
    """Return the path of the task that ``scope`` creates now, and count it."""
    path = f"{scope.path}.{scope.children_count}"
    scope.children_count += 1
    if len(path) <= PATH_CHARS_MAX:
        return path
    import hashlib  # noqa: PLC0415  late: few trees are so deep, and OpenSSL takes 2 ms

    return "~" + hashlib.blake2b(path.encode(), digest_size=12).hexdigest()


def is_native(coro: object) -> bool:
    """Whether a task can take it as it is: a coroutine or generator of a function."""
    return hasattr(coro, "cr_code") or hasattr(coro, "gi_code")


async def awaiting(awaitable: Awaitable[T]) -> T:
    """Await what is no native coroutine, for a task."""
    return await awaitable


@contextmanager
def as_current(task: WorkflowTask[Any], loop: WorkflowLoop) -> Generator[None, None, None]:
    """Let ``task`` be its loop's current one, as time-outs and cancel scopes want it."""
    if sys.version_info >= (3, 12):
        swap: Any = asyncio.tasks._swap_current_task  # type: ignore[attr-defined]  # noqa: SLF001
        outer = swap(loop, task)  # From 3.14 on there is one in a thread, which may be the host's.
        try:
            yield
        finally:
            swap(loop, outer)
    else:
        asyncio.tasks._enter_task(loop, task)  # noqa: SLF001
        try:
            yield
        finally:
            asyncio.tasks._leave_task(loop, task)  # noqa: SLF001


def unlink(future: Any) -> None:  # noqa: ANN401  the attribute is asyncio's own
    """Let a future that nobody waits for any more not refer to who did.

    They refer to each other: so they are freed without the collector.
    """
    if future is not None:
        for callback, _ in future._callbacks or ():  # noqa: SLF001
            future.remove_done_callback(callback)


HANDLE_INIT: CodeType = asyncio.Handle.__init__.__code__
FUTURE_INIT: CodeType = cast("Any", WorkflowFuture).__init__.__code__
TASK_INIT: CodeType = cast("Any", WorkflowTask).__init__.__code__
