"""The attempts of one run's steps: whose turn it is, and what an outcome is to its step.

Rules:

- An attempt is recorded as running before its function starts. One that finds no slot waits for it
  once the change that has its step is submitted; of a new run, once that is committed.
- One that fails is made again, by its step's policy, when the due time has come that is recorded
  with the failure. One that was interrupted is made again at once, under its number.
- One that outlived an outage of the journal is taken up where it stands.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Protocol, final

from durable.core.commands import UNSET
from durable.core.failures import encode_exception
from durable.core.records import StepKind, StepState
from durable.core.transitions import (
    back_off,
    begin_attempt,
    complete,
    count_interruption,
    fail,
    interrupt,
    interruption_error,
)
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
    from collections.abc import Callable, Mapping

    from durable.core.records import StepRecord
    from durable.runtime.clock import Clock
    from durable.runtime.job import ActionWork, JobState
    from durable.runtime.settings import Settings
    from durable.runtime.transactions import Transactions
    from durable.runtime.workpool import Workpool
    from durable.runtime.writer import Effects

ACTION = StepKind.ACTION
RUNNING = StepState.RUNNING
NOT_BEGUN = (JOB_QUEUED, JOB_RESERVED)


class AttemptsHost(Protocol):
    """What the attempts of all runs share."""

    clock: Clock
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


class AttemptsOwner(Protocol):
    """The steps that attempts are made for."""

    def update(self, step: StepRecord, after: Effects) -> None:
        """Have an open step's new record committed, and then its effects happen."""
        ...

    def settle(self, step: StepRecord, value: object) -> None:
        """Take a step's outcome, and what its result decodes to."""
        ...

    def put_off(self, step: StepRecord, now_ms: int, after: Effects) -> None:
        """Have a step tried again when it is due."""
        ...


