"""Whole runs, and replaying them: from any prefix of a journal, in any memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

# The public constructor gives one only while an event loop runs.
from anyio._backends._asyncio import CancelScope
from msgspec.structs import replace
from player import DEFAULTS, START_MS, Chooser, Journal, Player, TurnRecord, dice, expect_equal

from durable.core.failures import decode_error
from durable.core.records import RunRecord, RunState, StepKind, StepRecord, StepState

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable

    from durable.call import Call


def run_live(call: Call[Any], chooser: Chooser, *, run_id: str = "run") -> Player:
    """Run a body from its beginning to its end."""
    args = call.definition.parameters.encode(call.arguments, DEFAULTS.payload_max)
    run = RunRecord(run_id=run_id, name=call.definition.name, args=args, state=RunState.RUNNING)
    player = Player(call, run)
    player.begin()
    player.play(chooser)
    return player


def resume(
    call: Call[Any],
    journal: Journal,
    turns_count: int,
    rng: random.Random,
    *,
    on_command: Callable[[], object] = lambda: None,
    settled_share: float = 0.5,
) -> Player:
    """Make a fresh execution out of the journal's first turns, and replay them."""
    run = replace(journal.run, started_at_ms=START_MS if turns_count else None)
    history = history_of(journal, turns_count, rng, settled_share)
    player = Player(call, run, history, on_command=on_command)
    player.begin()
    if turns_count:
        player.replay(iter(lambda: rng.choice((1, 3, 64)), None))
    return player


def replay_from(player: Player, journal: Journal, turns_count: int) -> None:
    """Go on after a resume by what the first run was delivered, and compare everything with it."""
    where = f"{journal.run.name} after {turns_count} turns"
    turns_count = max(turns_count, 1)
    opened = sorted(command.number for command in player.execution.open_commands())
    expect_equal(opened, open_after(journal.turns[:turns_count]), f"{where}: open steps")
    for turn in journal.turns[turns_count:]:
        assert turn.delivered is not None
        player.deliver_record(turn.delivered)
    for index, (turn, again) in enumerate(zip(journal.turns, player.turns, strict=True)):
        expect_equal(again, turn, f"{where}: turn {index}")
    settled = {step.number for step in player.history.values() if step.state.is_final}
    expect_equal([n for n in player.begun if n in settled], [], f"{where}: steps run again")
    expect_equal(len({*player.begun}), len(player.begun), f"{where}: steps run, each once")


def replay_all(
    call: Call[Any],
    journal: Journal,
    rng: random.Random,
    *,
    on_command: Callable[[], object] = lambda: None,
) -> None:
    """Replay every prefix. The last turn is in none: a run that has ended is not replayed."""
    for turns_count in range(len(journal.turns)):
        player = resume(call, journal, turns_count, rng, on_command=on_command)
        replay_from(player, journal, turns_count)


def final_steps(player: Player) -> list[StepRecord]:
    """Return the steps as the journal holds them after the last turn."""
    return history_of(player.journal, len(player.turns), dice(0))


def reenact(call: Call[Any], run: RunRecord, steps: list[StepRecord]) -> Player:
    """Deliver to a fresh body what the journal says a body was delivered, as if it were live."""
    player = Player(call, replace(run, state=RunState.RUNNING, started_at_ms=None))
    player.begin()
    delivered = [step for step in steps if step.position is not None]
    for step in sorted(delivered, key=lambda step: step.position or 0):
        player.deliver_record(step)
    return player


def step_texts(steps: Iterable[StepRecord]) -> list[tuple[object, ...]]:
    """Return what two journals of one body have in common: all but times and tracebacks."""
    return [
        (
            step.number,
            step.key,
            step.kind,
            step.name,
            step.args,
            step.state,
            step.position,
            step.result,
            None if step.error is None else decode_error(step.error).message,
        )
        for step in sorted(steps, key=lambda step: step.number)
    ]


def outcome_texts(run: RunRecord) -> tuple[str | None, ...]:
    """Return a recorded end, without the traceback."""
    if run.error is None:
        return (run.result, None, None)
    error = decode_error(run.error)
    return (run.result, error.type_name, error.message)


def history_of(
    journal: Journal, turns_count: int, rng: random.Random, settled_share: float = 0.5
) -> list[StepRecord]:
    """Return the steps as the journal holds them after so many turns.

    A share of those that are open have ended meanwhile: their outcome is recorded, not delivered.
    """
    steps: dict[int, StepRecord] = {}
    for turn in journal.turns[:turns_count]:
        if turn.delivered is not None:
            steps[turn.delivered.number] = turn.delivered
        for number in turn.withdrawn:
            steps[number] = replace(steps[number], state=StepState.CANCELED)
        for step in turn.issued:
            is_begun = step.kind is StepKind.SLEEP or rng.random() < 0.5
            state = StepState.RUNNING if is_begun else StepState.PENDING
            steps[step.number] = replace(step, state=state)
    for turn in journal.turns[turns_count:]:
        later = turn.delivered
        if later is not None and later.number in steps and rng.random() < settled_share:
            steps[later.number] = replace(later, position=None)
    return [steps[number] for number in sorted(steps)]


def open_after(turns: list[TurnRecord]) -> list[int]:
    """Return the numbers of the steps that a body waits for after these turns."""
    if turns[-1].end is not None:
        return []
    opened: set[int] = set()
    for turn in turns:
        opened.update(step.number for step in turn.issued)
        opened.difference_update(turn.withdrawn)
        if turn.delivered is not None:
            opened.discard(turn.delivered.number)
    return sorted(opened)


# --- memory in which nothing lies where it lay ---------------------------------------------------


def disturb_addresses(rng: random.Random, held: list[object], objects_count: int = 300) -> None:
    """Fill and free memory, so that new tasks, scopes and coroutines lie in another order.

    Args:
        rng: Decides what is allocated and freed.
        held: Keeps some of it alive; half of it is dropped at each call.
        objects_count: How many objects are made.
    """
    makers: tuple[Callable[[], object], ...] = (
        _closed_coroutine,
        _generator,
        CancelScope,
        object,
        lambda: {None: None},
        lambda: [None] * rng.randrange(40),
    )
    held.extend(rng.choice(makers)() for _ in range(objects_count))
    rng.shuffle(held)
    del held[: len(held) // 2]


def _closed_coroutine() -> object:
    async def body(trace: object, work: object) -> tuple[object, object]:
        return trace, work

    coroutine = body(None, None)
    coroutine.close()
    return coroutine


def _generator() -> object:
    async def values(trace: object, count: object) -> Any:  # noqa: ANN401
        yield trace, count

    return values(None, None)
