"""The process that is killed: its ``main``.

It opens the journal in each directory, one after the other, plays its role there, and appends to
``life-<LIFE>.jsonl`` what it did.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import signal
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeVar, cast, final

import msgspec
from killing import say_opened

from crashes import load
from crashes.effects import Acked, EffectLog, Seen, Shown
from durable import Engine, Run, RunConflictError, RunFailed
from durable.journal import sqlite, writes
from durable.runtime.clock import SystemClock

T = TypeVar("T")

JOURNAL: Final = "journal.db"
OPENING: Final = "opening"
"""What it says before it opens the first of its journals."""

STARTERS: Final = 4
SHARED_RUNS: Final = 20
TOMORROW_MS: Final = 2 * load.DAY_S * 1000
LOADED_S_MAX: Final = 60
"""A parent that died kills nobody: then the load ends by itself."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How the engine is made, and where this process kills itself.

    Attributes:
        crash_at: The transaction of the journal, from 0, that this process does not survive.
        crash_after: Whether it dies after its COMMIT, instead of before.
    """

    seed: int = 0
    max_parallelism: int = 3
    park_after_ms: int = 30_000
    live_runs_max: int = 10_000
    crash_at: int | None = None
    crash_after: bool = False


@final
class Child:
    """One life, on one journal."""

    def __init__(self, engine: Engine, log: EffectLog, life: str, options: Options) -> None:
        self._engine = engine
        self._log = log
        self._life = life
        self._options = options

    # --- roles -----------------------------------------------------------------------------------

    async def work(self) -> None:
        """Start runs of all shapes until killed."""
        async with asyncio.timeout(LOADED_S_MAX), asyncio.TaskGroup() as group:
            for starter in range(STARTERS):
                group.create_task(self._keep_starting(starter, group))

    async def finish(self) -> None:
        """Start nothing, and see the end of all runs but those that sleep for long."""
        runs = [status async for status in self._engine.iter_runs()]
        for status in runs:
            if status.name != load.long_sleep.name:
                await self._see(self._engine.get(status.id))
        asleep = {status.id for status in runs if status.name == load.long_sleep.name}
        while asleep:  # They have no event to wait for: each has to come to its sleep.
            asleep -= {run_id for run_id in asleep if await self._is_asleep(run_id)}

    async def tomorrow(self) -> None:
        """See the end of all runs."""
        async for status in self._engine.iter_runs():
            await self._see(self._engine.get(status.id))

    async def scenario(self) -> None:
        """Start a run of each shape, as every life on this journal does, and see their end."""
        async with asyncio.TaskGroup() as group:
            for number, shape in enumerate(load.OUTCOMES):
                if shape is not load.long_sleep:
                    group.create_task(self._run(shape, number % 5, f"scenario.{number}"))

    # --- what they do ----------------------------------------------------------------------------

    async def _keep_starting(self, starter: int, group: asyncio.TaskGroup) -> None:
        draw = random.Random(f"{self._options.seed} {self._life} {starter}")  # noqa: S311
        shapes = list(load.OUTCOMES)
        for number in itertools.count():
            shape, n = draw.choice(shapes), draw.randrange(5)
            run_id = f"{self._life}.{starter}.{number}"
            match draw.randrange(8):
                case 0:
                    await self._start_shared(draw.randrange(SHARED_RUNS))
                case 1:
                    await self._start(shape, n, run_id, run_after=load.SHORT_S)
                case 2:
                    await self._start(shape, n, run_id)
                case _:
                    run = await self._start(shape, n, run_id)
                    group.create_task(self._watch(run))
                    if shape is not load.long_sleep:
                        await self._see(run)

    async def _start_shared(self, number: int) -> None:
        """Start what others start too, at this moment and in other lives."""
        run_id = f"shared.{number}"
        shape = load.sequence
        run, _ = await asyncio.gather(*(self._start(shape, number, run_id) for _ in range(2)))
        try:
            await self._start(shape, number + 1, run_id)
        except RunConflictError:
            await self._see(run)

    async def _start(
        self, shape: load.Shape, n: int, run_id: str, run_after: float | None = None
    ) -> Run[int]:
        run = await self._engine.start(shape(n), id=run_id, run_after=run_after)
        self._log.append(Acked(run_id, shape.name, {"n": n}))
        return run

    async def _run(self, shape: load.Shape, n: int, run_id: str) -> None:
        await self._see(await self._start(shape, n, run_id))

    async def _watch(self, run: Run[int]) -> None:
        status = await run.status()
        self._log.append(Shown(run.id, status.state, [step.number for step in status.running]))

    async def _see(self, run: Run[Any]) -> None:
        await self._watch(run)
        try:
            self._log.append(Seen(run.id, await run.result()))
        except RunFailed as exc:
            error = (exc.error.type_name, exc.error.message, repr(exc.__cause__))
            self._log.append(Seen(run.id, error=error))
        await self._watch(run)

    async def _is_asleep(self, run_id: str) -> bool:
        status = await self._engine.status(run_id)
        return status.state == "running" and all(s.kind == "sleep" for s in status.running)


@final
class LateClock:
    """The machine's clock, set forward."""

    def __init__(self, ahead_ms: int) -> None:
        self._clock = SystemClock()
        self._ahead_ms = ahead_ms

    def now_ms(self) -> int:
        return self._clock.now_ms() + self._ahead_ms

    def call_later(self, delay_ms: int, callback: Callable[[], None]) -> asyncio.TimerHandle:
        return self._clock.call_later(delay_ms, callback)


def crash_at(transaction: int, *, after: bool) -> None:
    """Have this process killed at a transaction: right before its COMMIT, or right after.

    A commit of changes is one statement, which commits by itself: there it is right before that.
    """
    numbers = itertools.count()
    transact, commit = sqlite._transact, writes.commit

    def transact_or_die(db: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
        is_last = next(numbers) == transaction

        def work_or_die(db: sqlite3.Connection) -> T:
            result = work(db)
            die_if(is_last and not after)
            return result

        result = transact(db, work_or_die)
        die_if(is_last)
        return result

    def commit_or_die(*args: object) -> object:
        is_last = next(numbers) == transaction
        die_if(is_last and not after)
        taken = cast("Callable[..., object]", commit)(*args)
        die_if(is_last)
        return taken

    sqlite._transact = transact_or_die
    vars(writes)["commit"] = commit_or_die


def die_if(is_time: bool) -> None:
    if is_time:
        os.kill(os.getpid(), signal.SIGKILL)


async def live(role: str, life: str, options: Options, directory: Path) -> None:
    """Play the role on one journal."""
    engine = Engine(directory / JOURNAL, max_parallelism=options.max_parallelism)
    engine._settings = msgspec.structs.replace(
        engine._settings,
        park_after_ms=options.park_after_ms,
        live_runs_max=options.live_runs_max,
    )
    engine._clock = clock = LateClock(TOMORROW_MS if role == "tomorrow" else 0)
    log = EffectLog(directory / f"life-{life}.jsonl", clock.now_ms)
    load.log_to(log)
    async with engine:
        say_opened()
        child = Child(engine, log, life, options)
        play: Callable[[], Awaitable[None]] = getattr(child, role)
        await play()
    log.close()


async def main(role: str, life: str, options_json: str, *directories: str) -> None:
    options = msgspec.convert(json.loads(options_json), Options)
    if options.crash_at is not None:
        crash_at(options.crash_at, after=options.crash_after)
    print(OPENING, flush=True)  # noqa: T201  the parent reads it
    for directory in directories:
        await live(role, life, options, Path(directory))
