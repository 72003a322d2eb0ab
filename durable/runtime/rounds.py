"""Mutations that are called at once, and whose only statements are done in one call.

Rules:

- Only those take part that are known: the last ones of their definition made one statement, at
  most, were quick, and did not fail. One that does something else in a round is found out.
- No function is told the result of its statement before all of them are made; and what it makes of
  that counts only if each one before it has ended with its statement. So they have the same effect
  as one after another.
- When one does what the others cannot be kept with, all of the transaction is rolled back and run
  again, that one by itself.
- Their functions have a context each, and one task: the task of a mutation costs as much as all
  else that is done for it. One that waits for anything but its statement is called by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, final

from durable.runtime.calling import failed
from durable.runtime.job import JOB_RUNNING, Succeeded
from durable.runtime.mutation import bound_s, enter, is_wanted, put_back

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable

    from durable.journal.connections import Writing
    from durable.journal.rounds import Part, StatementRound
    from durable.journal.scopes import Scope
    from durable.runtime.job import Failed, Job

STATEMENTS_S_MAX = 1.0
"""How long the statements of a round may take. No more are begun after a part of that."""

QUICK_S_MAX = 0.05
"""A mutation that takes longer is not called with others: they would all wait for it."""

SLICE_S_MAX = 0.001
"""How long functions are called before the host's loop gets its turn."""

TRUSTED_AFTER = 16
TRUSTED_AFTER_MAX = 4096
"""After how many mutations in a row a definition is known. It doubles when that was not true."""


class _Habit:
    """What is known of one definition."""

    __slots__ = ("needed", "streak")

    def __init__(self) -> None:
        self.streak = 0
        self.needed = TRUSTED_AFTER


@final
class Habits:
    """Which definitions' mutations make one statement, and are done."""

    def __init__(self) -> None:
        self._habits: defaultdict[str, _Habit] = defaultdict(_Habit)

    def is_known(self, job: Job) -> bool:
        """Whether a mutation may take part in a round."""
        work: Any = job.work
        habit = self._habits[work.name]
        is_usual = habit.streak >= habit.needed and not work.is_reading
        return is_usual and bound_s(job) >= STATEMENTS_S_MAX

    def note(self, job: Job, scope: Scope, outcome: object, took_s: float) -> None:
        """A mutation has ended that was called by itself."""
        habit = self._habits[job.work.name]
        is_usual = isinstance(outcome, Succeeded) and scope.is_plain and not scope.is_reading
        habit.streak = habit.streak + 1 if is_usual and took_s <= QUICK_S_MAX else 0

    def distrust(self, jobs: Iterable[Job]) -> None:
        """Those have not done in a round what was expected of them."""
        for name in {job.work.name for job in jobs}:
            habit = self._habits[name]
            habit.streak = 0
            habit.needed = min(max(habit.needed, 1) * 2, TRUSTED_AFTER_MAX)


@final
class _Member:
    """One mutation of a round, and what it has come to.

    Attributes:
        outcome: ``None`` as long as it has not ended.
        has_strayed: Whether it waits for something else than its statement.
    """

    __slots__ = ("_context", "_running", "has_strayed", "job", "outcome", "part", "scope")

    def __init__(self, job: Job, scope: Scope, part: Part) -> None:
        job.state = JOB_RUNNING
        self.job = job
        self.scope = scope
        self.part = part
        self.outcome: Succeeded | Failed | None = None
        self.has_strayed = False
        self._context = copy_context()
        self._running: Coroutine[object, None, None] = self._attempt()

    async def _attempt(self) -> None:
        job, scope = self.job, self.scope
        work: Any = job.work
        enter(job, scope)
        try:
            result = await work.call_in(scope, job.args)
            self.outcome = Succeeded(*work.encode_result(result))
        except BaseException as exc:  # noqa: BLE001  a mutation may raise anything
            self.outcome = failed(exc)

    def go_on(self) -> None:
        """Let the function come to its statement, or to its end."""
        awaited: object = self.part
        try:
            awaited = self._context.run(self._running.send, None)
        except StopIteration:
            self.scope.close()
        if awaited is not self.part or self.part.is_void:
            self.has_strayed = True
            self.scope.close()
            if asyncio.isfuture(awaited):
                _let_go(awaited)

    def cancel(self) -> None:
        """End the function, if it has not ended: it may clean up, without waiting for anything."""
        self.scope.close()
        if self.outcome is not None:
            return
        # It raises RuntimeError where Ctrl-C has ended it, and where it goes on and on.
        with contextlib.suppress(asyncio.CancelledError, StopIteration, RuntimeError):
            self._context.run(self._running.throw, asyncio.CancelledError())
            self._context.run(self._running.close)


