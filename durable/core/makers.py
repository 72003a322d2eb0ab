"""Who makes a future on a body's loop: what must have a number, and what is refused."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from durable.core.refusals import ANYIO_WORKER

if TYPE_CHECKING:
    from types import CodeType, FrameType

    from durable.core.loop import WorkflowLoop

_Gathering: Any = cast("Any", asyncio.tasks._GatheringFuture)  # type: ignore[attr-defined]  # noqa: SLF001
GATHERING_INIT: CodeType = _Gathering.__init__.__code__


class NumberedGathering(_Gathering):  # type: ignore[misc]
    """What ``asyncio.gather`` returns, in a body."""

    number: int

    def __hash__(self) -> int:
        return self.number


def check_maker(loop: WorkflowLoop, frame: FrameType) -> None:
    """Look at code that makes a future of its own: the constructor has asked for the debug mode.

    Raises:
        NonDeterminismError: It would hash by its address, or stand for a thread.
    """
    code = frame.f_code
    if code is GATHERING_INIT:
        gathering: Any = frame.f_locals["self"]
        gathering.__class__ = NumberedGathering
        gathering.number = loop.next_number()
    elif code.co_name == ANYIO_WORKER:
        loop.refuse("anyio.to_thread.run_sync()")
    elif "get_debug" in code.co_names:
        return  # It asks for itself.
    elif not str(frame.f_globals.get("__name__")).startswith("anyio."):  # It has no sets of them.
        loop.refuse(
            "asyncio.Future() or asyncio.Task(), which hash by address",
            "make it by asyncio.get_running_loop().create_future() or asyncio.create_task()",
        )
