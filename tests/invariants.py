"""What must hold, whatever happens: one checker for each invariant, used by every harness.

A harness lets a process live and end, over and over, on one journal. After each life it hands over
the life's effect log and an image of the journal, and is told what is wrong. The process's clock is
the one that the effects are stamped with.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from crashes.effects import Acked, Begun, Effect, Ended, Seen, Shown
from crashes.image import Image
from rows import EventRow, RunRow, StepRow

from durable import Retry

StepId: TypeAlias = tuple[str, str]
"""The run's id and the step's key."""

Attempt: TypeAlias = tuple[str, str, int, int]
"""A step, the number of the attempt and how often the step was interrupted before."""


NO_RETRY: Final = Retry(max_attempts=1)


class Rules(NamedTuple):
    """What the harness's workflows and engine were made with.

    Attributes:
        at_most_once: Names of actions with ``retry=False``.
        retries: By name of action, how it is retried.
    """

    max_parallelism: int
    at_most_once: frozenset[str] = frozenset()
    retries: Mapping[str, Retry] = {}


@dataclass(frozen=True)
class Life:
    """One life of the process: what it did, and the journal before and after it."""

    effects: Sequence[Effect]
    before: Image
    after: Image

    def changed_steps(self) -> Iterator[StepRow]:
        for step_id, step in self.after.steps.items():
            if self.before.steps.get(step_id) != step:
                yield step


@dataclass
class Ledger:
    """What was seen over all lives so far.

    Attributes:
        deaths: How often a process ended while the journal had the step as running.
    """

    rules: Rules
    image: Image = field(default_factory=Image)
    begun: defaultdict[StepId, list[Begun]] = field(default_factory=lambda: defaultdict(list))
    ended: dict[Attempt, Ended] = field(default_factory=dict[Attempt, Ended])
    deaths: Counter[StepId] = field(default_factory=Counter[StepId])
    seen: dict[str, Seen] = field(default_factory=dict[str, Seen])
    peak: int = 0

    def add_life(self, effects: Sequence[Effect], image: Image) -> list[str]:
        """Take what one life left behind; return what is wrong with it."""
        life = Life(effects, self.image, image)
        for effect in effects:
            match effect:
                case Begun():
                    self.begun[effect.run_id, effect.key].append(effect)
                case Ended():
                    self.ended[_attempt(effect)] = effect
                case _:
                    pass
        violations = [
            f"{name}: {what}" for name, check in CHECKS.items() for what in check(life, self)
        ]
        self.deaths.update(step_id for step_id, step in image.steps.items() if _runs(step))
        self.image = image
        return violations


def check_image(image: Image) -> list[str]:
    """Return what is wrong with a journal, whatever has led to it."""
    life, ledger = Life((), Image(), image), Ledger(Rules(max_parallelism=1))
    checks = {name: CHECKS[name] for name in ("I6", "I10", "I11")}
    return [f"{name}: {what}" for name, check in checks.items() for what in check(life, ledger)]


def _attempt(effect: Begun | Ended) -> Attempt:
    return effect.run_id, effect.key, effect.number, effect.interruptions


def _runs(step: StepRow) -> bool:
    return step.kind == "action" and step.state == "running"


# --- I1 ------------------------------------------------------------------------------------------


def check_start(life: Life, _: Ledger) -> Iterator[str]:
    """An acked start is in the journal, with its id, name and arguments, for good."""
    for effect in life.effects:
        if isinstance(effect, Acked):
            run = life.after.runs.get(effect.run_id)
            if run is None:
                yield f"{effect} is not in the journal"
            elif (run.name, json.loads(run.args)) != (effect.name, effect.args):
                yield f"{effect} is in the journal as {run}"
    for run_id, before in life.before.runs.items():
        run = life.after.runs.get(run_id)
        if run is None or _start(run) != _start(before):
            yield f"{before} has become {run}"


def _start(run: RunRow) -> tuple[object, ...]:
    return run.name, run.args, run.created_at_ms


# --- I2 ------------------------------------------------------------------------------------------


def check_once(life: Life, ledger: Ledger) -> Iterator[str]:
    """No function begins without a record, nor after its outcome, nor too often."""
    touched = {(step.run_id, step.key) for step in life.changed_steps()}
    for effect in life.effects:
        if isinstance(effect, Begun):
            yield from _check_begin(effect, life)
            touched.add((effect.run_id, effect.key))
    for step_id in touched & life.after.steps.keys():
        if life.after.steps[step_id].kind == "action":
            yield from _check_attempts(life.after.steps[step_id], ledger)


def _check_begin(begun: Begun, life: Life) -> Iterator[str]:
    step_id = begun.run_id, begun.key
    step, before = life.after.steps.get(step_id), life.before.steps.get(step_id)
    if step is None or step.attempts < begun.number:
        yield f"{begun}, which the journal does not have: {step}"
    elif before is not None and before.is_final:
        yield f"{begun}, although its outcome was recorded: {before}"
    elif step.state in ("completed", "failed") and begun.at_ms > (step.finished_at_ms or 0):
        yield f"{begun}, after its outcome: {step}"


def _check_attempts(step: StepRow, ledger: Ledger) -> Iterator[str]:
    begun = ledger.begun[step.run_id, step.key]
    deaths = ledger.deaths[step.run_id, step.key]
    if len({_attempt(effect) for effect in begun}) != len(begun):
        yield f"the same attempt begins twice: {begun}"
    if step.interruptions > deaths:
        yield f"{step} was interrupted by {deaths} deaths"
    retry = ledger.rules.retries.get(step.name, NO_RETRY)
    if step.attempts > retry.max_attempts:
        yield f"{step} has more attempts than its policy"
    if len(begun) > step.attempts + deaths:
        yield f"{step} and {deaths} deaths, but {begun}"
    last = ledger.ended.get((step.run_id, step.key, step.attempts, step.interruptions))
    if step.state == "completed" and (last is None or not last.returned):
        yield f"{step}, but its function has not returned"
    if step.name in ledger.rules.at_most_once:
        if len(begun) > 1:
            yield f"at most once, but {begun}"
        is_unknown = step.state == "failed" and "OutcomeUnknown" in (step.error or "")
        if step.state in ("completed", "failed") and is_unknown != (deaths > 0):
            yield f"{deaths} deaths, and {step}"


# --- I4 ------------------------------------------------------------------------------------------


def check_final(life: Life, ledger: Ledger) -> Iterator[str]:
    """Outcomes are written once, and every reader gets the same."""
    for run_id, run in life.before.runs.items():
        if run.is_final and life.after.runs.get(run_id) != run:
            yield f"{run} has become {life.after.runs.get(run_id)}"
    for step_id, step in life.before.steps.items():
        after = life.after.steps.get(step_id)
        if step.is_final and after != step:
            # What was asked, and what a mutation has done, is recorded before it is delivered.
            is_late = step.kind in ("mutation", "cancel") and step.position is None
            if after is None or not is_late or after != _delivered(step, after):
                yield f"{step} has become {after}"
    for effect in life.effects:
        if isinstance(effect, Seen):
            recorded = life.after.runs.get(effect.run_id)
            if recorded is None or not _is_outcome(effect, recorded):
                yield f"{effect}, but the journal has {recorded}"
            if ledger.seen.setdefault(effect.run_id, effect) != effect:
                yield f"one reader got {effect}, another {ledger.seen[effect.run_id]}"


def _delivered(step: StepRow, after: StepRow) -> StepRow:
    result = after.result if step.kind == "cancel" else step.result
    return step._replace(position=after.position, result=result)


def _is_outcome(seen: Seen, run: RunRow) -> bool:
    if seen.error is None:
        return run.result is not None and json.loads(run.result) == seen.value
    stored = json.loads(run.error or "{}")
    return (stored.get("type_name"), stored.get("message")) == seen.error[:2]


# --- I7 ------------------------------------------------------------------------------------------


def check_timers(life: Life, ledger: Ledger) -> Iterator[str]:
    """A due time is fixed once, and nothing happens before it."""
    for step in life.changed_steps():
        before = life.before.steps.get((step.run_id, step.key))
        if before is not None and _has_moved(before, step):
            yield f"{before} is now due at another time: {step}"
        has_fired = step.kind == "sleep" and step.state == "completed"
        if has_fired and not 0 < (step.due_at_ms or 0) <= (step.finished_at_ms or 0):
            yield f"{step} is over early"
    for effect in life.effects:
        if isinstance(effect, Begun):
            yield from _check_begun_early(effect, life, ledger)
    for run_id, run in life.before.runs.items():
        if run_id in life.after.runs:
            yield from _check_wake_time(run, life.after.runs[run_id], life.before.steps_of[run_id])


def _check_begun_early(begun: Begun, life: Life, ledger: Ledger) -> Iterator[str]:
    for waiting in _waits_for(begun, life):
        if begun.at_ms < (waiting.due_at_ms or 0):
            yield f"{begun}, before it is due: {waiting}"
    if begun.at_ms < _backed_off_ms(begun, life, ledger):
        yield f"{begun}, without a back-off"


def _waits_for(begun: Begun, life: Life) -> Iterator[StepRow]:
    """Return what this attempt had to wait for: its own due time, and sleeps before it."""
    before = life.before.steps.get((begun.run_id, begun.key))
    if before is not None and before.attempts + 1 == begun.number:
        yield before
    task, ordinal = _place(begun.key)
    for step in life.after.steps_of[begun.run_id]:
        # asyncio's own timers hold up nobody: ``step.sleep`` does.
        if step.kind == "sleep" and step.name != "timer":
            sleeping_task, sleep_ordinal = _place(step.key)
            if sleeping_task == task and sleep_ordinal < ordinal:
                yield step


def _backed_off_ms(begun: Begun, life: Life, ledger: Ledger) -> float:
    """Return until when this attempt had to wait at least, after the one before it."""
    step = life.after.steps.get((begun.run_id, begun.key))
    retry = ledger.rules.retries.get(step.name if step else "")
    failed = ledger.ended.get((begun.run_id, begun.key, begun.number - 1, begun.interruptions))
    if retry is None or failed is None:
        return 0
    wait_ms = retry.backoff_ms(failed.number, draw=0)
    return failed.at_ms + (wait_ms or 0)


def _place(key: str) -> tuple[str, int]:
    """Return the body's task that issued the step, and the how-manieth of that task it is."""
    task, _, ordinal = key.rpartition(":")
    return task, int(ordinal)


