"""What the tests of runs and their children have in common: a few actions, and what they note."""

from __future__ import annotations

import asyncio
from collections import Counter

import durable
from durable import Step


class World:
    """What actions and bodies have noted, and what actions do.

    Attributes:
        begun: How often an action began, by its text.
        interrupted: The texts of the gated actions that were cancelled.
        failing: The texts of the echoes that fail.
        bodies: How often a body began, by the name that it goes by.
        reached: Set when a gated action has begun.
        may_end: Until it is set, gated actions wait.
    """

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()
        self.interrupted: list[str] = []
        self.failing: set[str] = set()
        self.bodies: Counter[str] = Counter()
        self.reached = asyncio.Event()
        self.may_end = asyncio.Event()


world = World()


def new_world() -> None:
    """Forget what was noted, as before each test; who waits now, waits for ever."""
    world.__init__()  # type: ignore[misc]


@durable.action
async def echo(text: str) -> str:
    world.begun[text] += 1
    if text in world.failing:
        raise LookupError(text)
    return text


@durable.action
async def gated(text: str) -> str:
    world.begun[text] += 1
    world.reached.set()
    try:
        await world.may_end.wait()
    except asyncio.CancelledError:
        world.interrupted.append(text)
        raise
    return text


@durable.workflow
async def echoing(_step: Step, text: str) -> str:
    return await echo(text)


@durable.workflow
async def held(_step: Step, text: str) -> str:
    return await gated(text)
