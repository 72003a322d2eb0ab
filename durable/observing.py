"""What an engine tells of its runs, as committed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from durable.checks import check_id
from durable.opened import Opened
from durable.paging import iterate, runs_page, runs_query, steps_page, steps_query
from durable.status import run_not_found, run_status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from durable.core.records import RunState
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