def _has_moved(before: StepRow, step: StepRow) -> bool:
    if before.kind == "sleep":
        return step.due_at_ms != before.due_at_ms
    # An action's due time is that of its next attempt: it goes when that begins.
    is_waiting = (before.state, step.state) == ("pending", "pending")
    dues = {before.due_at_ms, step.due_at_ms} - {None}
    return is_waiting and before.attempts == step.attempts and len(dues) > 1


def _check_wake_time(before: RunRow, run: RunRow, steps: Sequence[StepRow]) -> Iterator[str]:
    if before.started_at_ms is not None:
        if run.started_at_ms != before.started_at_ms:
            yield f"{before} has begun again: {run}"
        dues = [step.due_at_ms or 0 for step in steps if not step.is_final]
        if not before.is_final and (before.wake_at_ms or 0) > min(dues, default=0):
            yield f"{before} is to be woken after it is due: {dues}"
    elif before.wake_at_ms is not None:
        if run.started_at_ms is None and run.wake_at_ms not in (None, 0, before.wake_at_ms):
            yield f"{before} is now due at another time: {run}"  # 0: its owner died.
        elif run.started_at_ms is not None and run.started_at_ms < before.wake_at_ms:
            yield f"{before} has begun early: {run}"


# --- I6 ------------------------------------------------------------------------------------------


