"""A run in memory: what its body does becomes a change, and after its commit, acts.

Rules:

- One turn, one change. Functions start, alarms are set and waiters hear of the end after it is
  committed, never before.
- Completions wait in a queue and are handed to the body one at a time.
- Nothing here waits: everything is a plain function, called from plain callbacks.
"""

from __future__ import annotations

import random
from collections import deque
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast, final

from msgspec.structs import replace

from durable.core.codec import safe_text
from durable.core.commands import UNSET, Raised, Returned, Stuck, Turn
from durable.core.errors import DurableError, NonDeterminismError
from durable.core.execution import Execution
from durable.core.failures import encode_exception
from durable.core.records import (
    RunRecord,
    RunState,
    StepKind,
    StepRecord,
    StepState,
    advance_run,
)
from durable.core.transitions import (
    back_off,
    begin_attempt,
    complete,
    fail,
    interrupt,
    interruption_error,
    withdraw,
)
from durable.journal.base import Change, Parked
from durable.runtime.attempt import Attempt
from durable.runtime.workpool import Failed, Job, JobState, Succeeded

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from durable.core.commands import Command
    from durable.runtime.clock import Alarm, Alarms, Clock
    from durable.runtime.instrumentation import EngineLog
    from durable.runtime.settings import Settings
    from durable.runtime.workpool import ActionWork, Workpool
    from durable.runtime.writer import Writer


STUCK_HINT = "The run goes on when the engine is opened with code that fits."
"""What a stuck run's error ends with: what can be done about it."""


class WorkflowSpec(Protocol):
    """A workflow's definition, as the runtime sees it."""

    def open(self, execution: Execution) -> Coroutine[Any, Any, object]:
        """Make the body's coroutine.

        Raises:
            Stuck: The recorded arguments do not fit the code any more.
        """
        ...

    def encode_result(self, value: object) -> str:
        """Return the body's result as JSON. Raises what the run is to fail with."""
        ...


class LiveHost(Protocol):
    """What a live run needs from the runner."""

    clock: Clock
    alarms: Alarms
    pool: Workpool
    writer: Writer
    settings: Settings
    log: EngineLog

    def schedule(self, live: LiveRun) -> None:
        """Have ``live.advance`` called soon, from a plain callback."""
        ...

    def park_after_ms(self) -> int:
        """Return how long a run may wait in memory."""
        ...

    def on_start_committed(self, live: LiveRun, taken_by: RunRecord | None) -> None:
        """The start is in the journal, or another run has its id."""
        ...

    def on_gone(self, live: LiveRun, wake_at_ms: int | None) -> None:
        """The run has left memory: it has ended, is parked, or is stuck."""
        ...


class Phase(Enum):
    """Where a live run stands."""

    OPENING = auto()
    REPLAYING = auto()
    STARTING = auto()
    LIVE = auto()
    LEAVING = auto()
    STUCK = auto()
    GONE = auto()


Effects: TypeAlias = "list[tuple[Callable[[Any], None], Any]]"
"""What is to be called once a change is committed: functions, each with its argument."""

PARKED_FOR_EVER = Parked(None)


