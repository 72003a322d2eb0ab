"""The simulation: it finds nothing in the engine, and all that is planted in a copy of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from interpreters import run_python
from simulation.driver import kept_seeds, simulate
from simulation.loop import Machine
from simulation.planted import BUGS, ROOT, Bug, Edit, hunt, plant


@pytest.fixture(autouse=True)
def _no_blocking_calls() -> None:
    """Nothing to watch: the simulated threads are no threads, and the oracle reads the file."""


@pytest.mark.parametrize("seed", range(2))
def test_nothing_is_wrong(seed: int) -> None:
    outcome = simulate(seed)
    assert not outcome.violations, "\n".join([outcome.story, *outcome.trace])
    assert outcome.commits


@pytest.mark.slow
def test_nothing_is_wrong_with_some_more() -> None:
    """The others are played by ``just simulate``."""
    outcomes = [simulate(seed) for seed in range(2, 40)]
    assert [outcome.seed for outcome in outcomes if outcome.violations] == []


@pytest.mark.slow
def test_nothing_is_wrong_with_seeds_that_have_failed_once() -> None:
    outcomes = [simulate(seed) for seed in kept_seeds()]
    assert [outcome.seed for outcome in outcomes if outcome.violations] == []


@pytest.mark.slow
def test_a_seed_decides_all_that_happens() -> None:
    one, again, other = simulate(1), simulate(1), simulate(2)
    assert one.trace == again.trace
    assert one.digest == again.digest != other.digest


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 16])
def test_a_seed_decides_the_same_in_another_process(seed: int) -> None:
    """Whose sets of strings have another order."""
    command = ["-m", "tests.simulation", "--seed", str(seed)]
    shown = run_python(*command, paths=[ROOT], PYTHONHASHSEED="7")
    assert f"trace {simulate(seed).digest}: nothing is wrong" in shown.stdout


@pytest.mark.slow
def test_a_planted_bug_is_found() -> None:
    found = hunt(BUGS[0], seeds=3)
    assert (found.seeds, found.broken) == (1, "I1")


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_the_place_of_a_planted_bug_is_there(bug: Bug) -> None:
    for edit in bug.edits:
        source = ROOT.joinpath("durable", edit.file).read_text()
        assert source.count(edit.old) == 1, f"{edit.file} has moved: say again where the bug is"
        compile(source.replace(edit.old, edit.new), edit.file, "exec")


def test_a_bug_whose_place_has_moved_is_not_planted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not in engine"):
        plant(Bug("moved", (Edit("engine.py", "is not in this file", ""),)), tmp_path)


def test_a_loop_calls_what_it_is_given_first_in_first_out_and_a_kill_ends_it() -> None:
    machine, called = Machine("0"), list[str]()
    one, other = machine.start("one"), machine.start("other")
    for number in range(20):
        one.wake(partial(called.append, f"one {number}"))
        other.wake(partial(called.append, f"other {number}"))
    one.loop.call_later(5, called.append, "late")
    other.loop.call_later(5, called.append, "never")
    machine.at(3, other.kill)
    machine.run(lambda: False, until_s=10)
    for name in ("one", "other"):
        assert [text for text in called if text.startswith(name)] == [
            f"{name} {number}" for number in range(20)
        ]
    assert called[-1] == "late"
    assert machine.now_s == 10
    machine.close()