def check_events(life: Life, _: Ledger) -> Iterator[str]:
    """Each event is consumed by one wait at most, which says so, in the order of sending."""
    image = life.after
    waits = {(s.run_id, s.number): s for s in image.steps.values() if s.kind == "event"}
    consumed: Counter[StepRow] = Counter()
    latest: dict[tuple[str, str], int] = {}
    for event in image.events:
        if event.run_id not in image.runs:
            yield f"{event} is of no run"
        if event.step_number is None:
            continue
        wait = waits.get((event.run_id, event.step_number))
        if wait is None or not _has_received(wait, event):
            yield f"{event} was consumed by {wait}"
            continue
        consumed[wait] += 1
        position = wait.position or 0
        if '"event_id"' not in wait.args:  # A wait for an id takes no turn.
            if position < latest.get((event.run_id, event.name), 0):
                yield f"{event} was consumed before one that was sent earlier"
            latest[event.run_id, event.name] = position
    for wait in waits.values():
        if consumed[wait] > 1 or consumed[wait] < (wait.state == "completed"):
            yield f"{wait} has received {consumed[wait]} events"


def _has_received(wait: StepRow, event: EventRow) -> bool:
    is_over = wait.state in ("completed", "failed")
    return is_over and wait.event_id == event.event_id and event.sent_at_ms is not None


