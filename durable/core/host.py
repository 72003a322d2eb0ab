"""What a body's loop asks of the execution it belongs to, and what answers after the body's end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, Protocol, final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from durable.core.errors import NonDeterminismError


class Refuse(Protocol):
    """How a body's loop says no."""

    def __call__(self, what: str, instead: str = ..., /) -> NoReturn:
        """Raise ``NonDeterminismError``, and remember that."""
        ...


class Guard(Protocol):
    """What watches a body while its code runs, for what goes past its loop."""

    def __call__(self, run: Callable[[], None], refuse: Refuse, /) -> None:
        """Call ``run``, and ``refuse`` what it may not do."""
        ...


class LoopHost(Protocol):
    """What the loop asks of the execution it belongs to."""

    def time_ms(self) -> int:
        """Return the run's own time."""
        ...

    def issue_call(self, call: Any) -> Awaitable[Any]:  # noqa: ANN401  what the core does not know
        """Make a step of a call that the body awaits."""
        ...

    def start_timer(self, handle: asyncio.TimerHandle, when: float) -> None:
        """Issue a durable timer that runs ``handle`` at ``when`` (seconds since the epoch)."""
        ...

    def cancel_timer(self, handle: asyncio.TimerHandle) -> None:
        """Withdraw a timer."""
        ...

    def report_refusal(self, error: NonDeterminismError) -> None:
        """Take note that the body tried what cannot be replayed."""
        ...

    def report_exception(self, context: dict[str, Any]) -> None:
        """Take note of an exception that nobody can catch, such as a callback's."""
        ...


@final
class _ClosedHost:
    """What stands for the execution of a body that was dropped."""

    def time_ms(self) -> int:
        return 0

    def issue_call(self, call: Any) -> Awaitable[Any]:  # noqa: ANN401, ARG002
        raise GeneratorExit

    def start_timer(self, handle: asyncio.TimerHandle, when: float) -> None:
        pass

    def cancel_timer(self, handle: asyncio.TimerHandle) -> None:
        pass

    def report_refusal(self, error: NonDeterminismError) -> None:
        pass

    def report_exception(self, context: dict[str, Any]) -> None:
        pass


CLOSED_HOST = _ClosedHost()
