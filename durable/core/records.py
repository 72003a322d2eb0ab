"""What the journal holds: runs and steps, their states, and which state may follow which.

Rules:

- Records are frozen. A change is a new record; the journal refuses one that leaves a final state.
- Times are whole milliseconds since the epoch, UTC. A ``position`` counts deliveries from 0, a
  step's ``number`` counts commands from 0, ``attempts`` counts tries from 1.
- Values (``args``, ``result``, ``context``) are JSON text, so that ``sqlite3`` can read them.
- A step is *open* until it has a final state, and *settled* from then on. Once its outcome was
  handed to the body it has a ``position``; a settled step without one waits to be delivered.
- Records hold scalars only, so the garbage collector need not look at them (``gc=False``).
- What else is handed to a body, such as a cancel, or is known of it, is a record among the steps,
  settled from the first, whose number is negative. It is no step to users.
- Names and tags are stored: never rename one, never reuse one.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable


@final
class RunState(StrEnum):
    """Where a run stands."""

    PENDING = "pending"
    RUNNING = "running"
    CANCELING = "canceling"
    STUCK = "stuck"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def is_final(self) -> bool:
        """Whether the run is over: such a state is written once."""
        return not RUN_TRANSITIONS[self]


@final
class StepState(StrEnum):
    """Where a step stands. ``pending`` is queued, delayed or backing off."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def is_final(self) -> bool:
        """Whether the step is settled: such a state is written once."""
        return not STEP_TRANSITIONS[self]


@final
class StepKind(StrEnum):
    """What a step does."""

    ACTION = "action"
    QUERY = "query"
    MUTATION = "mutation"
    WORKFLOW = "workflow"
    SLEEP = "sleep"
    EVENT = "event"
    CANCEL = "cancel"
    """No step: that the run is to end."""
    CLEANUP = "cleanup"
    """No step: that the run is to be removed."""
    PATCH = "patch"
    """No step: that the code was changed when the body first came to that point."""


# By itself: before Python 3.12 each mention of a member by its class is a slow lookup.
CANCEL = StepKind.CANCEL

# An empty set is a final state. A state may always be kept.
RUN_TRANSITIONS: dict[RunState, frozenset[RunState]] = {
    RunState.PENDING: frozenset(
        {
            RunState.RUNNING,
            RunState.STUCK,
            RunState.COMPLETED,
            RunState.FAILED,
            RunState.CANCELED,
        }
    ),
    RunState.RUNNING: frozenset(
        {
            RunState.CANCELING,
            RunState.STUCK,
            RunState.COMPLETED,
            RunState.FAILED,
            RunState.CANCELED,
        }
    ),
    RunState.CANCELING: frozenset(
        {RunState.STUCK, RunState.COMPLETED, RunState.FAILED, RunState.CANCELED}
    ),
    RunState.STUCK: frozenset(
        {
            RunState.PENDING,
            RunState.RUNNING,
            RunState.CANCELING,
            RunState.COMPLETED,
            RunState.FAILED,
            RunState.CANCELED,
        }
    ),
    RunState.COMPLETED: frozenset(),
    RunState.FAILED: frozenset(),
    RunState.CANCELED: frozenset(),
}

STEP_TRANSITIONS: dict[StepState, frozenset[StepState]] = {
    StepState.PENDING: frozenset(
        {StepState.RUNNING, StepState.COMPLETED, StepState.FAILED, StepState.CANCELED}
    ),
    StepState.RUNNING: frozenset(
        {StepState.PENDING, StepState.COMPLETED, StepState.FAILED, StepState.CANCELED}
    ),
    StepState.COMPLETED: frozenset(),
    StepState.FAILED: frozenset(),
    StepState.CANCELED: frozenset(),
}


def advance_run(before: RunState, after: RunState) -> RunState:
    """Return ``after``, or raise ``ValueError`` when it may not follow ``before``."""
    if after is before or after in RUN_TRANSITIONS[before]:
        return after
    msg = f"a run that is {before} cannot become {after}"
    raise ValueError(msg)


def advance_step(before: StepState, after: StepState) -> StepState:
    """Return ``after``, or raise ``ValueError`` when it may not follow ``before``."""
    if after is before or after in STEP_TRANSITIONS[before]:
        return after
    msg = f"a step that is {before} cannot become {after}"
    raise ValueError(msg)


@final
class ErrorInfo(msgspec.Struct, frozen=True):
    """What is known of an exception.

    Attributes:
        type_name: The class: the bare name of a builtin, else ``module.QualName``.
        message: Its text.
        traceback: Where it was raised, as Python prints it; empty when there is none.
    """

    type_name: str
    message: str
    traceback: str = ""


