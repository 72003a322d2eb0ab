"""Mutations: functions that run inside of the transaction that their steps' outcomes are in.

Rules:

- A mutation's writes are there exactly when its step is ``completed``. Several share a commit: one
  that fails, or is not wanted any more, is undone.
- What is undone may be run again, and is, when another one has ended the transaction they shared.
- The bodies get the outcomes before the commit, which has what they do then: a mutation costs one
  commit, as an action does. When that commit fails, all that was made from it is dropped.
- Nothing else is committed while one runs, so it is bounded in time, with what it leaves behind.
- A failing storage fails no mutation: it is run again. Unless it is alone, again and again, when
  the storage fails: then that is its own doing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, final

from durable.core.errors import JournalError, JournalUnavailableError, TransactionError
from durable.core.records import StepState
from durable.journal.base import Change
from durable.journal.scopes import LOST
from durable.runtime.job import JOB_ENDED, JOB_QUEUED, JOB_RUNNING, Failed
from durable.runtime.mutation import MutationCalls, is_wanted, put_back
from durable.runtime.rounds import Habits, MutationRound

if TYPE_CHECKING:
    from collections.abc import Iterable

    from durable.core.records import StepRecord
    from durable.journal.base import Journal
    from durable.journal.connections import Writing
    from durable.journal.scopes import Scope
    from durable.runtime.job import Job, Succeeded
    from durable.runtime.writer import Effects, Joining

MUTATIONS_MAX = 100
"""A commit has no more mutations: each has a savepoint in it."""

FAILURES_MAX = 4
"""How often in a row the storage may fail while a mutation runs, before that is taken for its
doing. The first time others may have been in the same transaction; then it is alone in one."""

SUSPECTS_MAX = 1_000
"""How many mutations are remembered that the storage has failed by."""

SETTLING_SLICES_MAX = 20
"""How many slices of the bodies' work a transaction waits for, before it is committed without what
bodies make of its outcomes."""

WRITTEN_AHEAD_MIN = 32
"""How many changes are written while more are made: to hand them over costs some, too."""

BATCH_S_MAX = 0.05
"""A transaction takes no more mutations once it has held up the other commits for so long, and
waits no longer for what bodies make of their outcomes."""


class MutationsHost(Protocol):
    """What mutations need of the transactions that they are a part of."""

    @property
    def is_alone(self) -> bool:
        """Whether nobody else waits for a turn."""
        ...

    @property
    def are_bodies_settled(self) -> bool:
        """Whether no body has anything to do."""
        ...

    @property
    def pending_count(self) -> int:
        """How many changes wait for the next commit."""
        ...

    def join(self, writing: Writing) -> Joining:
        """Let what is pending join that transaction."""
        ...


@final
class Mutations:
    """The mutations of one engine that wait for their turns."""

    def __init__(self, journal: Journal, host: MutationsHost) -> None:
        self._journal = journal
        self._host = host
        self._queue: deque[Job] = deque()
        self.calls = MutationCalls()
        self.habits = Habits()
        # Those that the storage has failed by, with how often and how, the latest last.
        self._suspects: dict[tuple[str, int], tuple[int, JournalError]] = {}

    def __bool__(self) -> bool:
        return bool(self._queue)

    def add(self, job: Job) -> None:
        """Have a mutation run, now that it is committed that it does."""
        self._queue.append(job)

    def clear(self) -> None:
        """The journal has failed, or the engine is closed: what waits is void."""
        self._queue.clear()

    async def take_turn(self) -> None:
        """Run some, in one transaction, or in some that follow each other; in the writer's task.

        Raises:
            JournalError: The storage failed.
            BaseException: Ctrl-C, which is the host's.
        """
        await _Batch(self._journal, self._queue, self, self._host).run()

    # --- mutations that can be called at once ----------------------------------------------------

    def call_round(self, count_max: int) -> MutationRound | None:
        """Call the functions of the next ones at once, if they are known; of so many at most."""
        jobs: list[Job] = []
        queue = self._queue
        while queue and len(jobs) < count_max:
            job = queue[0]
            if job.state is JOB_QUEUED:
                if self.is_suspect(job) or not self.habits.is_known(job):
                    break
                jobs.append(job)
            queue.popleft()
        if not jobs:
            return None
        return MutationRound(jobs, self._journal.new_round(), self.calls.scopes)

    # --- mutations that the storage fails by ---------------------------------------------------

    def is_suspect(self, job: Job) -> bool:
        """Whether the storage has failed while that mutation ran, the last time it did."""
        return job.id in self._suspects

    def verdict(self, job: Job) -> Failed | None:
        """Return what a mutation fails with that the storage always fails by."""
        count, error = self._suspects.get(job.id, (0, None))
        if count < FAILURES_MAX:
            return None
        msg = f"the storage failed {count} times in a row while this mutation ran: {error}"
        return Failed(JournalUnavailableError(msg))

    def suspect(self, jobs: list[Job], error: JournalError) -> None:
        """The storage has failed while these mutations were in a transaction."""
        for job in jobs:
            count, _ = self._suspects.pop(job.id, (0, None))
            self._suspects[job.id] = count + 1, error
        while len(self._suspects) > SUSPECTS_MAX:
            del self._suspects[next(iter(self._suspects))]

    def clear_of_suspicion(self, jobs: Iterable[Job]) -> None:
        """Those mutations are committed, or have failed by themselves."""
        if self._suspects:
            for job in jobs:
                self._suspects.pop(job.id, None)


@final
class _Batch:
    """The mutations of one transaction, and of those that follow it at once."""

    def __init__(
        self, journal: Journal, queue: deque[Job], mutations: Mutations, host: MutationsHost
    ) -> None:
        self._journal = journal
        self._queue = queue
        self._mutations = mutations
        self._host = host
        self._writing: Writing | None = None
        self._done: list[tuple[Job, Scope]] = []
        # What runs, if something does: a round that was called, or one mutation.
        self._round: MutationRound | None = None
        self._running: list[Job] = []

    async def run(self) -> None:
        try:
            while self._queue or self._round is not None:
                await self._run_some()
                await self._commit()
                if self._round is None:
                    break
        except JournalError as exc:
            self._mutations.suspect([*self._running, *(job for job, _ in self._done)], exc)
            await self._abort()
            raise
        except BaseException:
            await self._abort()
            raise

    async def _abort(self) -> None:
        if self._round is not None:
            self._round.give_up()
        if self._writing is not None:
            await self._writing.abort()

    # --- running ---------------------------------------------------------------------------------

    async def _run_some(self) -> None:
        """Run as many as one transaction takes."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + BATCH_S_MAX
        is_alone = False
        while True:
            room = MUTATIONS_MAX - len(self._done)
            if self._round is None and not is_alone and room > 0 and loop.time() < until_s:
                self._round = self._mutations.call_round(room)
            if self._round is not None:
                await self._run_round(self._round)
                continue
            if not self._queue or room <= 0 or loop.time() >= until_s:
                return
            is_suspect = self._mutations.is_suspect(self._queue[0])
            if self._done and (is_alone or is_suspect):
                return
            is_alone = is_suspect
            job = self._queue.popleft()
            if job.state is JOB_QUEUED:
                await self._run(job)

    async def _run_round(self, together: MutationRound) -> None:
        self._running = together.jobs
        if await together.run(await self._begin()):
            self._done += together.done
            self._queue.extendleft(reversed(together.left))
        else:
            self._mutations.habits.distrust(together.culprits)
            self._queue.extendleft(reversed(together.give_up()))
            await self._begin_again()
        self._running = []
        self._round = None

    async def _run(self, job: Job) -> None:
        work: Any = job.work
        scope = (await self._begin()).admit(is_reading=work.is_reading)
        self._running = [job]
        outcome: Succeeded | Failed | None = self._mutations.verdict(job)
        if outcome is None:
            loop = asyncio.get_running_loop()
            began_s = loop.time()
            outcome = await self._mutations.calls.run(job, scope)
            self._mutations.habits.note(job, scope, outcome, loop.time() - began_s)
        else:
            job.state = JOB_RUNNING
        if scope.failure is not None:
            raise scope.failure
        if scope.is_lost and not isinstance(outcome, Failed):
            outcome = Failed(TransactionError(LOST))
        is_done = is_wanted(job)
        if outcome is None and is_done:
            outcome = Failed(asyncio.CancelledError())  # It has cancelled its own task.
        job.outcome = outcome
        if not is_done or isinstance(outcome, Failed):
            assert self._writing is not None
            scope.after.clear()
            if not await self._writing.undo():
                await self._begin_again()
        self._running = []
        if is_done:
            self._done.append((job, scope))

    async def _begin(self) -> Writing:
        if self._writing is None:
            self._writing = await self._journal.begin()
        return self._writing

    async def _begin_again(self) -> None:
        """The transaction is gone, and with it what was done before: do that once more."""
        if self._writing is not None:
            await self._writing.abort()
        self._writing = None
        done, self._done = self._done, []
        self._queue.extendleft(reversed(put_back(job for job, _ in done)))

    # --- committing ------------------------------------------------------------------------------

    async def _commit(self) -> None:
        """Hand the outcomes to the bodies, and commit them with what these do then."""
        if not all(is_wanted(job) for job, _ in self._done):
            # A body has gone on without one: its step is withdrawn, so it is to have done nothing.
            await self._begin_again()
            return
        if not self._done:
            writing, self._writing = self._writing, None
            if writing is not None:
                await writing.abort()
            return
        writing = await self._begin()
        writing.scope.close()
        outcomes = _Outcomes()
        after: Effects = []
        for job, scope in self._done:
            after += scope.after
            job.state = JOB_ENDED
            assert job.owner is not None
            step = job.owner.on_outcome(job)
            assert step is not None
            outcomes.add(job, step)
        joining = self._host.join(writing)
        await self._settle_bodies(joining, outcomes)
        # Once this is on its way to the disk, the next ones come as far as their statements.
        ahead = asyncio.get_running_loop().call_soon(self._call_ahead)
        try:
            await joining.commit(outcomes.record_all_in(joining.take()), after)
        finally:
            ahead.cancel()
        self._mutations.clear_of_suspicion(job for job, _ in self._done)
        self._writing = None
        self._done = []

    async def _settle_bodies(self, joining: Joining, outcomes: _Outcomes) -> None:
        """Let bodies take their outcomes, and have written meanwhile what they make of them."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + BATCH_S_MAX
        for _ in range(SETTLING_SLICES_MAX):
            if self._host.are_bodies_settled or loop.time() > until_s:
                return
            await asyncio.sleep(0)
            if self._host.pending_count >= WRITTEN_AHEAD_MIN:
                joining.write(outcomes.record_in(joining.take()))

    def _call_ahead(self) -> None:
        if self._host.is_alone:
            self._round = self._mutations.call_round(MUTATIONS_MAX)


@final
class _Outcomes:
    """The steps that a transaction is to record, as its mutations have ended.

    A body that takes one has it in the change of its turn. One that has other outcomes to take
    first may not come to it; and one that wants it no more says so too late: it is done.
    """

    def __init__(self) -> None:
        self._missing: dict[tuple[str, int], StepRecord] = {}

    def add(self, job: Job, step: StepRecord) -> None:
        """A mutation has ended."""
        self._missing[job.id] = step

    def record_in(self, changes: list[Change]) -> list[Change]:
        """See to it that those changes are not against them."""
        for change in changes:
            for place, step in enumerate(change.updated):
                ended = self._missing.pop((change.run_id, step.number), None)
                if ended is not None and step.state is StepState.CANCELED:
                    change.updated[place] = ended
        return changes

    def record_all_in(self, changes: list[Change]) -> list[Change]:
        """See to that, and add what is in none of the changes."""
        self.record_in(changes)
        rest = self._missing.items()
        return [Change(run_id=run_id, updated=[step]) for (run_id, _), step in rest] + changes
