"""What an engine tells of its runs, as committed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, final

from durable.checks import check_id
from durable.core.histories import encode_history
from durable.opened import Opened
from durable.paging import iterate, runs_page, runs_query, steps_page, steps_query
from durable.status import run_not_found, run_status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from durable.core.records import RunState
    from durable.runtime.watching import Watcher
    from durable.status import Page, RunStatus, StepInfo


class Observing(Opened):
    """The calls of ``Engine`` that read."""

    async def status(self, run_id: str) -> RunStatus:
        """Return where a run stands, as committed.

        Raises:
            RunNotFoundError: There is no such run.
            JournalUnavailableError: The storage failed; ask again.
            JournalCorruptError: A row of it is damaged; the message names it.
        """
        _, journal = self._opened("engine.status()")
        found = await journal.load_status(check_id(run_id))
        if found is None:
            raise run_not_found(run_id)
        return run_status(*found)

    async def history(self, run_id: str) -> str:
        """Return all that is recorded of a run as JSON text, to be kept or looked at.

        It has the run, its steps and the order in which their outcomes were handed to its body,
        the ids of its children, what was sent to it, and the versions that it was begun with. It
        has the arguments and results, too: mind what is secret. ``durable.testing.replay`` executes
        the body over it again, in a test for example.

        Raises:
            RunNotFoundError: There is no such run.
            JournalUnavailableError, JournalCorruptError: As for ``status``.
        """
        _, journal = self._opened("engine.history()")
        recorded = await journal.load_recorded(check_id(run_id))
        if recorded is None:
            raise run_not_found(run_id)
        return encode_history(recorded)

    def watch(self, run_id: str) -> AsyncIterator[RunStatus]:
        """Iterate over what becomes of a run: where it stands now, and again after every change.

        A change is whatever ``status`` shows. Changes that follow each other faster than they are
        asked for are shown as one. The final status is shown always, and is the last. An outage of
        the storage is waited out.

        Raises:
            RunNotFoundError: There is no such run, or it was removed before its final status was
                shown.
            JournalUnavailableError: The storage fails, though the engine can still write.
            JournalCorruptError: A row of it is damaged; the message names it.
            EngineClosedError: The engine is closed, or was closed before the run had ended.

        Cancellation:
            Loses nothing: the next item is what was not seen.
        """
        self._opened("engine.watch()")
        return _Watch(self, check_id(run_id))

    def _join(self, run_id: str) -> Watcher:
        runner, _ = self._opened("engine.watch()")
        runner.check_working()
        return runner.watching.join(run_id)

    async def list_runs(
        self,
        *,
        name: str | None = None,
        state: RunState | str | None = None,
        parent: str | None = None,
        order: Literal["asc", "desc"] = "asc",
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[RunStatus]:
        """Return a page of runs, in the order of their start.

        Args:
            name: Only runs of the workflow of that name.
            state: Only runs in that state.
            parent: Only children of that run.
            order: ``asc`` for the oldest first, ``desc`` for the newest.
            limit: How many at most, up to 1,000.
            cursor: Where the last page ended. Pages stay right while runs are added.

        Raises:
            ValueError: The order, limit, state or cursor is not valid.
            JournalUnavailableError, JournalCorruptError: As for ``status``.
        """
        _, journal = self._opened("engine.list_runs()")
        query = runs_query(
            name=name, state=state, parent=parent, order=order, limit=limit, cursor=cursor
        )
        return runs_page(await journal.list_runs(query), query)

    async def list_steps(
        self,
        run_id: str,
        *,
        order: Literal["asc", "desc"] = "asc",
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[StepInfo]:
        """Return a page of a run's steps, in the order of their issue.

        Args:
            run_id: The run.
            order: ``asc`` for the first step first, ``desc`` for the last.
            limit: How many at most, up to 1,000.
            cursor: Where the last page ended.

        Raises:
            RunNotFoundError: There is no such run.
            ValueError: The order, limit or cursor is not valid.
            JournalUnavailableError, JournalCorruptError: As for ``status``.
        """
        _, journal = self._opened("engine.list_steps()")
        query = steps_query(run_id, order, limit, cursor)
        rows = await journal.list_steps(query)
        if rows is None:
            raise run_not_found(query.run_id)
        return steps_page(rows, query)

    def iter_runs(
        self,
        *,
        name: str | None = None,
        state: RunState | str | None = None,
        parent: str | None = None,
        order: Literal["asc", "desc"] = "asc",
    ) -> AsyncIterator[RunStatus]:
        """Iterate over the runs that ``list_runs`` would page through. Raises what that raises."""
        return iterate(
            lambda cursor: self.list_runs(
                name=name, state=state, parent=parent, order=order, cursor=cursor
            )
        )

    def iter_steps(
        self, run_id: str, *, order: Literal["asc", "desc"] = "asc"
    ) -> AsyncIterator[StepInfo]:
        """Iterate over a run's steps, as ``list_steps`` pages through. Raises what that raises."""
        return iterate(lambda cursor: self.list_steps(run_id, order=order, cursor=cursor))


@final
class _Watch:
    """An iterator over what becomes of a run."""

    def __init__(self, engine: Observing, run_id: str) -> None:
        self._engine = engine
        self._run_id = run_id
        self._watcher: Watcher | None = None
        self._shown: RunStatus | None = None
        self._is_over = False

    def __aiter__(self) -> _Watch:
        return self

    async def __anext__(self) -> RunStatus:
        if self._is_over:
            raise StopAsyncIteration
        if self._watcher is None:
            self._watcher = self._engine._join(self._run_id)  # noqa: SLF001  of this module
        while True:
            found = await self._watcher.next()
            if found is None:
                self._end()
                raise run_not_found(self._run_id)
            # Its own for each watcher: the values in it can be changed.
            status = run_status(*found)
            if status.state.is_final:
                self._end()
            if status != self._shown:
                self._shown = status
                return status

    def _end(self) -> None:
        self._is_over = True
        self._watcher = None
