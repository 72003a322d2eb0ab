"""How an attempt's function is called, on the event loop or in a thread, and bounded in time.

Rules:

- Whatever the function raises is its outcome. What comes from outside goes on: the cancellation of
  the attempt's task, and Ctrl-C.
- Late is late: an attempt that swallows its time-out has timed out.
- A thread cannot be stopped: its time-out is its outcome, and it ends when it ends.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, final

import anyio.to_thread

from durable.core.interrupts import is_from_signal
from durable.runtime.job import Failed, Succeeded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio import CapacityLimiter

    from durable.runtime.job import ActionWork


async def call_async(work: ActionWork, args: str) -> Succeeded | Failed:
    """Await an async function in the task that runs now."""
    try:
        if work.timeout_s is None:
            result = await work.call(args)
        else:
            result = await _bounded_by(work.timeout_s, partial(work.call, args))
        return Succeeded(*work.encode_result(result))
    except BaseException as exc:  # noqa: BLE001  an action may raise anything
        return failed(exc)


async def call_sync(
    work: ActionWork,
    args: str,
    threads: CapacityLimiter | None,
    report_late: Callable[[Failed], None],
) -> Succeeded | Failed:
    """Call a sync function in a thread, and wait for its end; its time-out is reported before."""
    timer: asyncio.TimerHandle | None = None
    if work.timeout_s is not None:
        late = Failed(timed_out(work.timeout_s))
        timer = asyncio.get_running_loop().call_later(work.timeout_s, report_late, late)
    try:
        result = await anyio.to_thread.run_sync(
            partial(_call_caught, work, args), limiter=threads, abandon_on_cancel=True
        )
        if isinstance(result, _Caught):
            return Failed(result.exc)  # Signals come in the main thread only.
        return Succeeded(*work.encode_result(result))
    except BaseException as exc:  # noqa: BLE001  an action may raise anything
        return failed(exc)
    finally:
        if timer is not None:
            timer.cancel()


def failed(exc: BaseException) -> Failed:
    """Return what an attempt has come to that has raised.

    Raises:
        BaseException: It comes from outside of the attempt.
    """
    if issubclass(type(exc), asyncio.CancelledError) and _is_cancelled():
        raise exc  # The pool or the host cancels; one that the action raised is its outcome.
    if issubclass(type(exc), (KeyboardInterrupt, SystemExit)) and is_from_signal(exc):
        raise exc
    return Failed(exc)


@final
class _Caught:
    """An exception out of a worker thread: some, such as StopIteration, no future can carry."""

    def __init__(self, exc: BaseException) -> None:
        self.exc = exc


def _call_caught(work: ActionWork, args: str) -> object:
    try:
        return work.call(args)
    except BaseException as exc:  # noqa: BLE001  an action may raise anything
        return _Caught(exc)


async def _bounded_by(timeout_s: float, call: Callable[[], Awaitable[object]]) -> object:
    # Not anyio's: it cancels again at each await, so that nothing could be cleaned up.
    bound = asyncio.timeout(timeout_s)
    try:
        async with bound:
            result = await call()
    except BaseException:
        if bound.expired() and not _is_cancelled():
            raise timed_out(timeout_s) from None
        raise
    if bound.expired():  # It swallowed the cancellation: late is late.
        raise timed_out(timeout_s)
    return result


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def timed_out(timeout_s: float) -> TimeoutError:
    """Return what an attempt fails with that has taken too long."""
    return TimeoutError(f"the attempt took longer than its timeout of {timeout_s:g} s")
