"""Where asyncio and anyio do something in the order of memory addresses, and how to tell.

Such an order is another one on replay, so the body's loop puts it right. What it has to know is
read from the frames that call it: neither library offers a hook.
"""

from __future__ import annotations

import asyncio
from collections.abc import Set as AbstractSet
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from durable.core.tasks import WorkflowTask

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Iterable
    from types import FrameType

ANYIO_REDELIVERY = "_deliver_cancellation"
"""The method of anyio's cancel scopes that cancels, and that schedules itself again in every cycle
of the loop until each task in the scope has taken the cancellation."""

REDELIVERIES_PER_TURN_MAX = 100
"""How often it may schedule itself again in one turn; then it is only now and then, while something
is ready. While a cancelled task waits for others that clean up, it would go on for ever, and the
body would never be quiescent. But a task may spin until its cancellation comes, as
``checkpoint_if_cancelled`` does."""

AS_COMPLETED = ("as_completed", "__init__")
"""What in ``asyncio.tasks`` makes the tasks: from Python 3.13 on, its iterator's constructor."""


def is_cancelled_by_anyio(frame: FrameType | None) -> bool:
    # Futures made of futures, such as gather's, cancel each other: one such frame for each.
    while frame is not None and frame.f_code.co_name == "cancel":
        frame = frame.f_back
    return frame is not None and frame.f_code.co_name == ANYIO_REDELIVERY


def given_to_as_completed(frame: FrameType | None) -> Iterable[object] | None:
    """Return what as_completed was given, when it is as_completed that makes a task."""
    while frame is not None and frame.f_globals is asyncio.tasks.__dict__:
        if frame.f_code.co_name in AS_COMPLETED:
            given: Iterable[object] = frame.f_locals.get("fs") or frame.f_locals["aws"]
            return given
        frame = frame.f_back
    return None


def coroutines_of(given: Iterable[object]) -> dict[Any, None]:
    """Return the coroutines that as_completed was given, in order; none where there is no order.

    It puts them into a set, where they hash by address: the order in which it asks for their tasks
    is not the same on replay. That in which they were given is.
    """
    ordered = () if isinstance(given, AbstractSet) else given
    return dict.fromkeys(each for each in ordered if asyncio.iscoroutine(each))


def number_of_waiter(callback: Any, args: tuple[Any, ...]) -> int:  # noqa: ANN401
    """Return the creation number of the task that is woken, else of the future it waited for."""
    waiter = getattr(callback, "__self__", None)
    if isinstance(waiter, WorkflowTask):
        return waiter.number  # pyright: ignore[reportUnknownMemberType,reportUnknownVariableType]
    return getattr(args[0], "number", 0) if args else 0


def order_cancelled(
    ready: deque[asyncio.Handle], cancelled: list[tuple[int, asyncio.Handle]]
) -> None:
    """Let what anyio has cancelled at one go run in the order of the tasks' creation.

    A cancel scope keeps its child scopes in a set that hashes by address: the order in which it
    cancels them is not the same on replay.

    Args:
        ready: The loop's queue, which is put in order.
        cancelled: The handles that are to change places, each after its waiter's creation number.
            They are taken out.
    """
    handles = [handle for _, handle in sorted(cancelled, key=itemgetter(0))]
    places = {id(handle) for handle in handles}
    in_order = iter(handles)
    ordered = [next(in_order) if id(handle) in places else handle for handle in ready]
    ready.clear()
    ready.extend(ordered)
    cancelled.clear()
