"""Retry: an attempt's number and a draw in, the wait before the next attempt or "give up" out."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any, NamedTuple, final

import msgspec

DELAY_S_MAX = 100 * 365 * 86400
"""No wait is longer than a century, so that a due time always fits in the journal's integers."""


def seconds(value: float | timedelta, what: str) -> float:
    """Turn a duration of the public API (seconds or ``timedelta``) into seconds.

    Raises:
        TypeError: It is neither a number nor a ``timedelta``.
        ValueError: It is NaN.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"{what} is seconds or a timedelta, not {value!r}"
        raise TypeError(msg)
    bounded_s = float(max(min(value, DELAY_S_MAX), -DELAY_S_MAX))
    if math.isnan(bounded_s):
        msg = f"{what} is not a number"
        raise ValueError(msg)
    return bounded_s


@final
class Retry(msgspec.Struct, frozen=True):
    """How often and how soon a failed attempt is made again.

    The wait before attempt ``n + 1`` is ``initial_backoff * base ** (n - 1)`` seconds, times a
    uniform draw from [0.5, 1.5) with ``jitter``, and never more than ``max_backoff``.

    Attributes:
        max_attempts: How many attempts there are in all; the first counts. At least 1.
        initial_backoff: The wait before attempt 2, in seconds.
        base: What the wait is multiplied with from one attempt to the next. At least 1.
        max_backoff: The longest wait, in seconds; ``None`` for no bound.
        jitter: Whether the wait is spread, so that many failures do not come back together.

    Raises:
        ValueError: A field is out of its range.
    """

    max_attempts: int = 5
    initial_backoff: float = 0.5
    base: float = 2.0
    max_backoff: float | None = None
    jitter: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.jitter, bool):
            msg = f"Retry(jitter=) is True or False, not {self.jitter!r}"
            raise TypeError(msg)
        if isinstance(self.max_attempts, bool) or not isinstance(self.max_attempts, int):
            msg = f"Retry(max_attempts=) is a whole number, not {self.max_attempts!r}"
            raise TypeError(msg)
        if self.max_attempts < 1:
            msg = f"Retry(max_attempts=) counts the first: at least 1, not {self.max_attempts}"
            raise ValueError(msg)
        bounds: tuple[tuple[str, Any, float], ...] = (
            ("initial_backoff", self.initial_backoff, 0.0),
            ("base", self.base, 1.0),
            ("max_backoff", 0.0 if self.max_backoff is None else self.max_backoff, 0.0),
        )
        for field, value, least in bounds:
            if isinstance(value, timedelta):
                msg = f"Retry({field}=) is a number, not {value!r}: use .total_seconds()"
                raise TypeError(msg)
            if seconds(value, f"Retry({field}=)") < least:
                msg = f"Retry({field}=) is at least {least:g}, not {value}"
                raise ValueError(msg)

    def backoff_ms(self, attempt: int, draw: float) -> int | None:
        """Return the wait after a failed ``attempt`` (from 1), or ``None`` to give up.

        Args:
            attempt: The number of the attempt that failed.
            draw: A number in [0, 1) that decides the jitter.
        """
        assert attempt >= 1
        assert 0 <= draw < 1
        if attempt >= self.max_attempts:
            return None
        if not self.initial_backoff:
            return 0  # However large the power is.
        try:
            wait_s = self.initial_backoff * self.base ** (attempt - 1)
        except OverflowError:
            wait_s = math.inf  # The bound is what it comes to.
        if self.jitter:
            wait_s *= 0.5 + draw
        bound_s = DELAY_S_MAX if self.max_backoff is None else min(self.max_backoff, DELAY_S_MAX)
        return round(min(wait_s, bound_s) * 1000)


class RetryDefault(NamedTuple):
    """What a workflow or an engine says: a policy, and whether actions are retried by default."""

    policy: Retry | bool | None
    by_default: bool | None


def resolve_retry(
    step: Retry | bool | None,
    action: Retry | bool | None,
    workflow: RetryDefault,
    engine: RetryDefault,
) -> tuple[Retry | None, bool]:
    """Decide about the retries of one step: its own option, over the action's, over the defaults.

    Args:
        step: ``step.run(retry=)``.
        action: ``action(retry=)``.
        workflow: ``workflow(retry=, retry_actions_by_default=)``.
        engine: ``Engine(retry=, retry_actions_by_default=)``, both given.

    Returns:
        The policy, ``None`` for a single attempt; and whether the step is at most once.
    """
    policies = (step, action, workflow.policy, engine.policy)
    in_force = next(policy for policy in policies if isinstance(policy, Retry))
    for said in (step, action):
        if said is False:
            return None, True
        if said is not None:
            return in_force, False
    by_default = (workflow.policy, workflow.by_default, engine.by_default)
    return (
        in_force if next(said for said in by_default if isinstance(said, bool)) else None
    ), False
