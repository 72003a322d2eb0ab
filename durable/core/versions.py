"""The versions that a run was begun with: what may have changed when it does not replay.

A journal has a table of them, with a row for each set that there was. A run has the number of one.
"""

from __future__ import annotations

import sys
from typing import final

import msgspec

VERSION = "0.1.0"
"""This library's own."""


@final
class Versions(msgspec.Struct, frozen=True):
    """The versions of what decides about replay.

    Attributes:
        python: The interpreter's, whose asyncio bodies run with.
        durable: This library's.
    """

    python: str
    durable: str

    def __str__(self) -> str:
        return f"Python {self.python}, durable {self.durable}"


@final
class VersionTable(msgspec.Struct, frozen=True):
    """The sets of versions that a journal knows.

    Attributes:
        present: The number of this process's, if it has one.
        sets: All of them, by number.
    """

    present: int | None = None
    sets: dict[int, Versions] = {}

    def explain(self, begun_with: int | None) -> str:
        """Return that a run was begun with others than these; empty if it was not."""
        begun = None if begun_with is None else self.sets.get(begun_with)
        return "" if begun is None else explain_versions(begun)


def present_versions() -> Versions:
    """Return what this process runs with."""
    return Versions(".".join(map(str, sys.version_info[:3])), VERSION)


def explain_versions(begun: Versions) -> str:
    """Return that a run was begun with others than these; empty if it was not."""
    now = present_versions()
    return "" if begun == now else f"The run was begun with {begun}; now it is {now}."
