"""An engine's settings, as the runtime needs them: durations in milliseconds, bounds by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import msgspec

PARK_AFTER_MS = 30_000
"""A run that waits longer than this leaves memory: reading its history again costs less."""

PARK_AFTER_CROWDED_MS = 1_000
"""The same, while there are ``live_runs_max`` live runs or more."""

LIVE_RUNS_MAX = 10_000
"""With so many live runs, idle ones leave memory sooner and new ones wait in the journal."""

MAX_INTERRUPTIONS = 100
"""How often the process may die during one step before the step fails."""

CLAIM_RUNS_MAX = 500
"""How many due runs are claimed in one transaction, which holds the journal meanwhile."""

TRANSACTION_S_MAX = 10.0
"""How long a mutation or a caller's transaction may hold up all commits, unless it says so."""


@final
class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine was made with.

    Attributes:
        draw: What a back-off's jitter is drawn with, from 0 to 1; ``None``: uniform, at random.
    """

    max_interruptions: int = MAX_INTERRUPTIONS
    park_after_ms: int = PARK_AFTER_MS
    live_runs_max: int = LIVE_RUNS_MAX
    claim_runs_max: int = CLAIM_RUNS_MAX
    retention_ms: int | None = None
    draw: Callable[[], float] | None = None
    verify_replay: bool = False
    is_strict: bool = False
