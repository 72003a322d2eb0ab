"""The steps that one run's body waits for: their attempts, their alarms, and what becomes of them.

Rules:

- A step's record here is the one that the journal has, or gets by the change that is being made.
- An alarm is set, and a function starts, after the commit of what says so.
- A step that the body does not wait for any more is forgotten, and what is under way for it ended.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, final

from msgspec.structs import replace

from durable.core.commands import UNSET
from durable.core.nesting import settle_by
from durable.core.records import StepKind, StepState
from durable.core.transitions import (
    complete,
    new_step,
    start_child,
    start_timer,
    time_out,
    withdraw,
)
from durable.journal.base import Change
from durable.runtime.attempts import Attempts, AttemptsHost
from durable.runtime.child_steps import ChildSteps
from durable.runtime.ids import new_run_id
from durable.runtime.mailbox import Mailbox, MailboxHost, MailboxOwner

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from durable.core.commands import Command
    from durable.core.records import RunRecord, StepRecord
    from durable.runtime.children import Children
    from durable.runtime.clock import Alarm
    from durable.runtime.job import Job
    from durable.runtime.writer import Effects

SLEEP = StepKind.SLEEP
WORKFLOW = StepKind.WORKFLOW
EVENT = StepKind.EVENT
RUNNING = StepState.RUNNING
PENDING = StepState.PENDING


class StepsHost(AttemptsHost, MailboxHost, Protocol):
    """What the open steps of all runs share."""

    children: Children

    @property
    def room(self) -> int:
        """How many more runs there may be in memory."""
        ...


class StepsOwner(MailboxOwner, Protocol):
    """The run whose body waits for the steps."""

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
        interrupted: See ``LiveRun``.

    Attributes:
        attempts: What is under way for them.
    """

    def __init__(
        self,
        run_id: str,
        host: StepsHost,
        owner: StepsOwner,
        recorded: Iterable[StepRecord],
        *,
        ended: Collection[RunRecord] = (),
        interrupted: Mapping[int, int] | None = None,
    ) -> None:
        self._run_id = run_id
        self._host = host
        self._owner = owner
        self._records: dict[int, StepRecord] = {
            step.number: step for step in recorded if step.position is None and step.number >= 0
        }
        self.attempts = Attempts(run_id, host, self, self._records, interrupted)
        self._alarms: dict[int, Alarm] = {}
        # Most runs have none of these.
        self._children = ChildSteps(run_id, host.children, ended) if ended else None
        self._mailbox: Mailbox | None = None

    def __len__(self) -> int:
        return len(self._records)

    @property
    def is_waiting(self) -> bool:
        """Whether alarms, children and events are all that there is to wait for, and have been."""
        if self.attempts.jobs:
            return False
        if self._mailbox is not None and self._mailbox.keeps_in_memory:
            return False
        return bool(self._records)

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
            step = replace(step, child_run_id=new_run_id(now_ms))
            child_work: Any = command.work
            step = self._child_steps().start(step, child_work, now_ms, change, after)
            if step.state is PENDING:
                after.append((self._set_alarm, step))
        elif command.kind is EVENT:
            step = self._begin_wait(step, command, now_ms, after)
        elif step.due_at_ms is not None and step.due_at_ms > now_ms:
            after.append((self._set_alarm, step))
        else:
            work: Any = command.work
            step = self.attempts.offer(step, work, now_ms, after)
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
        end = self._host.drop if may_finish else self._host.withdraw
        step = self.forget(command.number, after, end)
        return None if step is None else withdraw(step, now_ms)

    def forget(
        self, number: int, after: Effects, end: Callable[[Job], None] | None = None
    ) -> StepRecord | None:
        """Forget a step that was delivered or withdrawn, and end what is still under way for it.

        A running function is withdrawn, unless there is another ``end`` for it.
        """
        if self._alarms:
            self._cancel_alarm(number)
        self.attempts.forget(number, after, end or self._host.withdraw)
        if self._mailbox is not None:
            self._mailbox.forget(number)
        step = self._records.pop(number, None)
        if self._children is not None and step is not None and step.child_run_id is not None:
            self._children.end_wait(step.child_run_id)
        return step

    def withdraw_all(self, now_ms: int, after: Effects) -> list[StepRecord]:
        """Forget all steps, and let running functions finish; return the new records."""
        steps = list(self._records.values())
        for step in steps:
            if step.state is RUNNING and step.number not in self.attempts.jobs:
                # It was not resumed, and may have an attempt all the same.
                self.attempts.take_up(step)
            self.forget(step.number, after, self._host.drop)
        return [withdraw(step, now_ms) for step in steps]

    def keep_running_only(self, after: Effects) -> None:
        """Forget all but the attempts that run, whose outcomes are to be recorded."""
        for number, step in list(self._records.items()):
            if step.state.is_final or not self.attempts.is_running(number):
                self.forget(number, after)

    def clear(self) -> None:
        """Forget all, and the owner. Attempts that run go on, and keep their outcome."""
        for alarm in self._alarms.values():
            self._host.alarms.cancel(alarm)
        self._alarms.clear()
        self.attempts.clear()
        self._records.clear()
        self._children = None
        if self._mailbox is not None:
            self._mailbox.clear()
        del self._owner  # They refer to each other: free them without the collector.

    # --- what becomes of them --------------------------------------------------------------------

    def update(self, step: StepRecord, after: Effects) -> None:
        self._records[step.number] = step
        self._owner.submit(Change(run_id=self._run_id, updated=[step]), after)

    def settle(self, step: StepRecord, value: object) -> None:
        self._records[step.number] = step
        self._owner.settle(step, value)

    def put_off(self, step: StepRecord, now_ms: int, after: Effects) -> None:
        self._records[step.number] = step
        after.append((self._set_alarm, step))
        self._owner.put_off(step, now_ms, after)

    def note_child_end(self, child: RunRecord) -> None:
        """A child is over; the body is being replayed, and may wait for it."""
        self._child_steps().note_end(child)

    def end_child(self, child: RunRecord) -> None:
        """A child is over: its step is settled, if the body waits for it."""
        number = None if self._children is None else self._children.end_wait(child.run_id)
        if number is not None:
            self._cancel_alarm(number)
            step = settle_by(self._records[number], child, self._host.clock.now_ms())
            self.settle(step, UNSET)

    def _child_steps(self) -> ChildSteps:
        if self._children is None:
            self._children = ChildSteps(self._run_id, self._host.children)
        return self._children

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
            self.settle(complete(step, None, now_ms), UNSET)
            return
        if step.kind is WORKFLOW:
            if step.state.is_final:
                return
            begun = start_child(step, now_ms)
            if self._host.room > 0:
                self.update(begun, [])
            else:  # The child may need the room of its parent.
                self._records[number] = begun
                self._owner.put_off(begun, now_ms, [])
            return
        after: Effects = []
        begun = self.attempts.offer(step, self._owner.work(number), now_ms, after)
        if begun is step:
            self.attempts.enqueue_queued()
        else:
            self.update(begun, after)

    # --- events ----------------------------------------------------------------------------------

    def mailbox(self) -> Mailbox:
        """Return what was sent to the run, and the waits for it."""
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
        mailbox = self.mailbox()
        mailbox.wait(step, after)
        mailbox.announce(step)
        return step

    def _resume_wait(self, step: StepRecord, now_ms: int, after: Effects) -> StepRecord:
        mailbox, due_ms = self.mailbox(), step.due_at_ms
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

    # --- coming back -----------------------------------------------------------------------------

    def resume(
        self,
        commands: Iterable[Command],
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
        recorded = dict(self._records)
        self._records.clear()
        settled: list[StepRecord] = []
        for command in commands:
            if command.record is None:
                continue  # After a restart, it is issued anew.
            step = before = self._records[command.number] = recorded[command.number]
            if not before.state.is_final:
                step = self._resume(before, command, now_ms, change, after, is_ending=is_ending)
                self._records[command.number] = step
            if step.state.is_final:
                settled.append(step)
            elif step is not before:
                change.updated.append(step)
        settled.sort(key=self._order_of_delivery)
        if self._children is not None:
            self._children.on_resumed()
        return settled

    def _resume(
        self,
        step: StepRecord,
        command: Command,
        now_ms: int,
        change: Change,
        after: Effects,
        *,
        is_ending: bool,
    ) -> StepRecord:
        if step.kind is EVENT:
            return self._resume_wait(step, now_ms, after)
        if is_ending:
            self.attempts.take_up(step)
            return step
        work: Any = command.work
        if step.kind is WORKFLOW:
            step = self._child_steps().resume(step, work, now_ms, change, after)
            if step.state is PENDING:
                after.append((self._set_alarm, step))
            return step
        is_due = step.due_at_ms is None or step.due_at_ms <= now_ms
        if step.kind is SLEEP or (step.state is PENDING and not is_due):
            after.append((self._set_alarm, step))
            return step
        return self.attempts.resume(step, work, now_ms, after)

    def _order_of_delivery(self, step: StepRecord) -> tuple[int, int, int]:
        # Children that ended meanwhile are heard of now, in the order in which they ended.
        child_ended_at_ms = 0 if self._children is None else self._children.ended_at_ms(step)
        return step.finished_at_ms or 0, child_ended_at_ms, step.number
