"""Telling Ctrl-C from a ``raise KeyboardInterrupt`` of the user's code."""

from __future__ import annotations

import asyncio
import opcode

_RAISING = {
    opcode.opmap[name]
    for name in (
        *("RAISE_VARARGS", "RERAISE"),
        # Where an exception is thrown into a generator or coroutine: not begun, or suspended.
        *("RETURN_GENERATOR", "POP_TOP", "YIELD_VALUE", "SEND", "JUMP_BACKWARD_NO_INTERRUPT"),
    )
}
_RESUME = opcode.opmap["RESUME"]


def is_from_signal(exc: BaseException) -> bool:
    """Whether a signal handler raised it: then it is the host's, and no outcome of the code.

    The interpreter looks for signals at calls, at jumps back and where a function begins.
    """
    at = exc.__traceback__
    if at is None:
        return False
    while at.tb_next is not None:
        at = at.tb_next
    code = at.tb_frame.f_code
    if code.co_filename == asyncio.runners.__file__:
        return True
    instruction, argument = code.co_code[at.tb_lasti : at.tb_lasti + 2]
    return instruction not in _RAISING and not (instruction == _RESUME and argument != 0)
