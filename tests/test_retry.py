"""When a failed attempt is made again."""

import math
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from durable import Retry
from durable.core.retry import DELAY_S_MAX, RetryDefault, resolve_retry, seconds

ATTEMPTS = st.integers(1, 10_000)
DRAWS = st.floats(0, 1, exclude_max=True)
RETRIES = st.builds(
    Retry,
    max_attempts=ATTEMPTS,
    initial_backoff=st.floats(0, allow_nan=False),
    base=st.floats(1, allow_nan=False) | st.integers(1, 10),
    max_backoff=st.none() | st.floats(0, allow_nan=False),
    jitter=st.booleans(),
)


@given(RETRIES, ATTEMPTS, DRAWS)
@settings(deadline=None)
def test_it_gives_up_after_the_last_attempt_and_not_before(
    retry: Retry, attempt: int, draw: float
) -> None:
    assert (retry.backoff_ms(attempt, draw) is None) == (attempt >= retry.max_attempts)


@given(RETRIES, ATTEMPTS, DRAWS)
@settings(deadline=None)
def test_the_wait_stays_in_its_bounds(retry: Retry, attempt: int, draw: float) -> None:
    wait_ms = retry.backoff_ms(attempt, draw)
    if wait_ms is not None:
        bound_s = DELAY_S_MAX if retry.max_backoff is None else retry.max_backoff
        assert 0 <= wait_ms <= min(bound_s, DELAY_S_MAX) * 1000 + 0.5


@given(RETRIES, st.integers(1, 5_000), DRAWS)
@example(Retry(max_attempts=4, initial_backoff=1.0, base=2.0**512), 2, 0.0)
@settings(deadline=None)
def test_the_wait_never_shrinks_from_one_attempt_to_the_next(
    retry: Retry, attempt: int, draw: float
) -> None:
    first, second = retry.backoff_ms(attempt, draw), retry.backoff_ms(attempt + 1, draw)
    if first is not None and second is not None:
        assert first <= second


@given(
    attempt=st.integers(1, 20),
    initial=st.floats(0, 100),
    base=st.floats(1, 3),
    bound=st.none() | st.floats(0, 1000),
    draw=DRAWS,
)
@settings(deadline=None)
def test_the_wait_is_the_documented_formula(
    attempt: int, initial: float, base: float, bound: float | None, draw: float
) -> None:
    exact_s = initial * base ** (attempt - 1)
    for jitter, factor in ((False, 1.0), (True, 0.5 + draw)):
        retry = Retry(30, initial, base, bound, jitter)
        expected_s = min(exact_s * factor, math.inf if bound is None else bound)
        wait_ms = retry.backoff_ms(attempt, draw)
        assert wait_ms == pytest.approx(min(expected_s, DELAY_S_MAX) * 1000, abs=0.51)


def test_the_defaults_are_the_documented_ones() -> None:
    waits = [Retry(jitter=False).backoff_ms(attempt, 0) for attempt in range(1, 7)]
    assert waits == [500, 1000, 2000, 4000, None, None]
    assert Retry().jitter
    assert Retry().max_backoff is None


@pytest.mark.parametrize("draw", [0.0, 0.25, math.nextafter(1, 0)])
def test_the_bound_is_applied_after_the_jitter(draw: float) -> None:
    wait_ms = Retry(initial_backoff=100, max_backoff=60).backoff_ms(1, draw)
    assert wait_ms == min(round(100_000 * (0.5 + draw)), 60_000)


