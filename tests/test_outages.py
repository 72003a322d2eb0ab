"""A failed commit acknowledges nothing, and the engine goes on by itself after the disk does."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import count
from pathlib import Path

import pytest

import durable
from durable import Engine, JournalUnavailableError, Retry, Step
from faults import WAIT_S_MAX, Disk, Fault, crashing, until

SWEEP = [Fault.LOST, Fault.KEPT]


class Effects:
    """What the actions of this module did, and what they must not do."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.begun: Counter[tuple[str, str, int]] = Counter()
        self.wrong: list[str] = []

    def begin(self) -> None:
        attempt = durable.attempt()
        if (attempt.run_id, attempt.step_key) in self.disk.settled:
            self.wrong.append(f"{attempt} began after its outcome was recorded")
        self.begun[attempt.run_id, attempt.step_key, attempt.number] += 1


effects = Effects(Disk())


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    disk.install(monkeypatch)
    monkeypatch.setattr("test_outages.effects", Effects(disk))
    return disk


@durable.action(retry=Retry(max_attempts=3, initial_backoff=0, jitter=False))
async def fails_once(n: int) -> int:
    effects.begin()
    if durable.attempt().number == 1:
        raise ValueError(n)
    return n


@durable.action(retry=False)
async def at_most_once(n: int) -> int:
    effects.begin()
    return n


@durable.action
def in_thread(n: int) -> int:
    effects.begin()
    return n


@durable.action
async def endless() -> None:
    effects.begin()
    await asyncio.Event().wait()


@durable.workflow
async def everything(step: Step, n: int) -> int:
    total = await fails_once(n)
    for part in await asyncio.gather(at_most_once(n), in_thread(n), in_thread(n)):
        total += part
    loser = asyncio.create_task(endless())
    total += await at_most_once(n)
    loser.cancel()
    await step.sleep(0)
    return total + await in_thread(n)


async def start_until_acked(engine: Engine, disk: Disk, n: int) -> int:
    """Start and wait as a user has to: after an unknown outcome, ask again with the same id."""
    run_id = f"run-{n}"
    while True:
        try:
            run = await engine.start(everything(n), id=run_id)
        except JournalUnavailableError:
            await asyncio.sleep(0)
            continue
        assert run_id in disk.runs, "acknowledged, and not written"
        result = await run.result()
        assert run_id in disk.ended, "told its end, and that is not written"
        return result


async def run_everything(path: Path, disk: Disk) -> None:
    async with Engine(path, max_parallelism=4) as engine, asyncio.timeout(WAIT_S_MAX):
        results = await asyncio.gather(*(start_until_acked(engine, disk, n) for n in (1, 2)))
        assert results == [6, 12]
        await until(lambda: engine.statistics().running_actions == 0)
        assert engine.statistics().live_runs == 0


@pytest.mark.slow
@pytest.mark.parametrize("fault", SWEEP)
@pytest.mark.parametrize("what", ["commit", "claim"])
async def test_whichever_write_fails_everything_ends_well(
    path: Path, monkeypatch: pytest.MonkeyPatch, what: str, fault: Fault
) -> None:
    """A running action survives: it is neither run again nor is its outcome lost."""
    for number in count(1):
        disk = Disk()
        disk.install(monkeypatch)
        disk.faults[what, number] = fault
        monkeypatch.setattr("test_outages.effects", Effects(disk))
        await run_everything(path.with_suffix(f".{number}.db"), disk)
        assert effects.wrong == []
        assert set(effects.begun.values()) == {1}
        if not disk.outages:
            break
    print(number)