class StoredError(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An exception as the journal holds it: its description, and what rebuilds it.

    Attributes:
        args: The exception's ``args``, as plain JSON values; ``None`` when they have no JSON.
        attributes: Its ``__dict__``, as plain JSON values.
    """

    type_name: str
    message: str
    traceback: str = ""
    args: list[object] | None = None
    attributes: dict[str, object] = {}

    @property
    def info(self) -> ErrorInfo:
        """The part that users see."""
        return ErrorInfo(self.type_name, self.message, self.traceback)


class RunRecord(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """One run.

    Attributes:
        args: The arguments that the caller wrote: a JSON object from name to value, in canonical
            form.
        result: The body's result as JSON, when it completed.
        error: A ``StoredError`` as JSON, when it failed or is stuck.
        context: The caller's own value as JSON.
        started_at_ms: When the body's first turn was committed: what the body's first ``now`` is.
        restarted_from: The number of the step that the run is to go on from, after a restart;
            ``None`` once its body has.
        on_complete: What is owed its end, as JSON: a ``Callback``.
        callback_id: The run that pays it, once the run is over.
        begun_with: The versions that its body was begun with, as the journal numbers them.
        callback_error: Why that did not succeed the last time: read of it, never written.
    """

    run_id: str
    name: str
    version: int = 0
    state: RunState = RunState.PENDING
    generation: int = 0
    parent_id: str | None = None
    args: str = "{}"
    result: str | None = None
    error: str | None = None
    context: str | None = None
    created_at_ms: int = 0
    started_at_ms: int | None = None
    finished_at_ms: int | None = None
    restarted_from: int | None = None
    on_complete: str | None = None
    callback_id: str | None = None
    begun_with: int | None = None
    callback_error: str | None = None


class StepRecord(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """One step of a run.

    Attributes:
        number: The order of issue in the run, from 0.
        key: The body's task that issued it and its ordinal in that task: ``0.2:3``.
        args: A JSON object from parameter name to value, in canonical form.
        attempts: How many attempts have begun; an interrupted one counts once.
        interruptions: How often the process died during an attempt.
        due_at_ms: When a timer fires, a delayed step starts, or the next attempt is made.
        position: The place of its outcome among the deliveries to the body, from 0; ``None``
            while it was not handed over.
        result: Its value as JSON, when it completed.
        error: A ``StoredError`` as JSON: why it failed, or why the last attempt did.
    """

    number: int
    key: str
    kind: StepKind
    name: str
    args: str = "{}"
    state: StepState = StepState.PENDING
    attempts: int = 0
    interruptions: int = 0
    due_at_ms: int | None = None
    started_at_ms: int | None = None
    position: int | None = None
    finished_at_ms: int | None = None
    result: str | None = None
    error: str | None = None
    child_run_id: str | None = None
    event_id: str | None = None


class EventRecord(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """One event of a run.

    Attributes:
        sent_at_ms: ``None`` while it is only created.
        value: What was sent, as JSON; ``None`` when it is an error.
        error: A ``StoredError`` as JSON: what the wait raises.
        step_number: The wait that consumed it; ``None`` while none has.
        seq: The order of sending, as the journal gives it.
    """

    event_id: str
    run_id: str
    name: str
    sent_at_ms: int | None = None
    value: str | None = None
    error: str | None = None
    step_number: int | None = None
    seq: int = 0


TIMEOUT_KEY = "timeout"
"""The key of the timer that bounds a run. The body's own commands have keys of another form."""

CANCEL_NUMBER = -1
CLEANUP_NUMBER = -1_000_000_000
"""Below all patches."""
PATCH_NUMBER_MAX = -2
"""Patches are numbered downwards from here."""


def cancel_record(now_ms: int, *, interrupt: bool) -> StepRecord:
    """Return the record that a run is to end; with ``interrupt`` its running actions, too."""
    return StepRecord(
        number=CANCEL_NUMBER,
        key="cancel",
        kind=StepKind.CANCEL,
        name="cancel",
        args='{"interrupt":true}' if interrupt else "{}",
        state=StepState.COMPLETED,
        finished_at_ms=now_ms,
    )


def recorded_cancel(steps: Iterable[StepRecord]) -> StepRecord | None:
    """Return what asks a run to end, if anything does, of all that the journal has of it."""
    for step in steps:
        if step.kind is CANCEL:
            return step
    return None


def cleanup_record(now_ms: int) -> StepRecord:
    """Return the record that a run is to be removed, which no body is ever handed."""
    return StepRecord(
        number=CLEANUP_NUMBER,
        key="cleanup",
        kind=StepKind.CLEANUP,
        name="cleanup",
        state=StepState.COMPLETED,
        finished_at_ms=now_ms,
    )


def patch_record(change_id: str, patches_count: int, now_ms: int) -> StepRecord:
    """Return the record that a body has changed code; so many patches are recorded before it."""
    return StepRecord(
        number=PATCH_NUMBER_MAX - patches_count,
        key=f"patch:{change_id}",
        kind=StepKind.PATCH,
        name=change_id,
        state=StepState.COMPLETED,
        finished_at_ms=now_ms,
    )
