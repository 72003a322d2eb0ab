"""Replay is exact for random programs too."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from player import AnyOrder, dice
from programs import KINDS, Node, program, programs
from replay_driver import disturb_addresses, replay_all, resume, run_live

held: list[object] = []

CHECK = settings(
    max_examples=300,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.mark.slow
# Python says so of a coroutine that a body has made, and not awaited yet, when it is dropped.
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@CHECK
@given(node=programs, seed=st.integers(0, 1_000))
def test_random_programs_replay_exactly(node: Node, seed: int) -> None:
    """From every prefix; and dropped anywhere, none does anything."""
    rng = dice(seed)
    journal = run_live(program(node), AnyOrder(seed)).journal
    disturb_addresses(rng, held, objects_count=50)
    replay_all(program(node), journal, rng)
    resume(program(node), journal, rng.randrange(len(journal.turns)), rng).close()


def test_every_kind_of_node_is_in_some_program() -> None:
    """Else the test above would show less than it says."""
    found: set[str] = set()

    @CHECK
    @given(node=programs)
    def collect(node: Node) -> None:
        found.update(kinds_in(node))

    collect()
    assert found == KINDS.keys()


def kinds_in(part: Any) -> set[str]:  # noqa: ANN401  JSON
    if isinstance(part, str):
        return {part}.intersection(KINDS)
    if isinstance(part, (int, float)):
        return set()
    return set[str]().union(*(kinds_in(child) for child in part))
