"""Options that users hand in: checked in one place, so that each error says what is expected."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

from durable.core.commands import DUE_MS_MAX
from durable.core.retry import Retry, seconds

ID_CHARS_MAX = 512
"""The longest id of a run."""

VERSION_MAX = 2**31 - 1

VERIFY_REPLAY = "DURABLE_VERIFY_REPLAY"
YES, NO = frozenset({"1", "true", "yes", "on"}), frozenset({"", "0", "false", "no", "off"})

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def check_id(run_id: str) -> str:
    """Return a run's id that a journal can hold."""
    if not isinstance(run_id, str):
        msg = f"a run's id is text, not {run_id!r}"
        raise TypeError(msg)
    if not run_id or len(run_id) > ID_CHARS_MAX or not run_id.isprintable():
        msg = f"a run's id is 1 to {ID_CHARS_MAX} printable characters, not {run_id[:80]!r}"
        raise ValueError(msg)
    return str(run_id)


def check_verify_replay(value: bool | None) -> bool:
    """Return whether bodies are verified; without a setting, what the environment says.

    Raises:
        TypeError, ValueError: It is neither yes nor no.
    """
    if value is not None:
        return check_flag(value, "verify_replay=")
    text = os.environ.get(VERIFY_REPLAY, "").strip().lower()
    if text not in YES | NO:
        msg = f"{VERIFY_REPLAY} is 1 or 0, not {text!r}"
        raise ValueError(msg)
    return text in YES


def check_count(count: int, what: str) -> int:
    """Return a whole number that is not negative."""
    if isinstance(count, bool) or not isinstance(count, int):
        msg = f"{what} is a whole number, not {count!r}"
        raise TypeError(msg)
    if count < 0:
        msg = f"{what} is not negative, but it is {count}"
        raise ValueError(msg)
    return count


def check_name(name: str | None, what: str) -> str | None:
    """Return a name that a journal can hold, or ``None``; raise for any other.

    Raises:
        TypeError: It is no text, or empty.
        ValueError: It has no UTF-8 form, or a NUL character in it.
    """
    if name is None:
        return None
    if not isinstance(name, str) or not name:
        msg = f"{what} is text, and not empty; it is {name!r}"
        raise TypeError(msg)
    try:
        name.encode()
    except UnicodeEncodeError:
        msg = f"{what} has a lone surrogate in it, which cannot be stored: {name!r}"
        raise ValueError(msg) from None
    if "\0" in name:
        msg = f"{what} has a NUL character in it, where SQLite's texts end: {name!r}"
        raise ValueError(msg)
    return str(name)


def check_version(version: int) -> int:
    """Return a workflow's version."""
    if isinstance(version, bool) or not isinstance(version, int):
        msg = f"workflow(version=) is a whole number, not {version!r}"
        raise TypeError(msg)
    if not 0 <= version <= VERSION_MAX:
        msg = f"workflow(version=) is from 0 to {VERSION_MAX}, not {version}"
        raise ValueError(msg)
    return version


def check_flag(flag: bool, what: str) -> bool:
    """Return what is True or False."""
    if not isinstance(flag, bool):
        msg = f"{what} is True or False, not {flag!r}"
        raise TypeError(msg)
    return flag


def check_policy(retry: Retry, what: str) -> Retry:
    """Return a retry policy."""
    if not isinstance(retry, Retry):
        msg = f"{what} is a durable.Retry, not {retry!r}"
        raise TypeError(msg)
    return retry


def check_retry(retry: Retry | bool | None) -> Retry | bool | None:
    """Return ``retry``, or raise ``TypeError`` when it is none of what decides about retries."""
    if retry is None or isinstance(retry, bool | Retry):
        return retry
    msg = f"retry= is True, False or a durable.Retry, not {retry!r}"
    raise TypeError(msg)


def check_timeout(timeout: float | timedelta | None) -> float | None:
    """Return a time-out in seconds; raise ``ValueError`` unless it is positive."""
    if timeout is None:
        return None
    timeout_s = seconds(timeout, "timeout=")
    if timeout_s <= 0:
        msg = f"timeout= is more than 0 seconds, not {timeout!r}"
        raise ValueError(msg)
    return timeout_s


def check_drain_timeout(timeout: float | timedelta) -> float:
    """Return it in seconds; 0 waits for nothing."""
    timeout_s = seconds(timeout, "drain_timeout")
    if timeout_s < 0:
        msg = f"drain_timeout is not negative, but it is {timeout!r}"
        raise ValueError(msg)
    return timeout_s


def check_retention(retention: float | timedelta | None) -> int | None:
    """Return it in milliseconds, or ``None``."""
    if retention is None:
        return None
    keep_s = seconds(retention, "retention")
    if keep_s < 0:
        msg = f"retention is not negative, but it is {retention!r}"
        raise ValueError(msg)
    return milliseconds(keep_s)


def check_raises(raises: tuple[type[Exception], ...]) -> tuple[type[Exception], ...]:
    """Return the exception classes that an action names."""
    given: Any = (raises,) if isinstance(raises, type) else raises
    if isinstance(given, tuple | list):
        classes: tuple[Any, ...] = tuple(given)  # pyright: ignore[reportUnknownArgumentType,reportUnknownVariableType]
        if all(isinstance(cls, type) and issubclass(cls, Exception) for cls in classes):
            return classes
    msg = f"raises= is a tuple of Exception classes, not {raises!r}"
    raise TypeError(msg)


def check_delay(
    run_after: float | timedelta | None, run_at: datetime | None
) -> tuple[float | None, int | None]:
    """Return a start's delay in seconds, or its time in milliseconds; at most one is given.

    Raises:
        ValueError: Both are given, or the time is naive.
        TypeError: One is of another type.
    """
    if run_after is not None and run_at is not None:
        msg = "give run_after= or run_at=, not both"
        raise ValueError(msg)
    if run_after is not None:
        return max(seconds(run_after, "run_after="), 0.0), None
    if run_at is not None:
        return None, min(time_ms(run_at, "run_at="), DUE_MS_MAX)
    return None, None


def milliseconds(delay_s: float) -> int:
    """Return seconds in milliseconds."""
    return round(delay_s * 1000)


def time_ms(when: datetime, what: str) -> int:
    """Return an aware datetime in milliseconds since the epoch."""
    if not isinstance(when, datetime):
        msg = f"{what} is a datetime, not {when!r}"
        raise TypeError(msg)
    if when.utcoffset() is None:
        msg = f"{what} is an aware datetime: {when!r} has no time zone (datetime.now(UTC) has)"
        raise ValueError(msg)
    return -((_EPOCH - when) // timedelta(milliseconds=1))  # Rounded up: nothing is due early.