@final
class MutationRound:
    """Some mutations, called at once.

    Attributes:
        jobs: The mutations.
        done: Those that have ended as expected, with their parts of the transaction.
        left: Those that were not done, because the others took long.
        culprits: Those because of which the round is not done.
    """

    def __init__(self, jobs: list[Job], statements: StatementRound, scopes: set[Scope]) -> None:
        self._statements = statements
        self._scopes = scopes
        self._members = [_Member(job, *statements.admit()) for job in jobs]
        scopes.update(member.scope for member in self._members)
        self._writing: asyncio.Future[Writing] = asyncio.get_running_loop().create_future()
        self.jobs = jobs
        self.done: list[tuple[Job, Scope]] = []
        self.left: list[Job] = []
        self.culprits: list[Job] = []
        self._task = asyncio.get_running_loop().create_task(self._run(), name="durable mutations")

    async def run(self, writing: Writing) -> bool:
        """Have the statements made in a transaction, and the functions end.

        Returns:
            Whether it is done. Otherwise the transaction is to be rolled back, and run again.

        Raises:
            JournalError: The storage failed.
            BaseException: Ctrl-C, which is the host's.
        """
        if not self._writing.done():  # One may have cancelled it, as a time-out does.
            self._writing.set_result(writing)
        try:
            await asyncio.wait({self._task})
        finally:
            self._task.cancel()
        if self._task.cancelled():
            self.culprits = self.jobs
            return False
        return self._task.result()

    async def _run(self) -> bool:
        if not await self._go_on():
            return False
        writing = await self._writing
        is_good = await writing.do_round(self._statements, STATEMENTS_S_MAX)
        count = self._statements.over_count()
        if not is_good:
            self.culprits = [member.job for member in self._members[count : count + 1]]
            return False
        self.left = self._take_back(self._members[count:])
        del self._members[count:]
        return await self._go_on() and self._settle()

    async def _go_on(self) -> bool:
        """Let all functions go on that have not ended; whether they have done what is expected."""
        until_s = time.perf_counter() + SLICE_S_MAX
        for member in self._members:
            if member.outcome is None:
                member.go_on()
                if member.has_strayed:
                    self.culprits = [member.job]
                    return False
                if time.perf_counter() > until_s:
                    await asyncio.sleep(0)
                    until_s = time.perf_counter() + SLICE_S_MAX
        return True

    def _settle(self) -> bool:
        """Take the outcomes; whether all that was done is to be kept."""
        for member in self._members:
            job, part = member.job, member.part
            job.outcome = member.outcome
            if not is_wanted(job):
                if part.is_made:
                    return False  # It is withdrawn, and the others are not.
            elif part.is_made and not isinstance(job.outcome, Succeeded):
                self.culprits = [job]
                return False
            else:
                self.done.append((job, member.scope))
        self._scopes.difference_update(member.scope for member in self._members)
        return True

    def give_up(self) -> list[Job]:
        """End what is under way; return those that are to be called again."""
        self._task.cancel()
        if self._task.done() and not self._task.cancelled():
            self._task.exception()  # Nobody else asks.
        return self._take_back(self._members) + self.left

    def _take_back(self, members: list[_Member]) -> list[Job]:
        for member in members:
            member.cancel()
            self._scopes.discard(member.scope)
        return put_back(member.job for member in members)


def _let_go(awaited: asyncio.Future[Any]) -> None:
    """Wait for a future no more. It is not cancelled: it may be the application's."""
    awaited._asyncio_future_blocking = False  # noqa: SLF001  as the task that awaits one does
    awaited.add_done_callback(_retrieve)


def _retrieve(ended: asyncio.Future[Any]) -> None:
    if not ended.cancelled():
        ended.exception()  # Nobody else may ask.
