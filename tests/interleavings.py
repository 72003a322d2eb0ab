"""Plays every order in which things can happen around a journal's commits, by choice, not by luck.

A *scenario* is a coroutine function of a ``Stage``. It opens an engine, brings a run to where it is
interesting, names the *acts* that others do to it (a cancel, a send, the end of an attempt, time
that passes, a crash), and calls ``stage.interleave``. Then it says what came of it, having checked
that this is right. ``explore`` plays it again and again, until it has been played in every order.

How:

- ``HeldJournal`` holds each call of the journal twice: before it does anything, and when it has
  done it and its caller does not know yet. So a commit is *done* in one moment and *told* in
  another, and so is a read. What others do comes before, between, or after.
- Between two moves everything runs until nothing is ready and no thread is at work. What is then
  possible is a choice point: to do what is held, to tell what is done, to act; and, where nothing
  is held, to act twice within one cycle of the event loop, in either order, so that both go into
  one commit. (Where something is held, both wait for the next commit anyway.)
- The search is depth-first over the choice points. Nothing is saved and restored: a schedule is a
  list of choices, and each is played from the beginning, on a journal of its own. That the same
  choices lead to the same choice points is checked.
- How long something takes decides nothing. Bodies are advanced all in one slice of the event loop,
  or each in a slice of its own: that is the one place where the library looks at the time it takes.
- Two moves *commute* when one of them only touches the journal (doing what is held) and the other
  only memory (an act, or telling), and so do two reads. Of schedules that differ only in the order
  of moves that commute, one is played. This is the reduction by *sleep sets*: what was tried at a
  choice point is not tried again below its later siblings, as long as only moves that commute with
  it come between. Source: P. Godefroid, "Partial-Order Methods for the Verification of Concurrent
  Systems" (1996), chapter 5.
- The search is exhaustive when it ends by itself. One that would take more schedules than its bound
  fails.

Of the mutations' own statements nothing is held: scenarios have actions, timers, events, children.
"""

from __future__ import annotations

import asyncio
import inspect
import shutil
import sqlite3
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any, Final, TypeAlias, final

import pytest
from clock import ManualClock
from crashes.effects import Begun, Effect, Ended
from crashes.image import Image, read_file, read_image
from invariants import Ledger, Rules, check_image

import durable
from durable import Engine
from durable.journal.sqlite import SqliteJournal, _set_up_writer
from durable.testing.journals import COMMITS, READS

MOVES_MAX: Final = 200
"""More moves than any schedule has: one that does not end fails its test instead of hanging it."""

DO_WRITE, DO_READ, TELL, ACT, CRASH = range(5)
"""The kinds of moves, by what they touch: the journal, the journal, memory, memory, everything."""

SET_UP_WRITER: Final = _set_up_writer

UNKNOWN: Final = "unknown"
"""What came of an act whose caller was not told: its process died first."""


def commute(one: int, other: int) -> bool:
    """Return whether the order of two moves of these kinds makes no difference."""
    kinds = {one, other}
    if CRASH in kinds:
        return False
    on_disk = kinds & {DO_WRITE, DO_READ}
    return kinds == {DO_READ} or (bool(on_disk) and bool(kinds & {TELL, ACT}))


# --- the search ----------------------------------------------------------------------------------


@dataclass
class Point:
    """A choice point.

    Attributes:
        moves: What is possible: the kinds of moves, by their names.
        asleep: Moves whose consequences are covered elsewhere.
        chosen: The move that is being played.
    """

    moves: dict[str, int]
    asleep: set[str]
    chosen: str = ""

    def choose_next(self) -> bool:
        """Choose what was not played yet; return whether there is anything."""
        if self.chosen:
            self.asleep.add(self.chosen)
        self.chosen = next((name for name in self.moves if name not in self.asleep), "")
        return bool(self.chosen)

    def asleep_below(self) -> set[str]:
        """Return what need not be played after the chosen move."""
        kind = self.moves[self.chosen]
        return {name for name in self.asleep if commute(self.moves[name], kind)}


class CoveredError(Exception):
    """All that could follow is played in other schedules."""


