"""Doing something whole, whoever cancels."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Await ``work`` whole: a caller's cancellation is passed on after it has ended."""
    import anyio  # noqa: PLC0415  late, as everything heavy

    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):  # Its scopes would cancel again in each cycle of the loop.
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError as exc:
                if task.cancelled():
                    break
                cancelled = exc
            except BaseException:  # noqa: BLE001  its attributes may be properties that raise
                break
    if cancelled is not None:
        if not task.cancelled():
            task.exception()
        raise cancelled
    return task.result()
