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

from msgspec.structs import replace

from durable.core.commands import UNSET, Work
from durable.core.failures import encode_exception
from durable.core.nesting import is_child_started, settle_by
from durable.core.records import RunRecord, StepKind, StepRecord, StepState
from durable.core.transitions import (
    back_off,
    begin_attempt,
    complete,
    count_interruption,
    fail,
    interrupt,
    interruption_error,
    new_step,
    start_child,
    start_timer,
    time_out,
    withdraw,
)
from durable.journal.base import Change
from durable.runtime.attempt import Attempt
from durable.runtime.ids import new_run_id
from durable.runtime.job import (
    JOB_QUEUED,
    JOB_RESERVED,
    JOB_RUNNING,
    Failed,
    Job,
    Succeeded,
)
from durable.runtime.mailbox import Mailbox, MailboxHost, MailboxOwner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from durable.core.commands import Command
    from durable.core.records import EventRecord
    from durable.runtime.children import Children
    from durable.runtime.clock import Alarm
    from durable.runtime.job import ActionWork, JobState
    from durable.runtime.settings import Settings
    from durable.runtime.transactions import Transactions
    from durable.runtime.workpool import Workpool

SLEEP = StepKind.SLEEP
ACTION = StepKind.ACTION
WORKFLOW = StepKind.WORKFLOW
EVENT = StepKind.EVENT
RUNNING = StepState.RUNNING

Effects: TypeAlias = "list[tuple[Callable[[Any], None], Any]]"
"""What is to be called once a change is committed: functions, each with its argument."""


class ChildWork(Work, Protocol):
    """What the command of a workflow's call stands for."""

    name: str
    version: int


class StepsHost(MailboxHost, Protocol):
    """What the open steps of all runs share."""

    children: Children
    pool: Workpool
    settings: Settings
    transactions: Transactions

    @property
    def room(self) -> int:
        """How many more runs there may be in memory."""
        ...

    def launch(self, job: Job, /) -> None:
        """The pool's, as an effect."""
        ...

    def withdraw(self, job: Job, /) -> None:
        """The pool's, as an effect."""
        ...

    def drop(self, job: Job, /) -> None:
        """The pool's, as an effect."""
        ...


class StepsOwner(MailboxOwner, Protocol):
    """The run whose body waits for the steps."""

    @property
    def is_starting(self) -> bool:
        """Whether it is not known yet if the run's id is taken."""
        ...

    @property
    def is_leaving(self) -> bool:
        """Whether the run leaves memory: what is due is found when it is claimed again."""
        ...

    def put_off(self, step: StepRecord, now_ms: int, after: Effects) -> None:
        """Record that a step goes on later; leave memory, if there is nothing to do for long."""
        ...

    def submit(self, change: Change, after: Effects) -> None:
        """Have a change committed, and then its effects happen."""
        ...


