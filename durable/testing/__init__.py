"""A test kit: a real engine with the test's own time, fakes for steps, crashes everywhere.

>>> async with durable.testing.engine() as env:
...     env.replace(charge, "receipt")
...     assert await env.run(checkout("o-1", 500)) == "receipt"
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from durable.testing.crashes import Crashes, crash_everywhere
from durable.testing.environment import EngineOptions, Environment
from durable.testing.errors import StalledError
from durable.testing.fakes import Replacement, StepCall
from durable.testing.histories import DivergenceError, replay
from durable.testing.playing import Outcome
from durable.testing.shuffling import Shuffled, shuffle

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path
    from typing import Unpack

__all__ = [
    "Crashes",
    "DivergenceError",
    "EngineOptions",
    "Environment",
    "Outcome",
    "Replacement",
    "Shuffled",
    "StalledError",
    "StepCall",
    "crash_everywhere",
    "engine",
    "replay",
    "shuffle",
]


def engine(
    url: str | Path = "sqlite://",
    *,
    start: datetime | None = None,
    auto: bool = True,
    **options: Unpack[EngineOptions],
) -> Environment:
    """Return an environment for a test: ``async with durable.testing.engine() as env:``.

    Its engine is a real one. Its time stands still while anything is at work; then, while somebody
    waits for a run's end, it goes on to the next time that something is due at.

    Args:
        url: The journal, as ``Engine`` takes it; by default in memory.
        start: When the test's time begins, an aware datetime; by default the year 2025.
        auto: Whether time goes on by itself, and a wait that nothing ends fails; else time goes on
            by ``env.advance`` alone, and a wait lasts until its ``timeout``.
        options: Those of ``Engine``. ``drain_timeout`` is 0 by default: what runs at the end of
            the test is cut off.
    """
    return Environment(url, options, start=start, auto=auto)
