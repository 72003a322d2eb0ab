"""What a test says of steps' functions: what stands in for them, fails and delays them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from durable.checks import milliseconds
from durable.core.retry import seconds
from durable.definitions import Action
from durable.testing.fakes import REAL, Replacement, check_steered, is_error

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from datetime import timedelta

    from durable.definitions import Definition
    from durable.testing.fakes import StepCall, Steps

P = ParamSpec("P")
R = TypeVar("R")


class Faking:
    """The calls of ``Environment`` that steer steps. All hold from the next attempt on."""

    _steps: Steps

    @overload
    def replace(
        self, definition: Definition[P, R], fake: Callable[P, Coroutine[Any, Any, R]]
    ) -> Replacement: ...
    @overload
    def replace(self, definition: Definition[P, R], fake: Callable[P, R]) -> Replacement: ...
    @overload
    def replace(
        self, definition: Definition[P, R], fake: R | Exception | type[Exception]
    ) -> Replacement: ...
    def replace(self, definition: Definition[Any, Any], fake: Any) -> Replacement:
        """Let something else stand in for a definition's function.

        It holds from now on, in this environment. ``with env.replace(...):`` takes it back at the
        end of the block.

        Args:
            definition: What is replaced. Its calls stay steps, with its options and types, and a
                workflow's stay runs. A run under way goes on with what it began with, until it
                leaves memory.
            fake: A function, async or not, that takes the arguments as callers write them, so
                without ``tx`` or ``step``; or the result; or an exception to raise. For a workflow,
                the function is a body: it may await steps and durable timers, does no I/O, and is
                called again when the run is replayed.

        Raises:
            TypeError: It is no definition.
        """
        steering = self._steps.stand_in(definition)
        replacement = Replacement(steering, steering.fake)
        steering.fake = fake
        return replacement

    def restore(self, definition: Definition[Any, Any]) -> None:
        """Take back what ``replace``, ``fail`` and ``delay`` have said of a definition."""
        steering = self._steps.stand_in(definition)
        steering.fake = REAL
        steering.failures.clear()
        steering.delays_ms.clear()

    def fail(
        self,
        definition: Definition[Any, Any],
        error: Exception | type[Exception],
        *,
        on_attempt: int | Iterable[int] = 1,
    ) -> None:
        """Let attempts of a step raise ``error``, without calling anything.

        Args:
            definition: An action, a query or a mutation: of each of its steps.
            error: What is raised.
            on_attempt: By which attempts, from 1; by default the first.

        Raises:
            TypeError: ``error`` cannot be raised, or the definition is a workflow's.
            ValueError: There is no such attempt.
        """
        if not is_error(error):
            msg = f"error is an exception, such as OSError('down'), not {error!r}"
            raise TypeError(msg)
        numbers = [on_attempt] if isinstance(on_attempt, int) else list(on_attempt)
        if not numbers or min(numbers) < 1:
            msg = f"attempts are counted from 1: on_attempt is {on_attempt!r}"
            raise ValueError(msg)
        self._steps.steer(definition).failures.update(dict.fromkeys(numbers, error))

    def delay(
        self,
        definition: Definition[Any, Any],
        delay: float | timedelta,
        *,
        on_attempt: int | None = None,
    ) -> None:
        """Let attempts of an action take so much of the test's time before their function begins.

        One whose ``timeout`` is shorter ends by that.

        Args:
            definition: The action.
            delay: Seconds, or a ``timedelta``.
            on_attempt: Of which attempt, from 1; by default of each.

        Raises:
            TypeError: It is no action. Queries and mutations hold up all commits.
        """
        if not isinstance(definition, Action):
            msg = f"only an action can be delayed, which {definition!r} is not"
            raise TypeError(msg)
        self._steps.steer(definition).delays_ms[on_attempt] = delay_ms_of(delay)

    def calls(self, definition: Definition[Any, Any]) -> list[StepCall]:
        """Return the attempts that were made of a definition's steps, in order of their begin.

        Raises:
            TypeError: It is a workflow, whose calls are runs.
        """
        check_steered(definition)
        return list(self._steps.calls(definition))


def delay_ms_of(delay: float | timedelta) -> int:
    """Return how long a delay of the test's time is.

    Raises:
        ValueError: It is negative.
    """
    delay_s = seconds(delay, "delay")
    if delay_s < 0:
        msg = f"time does not go back: delay is {delay!r}"
        raise ValueError(msg)
    return milliseconds(delay_s)
