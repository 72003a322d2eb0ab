"""Replay is exact: from every prefix of a journal a fresh body does what the first one did."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from corpus import CORPUS, Case
from durable.core.execution import Raised, Returned
from replay_driver import (
    AnyOrder,
    EngineOrder,
    Journal,
    Player,
    disturb_addresses,
    expect_equal,
    replay_all,
    replay_from,
    resume,
    run_live,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

SEEDS = range(8)
HOLDS_COROUTINES = {"wait_for_step"}
"""These make a coroutine and await it later. When they are dropped between, Python says so."""

NEVER_AWAITED = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
EACH_CASE = pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.id)


def live(case: Case, seed: int) -> Player:
    """Run a case in one order of completions, and check how it ends."""
    player = run_live(case.workflow(*case.args), AnyOrder(seed), run_id=case.id)
    if case.raises is None:
        assert isinstance(player.outcome, Returned), player.outcome
    else:
        assert isinstance(player.outcome, Raised), player.outcome
        assert isinstance(player.outcome.error, case.raises)
    return player


def test_the_corpus_is_large() -> None:
    assert len({case.id for case in CORPUS}) == len(CORPUS) >= 40


def test_the_orders_of_completion_differ() -> None:
    """Else the tests below would show less than they say."""
    orders = {
        (case.id, *(turn.delivered.key for turn in live(case, seed).turns if turn.delivered))
        for case in CORPUS
        for seed in SEEDS
    }
    assert len(orders) > 3 * len(CORPUS)


@EACH_CASE
def test_every_prefix_of_a_journal_replays_exactly(case: Case) -> None:
    """The same steps with the same numbers, the same withdrawals and the same end, from any turn.

    No step whose outcome is recorded runs again. Between the runs memory is disturbed, so that what
    is ordered by address comes in another order.
    """
    held: list[object] = []
    for seed in SEEDS:
        rng = random.Random(seed)
        journal = live(case, seed).journal
        disturb_addresses(rng, held)
        replay_all(case.workflow(*case.args), journal, rng)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=NEVER_AWAITED if case.id in HOLDS_COROUTINES else ())
        for case in CORPUS
    ],
    ids=lambda case: case.id,
)
def test_a_body_dropped_at_any_turn_does_nothing(case: Case) -> None:
    """Neither when it is dropped nor when the collector finds it; and it warns of nothing."""
    rng = random.Random(case.id)
    journal = live(case, 0).journal
    for turns_count in range(len(journal.turns)):
        resume(case.workflow(*case.args), journal, turns_count, rng).close()
    gc.collect()


@pytest.fixture
def _cheap_collections() -> Iterator[None]:
    """Have the collector look only at what is made from now on."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.slow
@pytest.mark.usefixtures("_cheap_collections")
@pytest.mark.parametrize("theme", sorted({case.theme for case in CORPUS}))
def test_replay_does_not_depend_on_the_garbage_collector(theme: str) -> None:
    """It runs at each step of the replay, and not at all the first time."""
    for case in [case for case in CORPUS if case.theme == theme]:
        gc.disable()
        try:
            journal = live(case, 1).journal
        finally:
            gc.enable()
        replay_all(case.workflow(*case.args), journal, random.Random(1), on_command=gc.collect)


@pytest.mark.slow
def test_bodies_that_run_at_the_same_time_do_not_disturb_each_other() -> None:
    """All of the corpus at once, a turn of one and then a turn of another."""
    rng = random.Random(0)
    journals = {case.id: live(case, 2).journal for case in CORPUS}
    players: list[tuple[Player, Journal]] = []
    for case in CORPUS:
        journal = journals[case.id]
        turns_count = rng.randrange(len(journal.turns))
        players.append((resume(case.workflow(*case.args), journal, turns_count, rng), journal))
    while players:
        player, journal = rng.choice(players)
        index = len(player.turns)
        if index == len(journal.turns):
            expect_equal(player.turns, journal.turns, journal.run.name)
            players.remove((player, journal))
            continue
        delivered = journal.turns[index].delivered
        assert delivered is not None
        assert delivered.finished_at_ms is not None
        player.deliver(delivered.number, delivered.finished_at_ms)
