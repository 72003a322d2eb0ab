"""Lets a flow crash around every commit that it makes, one after the other, and finish.

A *flow* is what a program does with an engine: it starts runs, acts on them, and sees their end; in
each life of the process it does all of that, as a program that is started again does. ``sweep``
plays it with a crash right before the first commit, right after it, right before the second, and so
on until no crash point is left, each time on a journal of its own. Of half of these, the next life
crashes as well. The last one has to finish.

After each life, what is left behind is checked by the invariants' checkers, and by the flow's own.

A crash here is the end of the engine, in one process: from its point on the journal does and tells
nothing any more, what runs is cut off, nothing is drained. ``die_at`` is the true one, by SIGKILL,
in a process of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count, product
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, final

import msgspec
import pytest
from crashes.child import crash_at
from crashes.effects import Acked, EffectLog, Seen, read_effects
from crashes.image import Image, read_image
from invariants import Ledger, Rules, check_live

import durable
from durable import Engine, Run, RunCanceled, RunFailed
from durable.journal.sqlite import SqliteJournal
from durable.runtime import workpool
from durable.runtime.calling import call_async, call_sync
from durable.runtime.job import Succeeded
from durable.testing.journals import COMMITS

SPEED: Final = 50
"""How much faster than the machine's clock the flow's is."""

BASE_MS: Final = 1_767_225_600_000
LIFE_S_MAX: Final = 20
"""A life that should end by itself and does not: far more than any takes."""

RECOVERY_POINTS: Final = 7
"""How many commits of a second life are crash points."""


@final
class QuickClock:
    """The machine's clock, made faster: one for all lives, and for all processes."""

    def __init__(self) -> None:
        self._ahead_ms = 0

    def now_ms(self) -> int:
        now_ms = BASE_MS + (time.time_ns() // 1000 - BASE_MS * 1000) * SPEED // 1000
        return now_ms + self._ahead_ms

    def set_forward(self, seconds: float) -> None:
        """Let so much time pass at once; what waits for it notices soon."""
        self._ahead_ms += round(seconds * 1000)

    def call_later(self, delay_ms: int, callback: Callable[[], None]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(delay_ms / 1000 / SPEED, callback)


class Flow(Protocol):
    """What is swept: made anew for each journal, and kept over all lives on it."""

    rules: Rules

    async def live(self, life: Life) -> object:
        """Do all of it once more, in one life; return what came of it."""
        ...

    def check(self, image: Image) -> None:
        """See that what it has done to the world is right, after any life."""
        ...


@final
class Life:
    """One life of the process, as its flow sees it."""

    def __init__(self, engine: Engine, log: EffectLog, clock: QuickClock) -> None:
        self.engine = engine
        self.clock = clock
        self._log = log

    async def start(self, call: durable.Call[Any], run_id: str) -> Run[Any]:
        """Start a run, and take note that this was acknowledged."""
        run = await self.engine.start(call, id=run_id)
        status = await run.status()
        self._log.append(Acked(run_id, status.name, status.args))
        return run

    async def see(self, run: Run[Any]) -> object:
        """See the end of a run; return what came of it."""
        try:
            value = await run.result()
        except RunCanceled:
            return "canceled"
        except RunFailed as exc:
            error = (exc.error.type_name, exc.error.message, repr(exc.__cause__))
            self._log.append(Seen(run.id, error=error))
            return error
        self._log.append(Seen(run.id, msgspec.to_builtins(value)))
        return value


class Crash:
    """Where a life ends: at a commit of the journal, from 0, before it is done or after it.

    Attributes:
        has_come: Set when it is there.
        commits: How many there were.
    """

    def __init__(self, at: int | None, *, after: bool = False) -> None:
        self._at = at
        self._after = after
        self.has_come = asyncio.Event()
        self.commits = 0

    async def around(self, work: Callable[[], Awaitable[Any]]) -> Any:  # noqa: ANN401  what it gives
        if self.has_come.is_set():
            await self._never()
        is_last = self.commits == self._at
        self.commits += 1
        if is_last and not self._after:
            await self._never()
        result = await work()
        if is_last or self.has_come.is_set():
            await self._never()
        return result

    async def _never(self) -> None:
        self.has_come.set()
        await asyncio.get_running_loop().create_future()


@final
class MortalJournal:
    """A journal that a crash ends."""

    def __init__(self, crash: Crash, path: Path | None) -> None:
        self._crash = crash
        self._inner = SqliteJournal(path)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  whatever the journal has
        found = getattr(self._inner, name)
        if name in COMMITS:
            return lambda *args: self._crash.around(partial(found, *args))
        return found


@final
class Witness:
    """Takes note of what functions do, whatever the workflow."""

    def __init__(self, log: EffectLog) -> None:
        self._log = log

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(workpool, "call_async", partial(self._note, call_async))
        patch.setattr(workpool, "call_sync", partial(self._note, call_sync))

    async def _note(self, call: Callable[..., Awaitable[Any]], *args: Any) -> Any:  # noqa: ANN401
        attempt = durable.attempt()
        self._log.begun(attempt)
        returned = False
        try:
            outcome = await call(*args)
            returned = isinstance(outcome, Succeeded)
            return outcome
        finally:
            self._log.ended(attempt, returned=returned)


@final
class Lives:
    """All the lives of a flow on one journal."""

    def __init__(self, flow: Flow, directory: Path) -> None:
        self.flow = flow
        self.directory = directory
        self.journal = directory / "journal.db"
        self._clock = QuickClock()
        self._ledger = Ledger(flow.rules)
        self._count = 0

    async def live(self, crash_at: int | None = None, *, after: bool = False) -> tuple[bool, Any]:
        """Live until the end, or to the crash; return whether it is over, and its outcome."""
        crash = Crash(crash_at, after=after)
        self._count += 1
        life_log = self.directory / f"life-{self._count}.jsonl"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("durable.journal.sqlite.SqliteJournal", partial(MortalJournal, crash))
            living = asyncio.create_task(play(self.flow, self.directory, life_log, self._clock))
            dying = asyncio.create_task(crash.has_come.wait())
            async with asyncio.timeout(LIFE_S_MAX):
                await asyncio.wait([living, dying], return_when=asyncio.FIRST_COMPLETED)
            dying.cancel()
            is_over = living.done()
            living.cancel()
            await asyncio.wait([living])
        await asyncio.to_thread(self.examine, life_log)
        return is_over, living.result() if is_over else None

    def examine(self, life_log: Path) -> None:
        """See that what the latest life has left behind is right."""
        image = read_image(self.journal)
        violations = self._ledger.add_life(read_effects(life_log), image)
        assert not violations, "\n".join(violations)
        self.flow.check(image)

    def examine_end(self) -> None:
        """See that nothing is left open."""
        image = self._ledger.image
        left = list(check_live(image, self._clock.now_ms()))
        left += [f"{step} is open" for step in image.steps.values() if not step.is_final]
        assert not left, "\n".join(left)


async def play(flow: Flow, directory: Path, life_log: Path, clock: QuickClock) -> object:
    """Live once; when it is cancelled, nothing is drained."""
    log = EffectLog(life_log, clock.now_ms)
    engine = Engine(directory / "journal.db", drain_timeout=0)
    engine._clock = clock
    with pytest.MonkeyPatch.context() as patch:
        Witness(log).install(patch)
        async with engine:
            return await flow.live(Life(engine, log, clock))


class Point(NamedTuple):
    """Where a flow crashes.

    Attributes:
        number: At which commit, from 0.
        after: Whether that is done.
        second: At which commit the next life crashes, too; there, it is the other way round.
    """

    number: int
    after: bool
    second: int | None

    def __str__(self) -> str:
        first, second = ("after", "before") if self.after else ("before", "after")
        again = "" if self.second is None else f", and then {second} commit {self.second}"
        return f"a crash {first} commit {self.number}{again}"


@dataclass
class Swept:
    """What a sweep has found.

    Attributes:
        commits: How many there are: around each of them, it has crashed.
        crashes: How many flows have crashed, once or twice each.
        outcomes: What they came to.
    """

    commits: int = 0
    crashes: int = 0
    outcomes: set[str] = field(default_factory=set[str])


async def sweep(directory: Path, make_flow: Callable[[Path], Flow]) -> Swept:
    """Crash around every commit.

    Raises:
        AssertionError: With the number of the first commit around which something goes wrong.
    """
    swept = Swept()
    for number in count():
        has_any_crashed = False
        for after, is_twice in product((False, True), repeat=2):
            second = (number + after) % RECOVERY_POINTS if is_twice else None
            point = Point(number, after, second)
            try:
                has_crashed, outcome = await _crash_and_finish(directory, make_flow, point)
            except BaseException as exc:
                exc.add_note(f"{point}, in {directory}")
                raise
            has_any_crashed |= has_crashed
            swept.crashes += has_crashed
            swept.outcomes.add(repr(outcome))
        if not has_any_crashed:
            return swept
        swept.commits += 1
    raise AssertionError


async def _crash_and_finish(
    directory: Path, make_flow: Callable[[Path], Flow], point: Point
) -> tuple[bool, object]:
    directory /= "-".join(map(str, point))
    await asyncio.to_thread(directory.mkdir)
    lives = Lives(await asyncio.to_thread(make_flow, directory), directory)
    is_over, outcome = await lives.live(point.number, after=point.after)
    has_crashed = not is_over
    if has_crashed and point.second is not None:
        is_over, outcome = await lives.live(point.second, after=not point.after)
    if not is_over:
        is_over, outcome = await lives.live()
    assert is_over
    lives.examine_end()
    return has_crashed, outcome


# --- in a process of its own ---------------------------------------------------------------------


async def die_at(flow: Flow, directory: Path, life: str, at: int, *, after: bool) -> None:
    """Live in this process, which kills itself at that transaction, if there are so many."""
    crash_at(at, after=after)
    await play(flow, directory, directory / f"life-{life}.jsonl", QuickClock())
