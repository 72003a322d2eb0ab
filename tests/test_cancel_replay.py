"""A cancel at each turn of each body of the corpus: everything is told, and replay is exact."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from corpus import CORPUS, Case
from msgspec.structs import replace
from player import START_MS, AnyOrder, Player, dice
from replay_driver import open_after, replay_all, run_live

from durable.core.commands import Raised
from durable.core.records import RunRecord, RunState, StepKind, cancel_record

if TYPE_CHECKING:
    from player import Journal

TURNS_MAX = 12
"""A cancel comes in no more turns of a body than so many; the longer ones are all alike."""

HOLDS_COROUTINES = {"wait_for_step"}
"""These make a coroutine and await it later. When they are dropped between, Python says so."""

NEVER_AWAITED = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")


def run_until_cancelled(case: Case, turns_count: int, seed: int = 0) -> Player:
    """Run a case, cancel it after so many turns, and let it come to its end."""
    call = case.workflow(*case.args)
    args = call.definition.parameters.encode(call.arguments, 2**23)
    run = RunRecord(run_id=case.id, name=case.workflow.name, args=args, state=RunState.RUNNING)
    player, chooser, now_ms = Player(call, run), AnyOrder(seed), START_MS
    player.begin()
    while len(player.turns) < turns_count:
        number, now_ms = chooser.choose(player, now_ms)
        player.deliver(number, now_ms)
    asked = cancel_record(now_ms, interrupt=False)
    player.deliver_record(replace(asked, position=player.execution.next_position))
    if player.outcome is None:
        player.play(chooser)
    return player


def cancelled_journals(case: Case) -> list[tuple[int, Journal]]:
    """Return the journals of a case that is cancelled after its first turn, its second, and on."""
    turns_count = len(run_live(case.workflow(*case.args), AnyOrder(0), run_id=case.id).turns)
    return [
        (number, run_until_cancelled(case, number).journal)
        for number in range(1, min(turns_count, TURNS_MAX + 1))
    ]


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[NEVER_AWAITED] * (case.id in HOLDS_COROUTINES)) for case in CORPUS],
    ids=lambda case: case.id,
)
def test_a_cancelled_body_waits_for_nothing_it_waited_for_and_replays_exactly(case: Case) -> None:
    """Whatever the shape of its tasks; from every prefix of its turns."""
    rng = dice(case.id)
    journals = cancelled_journals(case)
    for turns_count, journal in journals:
        before = {
            step.number
            for turn in journal.turns[:turns_count]
            for step in turn.issued
            if step.kind is not StepKind.SLEEP  # Time-outs may be around a clean-up.
        }
        left = before.intersection(open_after(journal.turns[: turns_count + 1]))
        assert not left, f"cancelled after {turns_count} turns, it still waits for {left}"
        replay_all(case.workflow(*case.args), journal, rng)


@NEVER_AWAITED
def test_cancels_end_bodies_in_many_ways() -> None:
    """Else the test above would show less than it says: some clean up, some swallow it."""
    players = [run_until_cancelled(case, 2) for case in CORPUS if len_of(case) > 2]
    ended_at_once = [player for player in players if len(player.turns) == 3]
    raised = [player.outcome.error for player in players if isinstance(player.outcome, Raised)]
    cancelled = [error for error in raised if isinstance(error, asyncio.CancelledError)]
    assert len(players) > len(ended_at_once) > len(players) // 2
    assert len(players) > len(raised) >= len(cancelled) > len(players) // 2


def len_of(case: Case) -> int:
    """Return how many turns a case has when it is left alone."""
    return len(run_live(case.workflow(*case.args), AnyOrder(0), run_id=case.id).turns)
