"""The contract of a journal.

Rules:

- What one turn of one run writes is a ``Change``; a commit takes many, each whole or not at all.
- Every commit is fenced by the owner's *epoch* in the same transaction: an owner that was replaced
  writes nothing, and cannot take the journal back.
- A run is somebody's work when its wake time has come. Claiming it clears the wake time; parking it
  sets a new one, or none, and gives the claim back.
- Whoever has the journal open and does not own it is a *guest*. Guests read, and write what the
  owner is to do: runs that are due, and what is asked of others. Nothing fences them.
- A commit that raised has an unknown outcome. The journal must be opened again before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, final

import msgspec

from durable.core.errors import JournalError, JournalLockedError
from durable.core.records import EventRecord, RunRecord, RunState, StepRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from durable.core.histories import RecordedRun
    from durable.core.versions import VersionTable
    from durable.journal.connections import Writing
    from durable.journal.rounds import StatementRound
    from durable.journal.scopes import Scope


class OwnershipLostError(JournalLockedError):
    """Another owner has taken the journal over. Nothing was written, and nothing will be."""


@final
class Parked(msgspec.Struct, frozen=True, gc=False):
    """The run needs nobody until then; ``None``: until something is sent to it."""

    wake_at_ms: int | None


@final
class ChildChanges(msgspec.Struct, gc=False):
    """What a turn of a run does to its children.

    Attributes:
        started: New ones, each with its start: ``None`` when the owner works on it from now on.
        canceled: Those that are to end, by id, each with what asks it to. One that nobody works on
            is due at once; of one that is over, or has been asked before, nothing changes.
    """

    started: list[tuple[RunRecord, Parked | None]] = []
    canceled: list[tuple[str, StepRecord]] = []


@final
class Restart(msgspec.Struct, frozen=True, gc=False):
    """A finished run is to go on from a step.

    Attributes:
        generation: The one that it becomes.
        from_number: Steps with this number and above are as if they had never begun.
        from_position: Deliveries from this one on are made again; ``None``: the body has to begin
            again, and nothing of it is kept.
        now_ms: When its timers are set again.
    """

    generation: int
    from_number: int
    from_position: int | None
    now_ms: int


@final
class Change(msgspec.Struct, kw_only=True, gc=False):
    """What one turn of one run writes, whole or not at all.

    Attributes:
        run: The run's row as it is to be, or ``None`` when it does not change. When the run is
            over, who waits for it as for a child, and is in nobody's memory, is due at once.
        is_start: The run is new: insert it, unless its id is taken; then nothing is written.
        issued: New steps.
        updated: Steps whose rows exist. One that left the state it had for a final one stays.
        asked: Something for the run, from outside of its body: kept, unless there is one, or the
            run is over.
        parked: Gives the claim back, with the run's next wake time.
        is_wake: The run is due, even if the owner works on it: something was asked of it.
        children: What it does to other runs, or ``None``.
        is_removal: The run, its steps and its children, and theirs, are to be no more.
        is_gentle: Not, if the owner works on any of those that are to be removed.
        events: Created or sent, in this order: kept, unless the run is over or the event was sent
            before. A run that waits for one, and that nobody works on, is due by that; and, if a
            guest has sent it, one that the owner works on.
        sent_before: The commit tells here which of the events, by id, had been sent already.
        is_behind: The commit tells here that something was asked of the run, or sent to it, that
            its owner has not heard of yet: what was sent now is to be heard after that.
        consumed: The ids of events, each with the number of the step that has it now.
        restart: Nothing of it happens if the run has another generation, or is not over.
    """

    run_id: str
    run: RunRecord | None = None
    is_start: bool = False
    issued: list[StepRecord] = []
    updated: list[StepRecord] = []
    asked: StepRecord | None = None
    parked: Parked | None = None
    is_wake: bool = False
    children: ChildChanges | None = None
    is_removal: bool = False
    is_gentle: bool = False
    events: tuple[EventRecord, ...] = ()
    sent_before: tuple[str, ...] = ()
    is_behind: bool = False
    consumed: tuple[tuple[str, int], ...] = ()
    restart: Restart | None = None

    def size(self) -> int:
        """Return about how many bytes of values it carries."""
        size = 0
        for step in self.issued:
            size += len(step.args)
        for step in self.updated:
            if step.result is not None:
                size += len(step.result)
            if step.error is not None:
                size += len(step.error)
        if self.run is not None:
            size += len(self.run.args) + len(self.run.result or "") + len(self.run.error or "")
        if self.children is not None:
            size += sum(len(child.args) for child, _ in self.children.started)
        if self.events:
            size += sum(len(event.value or "") + len(event.error or "") for event in self.events)
        return size


@final
class Claim(msgspec.Struct, frozen=True):
    """Runs that this owner now has to work on.

    Attributes:
        runs: Each with all of its steps, in order of number.
        next_wake_at_ms: When the next run that was not claimed is due; ``None`` when none is.
        events: What was sent to them and not consumed, by run, in the order of sending.
        errors: Runs that could not be read, which nobody works on: the error names the row. With
            the run, when only its steps could not.
        ended: By id of a claimed run, its children that are over, of those that it waits for.
    """

    runs: list[tuple[RunRecord, list[StepRecord]]]
    next_wake_at_ms: int | None
    errors: list[tuple[RunRecord | None, JournalError]] = []
    ended: dict[str, list[RunRecord]] = {}
    events: dict[str, list[EventRecord]] = {}


@final
class RunTree(msgspec.Struct, frozen=True):
    """A run and all that is under it, of one moment.

    Attributes:
        is_awaited: Whether it has a parent that is not over.
        descendants: Its children, and theirs: by id, whether it is over.
    """

    run: RunRecord
    is_awaited: bool
    descendants: dict[str, bool]


@final
class RunQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which runs, in which order, after which: keyset paging by order of insertion."""

    name: str | None = None
    state: RunState | None = None
    parent_id: str | None = None
    order: Literal["asc", "desc"] = "asc"
    limit: int
    after: int | None = None


