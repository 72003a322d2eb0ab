"""A body's loop without an execution around it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from durable.core.loop import WorkflowLoop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine

    from durable.core.errors import NonDeterminismError
    from durable.core.tasks import WorkflowTask

T = TypeVar("T")
NOW_MS = 5_000


class Host:
    """An execution, as far as the loop needs one: it keeps what it is told."""

    def __init__(self) -> None:
        self.timers: dict[asyncio.TimerHandle, float] = {}
        self.cancelled: list[float] = []
        self.refusals: list[str] = []
        self.exceptions: list[dict[str, Any]] = []

    def time_ms(self) -> int:
        return NOW_MS

    def issue_call(self, call: object) -> Awaitable[Any]:
        raise AssertionError(call)

    def start_timer(self, handle: asyncio.TimerHandle, when: float) -> None:
        self.timers[handle] = when

    def cancel_timer(self, handle: asyncio.TimerHandle) -> None:
        self.cancelled.append(self.timers.pop(handle))

    def report_refusal(self, error: NonDeterminismError) -> None:
        self.refusals.append(str(error))

    def report_exception(self, context: dict[str, Any]) -> None:
        self.exceptions.append(context)


def new_loop(host: Host) -> WorkflowLoop:
    return WorkflowLoop(host, "run")  # type: ignore[abstract]  # pyright: ignore[reportAbstractUsage]


def begin(loop: WorkflowLoop, body: Coroutine[Any, Any, T]) -> WorkflowTask[T]:
    """Run a body until it waits for something, or has ended."""
    task = loop.spawn_root(body)
    loop.pump()
    return task


def run(loop: WorkflowLoop, body: Coroutine[Any, Any, T]) -> T:
    """Run a body that waits for nothing; return its result."""
    return begin(loop, body).result()


def current() -> Any:  # noqa: ANN401  the body's loop, and whatever method
    return asyncio.get_running_loop()


def nothing(*_: object) -> None:
    pass