@final
class OpenSteps:
    """The steps that one run's body waits for.

    Args:
        recorded: What the journal has of those that were not delivered.
        ended: The children that are over, of those that the body waits for.

    Attributes:
        queued: Attempts that found no slot, until their change is submitted.
    """

    def __init__(
        self,
        run_id: str,
        host: StepsHost,
        owner: StepsOwner,
        recorded: Iterable[StepRecord],
        ended: Iterable[RunRecord] = (),
    ) -> None:
        self._run_id = run_id
        self._host = host
        self._owner = owner
        self._records: dict[int, StepRecord] = {
            step.number: step for step in recorded if step.position is None and step.number >= 0
        }
        self._jobs: dict[int, Job] = {}
        self._alarms: dict[int, Alarm] = {}
        self._children: dict[str, int] = {}
        self._ended = {child.run_id: child for child in ended}
        self._mailbox: Mailbox | None = None
        self.queued: list[Job] = []

    def __len__(self) -> int:
        return len(self._records)

    @property
    def has_jobs(self) -> bool:
        """Whether an attempt is queued or under way, or has an outcome that is not committed."""
        return bool(self._jobs)

    @property
    def is_waiting(self) -> bool:
        """Whether alarms, children and events are all that there is to wait for, and have been."""
        if self._mailbox is not None and self._mailbox.keeps_in_memory:
            return False
        return not self._jobs and bool(self._records)

    @property
    def awaits_children(self) -> bool:
        """Whether any of them is a child that is not over."""
        return bool(self._children)

    def wake_at_ms(self) -> int | None:
        """Return when the first alarm is due."""
        dues = [step.due_at_ms for step in self._records.values()]
        return min((due for due in dues if due is not None), default=None)

    # --- what the body does ----------------------------------------------------------------------

    def issue(self, command: Command, now_ms: int, change: Change, after: Effects) -> StepRecord:
        """Take a new command, to be written by ``change``; return its step's record."""
        step = new_step(command)
        if command.kind is SLEEP:
            after.append((self._set_alarm, step))
            step = start_timer(step, now_ms)
        elif command.kind is WORKFLOW:
            child_work: Any = command.work
            step = replace(step, child_run_id=new_run_id(now_ms))
            step = self._start_child(step, child_work, now_ms, change, after)
        elif command.kind is EVENT:
            step = self._begin_wait(step, command, now_ms, after)
        elif step.due_at_ms is not None and step.due_at_ms > now_ms:
            after.append((self._set_alarm, step))
        else:
            work: Any = command.work
            step = self._offer(step, work, now_ms, after)
        self._records[step.number] = step
        return step

    def issue_anew(
        self, command: Command, now_ms: int, change: Change, after: Effects, *, is_ending: bool
    ) -> StepRecord:
        """Take a command that a replay has found to be new; return its step's record.

        It may be withdrawn by now; and nothing begins where the body is about to be cancelled.
        """
        if command.is_withdrawn:
            return withdraw(new_step(command), now_ms)
        if is_ending and command.kind not in (SLEEP, EVENT):
            step = self._records[command.number] = new_step(command)
            return step
        return self.issue(command, now_ms, change, after)

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
        self._cancel_alarm(number)
        job = self._jobs.pop(number, None)
        if job is not None:
            if job.state in (JOB_QUEUED, JOB_RESERVED) or not job.has_slot:
                # At once: a queued step never starts, and a mutation holds up its own withdrawal.
                self._host.pool.withdraw(job)
            else:
                after.append((self._host.drop if may_finish else self._host.withdraw, job))
        if self._mailbox is not None:
            self._mailbox.forget(number)
        step = self._records.pop(number, None)
        if step is not None and step.child_run_id is not None:
            self._children.pop(step.child_run_id, None)
        return step

    def withdraw_all(self, now_ms: int, after: Effects) -> list[StepRecord]:
        """Forget all steps, and let running functions finish; return the new records."""
        steps = list(self._records.values())
        for step in steps:
            if step.state is RUNNING and step.number not in self._jobs:
                self._take_up(step)  # It was not resumed, and may have an attempt all the same.
            self.forget(step.number, after, may_finish=True)
        return [withdraw(step, now_ms) for step in steps]

    def hold(self, state: JobState) -> None:
        """Let no attempt begin that is in that state; its step is going to be withdrawn."""
        for job in self._jobs.values():
            if job.state is state:
                self._host.pool.withdraw(job)

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
        self._children.clear()
        self._ended.clear()
        if self._mailbox is not None:
            self._mailbox.clear()
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
        step = _failed(step, job, outcome, now_ms, self._host.settings)
        if step.state.is_final:
            self._settle(step)
        else:
            self._put_off(job, step, now_ms)

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
            step = _failed(step, job, outcome, now_ms, self._host.settings)
        return Change(run_id=self._run_id, updated=[step])

    def on_recorded(self, job: Job, change: Change) -> None:
        """The outcome of a mutation is in the journal: hand it to the body, or try again later."""
        if self._jobs.get(job.number) is not job:
            return
        (step,) = change.updated
        if step.state.is_final:
            value = job.outcome.value if isinstance(job.outcome, Succeeded) else UNSET
            self._settle(step, value)
        else:
            self._put_off(job, step, self._host.clock.now_ms())

    def _put_off(self, job: Job, step: StepRecord, now_ms: int) -> None:
        """Have a step tried again when it is due."""
        self._records[job.number] = step
        del self._jobs[job.number]
        self._owner.put_off(step, now_ms, [(self._host.withdraw, job), (self._set_alarm, step)])

    def _settle(self, step: StepRecord, value: object = UNSET) -> None:
        self._records[step.number] = step
        self._owner.settle(step, value)

    # --- children --------------------------------------------------------------------------------

    def _start_child(
        self, step: StepRecord, work: ChildWork, now_ms: int, change: Change, after: Effects
    ) -> StepRecord:
        assert step.child_run_id is not None
        child = RunRecord(
            run_id=step.child_run_id,
            name=work.name,
            version=work.version,
            parent_id=self._run_id,
            args=step.args,
            created_at_ms=now_ms,
        )
        is_delayed = step.due_at_ms is not None and step.due_at_ms > now_ms
        due_ms = step.due_at_ms if is_delayed else None
        self._host.children.start(child, due_ms, change, after)
        return self._await_child(step, now_ms, after)

    def _await_child(self, step: StepRecord, now_ms: int, after: Effects) -> StepRecord:
        assert step.child_run_id is not None
        self._children[step.child_run_id] = step.number
        if step.state is RUNNING:
            return step
        if step.due_at_ms is not None and step.due_at_ms > now_ms:
            after.append((self._set_alarm, step))
            return step
        return start_child(step, now_ms)

    def _resume_child(
        self, step: StepRecord, command: Command, now_ms: int, change: Change, after: Effects
    ) -> StepRecord:
        if step.state.is_final:
            return step
        if not is_child_started(step):
            work: Any = command.work
            return self._start_child(step, work, now_ms, change, after)
        child = self._ended.get(step.child_run_id or "")
        if child is not None:
            return settle_by(step, child, now_ms)
        return self._await_child(step, now_ms, after)

    def note_end(self, child: RunRecord) -> None:
        """A child is over; the body is being replayed, and may wait for it."""
        self._ended[child.run_id] = child

    def end_child(self, child: RunRecord) -> None:
        """A child is over: its step is settled, if the body waits for it."""
        number = self._children.pop(child.run_id, None)
        if number is not None:
            self._cancel_alarm(number)
            step = self._records[number]
            self._settle(settle_by(step, child, self._host.clock.now_ms()))

    # --- alarms ----------------------------------------------------------------------------------

    def _cancel_alarm(self, number: int) -> None:
        alarm = self._alarms.pop(number, None)
        if alarm is not None:
            self._host.alarms.cancel(alarm)

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
        if step.kind is EVENT:
            self._owner.settle(time_out(step, now_ms), UNSET)  # Unless an event is there before.
            return
        if step.kind is SLEEP:
            self._settle(complete(step, None, now_ms))
            return
        if step.kind is WORKFLOW:
            if step.state.is_final:
                return
            begun = self._records[number] = start_child(step, now_ms)
            if self._host.room > 0:
                self._owner.submit(Change(run_id=self._run_id, updated=[begun]), [])
            else:  # The child may need the room of its parent.
                self._owner.put_off(begun, now_ms, [])
            return
        after: Effects = []
        begun = self._offer(step, self._owner.work(number), now_ms, after)
        if begun is step:
            self.enqueue_queued()
            return
        self._records[number] = begun
        self._owner.submit(Change(run_id=self._run_id, updated=[begun]), after)

    # --- events ----------------------------------------------------------------------------------

    def add_event(self, event: EventRecord) -> None:
        """An event was sent to the run, and is in the journal."""
        self._mail().add(event)

    def hear_events(self, sent: Iterable[EventRecord]) -> None:
        """Take what the journal has of events that were not consumed, in the order of sending."""
        self._mail().hear(sent)

    def on_consumed(self, consumed: tuple[tuple[str, int], ...]) -> None:
        """What a turn has consumed is committed."""
        self._mail().on_consumed(consumed)

    def _mail(self) -> Mailbox:
        if self._mailbox is None:
            self._mailbox = Mailbox(self._run_id, self._host, self._owner)
        return self._mailbox

    def _begin_wait(
        self, step: StepRecord, command: Command, now_ms: int, after: Effects
    ) -> StepRecord:
        work: Any = command.work
        step = replace(start_timer(step, now_ms), event_id=work.event_id)
        if step.due_at_ms is not None:
            after.append((self._set_alarm, step))
        mailbox = self._mail()
        mailbox.wait(step, after)
        mailbox.announce(step)
        return step

    def _resume_wait(self, step: StepRecord, now_ms: int, after: Effects) -> StepRecord:
        if step.state.is_final:
            return step
        mailbox, due_ms = self._mail(), step.due_at_ms
        if due_ms is not None:
            if due_ms <= now_ms and not mailbox.has_one_for(step, sent_until_ms=due_ms):
                return time_out(step, now_ms)
            after.append((self._set_alarm, step))
        mailbox.wait(step, after)
        return step

    def announce_events(self) -> None:
        """Have the waits delivered, after a replay, that an event is there for."""
        if self._mailbox is not None:
            self._mailbox.announce()

    def receive(self, step: StepRecord) -> tuple[StepRecord, object] | None:
        """Take the event that an announced wait gets: see ``Mailbox.receive``."""
        return self._mail().receive(step)

    def consumed(self, step: StepRecord) -> tuple[tuple[str, int], ...]:
        """Return the event that the delivery of that wait has consumed, if one."""
        return self._mail().consumed(step.number)

    # --- coming back -----------------------------------------------------------------------------

    def resume(
        self,
        commands: Iterable[Command],
        interrupted: dict[int, int],
        now_ms: int,
        change: Change,
        after: Effects,
        *,
        is_ending: bool,
    ) -> list[StepRecord]:
        """Take up, after a replay, the commands that the body waits for.

        Nothing begins where the body is about to be cancelled. What changes by it is to be written
        by ``change``.

        Returns:
            The steps that are settled, in the order of delivery.
        """
        recorded, self._records = self._records, {}
        settled: list[StepRecord] = []
        ended_at = {child.run_id: child.finished_at_ms or 0 for child in self._ended.values()}
        for command in commands:
            if command.record is None:
                continue  # After a restart, it is issued anew.
            before = self._records[command.number] = recorded[command.number]
            if before.kind is EVENT:
                step = self._resume_wait(before, now_ms, after)
            elif is_ending:
                self._take_up(before)
                step = before
            elif command.kind is WORKFLOW:
                step = self._resume_child(before, command, now_ms, change, after)
            else:
                step = self._resume_step(before, command, interrupted, now_ms, after)
            self._records[command.number] = step
            if step.state.is_final:
                settled.append(step)
            elif step is not before:
                change.updated.append(step)
        self._ended.clear()
        # Children that ended meanwhile are heard of now, in the order in which they ended.
        settled.sort(
            key=lambda step: (
                step.finished_at_ms or 0,
                ended_at.get(step.child_run_id or "", 0),
                step.number,
            )
        )
        return settled

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


def _failed(
    step: StepRecord, job: Job, outcome: Failed, now_ms: int, settings: Settings
) -> StepRecord:
    """Return the record of a step whose attempt has failed: it has too, or is tried again."""
    wait_ms = _backoff_ms(job, outcome, settings)
    if wait_ms is None:
        return fail(step, outcome.error, now_ms)
    return back_off(step, now_ms + wait_ms, outcome.error)


def _backoff_ms(job: Job, outcome: Failed, settings: Settings) -> int | None:
    retry = job.work.retry
    if retry is None or (outcome.is_final and not job.work.is_owed):
        return None
    draw = settings.draw or random.random
    return retry.backoff_ms(job.attempt.number, draw())
