"""Who waits for a run, for its end or as one who watches: the test, or an action meanwhile.

Rules:

- An action that waits for a run, itself or in a task of its own, is not at work: only the test's
  time can end its wait.
- One that asks again and again, after pauses of its own, is at work: what it waits for cannot be
  known, nor whether a pause is one of work.
- Time passes by itself for the test's waits alone, and only they are told that they are stalled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, final

from durable.runtime.attempt import CURRENT_ATTEMPT

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from durable.runtime.attempt import Attempt
    from durable.testing.fakes import Steps


class Wait(NamedTuple):
    """One wait.

    Attributes:
        run_id: The run that is waited for.
        attempt: The attempt that waits; ``None``: it is no step's.
    """

    run_id: str
    attempt: Attempt | None


@final
class Waits:
    """Who waits now for an engine's runs."""

    def __init__(self, on_waiting: Callable[[], None]) -> None:
        self._on_waiting = on_waiting
        self._by_waiter: dict[asyncio.Future[Any], Wait] = {}

    def join(self, run_id: str, waiter: asyncio.Future[Any]) -> None:
        """Somebody begins to wait: the one whose context this is called in."""
        self._by_waiter[waiter] = Wait(run_id, CURRENT_ATTEMPT.get(None))
        waiter.add_done_callback(self._by_waiter.pop)
        self._on_waiting()

    def attempts(self) -> set[Attempt]:
        """Return the attempts that wait."""
        return {wait.attempt for _, wait in self._open() if wait.attempt is not None}

    def of_test(self, steps: Steps) -> dict[asyncio.Future[Any], str]:
        """Return the waits that are none of an attempt's that is under way, with their runs."""
        under_way = steps.under_way
        return {
            waiter: wait.run_id for waiter, wait in self._open() if wait.attempt not in under_way
        }

    def _open(self) -> list[tuple[asyncio.Future[Any], Wait]]:
        # One that was told is at work from then on, before its task goes on.
        return [each for each in self._by_waiter.items() if not each[0].done()]