@final
class StepQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which steps of a run, after which number."""

    run_id: str
    order: Literal["asc", "desc"] = "asc"
    limit: int
    after: int | None = None


class Journal(Protocol):
    """A store of runs and steps. One task at a time calls ``open``, ``commit`` and ``claim``."""

    @property
    def is_owner(self) -> bool:
        """Whether this is the one that works on the runs."""
        ...

    @property
    def versions(self) -> VersionTable:
        """The versions that its runs were begun with, as the owner knows them."""
        ...

    async def open(self) -> None:
        """Migrate, become the owner if there is none, and make claimable what the last one left.

        With an owner there, or for a client, be a guest.

        Raises:
            JournalLockedError: Another process writes, and does not come to an end.
            JournalVersionError: It is newer than this code.
            JournalCorruptError: It is damaged, or not a journal.
            JournalUnavailableError: The storage failed.
        """
        ...

    async def reopen(self) -> None:
        """Open again after a failed commit, as the same owner, or as a guest.

        Raises:
            OwnershipLostError: Another owner has taken over meanwhile.
            JournalError: What ``open`` raises.
        """
        ...

    async def take_over(self) -> bool:
        """Become the owner, if there is none any more; return whether it was done. No client does.

        Raises:
            JournalError: The outcome is unknown; ask again.
        """
        ...

    def watch(self, tell: Callable[[], None]) -> None:
        """Have ``tell`` called, in any thread, when others may have written, or the owner is gone.

        It is called once in a while anyway, until the journal is closed.
        """
        ...

    async def release_dead_claims(self) -> bool:
        """If the owner is dead, and this is no worker, which takes over, see that no run is held to
        be worked on; return whether it was so.

        Cancellation:
            Never splits it: the caller hears of it when it is done.

        Raises:
            JournalError: The outcome is unknown; ask again.
        """
        ...

    async def close(self) -> None:
        """Give the ownership back and release what is held. Never raises."""
        ...

    async def commit(self, changes: Sequence[Change]) -> dict[str, RunRecord]:
        """Write ``changes`` in one transaction. No two of them start a run with the same id.

        Returns:
            The runs that are there already, of the starts whose id is taken.

        Raises:
            OwnershipLostError: Another owner has taken over; nothing was written.
            JournalError: The outcome is unknown.

        Cancellation:
            Never splits it. A cancelled caller does not know the outcome.
        """
        ...

    async def claim(self, now_ms: int, limit: int) -> Claim:
        """Claim up to ``limit`` runs that are due, and read their histories.

        Those too, beyond the limit, that this owner works on and of which something was asked.

        Raises:
            JournalError: The outcome is unknown: claims are found again by ``reopen``.
        """
        ...

    async def load_run(self, run_id: str) -> RunRecord | None:
        """Return the run of that id, as committed."""
        ...

    async def load_tree(self, run_id: str) -> RunTree | None:
        """Return the run of that id and what is under it."""
        ...

    async def load_history(self, run_id: str) -> tuple[RunRecord, list[StepRecord]] | None:
        """Return the run and all its steps, of one moment, the hidden records among them."""
        ...

    async def load_recorded(self, run_id: str) -> RecordedRun | None:
        """Return all that is recorded of a run, of one moment."""
        ...

    async def load_status(self, run_id: str) -> tuple[RunRecord, list[StepRecord]] | None:
        """Return the run and its open steps, of one moment."""
        ...

    async def load_statuses(
        self, run_ids: list[str]
    ) -> dict[str, tuple[RunRecord, list[StepRecord]] | JournalError]:
        """Return those runs that there are, as ``load_status`` does, or why they cannot be read."""
        ...

    async def is_asked(self, run_id: str, number: int) -> bool:
        """Return whether what has that number was asked of a run, or handed to it."""
        ...

    async def find_over(self, run_ids: list[str]) -> list[str]:
        """Return those runs that have ended, or that there are not."""
        ...

    async def next_wake_at_ms(self) -> int | None:
        """Return when the next run is due; ``None`` when none is.

        Raises:
            OwnershipLostError: Another owner has taken over.
        """
        ...

    async def load_event(self, event_id: str) -> EventRecord | None:
        """Return the event of that id, as committed."""
        ...

    async def list_finished(self, before_ms: int, limit: int) -> list[str]:
        """Return up to so many runs that were over before then, and have no parent."""
        ...

    async def list_runs(self, query: RunQuery) -> list[tuple[int, RunRecord, list[StepRecord]]]:
        """Return the runs that match: each with its place for ``RunQuery.after``, and its open
        steps, all of one moment."""
        ...

    async def list_steps(self, query: StepQuery) -> list[StepRecord] | None:
        """Return the steps that match; ``None`` when there is no such run."""
        ...

    # --- the application's own statements --------------------------------------------------------

    @property
    def is_one_connection(self) -> bool:
        """Whether queries, too, have to take turns with the writer."""
        ...

    async def begin(self) -> Writing:
        """Begin a writing transaction for the application's statements. The writer calls it.

        Until it is over, nothing else of the writing side may be called.

        Raises:
            OwnershipLostError: Another owner has taken over.
            JournalError: The storage failed.
        """
        ...

    def new_round(self) -> StatementRound:
        """Return a round of statements, for a writing transaction of this journal."""
        ...

    async def commit_writing(
        self, writing: Writing, changes: Sequence[Change]
    ) -> dict[str, RunRecord]:
        """Write ``changes`` in that transaction, and commit it; return what ``commit`` does.

        Raises:
            JournalError: The outcome is unknown.
        """
        ...

    async def write_within(self, scope: Scope, change: Change) -> RunRecord | None:
        """Write a change as a part of a writing transaction; return who has the id of a start.

        Raises:
            TransactionError: It is over.
            JournalError: The storage failed: nothing of the transaction is committed.
        """
        ...

    async def read_within(self, scope: Scope, run_id: str) -> RunRecord | None:
        """Return the run, as that writing transaction sees it.

        Raises:
            TransactionError: It is over.
            JournalError: The storage failed: nothing of the transaction is committed.
        """
        ...

    def reading(self) -> AbstractAsyncContextManager[Scope]:
        """Return a reading transaction for the application's statements, of one moment.

        Raises:
            JournalError: The storage failed.
        """
        ...
