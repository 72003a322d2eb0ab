"""Where the actions of some tests work: they say when they begin and end, and wait to be told."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from waiting import WAIT_S_MAX

import durable
from durable import Retry, Run, Step

if TYPE_CHECKING:
    from collections.abc import Generator


class Floor:
    """Where the actions of a test work: who is at it, in which order, and how many at a time."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin anew; threads that still wait are let go."""
        for gate in getattr(self, "thread_gates", {}).values():
            gate.set()
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.at_work: set[str] = set()
        self.at_work_max = 0
        self.gates: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.thread_gates: defaultdict[str, threading.Event] = defaultdict(threading.Event)
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def work(self, name: str) -> Generator[None]:
        with self._lock:
            self.begun.append(name)
            self.at_work.add(name)
            self.at_work_max = max(self.at_work_max, len(self.at_work))
        try:
            yield
        finally:
            with self._lock:
                self.at_work.remove(name)
                self.ended.append(name)


floor = Floor()


@durable.action
async def quick(name: str) -> str:
    with floor.work(name):
        for _ in range(3):
            await asyncio.sleep(0)
    return name


@durable.action
def in_thread(name: str) -> str:
    with floor.work(name):
        return name


@durable.action
async def gated(name: str) -> str:
    with floor.work(name):
        await floor.gates[name].wait()
    return name


@durable.action
def gated_in_thread(name: str) -> str:
    with floor.work(name):
        assert floor.thread_gates[name].wait(WAIT_S_MAX)
    return name


@durable.action
async def slow_to_end(name: str) -> str:
    """It has to clean up when it is cancelled, and awaits while it does."""
    with floor.work(name):
        try:
            await asyncio.Event().wait()
        finally:
            await floor.gates[name].wait()
    return name


@durable.action(retry=Retry(max_attempts=2, initial_backoff=60, jitter=False))
async def fail_once(name: str) -> str:
    with floor.work(name):
        if durable.attempt().number == 1:
            raise ValueError(name)
    return name


@durable.workflow
async def mixed(_: Step, run: str, count: int) -> list[str]:
    calls = [(in_thread if n % 3 == 0 else quick)(f"{run}{n}") for n in range(count)]
    return await asyncio.gather(*calls)


@durable.workflow
async def all_quick(_: Step, names: list[str]) -> list[str]:
    return await asyncio.gather(*(quick(name) for name in names))


@durable.workflow
async def all_gated(_: Step, names: list[str]) -> list[str]:
    return await asyncio.gather(*(gated(name) for name in names))


ACTIONS: dict[str, Any] = {
    "gated": gated,
    "thread": gated_in_thread,
    "slow": slow_to_end,
    "retried": fail_once,
}


async def states_of(run: Run[Any]) -> dict[str, tuple[str, int]]:
    return {
        step.args.get("name", step.name): (step.state.value, step.attempts)
        async for step in run.steps()
    }
