"""What attempts were made, as the actions of a test note it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import durable

if TYPE_CHECKING:
    from durable import Attempt


class World:
    """What the actions of a test see and do.

    Attributes:
        attempts: Those that have begun, in order.
        may_end: Until it is set, those that hang go on.
    """

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []
        self.may_end = asyncio.Event()

    @property
    def numbers(self) -> list[int]:
        return [attempt.number for attempt in self.attempts]

    def begin(self) -> Attempt:
        self.attempts.append(durable.attempt())
        return self.attempts[-1]
