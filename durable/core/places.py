"""Where a body stands: the file and the line of its own code, not of the libraries it goes through.

It is looked up when somebody has to be told, never on the way of a step: a suspended body has its
frames.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, NamedTuple, final

from durable.core.closing import chain

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import CodeType, FrameType, TracebackType

    from durable.core.loop import WorkflowLoop
    from durable.core.tasks import WorkflowTask

OURS = os.path.dirname(os.path.dirname(__file__)) + os.sep  # noqa: PTH120  pathlib takes 4 ms
STANDARD = os.path.dirname(os.path.dirname(asyncio.__file__)) + os.sep  # noqa: PTH120
INSTALLED = ("site-packages", "dist-packages")
FRAMES_MAX = 10_000
"""A body's stack is followed no further."""


@final
class Place(NamedTuple):
    """A line of a body's code."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}"


def frame_of_command(loop: WorkflowLoop, key: str) -> FrameType | None:
    """Return the suspended frame in which a command was issued, by its key.

    Of a timer that is not awaited itself, such as ``asyncio.timeout``'s: where its task waits.
    """
    path, _, _ = key.rpartition(":")
    return frame_of_task(loop, path)


def frame_of_task(loop: WorkflowLoop, path: str) -> FrameType | None:
    """Return the innermost suspended frame of the user's own code in a task.

    A task that asyncio has made of a call has none: then of the task that has made it.
    """
    tasks = {task.path: task for task in loop.unfinished_tasks()}
    while True:
        task = tasks.get(path) or tasks.get("0")
        frame = None if task is None else _innermost(_frames_of(task), _package_of_body(tasks))
        if frame is not None or task is None or task.path == "0":
            return frame
        path = task.path.rpartition(".")[0]


def place_of(frame: FrameType | None) -> Place | None:
    """Return the line at which a frame stands."""
    return None if frame is None else _place(frame.f_code, frame.f_lineno)


def place_of_body(coro: Any) -> Place | None:  # noqa: ANN401  any coroutine
    """Return where a body that has ended is written."""
    code: CodeType | None = getattr(coro, "cr_code", None)
    if code is None or code.co_filename.startswith(OURS):
        return None
    return _place(code, code.co_firstlineno)


def place_of_error(error: BaseException) -> Place | None:
    """Return where in the user's own code an exception was raised."""
    traceback: TracebackType | None = error.__traceback__
    found: Place | None = None
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if is_users(code.co_filename, None):
            found = _place(code, traceback.tb_lineno)
        traceback = traceback.tb_next
    return found


def place_of_caller(frame: FrameType | None, last: CodeType) -> Place | None:
    """Return the innermost line of the user's own code that led to a frame.

    Args:
        frame: Where to begin.
        last: The code of the outermost frame of the body: what called it is not of interest.
    """
    for _ in range(FRAMES_MAX):
        if frame is None or frame.f_code is last:
            break
        if is_users(frame.f_code.co_filename, None):
            return place_of(frame)
        frame = frame.f_back
    return None


def _place(code: CodeType, line: int | None) -> Place:
    return Place(code.co_filename, line or code.co_firstlineno, code.co_qualname)


def _frames_of(task: WorkflowTask[Any]) -> list[FrameType]:
    """Return the frames that a suspended task goes through, the innermost last."""
    frames = [_frame_of(each) for each in chain(task.get_coro())]
    return [frame for frame in frames if frame is not None]


def _frame_of(suspended: Any) -> FrameType | None:  # noqa: ANN401  a coroutine or a generator
    frames = (getattr(suspended, name, None) for name in ("cr_frame", "gi_frame", "ag_frame"))
    return next((frame for frame in frames if frame is not None), None)


def _innermost(frames: Iterable[FrameType], package: str | None) -> FrameType | None:
    users = [frame for frame in frames if is_users(frame.f_code.co_filename, package)]
    return users[-1] if users else None


def _package_of_body(tasks: dict[str, WorkflowTask[Any]]) -> str | None:
    """Return where the body's own package is installed, if it is."""
    root = tasks.get("0")
    for frame in [] if root is None else _frames_of(root):
        if not frame.f_code.co_filename.startswith((OURS, STANDARD)):
            return installed_in(frame.f_code.co_filename)
    return None


def is_users(file: str, package: str | None) -> bool:
    """Whether a file is of the user's own code: not durable's, and of no library.

    Args:
        file: The file.
        package: Where the body's own package is installed: that is no library.
    """
    if file.startswith(OURS):
        return False
    directory = installed_in(file)
    if directory is not None:
        return directory == package
    return not file.startswith((STANDARD, "<frozen"))


def installed_in(file: str) -> str | None:
    """Return the directory, or the file, of the installed package that a file is of, if it is."""
    for name in INSTALLED:
        _, directory, rest = file.partition(f"{os.sep}{name}{os.sep}")
        if directory:
            return file[: len(file) - len(rest)] + rest.partition(os.sep)[0]
    return None
