"""The steps that one run's body waits for: their attempts, their alarms, and what becomes of them.

Rules:

- A step's record here is the one that the journal has, or gets by the change that is being made.
- An alarm is set, and a function starts, after the commit of what says so.
- A step that the body does not wait for any more is forgotten, and what is under way for it ended.
"""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, final

from durable.core.commands import UNSET
from durable.core.failures import encode_exception
from durable.core.records import StepKind, StepRecord, StepState
from durable.core.transitions import (
    back_off,
    begin_attempt,
    complete,
    count_interruption,
    fail,
    interrupt,
    interruption_error,
    start_timer,
    withdraw,
)
from durable.journal.base import Change
from durable.runtime.attempt import Attempt
from durable.runtime.job import (
    JOB_QUEUED,
    JOB_RESERVED,
    JOB_RUNNING,
    Failed,
    Job,
    Succeeded,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from durable.core.commands import Command
    from durable.runtime.clock import Alarm, Alarms, Clock
    from durable.runtime.job import ActionWork
    from durable.runtime.settings import Settings
    from durable.runtime.transactions import Transactions
    from durable.runtime.workpool import Workpool

SLEEP = StepKind.SLEEP
ACTION = StepKind.ACTION
RUNNING = StepState.RUNNING

Effects: TypeAlias = "list[tuple[Callable[[Any], None], Any]]"
"""What is to be called once a change is committed: functions, each with its argument."""


class StepsHost(Protocol):
    """What the open steps of all runs share."""

    clock: Clock
    alarms: Alarms
    pool: Workpool
    settings: Settings
    transactions: Transactions

    def launch(self, job: Job, /) -> None:
        """The pool's, as an effect."""
        ...

    def withdraw(self, job: Job, /) -> None:
        """The pool's, as an effect."""
        ...

    def drop(self, job: Job, /) -> None:
        """The pool's, as an effect."""
        ...


class StepsOwner(Protocol):
    """The run whose body waits for the steps."""

    @property
    def is_starting(self) -> bool:
        """Whether it is not known yet if the run's id is taken."""
        ...

    @property
    def is_leaving(self) -> bool:
        """Whether the run leaves memory: what is due is found when it is claimed again."""
        ...

    def work(self, number: int) -> Any:  # noqa: ANN401  an ActionWork, which the core does not know
        """Return what the open step of that number stands for."""
        ...

    def settle(self, step: StepRecord, value: object) -> None:
        """Take a step's outcome for the body, or record it as it is: ``value`` may be ``UNSET``."""
        ...

    def put_off(self, step: StepRecord, now_ms: int, after: Effects) -> None:
        """Record that a step's next attempt is due later."""
        ...

    def submit(self, change: Change, after: Effects) -> None:
        """Have a change committed, and then its effects happen."""
        ...


@final
class OpenSteps:
    """The steps that one run's body waits for.

    Args:
        recorded: What the journal has of those that were not delivered.

    Attributes:
        queued: Attempts that found no slot, until their change is submitted.
    """

    def __init__(
        self, run_id: str, host: StepsHost, owner: StepsOwner, recorded: Iterable[StepRecord]
    ) -> None:
        self._run_id = run_id
        self._host = host
        self._owner = owner
        self._records: dict[int, StepRecord] = {
            step.number: step for step in recorded if step.position is None and step.number >= 0
        }
        self._jobs: dict[int, Job] = {}
        self._alarms: dict[int, Alarm] = {}
        self.queued: list[Job] = []

    def __len__(self) -> int:
        return len(self._records)

    @property
    def has_jobs(self) -> bool:
        """Whether an attempt is queued or under way, or has an outcome that is not committed."""
        return bool(self._jobs)

    def wake_at_ms(self) -> int | None:
        """Return when the first alarm is due, if alarms are all that there is to wait for."""
        if self._jobs or not self._records:
            return None
        dues = [step.due_at_ms for step in self._records.values()]
        return min(due for due in dues if due is not None)

    # --- what the body does ----------------------------------------------------------------------

    def issue(self, command: Command, now_ms: int, after: Effects) -> StepRecord:
        """Take a new command; return its step's record."""
        step = StepRecord(
            number=command.number,
            key=command.key,
            kind=command.kind,
            name=command.name,
            args=command.args,
            due_at_ms=command.due_ms,
        )
        if command.kind is SLEEP:
            after.append((self._set_alarm, step))
            step = start_timer(step, now_ms)
        elif step.due_at_ms is not None and step.due_at_ms > now_ms:
            after.append((self._set_alarm, step))
        else:
            work: Any = command.work
            step = self._offer(step, work, now_ms, after)
        self._records[step.number] = step
        return step

    def withdraw(
        self, command: Command, now_ms: int, after: Effects, *, may_finish: bool
    ) -> StepRecord | None:
        """Forget a step that the body does not wait for any more; return its new record.

        A running function is cancelled, or ``may_finish``: its result is dropped.
        """
        step = self.forget(command.number, after, may_finish=may_finish)
        return None if step is None else withdraw(step, now_ms)

    def forget(self, number: int, after: Effects, *, may_finish: bool = False) -> StepRecord | None:
        """Forget a step that was delivered or withdrawn, and end what is still under way for it."""
        alarm = self._alarms.pop(number, None)
        if alarm is not None:
            self._host.alarms.cancel(alarm)
        job = self._jobs.pop(number, None)
        if job is not None:
            if job.state in (JOB_QUEUED, JOB_RESERVED) or not job.has_slot:
                # At once: a queued step never starts, and a mutation holds up its own withdrawal.
                self._host.pool.withdraw(job)
            else:
                after.append((self._host.drop if may_finish else self._host.withdraw, job))
        return self._records.pop(number, None)

    def withdraw_all(self, now_ms: int, after: Effects) -> list[StepRecord]:
        """Forget all steps, and let running functions finish; return the new records."""
        steps = list(self._records.values())
        for step in steps:
            self.forget(step.number, after, may_finish=True)
        return [withdraw(step, now_ms) for step in steps]

    def withdraw_jobs(self) -> None:
        """End all attempts; nothing of them is recorded."""
        for job in self._jobs.values():
            self._host.pool.withdraw(job)

    def keep_running_only(self, after: Effects) -> None:
        """Forget all but the attempts that run, whose outcomes are to be recorded."""
        for number, step in list(self._records.items()):
            job = self._jobs.get(number)
            if step.state.is_final or job is None or job.state is not JOB_RUNNING:
                self.forget(number, after)

    def clear(self) -> None:
        """Forget all, and the owner. Attempts that run go on, and keep their outcome."""
        for alarm in self._alarms.values():
            self._host.alarms.cancel(alarm)
        for job in self._jobs.values():
            job.owner = None
            if job.state in (JOB_QUEUED, JOB_RESERVED):
                self._host.pool.withdraw(job)
        self._alarms.clear()
        self._jobs.clear()
        self._records.clear()
        del self._owner  # They refer to each other: free them without the collector.

    # --- attempts --------------------------------------------------------------------------------

    def _offer(self, step: StepRecord, work: ActionWork, now_ms: int, after: Effects) -> StepRecord:
        """Give the step's next attempt a slot, or a place in the queue; return its new record."""
        job = self._make_job(step, work)
        if step.kind is not ACTION:
            job.has_slot = False
            if self._host.transactions.is_paused:
                return step
            after.append((self._host.transactions.transact, job))
            return begin_attempt(step, now_ms)
        if self._host.pool.reserve():
            job.state = JOB_RESERVED
            after.append((self._host.launch, job))
            return begin_attempt(step, now_ms)
        if self._owner.is_starting:
            # Only after the commit: a start whose id is taken must not have asked for slots.
            after.append((self._enqueue, job))
        else:
            self.queued.append(job)
        return step

    def _make_job(self, step: StepRecord, work: ActionWork) -> Job:
        attempt = Attempt(
            run_id=self._run_id,
            step_key=step.key,
            number=step.attempts + 1,
            interruptions=step.interruptions,
        )
        job = self._jobs[step.number] = Job(attempt, step.number, work, step.args, self)
        return job

    def enqueue_queued(self) -> None:
        """Let attempts that found no slot wait for one, now that their change is submitted."""
        queued, self.queued = self.queued, []
        for job in queued:
            self._enqueue(job)

    def _enqueue(self, job: Job) -> None:
        if job.state is JOB_QUEUED:
            self._host.pool.enqueue(job)

    def on_slot(self, job: Job) -> None:
        """A queued attempt has its slot: record that it runs, and then run it."""
        step = begin_attempt(self._records[job.number], self._host.clock.now_ms())
        self._records[job.number] = step
        change = Change(run_id=self._run_id, updated=[step])
        self._owner.submit(change, [(self._host.launch, job)])

    def on_outcome(self, job: Job) -> None:
        """An attempt has ended: settle its step, or have it tried again later."""
        step = self._records.get(job.number)
        if step is None:
            return
        assert step.state is RUNNING
        now_ms = self._host.clock.now_ms()
        outcome = job.outcome
        if isinstance(outcome, Succeeded):
            self._settle(complete(step, outcome.text, now_ms), outcome.value)
            return
        assert isinstance(outcome, Failed)
        wait_ms = _backoff_ms(job, outcome)
        if wait_ms is None:
            self._settle(fail(step, outcome.error, now_ms))
            return
        step = self._records[job.number] = back_off(step, now_ms + wait_ms, outcome.error)
        del self._jobs[job.number]
        self._owner.put_off(step, now_ms, [(self._host.withdraw, job), (self._set_alarm, step)])

    def outcome_change(self, job: Job) -> Change | None:
        """Return what the outcome of a mutation changes; ``None`` when nobody wants it."""
        step = self._records.get(job.number)
        if step is None or self._jobs.get(job.number) is not job:
            return None
        now_ms, outcome = self._host.clock.now_ms(), job.outcome
        if isinstance(outcome, Succeeded):
            step = complete(step, outcome.text, now_ms)
        else:
            assert isinstance(outcome, Failed)
            step = fail(step, outcome.error, now_ms)
        return Change(run_id=self._run_id, updated=[step])

    def on_recorded(self, job: Job, change: Change) -> None:
        """The outcome of a mutation is in the journal: hand it to the body."""
        if self._jobs.get(job.number) is job:
            value = job.outcome.value if isinstance(job.outcome, Succeeded) else UNSET
            self._settle(change.updated[0], value)

    def _settle(self, step: StepRecord, value: object = UNSET) -> None:
        self._records[step.number] = step
        self._owner.settle(step, value)

    # --- alarms ----------------------------------------------------------------------------------

    def _set_alarm(self, step: StepRecord) -> None:
        if step.number in self._records:
            assert step.due_at_ms is not None
            self._alarms[step.number] = self._host.alarms.set(
                step.due_at_ms, partial(self._on_due, step.number)
            )

    def _on_due(self, number: int) -> None:
        del self._alarms[number]
        if self._owner.is_leaving:
            return
        step = self._records[number]
        now_ms = self._host.clock.now_ms()
        if step.kind is SLEEP:
            self._settle(complete(step, None, now_ms))
            return
        after: Effects = []
        begun = self._offer(step, self._owner.work(number), now_ms, after)
        if begun is step:
            self.enqueue_queued()
            return
        self._records[number] = begun
        self._owner.submit(Change(run_id=self._run_id, updated=[begun]), after)

    # --- coming back -----------------------------------------------------------------------------

    def resume(
        self,
        commands: Iterable[Command],
        interrupted: dict[int, int],
        now_ms: int,
        after: Effects,
        *,
        is_ending: bool,
    ) -> tuple[list[StepRecord], list[StepRecord]]:
        """Take up, after a replay, the commands that the body waits for.

        Nothing begins where the body is about to be cancelled.

        Returns:
            The records that change, and the steps that are settled, in the order of delivery.
        """
        recorded, self._records = self._records, {}
        changed: list[StepRecord] = []
        settled: list[StepRecord] = []
        for command in commands:
            before = self._records[command.number] = recorded[command.number]
            if is_ending:
                self._take_up(before)
                step = before
            else:
                step = self._resume_step(before, command, interrupted, now_ms, after)
            self._records[command.number] = step
            if step.state.is_final:
                settled.append(step)
            elif step is not before:
                changed.append(step)
        settled.sort(key=lambda step: (step.finished_at_ms or 0, step.number))
        return changed, settled

    def _resume_step(
        self,
        step: StepRecord,
        command: Command,
        interrupted: dict[int, int],
        now_ms: int,
        after: Effects,
    ) -> StepRecord:
        if step.state.is_final:
            return step
        is_due = step.due_at_ms is None or step.due_at_ms <= now_ms
        if step.kind is SLEEP or (step.state is StepState.PENDING and not is_due):
            after.append((self._set_alarm, step))
            return step
        work: Any = command.work
        if step.state is RUNNING:
            if self._take_up(step):
                return step
            if interrupted.get(step.number) == step.interruptions:
                step = count_interruption(step)
                error = interruption_error(
                    step,
                    self._host.settings.max_interruptions,
                    is_at_most_once=work.is_at_most_once,
                )
                if error is not None:
                    return fail(step, encode_exception(error), now_ms)
            step = interrupt(step)
        return self._offer(step, work, now_ms, after)

    def _take_up(self, step: StepRecord) -> bool:
        """Take up the attempt of a step that outlived an outage of the journal, if there is one."""
        job = self._host.pool.begun(self._run_id, step.number)
        if job is None or job.attempt.number != step.attempts:
            return False
        self._jobs[step.number] = job
        job.owner = self
        return True

    def take_up_outcomes(self) -> None:
        """Settle what ended while the run was not in memory."""
        for job in [job for job in self._jobs.values() if job.outcome is not None]:
            self.on_outcome(job)


def _backoff_ms(job: Job, outcome: Failed) -> int | None:
    retry = job.work.retry
    if retry is None or outcome.is_final:
        return None
    return retry.backoff_ms(job.attempt.number, random.random())  # noqa: S311  no secret