@final
class LiveRun:
    """A run that this process works on.

    Args:
        record: The run's row, as recorded; for a new run, as it is to be.
        steps: Its recorded steps.
        is_start: Whether its row is still to be written.
        interrupted: The steps that ran when another process died, and their interruptions until
            then; ``None`` when this process takes the run up for the first time. Any other step
            that is recorded as running, and has not begun here, was never begun.
    """

    def __init__(
        self,
        host: LiveHost,
        spec: WorkflowSpec,
        record: RunRecord,
        steps: list[StepRecord],
        *,
        is_start: bool = False,
        interrupted: dict[int, int] | None = None,
    ) -> None:
        self._host = host
        self._spec = spec
        self.record = record
        self.phase = Phase.OPENING
        self._is_start = is_start
        if interrupted is None:
            interrupted = {
                step.number: step.interruptions for step in steps if step.state is StepState.RUNNING
            }
        self.interrupted = interrupted
        self._started_at_ms = record.started_at_ms or host.clock.now_ms()
        self._execution = Execution(record, steps, started_at_ms=self._started_at_ms)
        self._steps: dict[int, StepRecord] = {
            step.number: step for step in steps if step.position is None
        }
        self._jobs: dict[int, Job] = {}
        self._alarms: dict[int, Alarm] = {}
        self._queued: deque[Job] = deque()
        self._deliveries: deque[tuple[StepRecord, object]] = deque()

    def __repr__(self) -> str:
        return f"<LiveRun {self.record.run_id!r} {self.phase.name} open={len(self._steps)}>"

    @property
    def is_ready(self) -> bool:
        """Whether ``advance`` has something to do."""
        if self.phase is Phase.LIVE:
            return bool(self._deliveries)
        return self.phase in (Phase.OPENING, Phase.REPLAYING)

    def places(self) -> list[str]:
        """Return where the body waits: ``file:line`` of each of its tasks, the first ones."""
        return self._execution.places()

    # --- turns -----------------------------------------------------------------------------------

    def advance(self, deliveries_max: int) -> int:
        """Let the body go on by at most so many deliveries; return how many it was."""
        delivered = 1
        try:
            if self.phase is Phase.OPENING:
                self._open()
            elif self.phase is Phase.REPLAYING:
                delivered = deliveries_max
                if not self._execution.replay(deliveries_max):
                    self._resume()
            else:
                delivered = self._deliver(deliveries_max)
        except Stuck as exc:
            self._become_stuck(exc)
        except Exception as exc:  # noqa: BLE001  a user's decoding hook may raise anything
            self._become_stuck(exc)
        self._report_failures()
        return delivered

    def _report_failures(self) -> None:
        failures, self._execution.failures = self._execution.failures, []
        for context in failures:
            error = context.get("exception")
            self._host.log.warning(
                "durable.body_callback_failed",
                run_id=self.record.run_id,
                reason=str(context.get("message")),
                error=None if error is None else f"{type(error).__name__}: {safe_text(error)}",
            )

    def _open(self) -> None:
        turn = self._execution.begin(self._spec.open)
        if self._execution.is_replaying:
            self.phase = Phase.REPLAYING
            return
        self.phase = Phase.STARTING if self._is_start else Phase.LIVE
        self.record = self._running(self.record)
        self._commit_turn(turn, None, run=self.record)

    def _running(self, record: RunRecord) -> RunRecord:
        return replace(
            record,
            state=advance_run(record.state, RunState.RUNNING),
            started_at_ms=self._started_at_ms,
            error=None,
        )

    def _deliver(self, deliveries_max: int) -> int:
        count = 0
        while self._deliveries and count < deliveries_max and self.phase is Phase.LIVE:
            count += 1
            step, value = self._deliveries[0]
            if self._execution.is_open(step.number):
                step = replace(step, position=self._execution.next_position)
                turn = self._execution.deliver(step, value)
                self._deliveries.popleft()
                self._commit_turn(turn, step)
            else:
                self._deliveries.popleft()
        return count

    def _commit_turn(
        self, turn: Turn, delivered: StepRecord | None, run: RunRecord | None = None
    ) -> None:
        now_ms = self._host.clock.now_ms()
        change = Change(run_id=self.record.run_id, run=run, is_start=self._is_start)
        after: Effects = []
        if delivered is not None:
            self._drop_step(delivered.number, after)
            change.updated.append(delivered)
        for command in turn.withdrawn:
            self._withdraw(command, now_ms, change, after)
        for command in turn.issued:
            step = self._issue(command, now_ms, after)
            self._steps[step.number] = step
            change.issued.append(step)
        if turn.end is not None:
            self.record = change.run = self._ended(turn.end, now_ms)
            self.phase = Phase.LEAVING
            change.parked = PARKED_FOR_EVER
        else:
            self._park_if_idle(now_ms, change)
        self._submit(change, after)

    def _issue(self, command: Command, now_ms: int, after: Effects) -> StepRecord:
        step = StepRecord(
            number=command.number,
            key=command.key,
            kind=command.kind,
            name=command.name,
            args=command.args,
            due_at_ms=command.due_ms,
        )
        if command.kind is StepKind.SLEEP:
            after.append((self._set_alarm, step))
            return replace(step, state=StepState.RUNNING, started_at_ms=now_ms)
        if step.due_at_ms is not None and step.due_at_ms > now_ms:
            after.append((self._set_alarm, step))
            return step
        return self._offer(step, cast("ActionWork", command.work), now_ms, after)

    def _offer(self, step: StepRecord, work: ActionWork, now_ms: int, after: Effects) -> StepRecord:
        """Give the step's next attempt a slot, or a place in the queue; return its new record."""
        job = self._make_job(step, work)
        if self._host.pool.reserve():
            job.state = JobState.RESERVED
            after.append((self._host.pool.launch, job))
            return begin_attempt(step, now_ms)
        if self.phase is Phase.STARTING:
            # Only after the commit: a start whose id is taken must not have asked for slots.
            after.append((self._enqueue, job))
        else:
            self._queued.append(job)
        return step

    def _make_job(self, step: StepRecord, work: ActionWork) -> Job:
        attempt = Attempt(
            run_id=self.record.run_id,
            step_key=step.key,
            number=step.attempts + 1,
            interruptions=step.interruptions,
        )
        job = self._jobs[step.number] = Job(attempt, step.number, work, step.args)
        return job

    def _withdraw(self, command: Command, now_ms: int, change: Change, after: Effects) -> None:
        step = self._drop_step(command.number, after)
        if step is not None:
            change.updated.append(withdraw(step, now_ms))

    def _drop_step(self, number: int, after: Effects) -> StepRecord | None:
        """Forget a step that was delivered or withdrawn, and end what is still under way for it."""
        alarm = self._alarms.pop(number, None)
        if alarm is not None:
            self._host.alarms.cancel(alarm)
        job = self._jobs.pop(number, None)
        if job is not None:
            if job.state in (JobState.QUEUED, JobState.RESERVED):
                self._host.pool.withdraw(job)  # At once: a queued step never starts.
            else:
                after.append((self._host.pool.withdraw, job))
        return self._steps.pop(number, None)

    def _ended(self, end: Returned | Raised, now_ms: int) -> RunRecord:
        result: str | None = None
        error: BaseException | None = None
        if isinstance(end, Returned):
            try:
                result = self._spec.encode_result(end.value)
            except Exception as exc:  # noqa: BLE001  a user's decoding hook may raise anything
                error = exc
        else:
            error = end.error
        state = RunState.COMPLETED if error is None else RunState.FAILED
        return replace(
            self.record,
            state=advance_run(self.record.state, state),
            result=result,
            error=None if error is None else encode_exception(error),
            finished_at_ms=now_ms,
        )

    def _park_if_idle(self, now_ms: int, change: Change) -> None:
        """Let a run leave memory that has nothing to do for long, in the commit of its turn."""
        if self._deliveries:
            return
        dues = [step.due_at_ms for step in self._steps.values()]
        if self._jobs or not dues:
            return
        wake_at_ms = min(due for due in dues if due is not None)
        if wake_at_ms > now_ms + self._host.park_after_ms():
            self.phase = Phase.LEAVING
            change.parked = Parked(wake_at_ms)

    # --- commits ---------------------------------------------------------------------------------

    def _submit(self, change: Change, after: Effects) -> None:
        self._is_start = False
        self._host.writer.submit(change, partial(self._committed, change, after))
        self._enqueue_queued()

    def _committed(self, change: Change, after: Effects, taken_by: RunRecord | None) -> None:
        if self.phase is Phase.GONE:
            return
        if change.is_start:
            self._start_committed(taken_by)
            if taken_by is not None:
                return
        for act, subject in after:
            act(subject)
        if self.phase is Phase.LEAVING:
            if change.parked is not None:
                self._leave(change.parked.wake_at_ms)
        elif self.phase is Phase.STUCK:
            if not self._jobs:
                self._leave(None)
        elif self._deliveries:
            self._host.schedule(self)

    def _start_committed(self, taken_by: RunRecord | None) -> None:
        if taken_by is not None:
            self.drop()
        elif self.phase is Phase.STARTING:
            self.phase = Phase.LIVE
        self._host.on_start_committed(self, taken_by)

    def _enqueue_queued(self) -> None:
        while self._queued:
            self._enqueue(self._queued.popleft())

    def _enqueue(self, job: Job) -> None:
        if job.state is JobState.QUEUED:
            self._host.pool.enqueue(job)

    def _leave(self, wake_at_ms: int | None) -> None:
        self.drop()
        self._host.on_gone(self, wake_at_ms)

    def drop(self) -> None:
        """Drop the run from memory. Attempts that run go on, and keep their outcome."""
        self.phase = Phase.GONE
        for alarm in self._alarms.values():
            self._host.alarms.cancel(alarm)
        for job in self._jobs.values():
            if job.state in (JobState.QUEUED, JobState.RESERVED):
                self._host.pool.withdraw(job)
        self._alarms.clear()
        self._jobs.clear()
        self._deliveries.clear()
        self._execution.close()

    # --- steps -----------------------------------------------------------------------------------

    def _set_alarm(self, step: StepRecord) -> None:
        if step.number in self._steps:
            assert step.due_at_ms is not None
            self._alarms[step.number] = self._host.alarms.set(
                step.due_at_ms, partial(self._on_due, step.number)
            )

    def _on_due(self, number: int) -> None:
        del self._alarms[number]
        if self.phase is Phase.LEAVING:
            return  # It is found due when the run is claimed again.
        step = self._steps[number]
        now_ms = self._host.clock.now_ms()
        if step.kind is StepKind.SLEEP:
            self._settle(complete(step, None, now_ms))
            return
        command = self._execution.command(number)
        change = Change(run_id=self.record.run_id)
        after: Effects = []
        begun = self._offer(step, cast("ActionWork", command.work), now_ms, after)
        if begun is not step:
            self._steps[number] = begun
            change.updated.append(begun)
            self._submit(change, after)
        else:
            self._enqueue_queued()

    def on_slot(self, job: Job) -> None:
        """A queued attempt has its slot: record that it runs, and then run it."""
        step = begin_attempt(self._steps[job.number], self._host.clock.now_ms())
        self._steps[job.number] = step
        change = Change(run_id=self.record.run_id, updated=[step])
        self._submit(change, [(self._host.pool.launch, job)])

    def on_outcome(self, job: Job) -> None:
        """An attempt has ended: settle its step, or have it tried again later."""
        step = self._steps.get(job.number)
        if step is None or self.phase is Phase.GONE:
            return
        assert step.state is StepState.RUNNING
        now_ms = self._host.clock.now_ms()
        outcome = job.outcome
        if isinstance(outcome, Succeeded):
            self._settle(complete(step, outcome.text, now_ms), outcome.value)
            return
        assert isinstance(outcome, Failed)
        wait_ms = self._backoff_ms(job, outcome)
        if wait_ms is None:
            self._settle(fail(step, outcome.error, now_ms))
            return
        step = back_off(step, now_ms + wait_ms, outcome.error)
        del self._jobs[job.number]
        self._steps[job.number] = step
        after: Effects = [(self._host.pool.withdraw, job), (self._set_alarm, step)]
        change = Change(run_id=self.record.run_id, updated=[step])
        if self.phase is Phase.STUCK:
            del self._steps[job.number]
        else:
            self._park_if_idle(now_ms, change)
        self._submit(change, after)

    def _backoff_ms(self, job: Job, outcome: Failed) -> int | None:
        retry = job.work.retry
        if retry is None or outcome.is_final:
            return None
        return retry.backoff_ms(job.attempt.number, random.random())  # noqa: S311  no secret

    def _settle(self, step: StepRecord, value: object = UNSET) -> None:
        """Queue a step's outcome for the body; without a body to take it, record it as it is."""
        self._steps[step.number] = step
        if self.phase is Phase.STUCK:
            after: Effects = []
            self._drop_step(step.number, after)
            self._submit(Change(run_id=self.record.run_id, updated=[step]), after)
            return
        self._deliveries.append((step, value))
        self._host.schedule(self)

    # --- coming back, getting stuck --------------------------------------------------------------

    def _resume(self) -> None:
        """Replay has come to where the journal ends: take up what is open."""
        self.phase = Phase.LIVE
        now_ms = self._host.clock.now_ms()
        change = Change(run_id=self.record.run_id)
        after: Effects = []
        if self.record.state is RunState.STUCK:
            self.record = change.run = self._running(self.record)
        recorded = self._steps
        self._steps = {}
        for command in self._execution.open_commands():
            before = self._steps[command.number] = recorded[command.number]
            step = self._resume_step(before, command, now_ms, after)
            self._steps[command.number] = step
            if step is not before and not step.state.is_final:
                change.updated.append(step)
        settled = [step for step in self._steps.values() if step.state.is_final]
        settled.sort(key=lambda step: (step.finished_at_ms or 0, step.number))
        self._deliveries.extend((step, UNSET) for step in settled)
        self._park_if_idle(now_ms, change)
        self._submit(change, after)
        for job in [job for job in self._jobs.values() if job.outcome is not None]:
            self.on_outcome(job)

    def _resume_step(
        self, step: StepRecord, command: Command, now_ms: int, after: Effects
    ) -> StepRecord:
        if step.state.is_final:
            return step
        is_due = step.due_at_ms is None or step.due_at_ms <= now_ms
        if step.kind is StepKind.SLEEP or (step.state is StepState.PENDING and not is_due):
            after.append((self._set_alarm, step))
            return step
        work = cast("ActionWork", command.work)
        if step.state is StepState.RUNNING:
            job = self._host.pool.begun(self.record.run_id, step.number)
            if job is not None and job.attempt.number == step.attempts:
                self._jobs[step.number] = job  # It outlived an outage of the journal.
                return step
            if self.interrupted.get(step.number) == step.interruptions:
                step = replace(step, interruptions=step.interruptions + 1)
                error = interruption_error(
                    step,
                    self._host.settings.max_interruptions,
                    is_at_most_once=work.is_at_most_once,
                )
                if error is not None:
                    return fail(step, encode_exception(error), now_ms)
            step = interrupt(step)
        return self._offer(step, work, now_ms, after)

    def _become_stuck(self, exc: Exception) -> None:
        """The body cannot go on: no step of it begins any more, what runs is recorded."""
        self._host.log.error(
            "durable.run_stuck",
            run_id=self.record.run_id,
            workflow=self.record.name,
            reason=str(exc),
            exc_info=None if isinstance(exc, Stuck) else exc,
        )
        error = (
            NonDeterminismError(f"{exc} {STUCK_HINT}")
            if isinstance(exc, Stuck)
            else _unexpected(exc)
        )
        self.record = replace(
            self.record,
            state=advance_run(self.record.state, RunState.STUCK),
            error=encode_exception(error),
        )
        change = Change(run_id=self.record.run_id, run=self.record, is_start=self._is_start)
        after: Effects = []
        # Outcomes that were waiting for their delivery are kept for the code that can take them.
        if self.phase is Phase.LIVE:
            change.updated += [step for step, _ in self._deliveries]
        self.phase = Phase.STUCK
        self._deliveries.clear()
        self._execution.close()
        for number, step in list(self._steps.items()):
            job = self._jobs.get(number)
            if step.state.is_final or job is None or job.state is not JobState.RUNNING:
                self._drop_step(number, after)
        change.parked = PARKED_FOR_EVER
        self._submit(change, after)


def _unexpected(exc: Exception) -> DurableError:
    msg = (
        f"durable could not go on with the run: {type(exc).__name__}: {exc}. Either the run's rows "
        "in the journal are damaged, or this is a bug of durable: please report it."
    )
    error = DurableError(msg)
    error.__cause__ = exc
    return error
