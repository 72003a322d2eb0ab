"""The effect log: what functions and callers did, in files that are never rolled back.

One file for each life of the process. A kill in the middle of a write leaves a torn line: lines
begin with the line feed, so that it spoils no other, and a line that is not whole is no effect.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias, final

import msgspec

from durable import Attempt


@final
class Begun(msgspec.Struct, frozen=True, tag="begun"):
    """A step's function began: first thing in it."""

    run_id: str
    key: str
    number: int
    interruptions: int
    at_ms: int


@final
class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """It ended: last thing in it."""

    run_id: str
    key: str
    number: int
    interruptions: int
    at_ms: int
    returned: bool


@final
class Acked(msgspec.Struct, frozen=True, tag="acked"):
    """``engine.start`` returned."""

    run_id: str
    name: str
    args: dict[str, object]


@final
class Shown(msgspec.Struct, frozen=True, tag="shown"):
    """``engine.status`` returned."""

    run_id: str
    state: str
    open_steps: list[int]


@final
class Seen(msgspec.Struct, frozen=True, tag="seen"):
    """``run.result`` returned the value, or raised the error: its type's name, its message and
    what its cause looks like."""

    run_id: str
    value: object = None
    error: tuple[str, str, str] | None = None


Effect: TypeAlias = Begun | Ended | Acked | Shown | Seen

_decoder: msgspec.json.Decoder[Effect] = msgspec.json.Decoder(Effect)


@final
class EffectLog:
    """Appends to one life's file, from any thread."""

    def __init__(self, path: Path, now_ms: Callable[[], int]) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._now_ms = now_ms

    def append(self, effect: Effect) -> None:
        os.write(self._fd, b"\n" + msgspec.json.encode(effect))

    def begun(self, attempt: Attempt) -> None:
        self.append(Begun(*_which(attempt), self._now_ms()))

    def ended(self, attempt: Attempt, *, returned: bool) -> None:
        self.append(Ended(*_which(attempt), self._now_ms(), returned))

    def close(self) -> None:
        os.close(self._fd)


def _which(attempt: Attempt) -> tuple[str, str, int, int]:
    return attempt.run_id, attempt.step_key, attempt.number, attempt.interruptions


def read_effects(path: Path) -> list[Effect]:
    """Return one life's effects, in order. A life that was killed early has no file."""
    if not path.exists():
        return []
    effects: list[Effect] = []
    for line in path.read_bytes().split(b"\n"):
        try:
            effects.append(_decoder.decode(line))
        except msgspec.ValidationError:
            raise  # Whole, and not ours.
        except msgspec.DecodeError:
            continue
    return effects
