"""A debugger for bodies: it begins in a frame that is suspended, and goes on in it."""

from __future__ import annotations

import pdb  # noqa: T100  what the user asks for
import sys
from typing import TYPE_CHECKING, final

from durable.core.places import installed_in, is_users

if TYPE_CHECKING:
    from types import FrameType


@final
class DebuggerLeft(Exception):
    """The user has left the debugger: there is no more to show."""


@final
class BodyDebugger(pdb.Pdb):
    """The debugger of the standard library, for the frames of a suspended body."""

    def __init__(self) -> None:
        super().__init__()
        self._is_left = False
        self._package: str | None = None

    def stop_here(self, frame: FrameType) -> bool:
        """Whether to stop: stepping goes through what is not the user's own code."""
        return is_users(frame.f_code.co_filename, self._package) and super().stop_here(frame)

    def set_quit(self) -> None:
        """Take note that the user has left, in place of raising that into the body."""
        self._is_left = True
        self.clear_all_breaks()
        self.set_continue()

    def check_left(self) -> None:
        """Raise ``DebuggerLeft`` when the user has left the debugger."""
        if self._is_left:
            raise DebuggerLeft

    def look_at(self, frame: FrameType) -> None:
        """Stop at a suspended frame."""
        self.reset()
        self.interaction(frame, None)
        self.check_left()

    def look_at_error(self, error: BaseException) -> None:
        """Stop where an exception was raised."""
        self.reset()
        # From Python 3.13 on it wants the exception, to show those that led to it.
        of_error = error if sys.version_info >= (3, 13) else error.__traceback__
        self.interaction(None, of_error)  # type: ignore[arg-type, unused-ignore]
        self.check_left()

    def step_from(self, frame: FrameType) -> None:
        """Stop at a suspended frame; when it goes on, do what the user has said there."""
        self.look_at(frame)
        self._package = installed_in(frame.f_code.co_filename)
        is_let_go: bool = self.stoplineno == -1
        if not is_let_go or self.breaks:
            frame.f_trace = self.trace_dispatch
            sys.settrace(self.trace_dispatch)
