"""The program that the tests of outages run, and what may not be wrong with it."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from typing import TYPE_CHECKING

from faults import Disk

import durable
from durable import OutcomeUnknown, Retry, Step

if TYPE_CHECKING:
    import pytest


class World:
    """What the actions of this module do, and what is wrong with it."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.begun: Counter[tuple[str, str, int]] = Counter()
        self.wrong: list[str] = []
        self.may_go_on = asyncio.Event()

    def begin(self) -> None:
        attempt = durable.attempt()
        at = (attempt.run_id, attempt.step_key)
        if at in self.disk.settled:
            self.wrong.append(f"{attempt} began after its outcome was recorded")
        if (*at, attempt.number) not in self.disk.begun:
            self.wrong.append(f"{attempt} began before that was recorded")
        self.begun[*at, attempt.number] += 1


world = World(Disk())


def new_disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Give the journals that are opened from now on a disk of their own, and a new world."""
    disk = Disk()
    disk.install(monkeypatch)
    monkeypatch.setattr(sys.modules[__name__], "world", World(disk))
    return disk


@durable.action(retry=Retry(max_attempts=3, initial_backoff=0, jitter=False))
async def fail_once(n: int) -> int:
    world.begin()
    if durable.attempt().number == 1:
        raise ValueError(n)
    return n


@durable.action(retry=False)
async def at_most_once(n: int) -> int:
    world.begin()
    return n


@durable.action
def in_thread(n: int) -> int:
    world.begin()
    return n


@durable.action
async def endless() -> None:
    world.begin()
    await asyncio.Event().wait()


@durable.action
async def gated(n: int) -> int:
    world.begin()
    await world.may_go_on.wait()
    return n


@durable.action(retry=False)
async def gated_at_most_once(n: int) -> int:
    world.begin()
    await world.may_go_on.wait()
    return n


@durable.workflow
async def everything(step: Step, n: int) -> int:
    total = await fail_once(n)
    for part in await asyncio.gather(at_most_once(n), in_thread(n), in_thread(n)):
        total += part
    loser = asyncio.create_task(endless())
    total += await at_most_once(n)
    loser.cancel()
    await step.sleep(0)
    left_over = asyncio.create_task(endless())
    total += await in_thread(n)
    assert not left_over.done()
    return total


@durable.workflow
async def wait_at_the_gate(_: Step, n: int) -> int:
    return await gated(n) + await in_thread(n)


@durable.workflow
async def interrupted(_: Step, n: int) -> str:
    first = asyncio.create_task(gated(n))
    try:
        said = str(await gated_at_most_once(n))
    except OutcomeUnknown:
        said = "unknown"
    return f"{said} {await first} {await at_most_once(n)} {await fail_once(n)}"


@durable.action
async def measure(text: str) -> int:
    return len(text)


@durable.workflow
async def measure_it(_: Step, text: str) -> int:
    return await measure(text)
