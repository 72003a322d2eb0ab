"""A run in memory: what its body does becomes a change, and after its commit, acts.

Rules:

- One turn, one change. Functions start, alarms are set and waiters hear of the end after it is
  committed, never before.
- Completions wait in a queue and are handed to the body one at a time.
- Nothing here waits: everything is a plain function, called from plain callbacks.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Protocol, final

from msgspec.structs import replace

from durable.core.callbacks import ON_COMPLETE
from durable.core.commands import UNSET
from durable.core.ending import end_by
from durable.core.execution import Execution
from durable.core.records import (
    TIMEOUT_KEY,
    RunRecord,
    RunState,
    StepKind,
    StepRecord,
    cancel_record,
    recorded_cancel,
)
from durable.core.transitions import (
    begin_cancel,
    begin_run,
    cancel_run,
    continue_run,
    make_stuck,
    withdraw,
)
from durable.core.verifying import Verifier
from durable.journal.base import Change, Parked
from durable.runtime.attempts import Attempts
from durable.runtime.cancel import Cancel
from durable.runtime.open_steps import EVENT, OpenSteps, StepsHost
from durable.runtime.reporting import report_failures, report_stuck

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from durable.core.commands import Raised, Returned, Turn
    from durable.core.execution import WorkflowSpec
    from durable.core.host import Guard
    from durable.core.records import EventRecord
    from durable.core.versions import VersionTable
    from durable.runtime.instrumentation import EngineLog
    from durable.runtime.job import JobState
    from durable.runtime.writer import Effects, Writer


class LiveHost(StepsHost, Protocol):
    """What a live run needs from the runner."""

    writer: Writer
    log: EngineLog
    guard: Guard | None

    @property
    def versions(self) -> VersionTable:
        """The versions that runs were begun with, and this process's."""
        ...

    def schedule(self, live: LiveRun, /) -> None:
        """Have ``live.advance`` called soon, from a plain callback."""
        ...

    def on_start_committed(self, live: LiveRun, taken_by: RunRecord | None) -> None:
        """The start is in the journal, or another run has its id."""
        ...

    def on_canceled(self, live: LiveRun, /) -> None:
        """That the run is to end is in the journal."""
        ...

    def on_gone(self, live: LiveRun, wake_at_ms: int | None) -> None:
        """The run has left memory: it has ended, is parked, or is stuck."""
        ...


class Phase(Enum):
    """Where a live run stands."""

    NEW = auto()
    """Its row is still to be written."""
    OPENING = auto()
    REPLAYING = auto()
    STARTING = auto()
    LIVE = auto()
    LEAVING = auto()
    STUCK = auto()
    GONE = auto()


# By themselves: before Python 3.12 each mention of a member by its class is a slow lookup.
NEW, OPENING, REPLAYING, STARTING, LIVE, LEAVING, STUCK, GONE = Phase
CANCEL = StepKind.CANCEL


