"""Crashes before and after every commit of a workflow."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import anyio.to_thread

from durable.core.failures import type_name_of
from durable.testing.environment import Environment
from durable.testing.journals import CrashPoint
from durable.testing.playing import Outcome, Play

if TYPE_CHECKING:
    from durable.call import Call
    from durable.journal.tables import Tables
    from durable.testing.playing import Check, Script, Setup


NEW_ID: Final = re.compile(r"\b[0-9a-f]{32}\b")


@final
@dataclass(frozen=True)
class Crashes:
    """What ``crash_everywhere`` has done.

    Attributes:
        commits: Around how many commits it has crashed.
        crashes: How many runs have crashed, and come to the same.
        outcome: What they came to, but for those that ``may_raise`` allows for.
    """

    commits: int
    crashes: int
    outcome: Outcome


async def crash_everywhere(
    call: Call[Any],
    *,
    script: Script | None = None,
    setup: Setup | None = None,
    check: Check | None = None,
    may_raise: type[Exception] | tuple[type[Exception], ...] = (),
    ignore: Iterable[str] = (),
    env: Environment | None = None,
) -> Crashes:
    """Run a workflow, and again with a crash before and after every commit that it makes.

    A crash is the end of the engine, in this process: what runs is cut off, and what was not
    committed is lost. Then the journal is opened again, and the run goes on. Each time it has to
    come to the same result, no step's function may begin again whose outcome was recorded, and
    the application's tables in the journal's database have to be the same: so each mutation had
    its effect once. An action that was interrupted is made again; that is no violation. Ids of
    other runs and of events are new each time, and are not compared.

    Args:
        call: The workflow's call.
        script: An async function of an ``Environment`` and the run's id: what happens meanwhile.
            It is not interrupted by a crash: ``env.send_event``, ``cancel``, ``start``,
            ``advance``, ``run_until_idle`` and ``ask`` go on in the next life, and have their
            effect once. Time stands still while it runs, unless it says ``advance``.
        setup: A function of an ``Environment``, called before each run: it makes tables, and
            resets what stands for the world.
        check: A function of an ``Environment``, called after each run: it asserts what has to be
            so of the world.
        may_raise: Exceptions that a crash may let the run end with, such as ``OutcomeUnknown`` of
            a step that is made at most once.
        ignore: Tables, or columns as ``table.column``, that need not be the same.
        env: Whose options, time and fakes are used; by default those of a new ``Environment``.

    Raises:
        TypeError: ``ignore`` is no collection of texts.
        ValueError: One of them is no name of a table or a column.
        AssertionError: It is not so. The message says at which commit, before or after it, what
            was in it, and what differs.
    """
    owner = env or Environment("sqlite://", {}, start=None, auto=True)
    play = Play(call, script, setup, check)
    allowed = may_raise if isinstance(may_raise, tuple) else (may_raise,)
    sweep = _Sweep(owner, play, {type_name_of(error) for error in allowed}, _ignored(ignore))
    return await sweep.run()


def _is_text(name: object) -> bool:
    return isinstance(name, str)


def _ignored(ignore: Iterable[str]) -> frozenset[str]:
    names = list(ignore)
    if isinstance(ignore, str) or not all(map(_is_text, names)):
        msg = f"ignore= is a list of names, such as ['orders', 'audit.at'], not {ignore!r}"
        raise TypeError(msg)
    for name in names:
        parts = name.split(".")
        if len(parts) > 2 or not all(parts):  # noqa: PLR2004  a table, or a table and a column
            msg = f"ignore= names tables, or columns as 'table.column', which {name!r} is not"
            raise ValueError(msg)
    return frozenset(names)


@final
class _Sweep:
    """All the runs of one workflow, each with its crash."""

    def __init__(
        self, owner: Environment, play: Play, may_raise: set[str], ignore: frozenset[str]
    ) -> None:
        self._owner = owner
        self._play = play
        self._may_raise = may_raise
        self._ignore = ignore

    async def run(self) -> Crashes:
        expected = await self._run_once(None)
        crashes_count = 0
        for number in count(1):
            points = [CrashPoint(number, is_after=is_after) for is_after in (False, True)]
            for point in points:
                await self._crash_at(point, expected)
            come = sum(bool(point.what) for point in points)
            if not come:
                return Crashes(number - 1, crashes_count, expected[0])
            crashes_count += come
        raise AssertionError

    async def _crash_at(self, point: CrashPoint, expected: tuple[Outcome, Tables]) -> None:
        try:
            found = await self._run_once(point)
        except Exception as exc:
            if not point.what:
                raise
            msg = f"{self._intro(point)}: {type(exc).__name__}: {exc}"
            raise AssertionError(msg) from exc
        differences = self._compare(expected, found)
        if differences:
            raise AssertionError("\n".join([f"{self._intro(point)}:", *differences]))

    def _intro(self, point: CrashPoint) -> str:
        return f"{point} of {self._play} changes what it comes to"

    async def _run_once(self, point: CrashPoint | None) -> tuple[Outcome, Tables]:
        directory = await anyio.to_thread.run_sync(tempfile.TemporaryDirectory)
        try:
            env = self._owner.twin(Path(directory.name, "journal.db"))
            found = await self._play.run(env, point)
            if env.begun_again:
                again = ", ".join(env.begun_again)
                msg = f"a function began again whose outcome was recorded: {again}"
                raise AssertionError(msg)
            return found
        finally:
            await anyio.to_thread.run_sync(directory.cleanup)

    def _compare(
        self, expected: tuple[Outcome, Tables], found: tuple[Outcome, Tables]
    ) -> list[str]:
        (outcome, tables), (found_outcome, found_tables) = expected, found
        error = found_outcome.error
        if error is not None and error[0] in self._may_raise:
            return []
        lines: list[str] = []
        if _masked(outcome) != _masked(found_outcome):
            lines += [f"  without it: {outcome}", f"  with it:    {found_outcome}"]
        for name in sorted(tables.keys() | found_tables.keys()):
            before = self._rows(name, tables)
            after = self._rows(name, found_tables)
            if before != after:
                lines += [f"  table {name}, without it: {before}"]
                lines += [f"  table {name}, with it:    {after}"]
        return lines

    def _rows(self, name: str, tables: Tables) -> list[str]:
        if name in self._ignore:
            return []
        rows = tables.get(name, [])
        shown = [
            {key: value for key, value in row.items() if f"{name}.{key}" not in self._ignore}
            for row in rows
        ]
        return sorted(map(_masked, shown))


def _masked(value: object) -> str:
    """Return a value's text without the ids of runs and events, which are new in each run."""
    return NEW_ID.sub("[id]", str(value))
