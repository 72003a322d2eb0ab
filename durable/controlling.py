"""What an engine does to its runs."""

from __future__ import annotations

from durable.checks import check_flag, check_id
from durable.opened import Opened
from durable.status import run_not_found


class Controlling(Opened):
    """The calls of ``Engine`` that change what becomes of a run."""

    async def cancel(self, run_id: str, *, interrupt: bool = False) -> bool:
        """Cancel a run; return once that is in the journal.

        No queued step of it begins any more. Its body gets ``asyncio.CancelledError`` where it
        waits, and may run further steps to clean up; a body that does not is over at once, and one
        that has not begun, or is stuck, without being asked. Cancelling it again does nothing.

        Its children are cancelled with it, and theirs: that is in the journal by the same commit. It
        does not wait for them. Cancelling a child alone is a ``RunCanceled`` of its parent's await.

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

    async def resume(self, run_id: str) -> bool:
        """Try a ``stuck`` run again with the code as it is now; return once that is committed.

        Returns:
            ``False`` when the run is not stuck.

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
