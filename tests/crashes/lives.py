"""The parent: lets a process live on one journal, ends it, and has its remains examined."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, final

import msgspec
from invariants import Ledger, Rules, check_live
from killing import KILLED, Process
from nursery import fork

from crashes import load
from crashes.child import JOURNAL, Options
from crashes.effects import read_effects
from crashes.image import Image, read_image

LIFE_S_MAX: Final = 300
"""A child that should end by itself and does not: far more than any takes."""

VIOLATIONS_SHOWN_MAX: Final = 10
LAST_LIFE: Final = "last"


@final
class Child:
    """A process that plays a role, on one journal or on several."""

    def __init__(self, role: str, life: str, options: Options, *directories: Path) -> None:
        encoded = msgspec.json.encode(options).decode()
        arguments = (role, life, encoded, *map(str, directories))
        self._process = Process("crashes.child:main", *arguments, begin=fork)

    def kill(self, after_s: float, *, is_open: bool = False) -> None:
        """Kill it so long after it said that it opens the journal, or that it has opened it."""
        with self._process as process:
            process.kill_after(after_s, lines=1 + is_open)
            assert process.wait(LIFE_S_MAX) == KILLED, f"{process} is not killed"

    def wait(self) -> None:
        """Let it come to its end."""
        assert not self.wait_or_killed(), f"{self._process} is killed"

    def wait_or_killed(self) -> bool:
        """Let it come to its end, or to its crash point; return whether it was killed there."""
        with self._process as process:
            return process.wait(LIFE_S_MAX) == KILLED


@final
class Lives:
    """All the lives on one journal."""

    def __init__(self, directory: Path, options: Options) -> None:
        directory.mkdir()
        self.directory = directory
        self.options = options
        self.life = "0"
        self.ledger = Ledger(Rules(options.max_parallelism, load.AT_MOST_ONCE, load.RETRIES))

    @property
    def image(self) -> Image:
        """What the latest life left behind."""
        return self.ledger.image

    def begin(self, role: str, **crash: int | bool) -> Child:
        """Begin the next life."""
        self.life = str(int(self.life) + 1)
        options = msgspec.structs.replace(self.options, **crash)
        return Child(role, self.life, options, self.directory)

    def examine(self) -> None:
        """Check what the latest life left behind."""
        effects = read_effects(self.directory / f"life-{self.life}.jsonl")
        self._refuse(self.ledger.add_life(effects, read_image(self.directory / JOURNAL)))

    def examine_end(self, now_ms: int) -> None:
        """Check what all lives came to, the last of which has seen the end of what ends by then."""
        self._refuse([f"I12: {what}" for what in check_live(self.image, now_ms)])
        self._refuse(_wrong_outcomes(self.ledger))

    def _refuse(self, violations: Sequence[str]) -> None:
        shown = "\n".join(violations[:VIOLATIONS_SHOWN_MAX])
        assert not violations, f"life {self.life} on {self.directory}:\n{shown}"


def end_all(role: str, all_lives: Sequence[Lives], options: Options) -> None:
    """Let one process have the last life on several journals, and come to its end."""
    Child(role, LAST_LIFE, options, *(lives.directory for lives in all_lives)).wait()
    for lives in all_lives:
        lives.life = LAST_LIFE
        lives.examine()


def _wrong_outcomes(ledger: Ledger) -> list[str]:
    """Return the outcomes that no life without a crash could have come to."""
    wrong: list[str] = []
    allowed = {shape.name: outcomes for shape, outcomes in load.OUTCOMES.items()}
    for run in ledger.image.runs.values():
        seen = ledger.seen.get(run.run_id)
        if seen is None:
            continue  # It sleeps.
        outcome = seen.value if seen.error is None else seen.error[2]
        (n,) = msgspec.json.decode(run.args, type=dict[str, int]).values()
        if outcome not in allowed[run.name](n):
            wrong.append(f"{run.name}({n}) came to {outcome!r}, run {run.run_id}")
    return wrong
