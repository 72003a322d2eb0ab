"""Starting runs: the new row is committed with the first turn of the body, or alone, to be claimed.

Rules:

- A start is acknowledged once it is in the journal. Whose id is taken hears who has it.
- Of several starts of one id, one looks and starts at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, final

from durable.core.diff import shorten
from durable.core.errors import RunConflictError
from durable.journal.base import Change, Parked
from durable.runtime.transactions import unavailable
from durable.runtime.waiting import Turns, Waiters

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from durable.core.errors import JournalError
    from durable.core.execution import WorkflowSpec
    from durable.core.records import RunRecord
    from durable.journal.base import Journal
    from durable.journal.scopes import Scope
    from durable.runtime.clock import Clock, EarliestAlarm
    from durable.runtime.live import LiveRun
    from durable.runtime.neighbours import Neighbours
    from durable.runtime.transactions import Transactions
    from durable.runtime.waiting import Ends
    from durable.runtime.writer import Effects, Writer


class StartsHost(Protocol):
    """What starting asks of the runner."""

    clock: Clock
    writer: Writer
    transactions: Transactions
    ends: Ends
    wake: EarliestAlarm
    neighbours: Neighbours

    @property
    def is_owner(self) -> bool:
        """Whether the runs are worked on here."""
        ...

    @property
    def room(self) -> int:
        """How many more runs there may be in memory."""
        ...

    def check_open(self) -> None:
        """Raise when the engine is closing, or its journal out."""
        ...

    def live(self, run_id: str) -> LiveRun | None:
        """Return the run, if it is in memory."""
        ...

    def begin(self, record: RunRecord, spec: WorkflowSpec) -> None:
        """Work on a new run, whose start is committed with its first turn."""
        ...


@final
class Starts:
    """The starts that are on their way to the journal."""

    def __init__(self, journal: Journal, host: StartsHost) -> None:
        self._journal = journal
        self._host = host
        # Of each run, whether somebody waits for its end who was not told of the start.
        self._starting: dict[str, bool] = {}
        self._acks = Waiters()
        self._ids = Turns()

    def is_under_way(self, run_id: str) -> bool:
        """Whether a start of that run is not committed yet."""
        return run_id in self._starting

    async def wait_while_starting(self, run_id: str) -> None:
        """Return once no start of the run is under way."""
        while run_id in self._starting:
            await self._wait(run_id)

    async def start(
        self, record: RunRecord, spec: WorkflowSpec, *, wake_at_ms: int | None, is_id_given: bool
    ) -> None:
        """Commit a new run, and work on it, or let it sleep until ``wake_at_ms``.

        Raises:
            RunConflictError: The id belongs to a run with another workflow or arguments.
            JournalUnavailableError: The outcome is unknown.
            EngineClosedError: The engine is closing.
        """
        if not is_id_given:
            self._submit(record, spec, wake_at_ms)
        else:
            # One after another: what one has looked for must not be started by another meanwhile.
            async with self._ids.hold(record.run_id):
                if await self._is_there(record):
                    return
                self._submit(record, spec, wake_at_ms)
        # A cancelled caller stops waiting; the start goes on, its outcome is in the journal.
        taken_by = await self._wait(record.run_id)
        if taken_by is not None:
            _check_same(taken_by, record)

    def run(
        self, record: RunRecord, spec: WorkflowSpec, *, wake_at_ms: int | None
    ) -> Coroutine[Any, Any, RunRecord | None]:
        """Do what ``start`` does for a run with a new id; return what waits for its end."""
        self._submit(record, spec, wake_at_ms, waits_for_end=True)
        return self._host.ends.wait(record.run_id)

    async def start_within(
        self, scope: Scope, record: RunRecord, *, wake_at_ms: int | None
    ) -> None:
        """Make a new run a part of a caller's transaction: it is claimed after that's commit.

        Raises:
            TransactionError: The transaction is over, another engine's, or a query's.
            RunConflictError: The id belongs to a run with another workflow or arguments.
            JournalUnavailableError: The storage failed; nothing of the transaction is committed.
        """
        self._host.transactions.check_own(scope)
        due_ms = self._due_ms(wake_at_ms)
        change = Change(run_id=record.run_id, run=record, is_start=True, parked=Parked(due_ms))
        taken_by = await self._journal.write_within(scope, change)
        if taken_by is None:
            scope.after.append((self._host.wake.set, due_ms))
        else:
            _check_same(taken_by, record)

    def _submit(
        self,
        record: RunRecord,
        spec: WorkflowSpec,
        wake_at_ms: int | None,
        *,
        waits_for_end: bool = False,
    ) -> None:
        self._host.check_open()
        self._starting[record.run_id] = waits_for_end
        if wake_at_ms is None and self._host.room > 0:
            self._host.begin(record, spec)
        else:
            parked = Parked(self._due_ms(wake_at_ms))
            change = Change(run_id=record.run_id, run=record, is_start=True, parked=parked)
            self._host.writer.submit(change, self, [])

    def _due_ms(self, wake_at_ms: int | None) -> int:
        if wake_at_ms is not None:
            return wake_at_ms
        # Another process may have another clock: due by any.
        return self._host.clock.now_ms() if self._host.is_owner else 0

    async def _wait(self, run_id: str) -> RunRecord | None:
        """Return who has the id, once the start that is under way is committed."""
        acked = self._acks.join(run_id)
        try:
            return await acked
        finally:
            self._acks.leave(run_id, acked)

    async def _is_there(self, record: RunRecord) -> bool:
        """Return whether the run exists, once a start of it that is under way is committed."""
        found: RunRecord | None = None
        while record.run_id in self._starting:
            found = await self._wait(record.run_id)
        if found is None:
            live = self._host.live(record.run_id)
            found = live.record if live else await self._journal.load_run(record.run_id)
        if found is not None:
            _check_same(found, record)
        return found is not None

    def on_committed(self, change: Change, after: Effects, taken_by: RunRecord | None) -> None:  # noqa: ARG002
        """A run that is not in memory was started, or another one has its id."""
        self.acknowledge(change.run_id, taken_by)
        if taken_by is None:
            assert change.parked is not None
            assert change.parked.wake_at_ms is not None
            self._host.wake.set(change.parked.wake_at_ms)

    def acknowledge(self, run_id: str, taken_by: RunRecord | None) -> None:
        """The start is in the journal, or another run has its id."""
        if self._starting.pop(run_id) and taken_by is not None:
            self._host.ends.fail(run_id, lambda: _conflict(taken_by))
        self._acks.tell(run_id, taken_by)
        if not self._host.is_owner:
            # It may have ended by now, which nobody would tell.
            self._host.neighbours.look_again()

    def on_outage(self, error: JournalError) -> None:
        """The journal has failed: what was under way is there or not."""
        for run_id, waits_for_end in self._starting.items():
            if waits_for_end:
                self._host.ends.fail(run_id, lambda: unavailable(error))
        self.fail_all(lambda: unavailable(error))

    def fail_all(self, make_error: Callable[[], Exception]) -> None:
        """Wake all who wait for a start."""
        self._starting.clear()
        self._acks.fail_all(make_error)


def _conflict(taken_by: RunRecord) -> RunConflictError:
    return RunConflictError(f"the new id {taken_by.run_id!r} is taken: ask again")


def _check_same(found: RunRecord, wanted: RunRecord) -> None:
    if (found.name, found.args) != (wanted.name, wanted.args):
        msg = (
            f"the id {wanted.run_id!r} belongs to a run of {found.name!r} with arguments "
            f"{shorten(found.args)}; this start is of {wanted.name!r} with "
            f"{shorten(wanted.args)}. Use another id, or the same arguments."
        )
        raise RunConflictError(msg)