# --- I9 ------------------------------------------------------------------------------------------


def check_pool(life: Life, ledger: Ledger) -> Iterator[str]:
    """At every instant at most so many functions run."""
    running: set[Attempt] = set()
    for effect in life.effects:
        match effect:
            case Begun():
                running.add(_attempt(effect))
                ledger.peak = max(ledger.peak, len(running))
                if len(running) > ledger.rules.max_parallelism:
                    yield f"{len(running)} functions run: {sorted(running)}"
            case Ended():
                if _attempt(effect) not in running:
                    yield f"{effect}, but it had not begun"
                running.discard(_attempt(effect))
            case _:
                pass


# --- I10 -----------------------------------------------------------------------------------------


def check_children(life: Life, _: Ledger) -> Iterator[str]:
    """One child for each call; its parent has its outcome; none goes on that nobody wants."""
    image = life.after
    calls = {step.child_run_id: step for step in image.steps.values() if step.child_run_id}
    children = [run for run in image.runs.values() if run.parent_id is not None]
    for child in children:
        call = calls.get(child.run_id)
        if call is None or call.run_id != child.parent_id:
            yield f"{child} was called by {call}"
            continue
        outcome = (child.state, child.result)
        if call.state == "completed" and outcome != ("completed", call.result):
            yield f"{call}, but its child is {child}"
        if call.state == "failed" and child.state not in ("failed", "canceled"):
            yield f"{call}, but its child is {child}"
        is_asked = any(step.kind == "cancel" for step in image.steps_of[child.run_id])
        if call.state == "canceled" and not (child.is_final or is_asked):
            yield f"{call}, and its child goes on: {child}"
    if len(calls) != sum(bool(step.child_run_id) for step in image.steps.values()):
        yield "two calls have one child"
    here = {child.run_id for child in children}
    for call in calls.values():
        # Whose parent is over may have been removed.
        is_needed = call.run_id in image.runs and not image.runs[call.run_id].is_final
        if is_needed and call.child_run_id not in here:
            yield f"{call} has no child"


# --- I11 -----------------------------------------------------------------------------------------


def check_atomic(life: Life, _: Ledger) -> Iterator[str]:
    """The journal holds whole turns, of bodies that replay; and no reader sees half of one."""
    for run in life.after.runs.values():
        if life.before.runs.get(run.run_id) != run or not run.is_final:
            for what in _half_turns(run, life.after.steps_of[run.run_id], life.after.epoch):
                yield f"{what}: {run} {life.after.steps_of[run.run_id]}"
    for step in life.after.steps.values():
        if step.run_id not in life.after.runs:
            yield f"{step} is of no run"
    for effect in life.effects:
        if isinstance(effect, Shown):
            recorded = life.after.runs.get(effect.run_id)
            if recorded is None or _rank(recorded.state) < _rank(effect.state):
                yield f"{effect}, but the journal has {recorded}"
            if bool(effect.open_steps) != (effect.state == "running"):
                yield f"half a turn was shown: {effect}"