@final
class LiveRun:
    """A run that this process works on.

    Args:
        record: The run's row, as recorded; for a new run, as it is to be.
        steps: Its recorded steps.
        is_start: Whether its row is still to be written.
        interrupted: Which of its steps ran when another process died, and their interruptions until
            then; ``None`` when this process takes the run up for the first time.
        ended: Its children that are over, of those that it waits for.
        events: What was sent to it and not consumed, in the order of sending.

    Attributes:
        is_wanted: Something was sent while it was about to leave memory: it is due again.
        is_wanted_again: Others asked something of it that it could not hear: it is to be made due.
    """

    def __init__(
        self,
        host: LiveHost,
        spec: WorkflowSpec,
        record: RunRecord,
        steps: list[StepRecord],
        *,
        is_start: bool = False,
        interrupted: Mapping[int, int] | None = None,
        ended: Collection[RunRecord] = (),
        events: Iterable[EventRecord] = (),
    ) -> None:
        self._host = host
        self._spec = spec
        self.record = record
        self.phase = NEW if is_start else OPENING
        self._cancel = Cancel(steps)
        self._started_at_ms = record.started_at_ms or host.clock.now_ms()
        is_verified = host.settings.verify_replay
        self._verifier = Verifier(steps, spec, host.guard) if is_verified else None
        self._execution = Execution(
            record, steps, started_at_ms=self._started_at_ms, guard=host.guard
        )
        self._steps = OpenSteps(
            record.run_id, host, self, steps, ended=ended, interrupted=interrupted
        )
        self._attempts = self._steps.attempts
        self._deliveries: deque[tuple[StepRecord, object]] = deque()
        # The change by which it leaves memory.
        self._parking: Change | None = None
        self.is_wanted_again = False
        self.is_wanted = False
        for event in events:
            self._steps.mailbox().add(event)

    def __repr__(self) -> str:
        return f"<LiveRun {self.record.run_id!r} {self.phase.name} open={len(self._steps)}>"

    @property
    def is_ready(self) -> bool:
        """Whether ``advance`` has something to do."""
        if self.phase is LIVE:
            return bool(self._deliveries)
        return self.phase in (NEW, OPENING, REPLAYING)

    @property
    def is_told(self) -> bool:
        """Whether its body was told that the run is to end."""
        return self._cancel.is_told

    @property
    def is_cancel_pending(self) -> bool:
        """Whether its body is to be told that the run is to end, and was not yet."""
        return self._cancel.pending is not None

    @property
    def goes_on(self) -> bool:
        """Whether it is known not to be over: what is sent to it now is kept."""
        return self.phase in (NEW, OPENING, REPLAYING, LIVE)

    @property
    def interrupted(self) -> Mapping[int, int]:
        """The steps that ran when another process died, and their interruptions until then."""
        return self._attempts.interrupted

    def places(self) -> list[str]:
        """Return where the body waits: ``file:line`` of each of its tasks, the first ones."""
        return self._execution.places()

    # --- the owner of its open steps -------------------------------------------------------------

    @property
    def is_leaving(self) -> bool:
        return self.phase is LEAVING

    def work(self, number: int) -> Any:  # noqa: ANN401  what the core does not know
        return self._execution.command(number).work

    def settle(self, step: StepRecord, value: object) -> None:
        if self.phase is STUCK:
            # There is no body to take it: it is recorded for the code that can.
            after: Effects = []
            self._steps.forget(step.number, after)
            self.submit(Change(run_id=self.record.run_id, updated=[step]), after)
            return
        self._deliveries.append((step, value))
        self._host.schedule(self)

    def put_off(self, step: StepRecord, now_ms: int, after: Effects) -> None:
        change = Change(run_id=self.record.run_id, updated=[step])
        if self.phase is STUCK:
            self._steps.forget(step.number, after)
        else:
            self._park_if_idle(now_ms, change)
        self.submit(change, after)

    def cancel(self, asked: StepRecord) -> bool:
        """Have the body cancelled; return whether it can be: the run is not about to leave.

        ``LiveHost.on_canceled`` is called when that is in the journal.
        """
        if self.phase in (LEAVING, STUCK, GONE):
            return False
        if self._cancel.is_told:
            self.submit(Change(run_id=self.record.run_id), [(self._host.on_canceled, self)])
        elif self._cancel.ask(asked) and self.phase is LIVE:
            self._deliveries.append((asked, UNSET))
            self._host.schedule(self)
        return True

    def hear(
        self, steps: list[StepRecord], ended: Iterable[RunRecord], events: Iterable[EventRecord]
    ) -> None:
        """Take what others have asked of the run and sent to it, as a claim has found it.

        Where it cannot, because it is about to leave memory, or is not known to be the run that
        has its id, it is claimed again after that.

        Args:
            steps: All that the journal has of them.
            ended: Its children that are over, of those that it waits for.
            events: What was sent to it and not consumed, in the order of sending.
        """
        # The change that parks it is not under way: it would have been committed before the claim,
        # which has taken the wake time. What was asked stays in the journal.
        parking = self._parking
        if self.phase is LEAVING:
            assert parking is not None
            if not self.record.state.is_final:
                parking.parked = Parked(0)
            return
        if self.phase is GONE:
            return
        if self.phase in (NEW, STARTING, STUCK):
            self.is_wanted_again = True
            if parking is not None:
                parking.parked = None
            return
        for child in ended:
            self.on_child_ended(child)
        if events:
            self._steps.mailbox().hear(events)
        asked = recorded_cancel(steps)
        if asked is not None and not self.is_cancel_pending:
            self.cancel_recorded(asked)

    def cancel_recorded(self, asked: StepRecord) -> None:
        """Have the body cancelled; that it is to be is committed before what follows from it."""
        if not self._cancel.is_told:
            self._cancel.is_recorded = True
            self.cancel(asked)

    def take_event(self, event: EventRecord) -> None:
        """Something was sent to the run, and is in the journal."""
        if self.goes_on:
            self._steps.mailbox().add(event)
        else:
            self.is_wanted = True

    @property
    def is_about_to_leave(self) -> bool:
        """Whether it leaves memory by itself, after the next commit."""
        return self.phase in (LEAVING, GONE)

    @property
    def is_set_aside(self) -> bool:
        """Whether it is recorded as stuck, and only waits for attempts that run."""
        return self.phase is STUCK and self._parking is None

    def hold(self, state: JobState) -> None:
        """Let no attempt begin that is in that state: the run is going to be cancelled."""
        self._attempts.hold(state)

    def abandon(self) -> None:
        """Stop all that is under way for the run, which is to be removed."""
        assert not self.is_about_to_leave
        self._attempts.withdraw_all()
        self.drop()

    def on_child_ended(self, child: RunRecord) -> bool:
        """Take a child's end; return whether it is known: the run is not about to be parked."""
        if self.phase is LIVE:
            self._steps.end_child(child)
        elif self.phase in (OPENING, REPLAYING):
            self._steps.note_child_end(child)
        return self.phase is not LEAVING or self.record.state.is_final

    def park_if_idle(self) -> None:
        """Leave memory, if there is nothing to do for long."""
        if self.phase is LIVE:
            change = Change(run_id=self.record.run_id)
            self._park_if_idle(self._host.clock.now_ms(), change)
            if change.parked is not None:
                self.submit(change, [])

    def submit(self, change: Change, after: Effects) -> None:
        self._host.writer.submit(change, self, after)
        if self._attempts.queued:
            if self.phase is STARTING:
                # Only after the commit: a start whose id is taken must not have asked for slots.
                after.append((Attempts.enqueue_queued, self._attempts))
            else:
                self._attempts.enqueue_queued()

    # --- turns -----------------------------------------------------------------------------------

    def advance(self, deliveries_max: int) -> None:
        """Let the body go on by at most so many deliveries, if there is anything to do."""
        try:
            if self.phase is LIVE:
                self._deliver(deliveries_max)
            elif self.phase is REPLAYING:
                if not self._execution.replay(deliveries_max):
                    self._resume()
            elif self.phase in (NEW, OPENING):
                self._open()
        except Exception as exc:  # noqa: BLE001  a user's decoding hook may raise anything
            self._become_stuck(exc)
        if self._execution.failures:
            failures, self._execution.failures = self._execution.failures, ()
            report_failures(self._host.log, self.record.run_id, failures)

    def _open(self) -> None:
        if self._cancel.pending is not None and self.record.started_at_ms is None:
            self._end_canceled()
            return
        turn = self._execution.begin(self._spec.open)
        if self._execution.is_replaying:
            self.phase = REPLAYING
            return
        if self._verifier is not None:
            self._verifier.check(self._execution, None, turn, self._started_at_ms)
        self.phase = STARTING if self.phase is NEW else LIVE
        self.record = begin_run(self.record, self._started_at_ms, self._host.versions.present)
        self._commit_turn(turn, None, run=self.record)

    def _deliver(self, deliveries_max: int) -> None:
        count = 0
        while self._deliveries and count < deliveries_max and self.phase is LIVE:
            count += 1
            step, value = self._deliveries[0]
            if step.number < 0 or self._execution.is_open(step.number):
                if step.kind is EVENT and step.finished_at_ms is None:
                    received = self._steps.mailbox().receive(step)
                    if received is None:
                        self._drop_delivery()
                        continue
                    step, value = received
                step = replace(step, position=self._execution.next_position)
                if step.number < 0 or step.key == TIMEOUT_KEY:
                    # A restart has to know what the body did because of it.
                    step = replace(step, result=str(self._execution.next_number))
                turn = self._execution.deliver(step, value)
                if self._verifier is not None:
                    self._verifier.check(self._execution, step, turn, self._started_at_ms)
                self._deliveries.popleft()
                self._commit_turn(turn, step)
            else:
                self._drop_delivery()

    def _drop_delivery(self) -> None:
        """The body does not want the next outcome: it may be all that the run is in memory for."""
        self._deliveries.popleft()
        self.park_if_idle()

    def _commit_turn(
        self, turn: Turn, delivered: StepRecord | None, run: RunRecord | None = None
    ) -> None:
        now_ms = self._host.clock.now_ms()
        change = Change(run_id=self.record.run_id, run=run, is_start=self.phase is STARTING)
        after: Effects = []
        may_finish = interrupt = False
        if delivered is not None and delivered.kind is CANCEL:
            may_finish = delivered.args == "{}"
            interrupt = not may_finish
            self._record_cancel(delivered, change, after)
        elif delivered is not None:
            self._steps.forget(delivered.number, after)
            change.updated.append(delivered)
            if delivered.kind is EVENT:
                mailbox = self._steps.mailbox()
                change.consumed = mailbox.consumed(delivered.number)
                after.append((mailbox.on_consumed, change.consumed))
        for command in turn.withdrawn:
            step = self._steps.withdraw(command, now_ms, after, may_finish=may_finish)
            if step is not None:
                change.updated.append(step)
        if turn.withdrawn:
            asked = cancel_record(now_ms, interrupt=interrupt)
            self._host.children.cancel(change.updated, asked, change, after)
        change.issued += turn.patches
        for command in turn.issued:
            change.issued.append(self._steps.issue(command, now_ms, change, after))
        if turn.end is not None:
            self._end(turn.end, change, now_ms, after)
        else:
            self._park_if_idle(now_ms, change)
        self.submit(change, after)

    def _record_cancel(self, delivered: StepRecord, change: Change, after: Effects) -> None:
        self._cancel.tell(delivered, change)
        self.record = change.run = begin_cancel(self.record)
        after.append((self._host.on_canceled, self))

    def _end_canceled(self) -> None:
        """End a run whose body cannot be told of its cancel: it has not begun, or is stuck."""
        change = self._new_change()
        asked = self._cancel.settle(change)
        now_ms = self._host.clock.now_ms()
        after: Effects = [(self._host.on_canceled, self)]
        change.updated += self._steps.withdraw_all(now_ms, after)
        self._host.children.cancel(change.updated, asked, change, after)
        self._finish(cancel_run(self.record, now_ms), change, now_ms, after)
        self.submit(change, after)

    def _new_change(self) -> Change:
        """Return the change of a run whose row may not be written yet."""
        return Change(run_id=self.record.run_id, is_start=self.phase in (NEW, STARTING))

    def _end(self, end: Returned | Raised, change: Change, now_ms: int, after: Effects) -> None:
        """Have the run ended by ``change``, as its body has."""
        is_canceled = self._execution.is_canceled
        ended = end_by(self.record, end, self._spec, is_canceled=is_canceled, now_ms=now_ms)
        self._finish(ended, change, now_ms, after)

    def _finish(self, ended: RunRecord, change: Change, now_ms: int, after: Effects) -> None:
        self.record = change.run = ended
        self._host.children.owe(change, now_ms, after)
        # What called an ``on_complete`` has no more to do, and nobody looks for it.
        change.is_removal = ended.name == ON_COMPLETE
        self._leave_by(change, LEAVING, None)

    def _leave_by(self, change: Change, phase: Phase, wake_at_ms: int | None) -> None:
        """Have the run leave memory by ``change``, until then or until something is sent to it."""
        self.phase = phase
        self._parking = change
        change.parked = Parked(wake_at_ms)

    def _park_if_idle(self, now_ms: int, change: Change) -> None:
        """Let a run leave memory that has nothing to do for long, in the commit of its turn."""
        if self._deliveries or not self._steps.is_waiting:
            return
        wake_at_ms = self._steps.wake_at_ms()
        if wake_at_ms is not None and wake_at_ms <= now_ms + self._host.park_after_ms():
            return
        if self._steps.awaits_children and self._host.children.are_here(self.record.run_id):
            return  # One of them may end soon; the last that leaves memory says so.
        self._leave_by(change, LEAVING, wake_at_ms)

    # --- commits ---------------------------------------------------------------------------------

    def on_committed(self, change: Change, after: Effects, taken_by: RunRecord | None) -> None:
        """A change is in the journal, or another run has the id of its start."""
        if self.phase is GONE:
            return
        if change.is_start:
            self._start_committed(change, taken_by)
            if taken_by is not None:
                return
        for act, subject in after:
            act(subject)
        if self.phase is LEAVING:
            if change.parked is not None:
                self._leave(change.parked.wake_at_ms)
        elif self.phase is STUCK:
            self._set_aside(change)
        elif self._deliveries:
            self._host.schedule(self)
        elif change.is_start:
            self.park_if_idle()  # It may have come to its idle time while that was written.

    def _set_aside(self, change: Change) -> None:
        if change is self._parking:
            self._parking = None
        if not self._attempts.jobs:
            self._leave(None)

    def _start_committed(self, change: Change, taken_by: RunRecord | None) -> None:
        if taken_by is not None:
            self._host.children.void(change)
            self.drop()
        elif self.phase is STARTING:
            self.phase = LIVE
        self._host.on_start_committed(self, taken_by)

    def _leave(self, wake_at_ms: int | None) -> None:
        self.drop()
        self._host.on_gone(self, wake_at_ms)

    def drop(self) -> None:
        """Drop the run from memory. Attempts that run go on, and keep their outcome."""
        if self.phase is GONE:
            return
        self.phase = GONE
        self._steps.clear()
        self._deliveries.clear()
        self._execution.close()

    # --- coming back, getting stuck --------------------------------------------------------------

    def _resume(self) -> None:
        """Replay has come to where the journal ends: take up what is open."""
        self.phase = LIVE
        now_ms = self._host.clock.now_ms()
        change = Change(run_id=self.record.run_id)
        after: Effects = []
        again = self._execution.withdrawn_again
        change.updated += (withdraw(step, now_ms) for step in again)
        if self.record.state in (RunState.STUCK, RunState.PENDING):
            is_canceled = self._execution.is_canceled
            self.record = change.run = continue_run(self.record, is_canceled=is_canceled)
        pending = self._cancel.pending
        is_ending = pending is not None
        if self._execution.early_end is not None and is_ending:
            self._end_canceled()
            return
        commands = self._execution.open_commands()
        settled = self._steps.resume(commands, now_ms, change, after, is_ending=is_ending)
        change.issued += self._execution.patched_anew
        for command, issued_at_ms in self._execution.issued_anew:
            if command.due_ms is not None and not command.is_absolute:
                command.due_ms += now_ms - issued_at_ms
            change.issued.append(
                self._steps.issue_anew(command, now_ms, change, after, is_ending=is_ending)
            )
        if self._verifier is not None:
            self._verifier.note([*change.updated, *change.issued])
        if self._execution.early_end is not None:
            self._end(self._execution.early_end, change, now_ms, after)
            self.submit(change, after)
            return
        if pending is not None:
            # First: who asked for it was told so already, and the outcomes might end the run.
            self._deliveries.append((pending, UNSET))
        self._deliveries.extend((step, UNSET) for step in settled)
        self._steps.announce_events()
        self._park_if_idle(now_ms, change)
        self.submit(change, after)
        self._attempts.take_up_outcomes()

    def _become_stuck(self, exc: Exception) -> None:
        """The body cannot go on: no step of it begins any more, what runs is recorded."""
        if self._cancel.pending is not None:
            self._deliveries.clear()
            self._execution.close()
            self._end_canceled()
            return
        error = report_stuck(self._host.log, self.record, exc, self._host.versions)
        self.record = make_stuck(self.record, error)
        change = self._new_change()
        change.run = self.record
        after: Effects = []
        # Outcomes that were waiting for their delivery are kept for the code that can take them.
        if self.phase is LIVE:
            change.updated += [step for step, _ in self._deliveries]
        self._leave_by(change, STUCK, None)
        self._deliveries.clear()
        self._execution.close()
        self._steps.keep_running_only(after)
        self.submit(change, after)