@final
class Search:
    """A depth-first walk through all choices.

    Args:
        is_reduced: Whether one of several schedules is enough that differ in the order of moves
            that commute.
        first: Only the part that begins with this move.
    """

    def __init__(self, *, is_reduced: bool = True, first: str | None = None) -> None:
        self._path: list[Point] = []
        self._depth = 0
        self._is_reduced = is_reduced
        self._first = first

    def choose(self, moves: dict[str, int]) -> str:
        """Return the move to play at the next choice point of this schedule.

        Raises:
            CoveredError: None of them.
        """
        if self._depth == len(self._path):
            asleep = self._path[-1].asleep_below() if self._path and self._is_reduced else set()
            self._path.append(Point(moves, asleep & moves.keys()))
            if not self._path[-1].choose_next():
                raise CoveredError
            if len(self._path) == 1 and self._first is not None:
                while self._path[0].chosen != self._first:
                    assert self._path[0].choose_next(), f"{self._first} is none of {list(moves)}"
        point = self._path[self._depth]
        assert list(point.moves) == list(moves), f"not the same again: {point.moves} and {moves}"
        self._depth += 1
        assert self._depth < MOVES_MAX, self.schedule()
        return point.chosen

    def schedule(self) -> str:
        """Return the moves that were played, in order."""
        return " · ".join(point.chosen for point in self._path[: self._depth])

    def advance(self) -> bool:
        """Turn to the next schedule; return whether there is one."""
        self._depth = 0
        while self._path:
            is_part = len(self._path) == 1 and self._first is not None
            if not is_part and self._path[-1].choose_next():
                return True
            self._path.pop()
        return False


@dataclass
class Exploration:
    """What a search has found.

    Attributes:
        outcomes: What the scenario came to, and in how many schedules.
        covered: How many schedules were given up, because others cover what could follow.
    """

    outcomes: Counter[Hashable] = field(default_factory=Counter[Hashable])
    covered: int = 0

    @property
    def schedules(self) -> int:
        """How many were played to their end."""
        return self.outcomes.total()

    def __str__(self) -> str:
        lines = [f"{self.schedules} schedules ({self.covered} covered by others):"]
        lines += [f"  {count:5} times {outcome}" for outcome, count in self.outcomes.most_common()]
        return "\n".join(lines)


Scenario: TypeAlias = "Callable[[Stage], Coroutine[Any, Any, Hashable]]"

_on_stage: deque[Stage] = deque(maxlen=1)


async def explore(
    directory: Path,
    scenario: Scenario,
    *,
    schedules_max: int = 10_000,
    is_reduced: bool = True,
    is_sliced: bool = False,
    first: str | None = None,
) -> Exploration:
    """Play a scenario in every order.

    Args:
        first: Play only the part that begins with this move: what is too much for one test.
        is_sliced: Whether each body is advanced in a slice of its own.

    Raises:
        AssertionError: The scenario's, with the schedule that led to it; or there are more
            schedules than ``schedules_max``.
    """
    search, found = Search(is_reduced=is_reduced, first=first), Exploration()
    blank = directory / "blank.db"
    async with Engine(blank):
        pass
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("durable.journal.sqlite.SqliteJournal", _open_held)
        patch.setattr("durable.journal.sqlite._set_up_writer", _set_up_for_no_power_cut)
        patch.setattr("durable.runtime.pump.SLICE_S_MAX", -1 if is_sliced else float("inf"))
        while True:
            try:
                found.outcomes[await _play(directory, blank, scenario, search)] += 1
            except CoveredError:
                found.covered += 1
            except BaseException as exc:
                exc.add_note(f"schedule {found.schedules + found.covered}: {search.schedule()}")
                raise
            if not search.advance():
                break
            assert found.schedules < schedules_max, found
    print(f"{_describe(scenario)} {first or ''}: {found}")  # noqa: T201  pytest shows it
    return found


def _describe(scenario: Any) -> str:  # noqa: ANN401  a function, or a part of one
    function = getattr(scenario, "func", scenario)
    return f"{function.__name__} {getattr(scenario, 'keywords', '')}"


async def _play(directory: Path, blank: Path, scenario: Scenario, search: Search) -> Hashable:
    path = directory / "played.db"
    await asyncio.to_thread(_replace, path, blank)
    stage = Stage(path, search)
    _on_stage.append(stage)
    try:
        outcome = await scenario(stage)
        await stage.end_well()
    except BaseException:
        await stage.die()
        raise
    return outcome