def _rank(state: str) -> int:
    """Return how far a run is in that state: never further in what a reader saw."""
    return {"pending": 0, "running": 1}.get(state, 2)


def _half_turns(run: RunRow, steps: Sequence[StepRow], epoch: int) -> Iterator[str]:
    issued = [step for step in steps if step.number >= 0]  # Others are what was asked of the run.
    if [step.number for step in issued] != list(range(len(issued))):
        yield "numbers are not contiguous"
    positions = [step.position for step in steps if step.position is not None]
    if sorted(positions) != list(range(len(positions))):
        yield "positions are not contiguous"
    if run.epoch not in (None, epoch):
        yield "an owner that is gone works on it"
    if not _fits_state(run, issued):
        yield "its columns do not fit its state"
    has_outcome = (run.result is not None, run.error is not None)
    if has_outcome != (run.state == "completed", run.state == "failed"):
        yield "its outcome does not fit its state"
    for step in issued:
        yield from _half_steps(step)


def _fits_state(run: RunRow, steps: Sequence[StepRow]) -> bool:
    has_begun, has_ended = run.started_at_ms is not None, run.finished_at_ms is not None
    is_asleep, is_owned = run.wake_at_ms is not None, run.epoch is not None
    open_steps = [step for step in steps if not step.is_final]
    match run.state:
        case "pending":
            return not steps and not has_begun and not has_ended and is_asleep != is_owned
        case "running" | "canceling":
            waits = any(step.position is None and step.state != "canceled" for step in steps)
            is_left_alone = not (is_asleep or is_owned) and _needs_nobody(open_steps)
            is_called_for = is_asleep != is_owned or is_left_alone
            return waits and has_begun and not has_ended and is_called_for
        case "completed" | "failed" | "canceled":
            is_let_go = not (open_steps or is_asleep or is_owned)
            return (has_begun or run.state == "canceled") and has_ended and is_let_go
        case _:  # Above all: stuck, because its body did not replay.
            return False


def _needs_nobody(open_steps: Sequence[StepRow]) -> bool:
    """Return whether a run with these may be in nobody's memory, and due at no time."""
    waits = {"event", "workflow"}
    return bool(open_steps) and all(s.kind in waits and s.due_at_ms is None for s in open_steps)


def _half_steps(step: StepRow) -> Iterator[str]:
    has_ended, was_delivered = step.finished_at_ms is not None, step.position is not None
    if has_ended != step.is_final:
        yield f"step {step.number} has an end that does not fit its state"
    if was_delivered and step.state not in ("completed", "failed"):
        yield f"step {step.number} has a position that does not fit its state"
    # The outcome of a mutation is recorded before it is delivered, which a cancel may prevent.
    if step.state in ("completed", "failed") and not (was_delivered or step.kind == "mutation"):
        yield f"step {step.number} has an outcome that was not delivered"
    if step.result is not None and (step.state != "completed" or step.kind == "sleep"):
        yield f"step {step.number} has a result that does not fit its state"
    if step.state == "failed" and step.error is None:
        yield f"step {step.number} has failed without an error"
    if step.state == "running" and step.kind == "action" and step.attempts == 0:
        yield f"step {step.number} runs without an attempt"


# --- I12 -----------------------------------------------------------------------------------------


def check_live(image: Image, now_ms: int) -> Iterator[str]:
    """Once faults have stopped: what has not ended sleeps, and nothing is left that is due."""
    for run in image.runs.values():
        steps = [step for step in image.steps_of[run.run_id] if not step.is_final]
        is_asleep = all(step.kind == "sleep" and (step.due_at_ms or 0) > now_ms for step in steps)
        if not run.is_final and not (run.state == "running" and steps and is_asleep):
            yield f"nobody works on {run} {steps}"


CHECKS: Final[Mapping[str, Callable[[Life, Ledger], Iterator[str]]]] = {
    "I1": check_start,
    "I2": check_once,
    "I4": check_final,
    "I6": check_events,
    "I7": check_timers,
    "I9": check_pool,
    "I10": check_children,
    "I11": check_atomic,
}
"""The checkers of one life; ``check_live`` is for the end of all."""
