"""How soon an engine notices what others do with the file, by time that the test holds."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, final

import pytest

from durable.journal import lookout
from durable.journal.lookout import COARSE_TICK_NS, SECOND_NS, TELL_S_MAX, TICK_NS, Lookout

if TYPE_CHECKING:
    from collections.abc import Callable

KNOWN_S_MAX = 0.1
"""Within that time, a commit of others is known."""

TAKE_OVER_S_MAX = 1.0
"""Within that time, an owner's end is."""


def nothing() -> None:
    pass


@final
class Looks:
    """A lookout on a log whose times the test sets, in a thread that never begins.

    Attributes:
        now_ns: The time, which goes on only while the lookout waits.
        answer: What each look gives.
        is_busy: Whether each look is to be whole.
        is_written: Whether somebody is in the middle of a commit.
        looked_s: When it has looked.
        told_s: When it has told.
    """

    def __init__(self, database: Path) -> None:
        self.now_ns = 1_700_000_000 * SECOND_NS + 1
        self.answer: bool | None = False
        self.is_busy = self.is_written = False
        self.looked_s: list[float] = []
        self.told_s: list[float] = []
        self._log = Path(f"{database}-wal")
        self._log.touch()
        self._acts: list[Callable[[], None]] = []
        self.write_ago(60 * SECOND_NS)
        self._lookout = Lookout(
            database, lambda: self.is_busy, self._look, self._tell, lambda: self.is_written
        )

    @property
    def now_s(self) -> float:
        return self.now_ns / SECOND_NS

    def write_ago(self, ago_ns: int) -> None:
        """Have the log written to at that time."""
        os.utime(self._log, ns=(self.now_ns - ago_ns,) * 2)

    def told_after(self, *acts: Callable[[], None]) -> list[int]:
        """Let it look after each of what others do; return after which of these it has told."""
        ends_s: list[float] = []
        self._acts = [*acts]
        self._ends_s = ends_s
        self._lookout._run()
        return [number for number, end_s in enumerate(ends_s) if end_s in self.told_s]

    # --- the lock that it waits with -------------------------------------------------------------

    def acquire(self, timeout: float | None = None) -> bool:
        if timeout is None or not self._acts:
            return True
        self.now_ns += round(timeout * SECOND_NS)
        self._acts.pop(0)()
        self._ends_s.append(self.now_s)
        return False

    def _look(self) -> bool | None:
        self.looked_s.append(self.now_s)
        return self.answer

    def _tell(self) -> None:
        self.told_s.append(self.now_s)


@pytest.fixture
def looks(path: Path, monkeypatch: pytest.MonkeyPatch) -> Looks:
    """A lookout that has not looked yet."""
    made: list[Looks] = []

    @final
    class Lock:
        def acquire(self, timeout: float | None = None) -> bool:
            return timeout is None or made[0].acquire(timeout)

    threads = SimpleNamespace(Lock=Lock, Thread=lambda **_: SimpleNamespace(start=nothing))
    monkeypatch.setattr(lookout, "threading", threads)
    monkeypatch.setattr(
        lookout,
        "time",
        SimpleNamespace(monotonic=lambda: made[0].now_s, time_ns=lambda: made[0].now_ns),
    )
    made.append(Looks(path))
    return made[0]


def test_what_others_write_is_told_once_and_in_time(looks: Looks) -> None:
    ends_s: list[float] = []

    def write() -> None:
        looks.write_ago(2 * TICK_NS)
        ends_s.append(looks.now_s)

    assert looks.told_after(nothing, nothing, write, nothing, write, *[nothing] * 8) == [0, 2, 4]
    assert looks.told_s[1:] == ends_s
    assert lookout.LOOK_S < KNOWN_S_MAX


def test_a_time_that_another_commit_may_have_too_is_looked_at_again(looks: Looks) -> None:
    assert looks.told_after(nothing, lambda: looks.write_ago(0), *[nothing] * 20) == [0, 1, 2]


def test_a_commit_that_takes_long_to_reach_the_disk_is_told_when_it_can_be_read(
    looks: Looks,
) -> None:
    """The file's time is that of its writing, which is told too soon."""

    def write() -> None:
        looks.write_ago(2 * TICK_NS)
        looks.is_written = True

    def end() -> None:
        looks.is_written = False

    told = looks.told_after(nothing, write, nothing, nothing, end, *[nothing] * 8)
    assert told == [0, 1, 2, 3, 4]


def test_where_times_are_whole_seconds_it_looks_again_for_longer(looks: Looks) -> None:
    second_s = looks.now_ns // SECOND_NS

    def write() -> None:
        looks.write_ago(looks.now_ns % SECOND_NS)

    told = looks.told_after(nothing, write, *[nothing] * 40)
    assert told == list(range(len(told)))
    last_but_one_s, last_s = looks.told_s[-2:]
    assert last_but_one_s - second_s <= COARSE_TICK_NS / SECOND_NS < last_s - second_s


def test_when_nothing_changes_it_looks_now_and_then_and_tells_so_seldom(looks: Looks) -> None:
    looks.told_after(*[nothing] * 300)
    assert max(b - a for a, b in pairwise(looks.looked_s)) < TAKE_OVER_S_MAX / 2
    gaps_s = [b - a for a, b in pairwise(looks.told_s)]
    assert len(gaps_s) > 3
    assert min(gaps_s) >= TELL_S_MAX
    assert max(gaps_s) < TELL_S_MAX + TAKE_OVER_S_MAX / 2


def test_an_owner_s_end_is_told_though_the_file_is_as_it_was(looks: Looks) -> None:
    def end() -> None:
        looks.answer = True

    _, told, *_ = looks.told_after(nothing, nothing, end, *[nothing] * 8)
    assert looks.now_s - looks.told_s[1] < TAKE_OVER_S_MAX
    assert 2 <= told <= 2 + lookout.LOOKS_TO_BE_SURE


def test_one_s_own_writing_is_not_told(looks: Looks) -> None:
    looks.answer = None
    assert looks.told_after(*[lambda: looks.write_ago(2 * TICK_NS)] * 5) == []
    assert len(looks.looked_s) == 5


def test_while_the_lock_on_writing_is_kept_it_looks_each_time(looks: Looks) -> None:
    looks.is_busy = True
    looks.told_after(*[nothing] * 20)
    assert len(looks.looked_s) == 20
