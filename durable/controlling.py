"""What an engine does to its runs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from durable.checks import check_count, check_flag, check_id
from durable.core.errors import RunNotFinishedError, StepNotFoundError
from durable.core.restarts import last_that, last_unsuccessful
from durable.definitions import Definition
from durable.opened import Opened
from durable.status import run_not_found

if TYPE_CHECKING:
    from collections.abc import Sequence

    from durable.core.records import StepRecord
    from durable.run import Run


class Controlling(Opened):
    """The calls of ``Engine`` that change what becomes of a run."""

    async def cancel(self, run_id: str, *, interrupt: bool = False) -> bool:
        """Cancel a run; return once that is in the journal.

        No queued step of it begins any more. Its body gets ``asyncio.CancelledError`` where it
        waits, and may run further steps to clean up; a body that does not is over at once, and one
        that has not begun, or is stuck, without being asked. Cancelling it again does nothing.

        In the process that works on the runs it returns once the body was told, so that the run is
        ``canceling`` or over; when that takes longer than a second, as with a long history to
        replay, and in any other process, once it is recorded that the body is to be.

        Its children are cancelled with it, and theirs: that is in the journal by the same commit.
        It does not wait for them. A child that is cancelled alone is a ``RunCanceled`` of its
        parent's await.

        Args:
            run_id: The run.
            interrupt: Cancel its running async actions, too, and those of its children. Otherwise
                they finish, and their results are dropped.

        Returns:
            ``False`` when the run was over already.

        Raises:
            RunNotFoundError: There is no such run.
            JournalUnavailableError: The storage failed: the outcome is unknown; ask again.
            EngineClosedError: The engine is closed, or was closed meanwhile.

        Cancellation:
            Never splits it. A cancelled caller does not know its outcome.
        """
        runner, _ = self._opened("engine.cancel()")
        check_flag(interrupt, "interrupt=")
        is_canceled = await runner.control.cancel(check_id(run_id), interrupt=interrupt)
        if is_canceled is None:
            raise run_not_found(run_id)
        return is_canceled

    async def restart(
        self, run_id: str, *, from_step: int | str | Definition[Any, Any] | None = None
    ) -> Run[Any]:
        """Have a run that is over go on, with the code as it is now; return once that is committed.

        What the run has recorded before that step stands. That step and all with higher numbers are
        as if they had never begun; the run's ``generation`` is one higher.

        Args:
            run_id: The run.
            from_step: Which step is to run again: its number, its name (the last step that has it),
                or a definition (its last step, of those that were given no ``name=``); 0 is from
                the beginning, with nothing kept. By default the last step that failed or was
                cancelled; when none was, the body alone runs again, over what is recorded.

        Raises:
            RunNotFoundError: There is no such run.
            RunNotFinishedError: It is not over.
            StepNotFoundError: It has no such step.
            JournalUnavailableError, EngineClosedError: As for ``cancel``.
        """
        runner, _ = self._opened("engine.restart()")
        find = partial(_from_number, run_id, _checked(from_step))
        is_restarted = await runner.control.restart(check_id(run_id), find)
        if is_restarted is None:
            raise run_not_found(run_id)
        if not is_restarted:
            msg = f"run {run_id!r} is not over: cancel it first, or wait for its end"
            raise RunNotFinishedError(msg)
        return self.get(run_id)

    async def resume(self, run_id: str) -> bool:
        """Try a ``stuck`` run again with the code as it is now; return once that is committed.

        Of a run that is over, what is owed its end is tried again, if that is stuck:
        ``RunStatus.callback_error`` says so.

        Returns:
            ``False`` when it is not stuck.

        Raises:
            RunNotFoundError: There is no such run.
            JournalUnavailableError, EngineClosedError: As for ``cancel``.
        """
        runner, _ = self._opened("engine.resume()")
        is_resumed = await runner.control.resume(check_id(run_id))
        if is_resumed is None:
            raise run_not_found(run_id)
        return is_resumed

    async def cleanup(self, run_id: str, *, force: bool = False) -> bool:
        """Remove a run, its steps, and all that is under it: its children, and theirs.

        It returns once that is committed, in one transaction.

        Args:
            run_id: The run.
            force: Remove it even if it, or something under it, is not over: running async actions
                are cancelled, sync ones finish unheard, and bodies are dropped without cleaning up.

        Returns:
            ``False`` when there is no such run; when it has a parent that is not over, and may
            still need it, with ``force``, too; and, without ``force``, when the run is not over, or
            something under it is still cleaning up.

        Raises:
            JournalUnavailableError, EngineClosedError: As for ``cancel``.
        """
        runner, _ = self._opened("engine.cleanup()")
        return await runner.control.cleanup(check_id(run_id), force=check_flag(force, "force="))


def _checked(
    from_step: int | str | Definition[Any, Any] | None,
) -> int | str | Definition[Any, Any] | None:
    if from_step is None or isinstance(from_step, str | Definition):
        return from_step
    if isinstance(from_step, int):
        return check_count(from_step, "from_step=")
    msg = f"from_step= is a step's number, its name, or a definition, not {from_step!r}"
    raise TypeError(msg)


def _from_number(
    run_id: str,
    from_step: int | str | Definition[Any, Any] | None,
    steps: Sequence[StepRecord],
) -> int:
    if from_step is None:
        return last_unsuccessful(steps)
    if from_step == 0:
        return 0
    number = last_that(partial(_is_meant, from_step), steps)
    if number is None:
        msg = f"run {run_id!r} has no step {from_step!r}; engine.list_steps() has those it has"
        raise StepNotFoundError(msg)
    return number


def _is_meant(from_step: int | str | Definition[Any, Any], step: StepRecord) -> bool:
    if isinstance(from_step, int):
        return step.number == from_step
    if isinstance(from_step, str):
        return step.name == from_step
    return (step.kind, step.name) == (from_step.kind, from_step.name)
