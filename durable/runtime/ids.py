"""The ids of new runs."""

from __future__ import annotations

import os


def new_run_id(now_ms: int) -> str:
    """Return an id that sorts by time, as UUIDv7 does: the journal's index grows at its end."""
    return f"{now_ms:012x}{os.urandom(10).hex()}"