def _replace(path: Path, blank: Path) -> None:
    for left_over in path.parent.glob(f"{path.name}*"):
        left_over.unlink()
    shutil.copyfile(blank, path)


# --- what is held --------------------------------------------------------------------------------


@final
class Held:
    """A call of the journal that waits to be done, or to be told."""

    def __init__(self, name: str, kind: int) -> None:
        self.name = name
        self.kind = kind
        self.may_go: asyncio.Future[None] = asyncio.get_running_loop().create_future()


@final
class HeldJournal:
    """A journal whose calls wait for the stage's leave."""

    def __init__(self, stage: Stage, path: Path | None) -> None:
        self._stage = stage
        self._inner = SqliteJournal(path)
        self._is_dead = False

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  whatever the journal has
        found = getattr(self._inner, name)
        if name in COMMITS or name in READS:
            return partial(self._hold, name, found)
        return found

    def watch(self, tell: Callable[[], None]) -> None:
        """Nobody else is there; and looking for others is the one thing with a time of its own."""

    def die(self) -> None:
        """Do and tell nothing any more."""
        self._is_dead = True

    async def _hold(self, name: str, call: Callable[..., Awaitable[Any]], *args: Any) -> Any:  # noqa: ANN401
        stage = self._stage
        await self._wait(name, "done", DO_READ if name in READS else DO_WRITE)
        with stage.working():
            try:
                result: Any = await call(*args)
            except Exception as exc:  # noqa: BLE001  told in its time, as a result is
                result = exc
        await self._wait(name, "told", TELL)
        if isinstance(result, Exception):
            raise result
        return result

    async def _wait(self, name: str, what: str, kind: int) -> None:
        if self._is_dead:
            await asyncio.get_running_loop().create_future()
        await self._stage.hold(f"{name} {what}", kind)
        if self._is_dead:
            await asyncio.get_running_loop().create_future()


def _set_up_for_no_power_cut(db: sqlite3.Connection) -> None:
    SET_UP_WRITER(db)
    db.execute("PRAGMA synchronous = OFF")


def _open_held(path: Path | None) -> HeldJournal:
    stage = _on_stage[0]
    stage.journal = HeldJournal(stage, path)
    return stage.journal


# --- attempts ------------------------------------------------------------------------------------


@final
class Attempted:
    """An attempt of an action that ends when the stage says so.

    Attributes:
        serial: The how-manieth of all attempts it is, from 1: its result.
        is_cut_off: Whether it was cancelled.
    """

    def __init__(self, name: str, serial: int) -> None:
        self.name = name
        self.serial = serial
        self.may_end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_cut_off = False

    @property
    def is_running(self) -> bool:
        return not self.may_end.done()


@durable.action
async def held(name: str) -> int:
    """Run until the stage ends it; return which attempt of the stage's it was."""
    return await _on_stage[0].attempt(name, is_held=True)


@durable.action
async def quick(name: str) -> int:
    """End at once."""
    return await _on_stage[0].attempt(name, is_held=False)


# --- the stage -----------------------------------------------------------------------------------


@dataclass
class Act:
    """What somebody does, once, at a time of the search's choice.

    Attributes:
        when: Whether it is possible now; asked of what is in memory.
        outcome: What came of it: a value, or the exception. ``UNKNOWN`` while nobody was told.
    """

    name: str
    call: Callable[[], object]
    when: Callable[[], bool]
    is_crash: bool = False
    is_done: bool = False
    task: asyncio.Task[None] | None = None
    outcome: object = UNKNOWN

    def begin(self) -> None:
        self.is_done = True
        result = self.call()
        if inspect.isawaitable(result):
            self.task = asyncio.create_task(self._follow(result))
        else:
            self.outcome = result

    async def _follow(self, awaitable: Awaitable[object]) -> None:
        try:
            self.outcome = await awaitable
        except Exception as exc:  # noqa: BLE001  it is its outcome
            self.outcome = exc

    async def told(self) -> Any:  # noqa: ANN401  whatever it is
        """Return what came of it, once it is told."""
        if self.task is not None:
            await asyncio.wait([self.task])
        return self.outcome


