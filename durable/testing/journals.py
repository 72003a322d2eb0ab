"""A journal as a test has it: its calls are counted, and a crash can end it.

Rules:

- A crash is the end of the engine, in one process: from its point on the journal does and tells
  nothing any more. Who asks it all the same hears of the end once the engine is closed.
- What a commit has written counts as recorded once it is done, told or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, final

from durable.core.errors import EngineClosedError
from durable.core.records import StepState

if TYPE_CHECKING:
    from durable.journal.base import Change, Journal

COMMITS: Final = ("commit", "commit_writing", "claim")
"""What writes: each of them is a point that a crash can come before, and after."""

READS: Final = (
    "load_run",
    "load_tree",
    "load_history",
    "load_recorded",
    "load_status",
    "load_statuses",
    "load_event",
    "is_asked",
    "find_over",
    "next_wake_at_ms",
    "list_finished",
    "list_runs",
    "list_steps",
)


@final
class CrashPoint:
    """Where a life ends.

    Attributes:
        number: At which commit, from 1.
        is_after: Whether that is done.
        what: What was in that commit, once it has come.
    """

    def __init__(self, number: int, *, is_after: bool) -> None:
        self.number = number
        self.is_after = is_after
        self.what = ""

    def __str__(self) -> str:
        when = "after" if self.is_after else "before"
        return f"a crash {when} commit {self.number} ({self.what})"


@final
class Ledger:
    """What the journal has recorded of steps, by run and key, each with its name."""

    def __init__(self) -> None:
        self._numbers: dict[str, dict[str, int]] = {}

    def note(self, changes: Sequence[Change]) -> None:
        """Take note of what was written."""
        for change in changes:
            if change.restart is not None:
                kept = self._numbers.get(change.run_id, {})
                first = change.restart.from_number
                self._numbers[change.run_id] = {k: n for k, n in kept.items() if n < first}
            for step in (*change.issued, *change.updated):
                if step.state in (StepState.COMPLETED, StepState.FAILED) and step.number >= 0:
                    self._numbers.setdefault(change.run_id, {})[step.key] = step.number

    def has(self, run_id: str, key: str) -> bool:
        """Whether the outcome of that step is in the journal."""
        return key in self._numbers.get(run_id, {})


@final
class InFlight:
    """How many calls of a kind are under way."""

    count = 0


@final
class Traffic:
    """The calls of an engine's journal, over all its lives.

    Attributes:
        writes: Those under way that the engine's work waits for.
        reads: The others: of the engine, or of those who look at it.
        changed: Set whenever one has ended.
        commits: How many there were since the crash was armed.
        crash: Where the present life is to end, if anywhere.
        has_crashed: Whether it has.
        is_over: Set once the engine of a crashed life is closed.
        ledger: What is recorded.
        is_mortal: Whether a crash is to come, or has.
    """

    def __init__(self) -> None:
        self.writes = InFlight()
        self.reads = InFlight()
        self.changed = asyncio.Event()
        self.commits = 0
        self.crash: CrashPoint | None = None
        self.has_crashed = False
        self.is_over = asyncio.Event()
        self.ledger = Ledger()
        self.is_mortal = False

    def arm(self, crash: CrashPoint | None) -> None:
        """Count commits from here on, and crash at one of them."""
        self.is_mortal = True
        self.commits = 0
        self.crash = crash

    def end_life(self) -> None:
        """The engine of a crashed life is closed; the next one lives to the end."""
        self.is_over.set()
        self.crash = None
        self.has_crashed = False
        self.is_over = asyncio.Event()

    def wrap(self, journal: Journal) -> Any:  # noqa: ANN401  a journal, whatever it has
        """Return the journal, with its calls counted."""
        return WatchedJournal(journal, self)

    async def call(self, do: Callable[[], Awaitable[Any]], in_flight: InFlight) -> Any:  # noqa: ANN401
        """Do a call of the journal, unless its engine has crashed."""
        if self.has_crashed:
            await self._never()
        in_flight.count += 1
        try:
            result = await do()
        finally:
            in_flight.count -= 1
            self.changed.set()
        if self.has_crashed:
            await self._never()
        return result

    async def commit(
        self, do: Callable[[], Awaitable[Any]], changes: Sequence[Change] | None
    ) -> Any:  # noqa: ANN401
        if self.has_crashed:
            await self._never()
        self.commits += 1
        crash = self.crash
        is_last = crash is not None and self.commits == crash.number
        if crash is not None and is_last:
            crash.what = describe_commit(changes)
            if not crash.is_after:
                await self._crash()
        result = await self.call(do, self.writes)
        self.ledger.note(changes or ())
        if is_last:
            await self._crash()
        return result

    async def _crash(self) -> None:
        self.has_crashed = True
        self.changed.set()
        await self._never()

    async def _never(self) -> None:
        await self.is_over.wait()
        msg = "the process has crashed, as the test wants it: ask again, by env.ask()"
        raise EngineClosedError(msg)


@final
class WatchedJournal:
    """A journal whose calls are counted."""

    def __init__(self, inner: Any, traffic: Traffic) -> None:  # noqa: ANN401  of whatever kind
        self._inner = inner
        self._traffic = traffic
        for name in READS:
            setattr(self, name, partial(self._read, getattr(inner, name)))

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  whatever the journal has
        return getattr(self._inner, name)

    async def open(self) -> None:
        await self._inner.open()
        await self._inner.sync_nothing()

    async def reopen(self) -> None:
        await self._traffic.call(self._inner.reopen, self._traffic.writes)
        await self._inner.sync_nothing()

    async def begin(self) -> Any:  # noqa: ANN401
        return await self._traffic.call(self._inner.begin, self._traffic.writes)

    async def _read(self, call: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:  # noqa: ANN401
        return await self._traffic.call(partial(call, *args, **options), self._traffic.reads)

    async def commit(self, changes: Sequence[Change]) -> Any:  # noqa: ANN401
        return await self._traffic.commit(partial(self._inner.commit, changes), changes)

    async def commit_writing(self, writing: Any, changes: Sequence[Change]) -> Any:  # noqa: ANN401
        do = partial(self._inner.commit_writing, writing, changes)
        return await self._traffic.commit(do, changes)

    async def claim(self, now_ms: int, limit: int) -> Any:  # noqa: ANN401
        return await self._traffic.commit(partial(self._inner.claim, now_ms, limit), None)


def describe_commit(changes: Sequence[Change] | None) -> str:
    """Return what a commit writes, for a person to read."""
    if changes is None:
        return "claims the runs that are due"
    return "; ".join(map(_describe_change, changes)) or "the application's own transaction"


def _describe_change(change: Change) -> str:
    parts: list[str] = []
    if change.run is not None:
        verb = "starts" if change.is_start else "is"
        parts.append(verb if change.is_start else f"{verb} {change.run.state}")
    parts += [f"issues step {step.number} {step.name!r}" for step in change.issued]
    parts += [f"step {step.number} {step.name!r} is {step.state}" for step in change.updated]
    parts += [f"event {event.name!r} is sent" for event in change.events]
    if change.asked is not None:
        parts.append(f"{change.asked.name} is asked for")
    if change.children is not None:
        parts += [f"child {child.name!r} starts" for child, _ in change.children.started]
        parts += ["a child is cancelled" for _ in change.children.canceled]
    if change.restart is not None:
        parts.append(f"is restarted from step {change.restart.from_number}")
    if change.is_removal:
        parts.append("is removed")
    if change.parked is not None and not parts:
        parts.append("leaves memory")
    return f"run {change.run_id!r}: {', '.join(parts)}"
