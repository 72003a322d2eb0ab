"""Telling what a signal handler raises from what the user's code does."""

from __future__ import annotations

import asyncio
import opcode
import signal
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import CodeType, TracebackType

_RAISING = {
    opcode.opmap[name]
    for name in (
        *("RAISE_VARARGS", "RERAISE"),
        # Where an exception is thrown into a generator or coroutine: not begun, or suspended.
        *("RETURN_GENERATOR", "POP_TOP", "YIELD_VALUE", "SEND", "JUMP_BACKWARD_NO_INTERRUPT"),
    )
}

_RESUME = opcode.opmap["RESUME"]
_AFTER_YIELD_FROM = 2
"""Where ``RESUME`` looks for no signals any more: after ``yield from``, and after ``await``."""


def is_from_signal(exc: BaseException) -> bool:
    """Whether a signal handler raised it: then it is the host's, and no outcome of the code.

    Python's own handler of Ctrl-C leaves no frame. The interpreter calls it where it looks for
    signals: at calls, at jumps back, and where a frame begins, or goes on after a ``yield``. From
    Python 3.12 on an exception that is thrown into a generator comes from there, too: when in
    doubt, it is the host's. Source: ``RESUME`` in docs.python.org/3/library/dis.html, and in
    CPython's bytecodes.c.
    """
    handlers = signal_handlers()
    at = exc.__traceback__
    last: TracebackType | None = None
    while at is not None:
        code = at.tb_frame.f_code
        if code in handlers or code.co_filename == asyncio.runners.__file__:
            return True
        last, at = at, at.tb_next
    if last is None or not isinstance(exc, KeyboardInterrupt) or exc.__cause__ is not None:
        return False
    instruction, argument = last.tb_frame.f_code.co_code[last.tb_lasti : last.tb_lasti + 2]
    if instruction == _RESUME:
        return argument & 3 < _AFTER_YIELD_FROM
    return instruction not in _RAISING


def signal_handlers() -> set[CodeType]:
    """Return the code of the signal handlers that are Python functions."""
    codes: set[CodeType] = set()
    for number in signal.valid_signals():
        handler: object = signal.getsignal(number)
        code = code_of(handler)
        if code is not None:
            codes.add(code)
    return codes


def code_of(callback: object) -> CodeType | None:
    """Return the code that a callback runs, unless it is written in C."""
    while isinstance(callback, partial):
        callback = callback.func  # pyright: ignore[reportUnknownMemberType,reportUnknownVariableType]
    code: CodeType | None = getattr(getattr(callback, "__func__", callback), "__code__", None)
    return code