@pytest.mark.parametrize("base", [1, 2, 2.0, math.inf])
def test_no_backoff_stays_none_however_many_attempts(base: float) -> None:
    retry = Retry(max_attempts=10_000, initial_backoff=0, base=base)
    assert retry.backoff_ms(1, 0.5) == retry.backoff_ms(5_000, 0.5) == 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_attempts": 0}, ValueError, "at least 1, not 0"),
        ({"max_attempts": 1.5}, TypeError, "whole number, not 1.5"),
        ({"max_attempts": True}, TypeError, "whole number, not True"),
        ({"initial_backoff": -0.1}, ValueError, "initial_backoff=.* at least 0, not -0.1"),
        ({"initial_backoff": math.nan}, ValueError, "initial_backoff=.* not a number"),
        ({"initial_backoff": None}, TypeError, "initial_backoff="),
        ({"initial_backoff": timedelta(1)}, TypeError, r"initial_backoff=.*total_seconds\(\)"),
        ({"base": 0.5}, ValueError, "base=.* at least 1, not 0.5"),
        ({"base": "2"}, TypeError, "base="),
        ({"max_backoff": -1}, ValueError, "max_backoff=.* at least 0, not -1"),
        ({"max_backoff": True}, TypeError, "max_backoff="),
    ],
)
def test_a_field_out_of_range_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Retry(**options)


def test_a_policy_is_a_value() -> None:
    assert Retry(3) == Retry(max_attempts=3)
    assert len({Retry(3), Retry(3), Retry(4)}) == 2
    with pytest.raises(AttributeError):
        Retry().max_attempts = 7  # type: ignore[misc]


STEP, ACTION, WORKFLOW, ENGINE = (Retry(attempts) for attempts in (2, 3, 4, 5))


@pytest.mark.parametrize(
    ("step", "action", "workflow", "by_default", "policy", "at_most_once"),
    [
        # Nothing is said: one attempt, at least once; or the engine's policy, when it says so.
        (None, None, None, False, None, False),
        (None, None, None, True, ENGINE, False),
        # A policy of the workflow's is only the policy in force.
        (None, None, WORKFLOW, False, None, False),
        (None, None, WORKFLOW, True, WORKFLOW, False),
        # The workflow says whether.
        (None, None, True, False, ENGINE, False),
        (None, None, False, True, None, False),
        # The action's own stands over both.
        (None, ACTION, WORKFLOW, False, ACTION, False),
        (None, True, WORKFLOW, False, WORKFLOW, False),
        (None, True, False, False, ENGINE, False),
        (None, False, WORKFLOW, True, None, True),
        # The step's own stands over everything.
        (STEP, False, False, False, STEP, False),
        (STEP, ACTION, WORKFLOW, True, STEP, False),
        (True, False, False, False, ENGINE, False),
        (True, ACTION, WORKFLOW, False, ACTION, False),
        (False, ACTION, WORKFLOW, True, None, True),
    ],
)
def test_who_decides_about_retries(  # noqa: PLR0917  the table's columns
    step: Retry | bool | None,
    action: Retry | bool | None,
    workflow: Retry | bool | None,
    by_default: bool,
    policy: Retry | None,
    at_most_once: bool,
) -> None:
    engine = RetryDefault(ENGINE, by_default)
    decided = resolve_retry(step, action, RetryDefault(workflow, None), engine)
    assert decided == (policy, at_most_once)


@pytest.mark.parametrize("workflows", [True, False])
@pytest.mark.parametrize("engines", [True, False])
@pytest.mark.parametrize("policy", [None, WORKFLOW])
def test_a_workflow_says_over_the_engine_whether_its_actions_are_retried(
    policy: Retry | None, workflows: bool, engines: bool
) -> None:
    said = RetryDefault(policy, workflows), RetryDefault(ENGINE, engines)
    decided, _ = resolve_retry(None, None, *said)
    assert decided == ((policy or ENGINE) if workflows else None)


@given(st.integers() | st.floats(allow_nan=False) | st.timedeltas())
@example(10**400)
@example(-(10**400))
@settings(deadline=None)
def test_any_duration_fits_into_the_journal(value: float | timedelta) -> None:
    duration_s = seconds(value, "it")
    assert abs(duration_s) <= DELAY_S_MAX
    exact_s = value.total_seconds() if isinstance(value, timedelta) else value
    if abs(exact_s) <= DELAY_S_MAX:
        assert duration_s == exact_s


@pytest.mark.parametrize("value", ["1", None, True, [1], 1j])
def test_what_is_no_duration_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="delay is seconds or a timedelta, not"):
        seconds(value, "delay")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="delay is not a number"):
        seconds(math.nan, "delay")
