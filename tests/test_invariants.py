"""A checker that cannot fail checks nothing: each finds what is done to a history that is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from crashes.effects import Acked, Begun, Effect, Ended, Seen, Shown
from crashes.image import Image
from invariants import Ledger, Rules, check_live
from rows import RunRow, StepRow

from durable import Retry

RULES: Final = Rules(
    max_parallelism=2,
    at_most_once=frozenset({"once"}),
    retries={"flaky": Retry(max_attempts=2, initial_backoff=0.1)},
)
SLEEPING: Final = RunRow("r", "w", "running", '{"n":1}', None, None, 1, 2, None, 500, None)
OWNED: Final = SLEEPING._replace(wake_at_ms=None, epoch=1)
COMPLETED: Final = OWNED._replace(state="completed", result="7", finished_at_ms=620, epoch=None)
FIRST: Final = StepRow(
    "r", 0, "0:0", "action", "flaky", "{}", "completed", 2, 0, 0, None, 3, 150, "1", None
)
NAP: Final = StepRow(
    "r", 1, "0:1", "sleep", "sleep", "{}", "running", 0, 0, None, 500, 150, *[None] * 3
)
NAPPED: Final = NAP._replace(state="completed", position=1, finished_at_ms=501)
LAST: Final = StepRow(
    "r", 2, "0:2", "action", "plain", "{}", "running", 1, 0, None, None, 510, *[None] * 3
)
DONE: Final = LAST._replace(
    state="completed", interruptions=1, position=2, finished_at_ms=620, result="7"
)


@dataclass
class Remains:
    """What a life left behind, to be tampered with."""

    effects: list[Effect]
    run: RunRow
    steps: list[StepRow]
    others: list[RunRow] = field(default_factory=list[RunRow])

    @property
    def image(self) -> Image:
        return Image(1, (self.run, *self.others), tuple(self.steps))


def begun(key: str, number: int, interruptions: int, at_ms: int) -> Begun:
    return Begun("r", key, number, interruptions, at_ms)


def ended(key: str, number: int, interruptions: int, at_ms: int, *, returned: bool = True) -> Ended:
    return Ended("r", key, number, interruptions, at_ms, returned)


def history() -> list[Remains]:
    """Return three lives that are right: a retry and a sleep, a death during a step, an end."""
    first = Remains(
        [
            Acked("r", "w", {"n": 1}),
            begun("0:0", 1, 0, 10),
            ended("0:0", 1, 0, 12, returned=False),
            begun("0:0", 2, 0, 140),
            ended("0:0", 2, 0, 149),
            Shown("r", "running", [1]),
        ],
        SLEEPING,
        [FIRST, NAP],
    )
    second = Remains([begun("0:2", 1, 0, 520)], OWNED, [FIRST, NAPPED, LAST])
    third = Remains(
        [
            begun("0:2", 1, 1, 610),
            ended("0:2", 1, 1, 615),
            Shown("r", "completed", []),
            Seen("r", 7),
        ],
        COMPLETED,
        [FIRST, NAPPED, DONE],
    )
    return [first, second, third]


def names_of_violations(lives: list[Remains]) -> set[str]:
    ledger = Ledger(RULES)
    violations = [what for life in lives for what in ledger.add_life(life.effects, life.image)]
    violations += [f"I12: {what}" for what in check_live(ledger.image, now_ms=1_000)]
    return {what.partition(":")[0] for what in violations}


def run_as(life: int, /, **columns: Any) -> Callable[[list[Remains]], None]:  # noqa: ANN401  a row's
    def tamper(lives: list[Remains]) -> None:
        lives[life].run = lives[life].run._replace(**columns)

    return tamper


def step_as(life: int, number: int, /, **columns: Any) -> Callable[[list[Remains]], None]:  # noqa: ANN401
    def tamper(lives: list[Remains]) -> None:
        lives[life].steps[number] = lives[life].steps[number]._replace(**columns)

    return tamper


def effects(life: int, *more: Effect, drop: int = 0) -> Callable[[list[Remains]], None]:
    def tamper(lives: list[Remains]) -> None:
        lives[life].effects[:drop] = []
        lives[life].effects += more

    return tamper


def once(lives: list[Remains]) -> None:
    """Make the step that was interrupted, and ran again, one that is at most once."""
    for life in lives[1:]:
        life.steps[2] = life.steps[2]._replace(name="once")


def eager(lives: list[Remains]) -> None:
    """Begin the second attempt sooner than any draw allows."""
    lives[0].effects[3] = begun("0:0", 2, 0, 61)


def forgotten(lives: list[Remains]) -> None:
    """Leave a run behind that is neither claimed nor due."""
    columns: dict[str, Any] = {
        "run_id": "q",
        "state": "pending",
        "started_at_ms": None,
        "wake_at_ms": None,
    }
    lives[2].others.append(SLEEPING._replace(**columns))


def test_a_history_that_is_right_passes() -> None:
    assert names_of_violations(history()) == set()


TAMPERED: Final[dict[str, tuple[str, Callable[[list[Remains]], None]]]] = {
    "an acked start is not there": ("I1", effects(0, Acked("q", "w", {}))),
    "a start has other arguments": ("I1", effects(0, Acked("r", "w", {"n": 2}))),
    "a start has another name": ("I1", effects(2, Acked("r", "v", {"n": 1}))),
    "a run's arguments change": ("I1", run_as(2, args='{"n":2}')),
    "a function begins unrecorded": ("I2", effects(1, begun("0:3", 1, 0, 520))),
    "an attempt begins unrecorded": ("I2", effects(1, begun("0:2", 2, 0, 530))),
    "a function begins after its outcome": ("I2", effects(1, begun("0:0", 2, 1, 520))),
    "a function begins late in one life": ("I2", effects(2, begun("0:2", 1, 2, 630))),
    "an attempt begins twice": ("I2", effects(2, begun("0:2", 1, 0, 612))),
    "a step is interrupted without a death": ("I2", step_as(0, 0, interruptions=1)),
    "there are more attempts than the policy's": ("I2", step_as(0, 0, name="plain")),
    "an outcome comes from nowhere": ("I2", effects(2, drop=2)),
    "an at-most-once step begins twice": ("I2", once),
    "a final run changes": ("I4", lambda lives: lives.append(run_after_the_end(lives[2]))),
    "a final step changes": ("I4", step_as(1, 0, result="2")),
    "a reader sees another result": ("I4", effects(2, Seen("r", 8))),
    "a reader sees an error": ("I4", effects(2, Seen("r", error=("ValueError", "no", "")))),
    "a result is seen before it is recorded": ("I4", effects(1, Seen("r", 7))),
    "a due time moves": ("I7", step_as(1, 1, due_at_ms=499)),
    "a sleep is over early": ("I7", step_as(1, 1, finished_at_ms=499)),
    "a step begins during a sleep": ("I7", effects(1, begun("0:2", 1, 0, 499), drop=1)),
    "a retry has no back-off": ("I7", eager),
    "a run is woken late": ("I7", run_as(0, wake_at_ms=501)),
    "a run begins again": ("I7", run_as(2, started_at_ms=3)),
    "more functions run than there are slots": (
        "I9",
        effects(1, begun("0:2", 1, 1, 521), begun("0:2", 1, 2, 522)),
    ),
    "a number is missing": ("I11", step_as(0, 1, number=2)),
    "a position is missing": ("I11", step_as(1, 1, position=2)),
    "an ended run has an open step": ("I11", step_as(2, 2, state="running")),
    "an ended run is still claimed": ("I11", run_as(2, epoch=1)),
    "a run is claimed and due": ("I11", run_as(1, wake_at_ms=500)),
    "a dead owner holds a run": ("I11", run_as(1, epoch=0)),
    "a body does not replay": ("I11", run_as(1, state="stuck")),
    "a run has ended without an outcome": ("I11", run_as(2, result=None)),
    "a withdrawn step was delivered": ("I11", step_as(1, 1, state="canceled")),
    "a reader is ahead of the journal": ("I11", effects(1, Shown("r", "completed", []))),
    "a reader sees half a turn": ("I11", effects(1, Shown("r", "running", []))),
    "a run is forgotten": ("I12", forgotten),
}


def run_after_the_end(last: Remains) -> Remains:
    """Return a fourth life, that changes the outcome."""
    return Remains([], last.run._replace(result="8"), last.steps)


@pytest.mark.parametrize("what", TAMPERED)
def test_a_violation_is_found(what: str) -> None:
    name, tamper = TAMPERED[what]
    lives = history()
    tamper(lives)
    assert name in names_of_violations(lives)