@final
class Attempts:
    """The attempts of one run, each for an open step: a job owner.

    Args:
        records: The records of the open steps, by number: its owner's.
        interrupted: ``None`` when this process takes the run up for the first time: all that run.

    Attributes:
        jobs: Those that are queued or under way, or whose outcome is not committed, by the numbers
            of their steps.
        queued: Those that found no slot, and do not wait for one yet.
        interrupted: The steps that ran when another process died, and their interruptions until
            then. Any other that is recorded as running, and has not begun here, was never begun.
    """

    __slots__ = ("_host", "_owner", "_records", "_run_id", "interrupted", "jobs", "queued")

    def __init__(
        self,
        run_id: str,
        host: AttemptsHost,
        owner: AttemptsOwner,
        records: Mapping[int, StepRecord],
        interrupted: Mapping[int, int] | None,
    ) -> None:
        self._run_id = run_id
        self._host = host
        self._owner = owner
        self._records = records
        if interrupted is None:
            interrupted = {n: s.interruptions for n, s in records.items() if s.state is RUNNING}
        self.interrupted = interrupted
        self.jobs: dict[int, Job] = {}
        self.queued: list[Job] = []

    # --- beginning -------------------------------------------------------------------------------

    def offer(self, step: StepRecord, work: ActionWork, now_ms: int, after: Effects) -> StepRecord:
        """Give the step's next attempt a slot, or a place in the queue; return its new record."""
        attempt = Attempt(
            run_id=self._run_id,
            step_key=step.key,
            number=step.attempts + 1,
            interruptions=step.interruptions,
        )
        job = self.jobs[step.number] = Job(attempt, step.number, work, step.args, self)
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
        self.queued.append(job)
        return step

    def enqueue_queued(self) -> None:
        """Let those wait for a slot that found none."""
        queued, self.queued = self.queued, []
        for job in queued:
            if job.state is JOB_QUEUED:
                self._host.pool.enqueue(job)

    def on_slot(self, job: Job) -> None:
        """A queued attempt has its slot: record that it runs, and then run it."""
        step = begin_attempt(self._records[job.number], self._host.clock.now_ms())
        self._owner.update(step, [(self._host.launch, job)])

    def resume(
        self,
        step: StepRecord,
        work: ActionWork,
        now_ms: int,
        after: Effects,
    ) -> StepRecord:
        """Go on, after a replay, with a step that has no outcome; return its new record."""
        if step.state is RUNNING:
            if self.take_up(step):
                return step
            if self.interrupted.get(step.number) == step.interruptions:
                step = count_interruption(step)
                error = interruption_error(
                    step,
                    self._host.settings.max_interruptions,
                    is_at_most_once=work.is_at_most_once,
                )
                if error is not None:
                    return fail(step, encode_exception(error), now_ms)
            step = interrupt(step)
        return self.offer(step, work, now_ms, after)

    def take_up(self, step: StepRecord) -> bool:
        """Take up a step's attempt that outlived an outage of the journal, if there is one."""
        job = self._host.pool.begun(self._run_id, step.number)
        if job is None or job.attempt.number != step.attempts:
            return False
        self.jobs[step.number] = job
        job.owner = self
        return True

    def take_up_outcomes(self) -> None:
        """Settle what ended while the run was not in memory."""
        for job in [job for job in self.jobs.values() if job.outcome is not None]:
            self.on_outcome(job)

    # --- outcomes --------------------------------------------------------------------------------

    def on_outcome(self, job: Job) -> StepRecord | None:
        """An attempt has ended: settle its step, or have it tried again later."""
        step = self._records.get(job.number)
        if step is None:
            return None
        assert step.state is RUNNING
        now_ms = self._host.clock.now_ms()
        outcome = job.outcome
        if isinstance(outcome, Succeeded):
            step = complete(step, outcome.text, now_ms)
            self._owner.settle(step, outcome.value)
            return step
        assert isinstance(outcome, Failed)
        wait_ms = self._wait_ms(job, outcome)
        if wait_ms is None:
            step = fail(step, outcome.error, now_ms)
            self._owner.settle(step, UNSET)
        else:
            del self.jobs[job.number]
            step = back_off(step, now_ms + wait_ms, outcome.error)
            self._owner.put_off(step, now_ms, [(self._host.withdraw, job)])
        return step

    def wants(self, job: Job) -> bool:
        return self.jobs.get(job.number) is job and job.number in self._records

    def _wait_ms(self, job: Job, outcome: Failed) -> int | None:
        """Return in how long the step is tried again; ``None`` when it has failed, too."""
        retry = job.work.retry
        if retry is None or (outcome.is_final and not job.work.is_owed):
            return None
        draw = self._host.settings.draw or random.random
        return retry.backoff_ms(job.attempt.number, draw())

    # --- ending ----------------------------------------------------------------------------------

    def is_running(self, number: int) -> bool:
        """Whether the function of a step's attempt runs, whose outcome is wanted."""
        job = self.jobs.get(number)
        return job is not None and job.state is JOB_RUNNING

    def forget(self, number: int, after: Effects, end: Callable[[Job], None]) -> None:
        """End a step's attempt, if one is under way.

        Args:
            number: The step's.
            after: The effects of the change that says so.
            end: What ends a function that runs: the host's ``withdraw``, or ``drop``.
        """
        job = self.jobs.pop(number, None)
        if job is None:
            return
        if job.state in NOT_BEGUN or not job.has_slot:
            # At once: a queued step never starts, and a mutation holds up its own withdrawal.
            self._host.pool.withdraw(job)
        else:
            after.append((end, job))

    def hold(self, state: JobState) -> None:
        """Let none begin that is in that state; its step is going to be withdrawn."""
        for job in self.jobs.values():
            if job.state is state:
                self._host.pool.withdraw(job)

    def withdraw_all(self) -> None:
        """End them all; nothing of them is recorded."""
        for job in self.jobs.values():
            self._host.pool.withdraw(job)

    def clear(self) -> None:
        """Forget them, and the owner. Those that run go on, and keep their outcome."""
        for job in self.jobs.values():
            job.owner = None
            if job.state in NOT_BEGUN:
                self._host.pool.withdraw(job)
        self.jobs.clear()
        del self._owner  # They refer to each other: free them without the collector.
