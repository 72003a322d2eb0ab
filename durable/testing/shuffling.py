"""Parallel actions that complete in other orders."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from durable.testing.environment import Environment
from durable.testing.playing import Outcome, Play

if TYPE_CHECKING:
    from durable.call import Call
    from durable.testing.playing import Check, Script, Setup


@final
@dataclass(frozen=True)
class Shuffled:
    """What ``shuffle`` has done.

    Attributes:
        outcomes: What the run came to, by seed. They may differ: a race has another winner.
    """

    outcomes: dict[int, Outcome]


async def shuffle(
    call: Call[Any],
    *,
    seeds: int | Iterable[int] = 20,
    script: Script | None = None,
    setup: Setup | None = None,
    check: Check | None = None,
    env: Environment | None = None,
) -> Shuffled:
    """Run a workflow with its parallel actions completing in other orders, one for each seed.

    Each action's outcome is held until nothing else is at work; then one of those that are held is
    let go, by the seed's choice. Each run has to come to its end, and a replay of its journal has
    to do and come to the same. What it comes to may be another for each order: ``check``, or
    ``Shuffled.outcomes``, say what has to be so. Queries and mutations complete as they come.

    Args:
        call: The workflow's call.
        seeds: Which orders, or how many; one seed gives always the same order.
        script, setup, check, env: As for ``crash_everywhere``.

    Raises:
        ValueError: There is no seed: nothing would be tested.
        AssertionError: It is not so. The message names the first seed that shows it.
    """
    owner = env or Environment("sqlite://", {}, start=None, auto=True)
    play = Play(call, script, setup, check)
    outcomes: dict[int, Outcome] = {}
    for seed in _listed(seeds):
        twin = owner.twin("sqlite://")
        twin.shuffle_by(random.Random(seed))  # noqa: S311  no secret
        try:
            outcomes[seed], _ = await play.run(twin, None)
        except Exception as exc:
            msg = f"with seed {seed}, {play} goes wrong: {type(exc).__name__}: {exc}"
            raise AssertionError(msg) from exc
    return Shuffled(outcomes)


def _listed(seeds: int | Iterable[int]) -> list[int]:
    listed = list(range(seeds) if isinstance(seeds, int) else seeds)
    if not listed:
        msg = f"seeds={seeds!r} are none, so nothing would be tested: say how many, or which"
        raise ValueError(msg)
    return listed
