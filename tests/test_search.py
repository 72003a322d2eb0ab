"""The search through all schedules finds all of them, and leaves out only what makes no difference.

Played on a world of two writers and a reader that is small enough to be counted by hand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import comb

import pytest
from interleavings import ACT, CRASH, DO_READ, DO_WRITE, TELL, CoveredError, Search, commute

STEPS = 3


class Toy:
    """Each of two actors writes to memory, or to the journal, step by step."""

    def __init__(self, *kinds: int) -> None:
        self._kinds = kinds
        self._done = [0] * len(kinds)
        self.memory: list[int] = []
        self.journal: list[int] = []

    def moves(self) -> dict[str, int]:
        return {
            f"{actor} {self._done[actor]}": kind
            for actor, kind in enumerate(self._kinds)
            if self._done[actor] < STEPS
        }

    def play(self, move: str) -> None:
        actor = int(move.split(maxsplit=1)[0])
        kind = self._kinds[actor]
        self._done[actor] += 1
        if kind in (DO_WRITE, CRASH):
            self.journal.append(actor)
        if kind in (ACT, TELL, CRASH):
            self.memory.append(actor)

    def end(self) -> tuple[object, ...]:
        return tuple(self.memory), tuple(self.journal)


def ends(search: Search, *kinds: int) -> Iterator[tuple[object, ...]]:
    """Yield what each schedule comes to."""
    while True:
        toy = Toy(*kinds)
        try:
            while moves := toy.moves():
                toy.play(search.choose(moves))
            yield toy.end()
        except CoveredError:
            pass
        if not search.advance():
            return


def test_every_order_is_played_once() -> None:
    found = Counter(ends(Search(is_reduced=False), ACT, DO_WRITE))
    assert found.total() == comb(2 * STEPS, STEPS)
    assert len(found) == 1  # They commute: it makes no difference.


@pytest.mark.parametrize(
    ("kinds", "schedules"),
    [
        ((ACT, DO_WRITE), 1),
        ((TELL, DO_READ), 1),
        ((DO_READ, DO_READ), 1),
        ((ACT, TELL), comb(2 * STEPS, STEPS)),
        ((DO_WRITE, DO_READ), comb(2 * STEPS, STEPS)),
        ((CRASH, DO_READ), comb(2 * STEPS, STEPS)),
        ((ACT, ACT, DO_WRITE), comb(2 * STEPS, STEPS)),
        ((ACT, CRASH, DO_WRITE), None),
    ],
)
def test_only_orders_that_make_no_difference_are_left_out(
    kinds: tuple[int, ...], schedules: int | None
) -> None:
    all_ends = list(ends(Search(is_reduced=False), *kinds))
    reduced = list(ends(Search(), *kinds))
    assert set(reduced) == set(all_ends)
    assert len(reduced) == schedules or (schedules is None and len(reduced) < len(all_ends))


def test_the_parts_by_first_move_are_the_whole() -> None:
    kinds = (ACT, TELL, DO_WRITE)
    parts = [list(ends(Search(first=f"{actor} 0"), *kinds)) for actor in range(len(kinds))]
    assert {end for part in parts for end in part} == set(ends(Search(), *kinds))


def test_a_world_that_is_not_the_same_again_is_found_out() -> None:
    search = Search()
    assert search.choose({"a": ACT, "b": ACT}) == "a"
    assert search.advance()
    with pytest.raises(AssertionError, match="not the same again"):
        search.choose({"b": ACT, "a": ACT})


def test_what_commutes() -> None:
    kinds = range(5)
    pairs = {(one, other) for one in kinds for other in kinds if commute(one, other)}
    on_disk, in_memory = (DO_WRITE, DO_READ), (TELL, ACT)
    expected = {(a, b) for a in on_disk for b in in_memory} | {(DO_READ, DO_READ)}
    assert pairs == expected | {(b, a) for a, b in expected}
