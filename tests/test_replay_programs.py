"""Replay is exact for random programs too."""

from __future__ import annotations

import gc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from player import AnyOrder, dice
from programs import KINDS, Node, program, programs
from replay_driver import disturb_addresses, replay_all, resume, run_live

held: list[object] = []

CHECK = settings(
    max_examples=400,
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
    gc.collect()
    assert found == KINDS.keys()


def kinds_in(node: Node) -> set[str]:
    found = {node[0]}
    for part in node[1:]:
        children = part if isinstance(part, list) else []
        if children and isinstance(children[0], str):
            children = [children]
        for child in children:
            found |= kinds_in(child)
    return found
