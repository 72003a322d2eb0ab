"""Replay is exact: from every prefix of a journal a fresh body does what the first one did."""

from __future__ import annotations

import gc
from pathlib import Path

import msgspec
import pytest
from corpus import CORPUS, Case
from interpreters import run_python
from player import AnyOrder, Journal, Player, dice, expect_equal
from replay_driver import disturb_addresses, replay_all, resume, run_live

from durable.core.commands import Raised, Returned

SEEDS = range(8)
LONG = {"gather_wide", "long_sequence", "loops_in_parallel"}

HOLDS_COROUTINES = {"wait_for_step"}
"""These make a coroutine and await it later. When they are dropped between, Python says so."""

NEVER_AWAITED = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")


def each_case(**marks: set[str]) -> pytest.MarkDecorator:
    """Parametrize by case; a keyword names a mark and the cases that have it."""
    found = {"slow": pytest.mark.slow, "never_awaited": NEVER_AWAITED}
    return pytest.mark.parametrize(
        "case",
        [
            pytest.param(case, marks=[found[name] for name in marks if case.id in marks[name]])
            for case in CORPUS
        ],
        ids=lambda case: case.id,
    )


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


@pytest.mark.slow
def test_the_orders_of_completion_differ() -> None:
    """Else the tests below would show less than they say."""
    orders = {
        (case.id, *(turn.delivered.key for turn in live(case, seed).turns if turn.delivered))
        for case in CORPUS
        for seed in SEEDS
    }
    assert len(orders) > 3 * len(CORPUS)


@each_case(slow=LONG)
def test_every_prefix_of_a_journal_replays_exactly(case: Case) -> None:
    """The same steps with the same numbers, the same withdrawals and the same end, from any turn.

    No step whose outcome is recorded runs again. Between the runs memory is disturbed, so that what
    is ordered by address comes in another order.
    """
    held: list[object] = []
    for seed in SEEDS:
        rng = dice(seed)
        journal = live(case, seed).journal
        disturb_addresses(rng, held)
        replay_all(case.workflow(*case.args), journal, rng)


@each_case(never_awaited=HOLDS_COROUTINES)
def test_a_body_dropped_at_any_turn_does_nothing(case: Case) -> None:
    """Neither when it is dropped nor when the collector finds it; and it warns of nothing."""
    rng = dice(case.id)
    journal = live(case, 0).journal
    for turns_count in range(len(journal.turns)):
        resume(case.workflow(*case.args), journal, turns_count, rng).close()
    gc.collect()


@pytest.mark.slow
@pytest.mark.parametrize("theme", sorted({case.theme for case in CORPUS}))
def test_replay_does_not_depend_on_the_garbage_collector(theme: str) -> None:
    """It runs in the middle of the replay's turns, and not at all the first time."""
    rng = dice(theme)

    def collect_at_times() -> None:
        if rng.random() < 0.2:
            gc.collect()

    for case in [case for case in CORPUS if case.theme == theme]:
        gc.disable()
        try:
            journal = live(case, 1).journal
        finally:
            gc.enable()
        replay_all(case.workflow(*case.args), journal, rng, on_command=collect_at_times)


@pytest.mark.slow
def test_bodies_that_run_at_the_same_time_do_not_disturb_each_other() -> None:
    """All of the corpus at once, each from somewhere: a turn of one and then a turn of another."""
    rng = dice(0)
    journals = [(case, live(case, 2).journal) for case in CORPUS]
    players = [
        (
            resume(case.workflow(*case.args), journal, rng.randrange(len(journal.turns)), rng),
            journal,
        )
        for case, journal in journals
    ]
    while players:
        player, journal = players[rng.randrange(len(players))]
        if len(player.turns) == len(journal.turns):
            expect_equal(player.turns, journal.turns, journal.run.name)
            players.remove((player, journal))
            continue
        delivered = journal.turns[len(player.turns)].delivered
        assert delivered is not None
        player.deliver_record(delivered)


def write_journals(path: Path) -> None:
    """Run the corpus and write its journals; in a process of its own."""
    journals = {case.id: live(case, 3).journal for case in CORPUS}
    path.write_bytes(msgspec.json.encode(journals))


def check_journals(path: Path) -> None:
    """Replay journals that another process has written."""
    journals = msgspec.json.decode(path.read_bytes(), type=dict[str, Journal])
    for case in CORPUS:
        replay_all(case.workflow(*case.args), journals[case.id], dice(case.id))


@pytest.mark.slow
def test_journals_of_one_process_replay_in_another(tmp_path: Path) -> None:
    """Texts hash differently there, and everything has another address."""
    for hash_seed, function in (("1", write_journals), ("2", check_journals)):
        code = (
            "import pathlib, sys, test_replay\n"
            f"test_replay.{function.__name__}(pathlib.Path(sys.argv[1]))"
        )
        arguments = ("-W", "error", "-c", code, tmp_path / "journals.json")
        ended = run_python(*arguments, PYTHONHASHSEED=hash_seed)
        assert (ended.returncode, ended.stderr) == (0, "")
