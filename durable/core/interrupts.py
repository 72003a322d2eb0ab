"""Telling Ctrl-C from a ``raise KeyboardInterrupt`` of the user's code."""

from __future__ import annotations

import asyncio
import opcode

_RAISE = opcode.opmap["RAISE_VARARGS"]


def is_from_signal(exc: BaseException) -> bool:
    """Whether a signal handler raised it: then it is the host's, and no outcome of the code."""
    at = exc.__traceback__
    if at is None:
        return False
    while at.tb_next is not None:
        at = at.tb_next
    code = at.tb_frame.f_code
    return code.co_code[at.tb_lasti] != _RAISE or code.co_filename == asyncio.runners.__file__