def whenever() -> bool:
    """An act that is always possible."""
    return True


@final
class Stage:
    """Where one schedule is played: one journal, one engine at a time, and who acts on it.

    Attributes:
        holds_attempts: Whether those of ``held`` wait to be ended.
        rules: What the effects of the actions are checked by; ``None``: only the journal is.
        watchers: What is called after each move, to check what holds in every moment.
    """

    def __init__(self, path: Path, search: Search) -> None:
        self.path = path
        self.clock = ManualClock()
        self.journal: HeldJournal | None = None
        self._at_work = 0
        self._work_ended = asyncio.Event()
        self.attempts: list[Attempted] = []
        self.holds_attempts = True
        self.rules: Rules | None = Rules(max_parallelism=25)
        self.watchers: list[Callable[[], None]] = []
        self._search = search
        self._is_free = True
        self._at_once = True
        self._held: dict[str, Held] = {}
        self._numbers: Counter[str] = Counter()
        self._acts: list[Act] = []
        self._engine: Engine | None = None
        self._effects: list[Effect] = []
        self._ledger: Ledger | None = None

    @property
    def engine(self) -> Engine:
        """The engine that is open now."""
        assert self._engine is not None
        return self._engine

    def is_live(self, run_id: str) -> bool:
        """Whether a run is in memory."""
        runner = self.engine._runner
        return runner is not None and runner.live(run_id) is not None

    async def open(self, **options: Any) -> Engine:  # noqa: ANN401  the engine's
        """Open an engine on the journal; it ends as by a crash."""
        engine = Engine(self.path, drain_timeout=0, **options)
        self.clock.install(engine)
        await engine.__aenter__()
        self._engine = engine
        return engine

    async def die(self) -> None:
        """End the engine, and all who wait for it, as a crash does: nothing more is written."""
        if self.journal is not None:
            self.journal.die()
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.__aexit__(None, None, None)
        tasks = [act.task for act in self._acts if act.task is not None and not act.task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._held.clear()

    async def crash(self) -> None:
        """Die, and see that what is left behind is right."""
        before = [act for act in self._acts if act.task is not None and not act.task.done()]
        await self.die()
        for act in before:
            act.outcome = UNKNOWN  # Told or not, its caller is dead.
        await self._examine(read_image)

    async def end_well(self) -> None:
        """See that nothing is left over, close the engine, and see that the journal is right."""
        await self.settle()
        if self._engine is not None:
            runner = self._engine._runner
            assert runner is not None
            control, ends = runner.control, runner.ends
            assert not control._acks
            left = [control._told, control._gone, ends._waiters]
            assert all(waiters._by_run == {} for waiters in left), left
        await self.die()
        await self._examine(read_file)

    async def _examine(self, read: Callable[[Path], Image]) -> None:
        image = await asyncio.to_thread(read, self.path)
        if self.rules is None:
            violations = check_image(image)
        else:
            self._ledger = self._ledger or Ledger(self.rules)
            violations = self._ledger.add_life(self._effects, image)
        self._effects = []
        assert not violations, "\n".join(violations)

    async def image(self) -> Image:
        """Return what the journal holds now."""
        return await asyncio.to_thread(read_file, self.path)

    # --- attempts --------------------------------------------------------------------------------

    async def attempt(self, name: str, *, is_held: bool) -> int:
        """Be an attempt of an action of that name."""
        attempted = Attempted(name, len(self.attempts) + 1)
        if not (is_held and self.holds_attempts):
            attempted.may_end.set_result(None)
        self.attempts.append(attempted)
        attempt = durable.attempt()
        which = (attempt.run_id, attempt.step_key, attempt.number, attempt.interruptions)
        self._effects.append(Begun(*which, self.clock.now_ms()))
        returned = False
        try:
            await attempted.may_end
            returned = True
        except asyncio.CancelledError:
            attempted.is_cut_off = True
            raise
        finally:
            self._effects.append(Ended(*which, self.clock.now_ms(), returned))
        return attempted.serial

    def attempts_of(self, name: str) -> list[Attempted]:
        """Return the attempts of that name, in order of their beginning."""
        return [attempted for attempted in self.attempts if attempted.name == name]

    def running(self, name: str | None = None) -> list[Attempted]:
        """Return those that run."""
        return [a for a in self.attempts if a.is_running and name in (None, a.name)]

    def end_all(self) -> None:
        """End all attempts that run, and from now on each as it begins."""
        self.holds_attempts = False
        for attempted in self.running():
            attempted.may_end.set_result(None)

    # --- acts ------------------------------------------------------------------------------------

    def act(
        self, name: str, call: Callable[[], object], *, when: Callable[[], bool] = whenever
    ) -> Act:
        """Have something done once, at any time: what ``call`` returns may be awaitable."""
        self._acts.append(Act(name, call, when))
        return self._acts[-1]

    def act_end(self, name: str, *, nth: int = 1, when: Callable[[], bool] = whenever) -> Act:
        """Have the ``nth`` attempt of that name end, once it runs, at any time."""

        def which() -> Attempted | None:
            attempts = self.attempts_of(name)
            return attempts[nth - 1] if len(attempts) >= nth else None

        def is_running() -> bool:
            attempted = which()
            return attempted is not None and attempted.is_running and when()

        def end() -> None:
            attempted = which()
            assert attempted is not None
            attempted.may_end.set_result(None)

        return self.act(f"end {name} {nth}", end, when=is_running)

    def act_crash(self, **options: Any) -> Act:  # noqa: ANN401  the next engine's
        """Have the process die once, at any time, and the next one open the journal."""

        async def crash_and_reopen() -> None:
            await self.crash()
            await self.open(**options)

        act = self.act("crash", crash_and_reopen)
        act.is_crash = True
        return act

    # --- the search's choices --------------------------------------------------------------------

    async def hold(self, name: str, kind: int) -> None:
        """Wait for leave to go on."""
        if self._is_free:
            return
        self._numbers[name] += 1
        held = Held(f"{name} {self._numbers[name]}", kind)
        self._held[held.name] = held
        try:
            await held.may_go
        finally:
            self._held.pop(held.name, None)

    @contextmanager
    def working(self) -> Iterator[None]:
        """A thread is at work for the journal."""
        self._at_work += 1
        try:
            yield
        finally:
            self._at_work -= 1
            self._work_ended.set()

    async def interleave(self, *, at_once: bool = True) -> None:
        """Let the search decide what happens, until there is nothing left that can.

        Args:
            at_once: Whether two acts may come within one cycle of the event loop.
        """
        await self.settle()
        self._is_free = False
        self._at_once = at_once
        while True:
            await self.settle()
            for watch in self.watchers:
                watch()
            moves = dict(self._moves())
            if not moves:
                break
            kinds = {name: kind for name, (kind, _) in moves.items()}
            _, move = moves[self._search.choose(kinds)]
            result = move()
            if inspect.isawaitable(result):
                await result
        self._is_free = True

    def hold_from_now(self) -> None:
        """Hold what is called from now on: before ``interleave``, as while an engine is opened."""
        self._is_free = False

    def _moves(self) -> Iterator[tuple[str, tuple[int, Callable[[], object]]]]:
        for held_call in self._held.values():
            yield held_call.name, (held_call.kind, partial(held_call.may_go.set_result, None))
        acts = [act for act in self._acts if not act.is_done and act.when()]
        for act in acts:
            if act.is_crash:
                yield act.name, (CRASH, partial(self._crash_by, act))
            else:
                yield act.name, (ACT, act.begin)
        if self._held or not self._at_once:
            return
        for one, other in permutations([act for act in acts if not act.is_crash], 2):
            yield f"{one.name} & {other.name}", (ACT, partial(_begin_both, one, other))

    async def _crash_by(self, act: Act) -> None:
        act.is_done = True
        result = act.call()
        assert inspect.isawaitable(result)
        await result

    async def settle(self) -> None:
        """Let everything run until nothing is ready and no thread is at work."""
        loop: Any = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(0)
            now_s = loop.time() + loop._clock_resolution
            is_due = any(h._when <= now_s and not h._cancelled for h in loop._scheduled)
            if not (loop._ready or is_due):
                if not self._at_work:
                    return
                self._work_ended.clear()
                await self._work_ended.wait()


def _begin_both(one: Act, other: Act) -> None:
    """Do both in one cycle of the event loop."""
    one.begin()
    if other.when():
        other.begin()
