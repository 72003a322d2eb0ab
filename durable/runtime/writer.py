"""Group commit: all that is pending goes in one transaction, and what it allows happens after.

Rules:

- One task talks to the journal's writing side. While a commit is under way, what comes meanwhile
  waits for the next: the commit in flight is the batching window, there is no timer.
- What follows from a change happens after its commit, in the order of submission.
- Others write between the commits, mutations and callers: what is pending joins their transactions.
- When a commit raises, its outcome is unknown. Nothing is acknowledged; whoever holds state made
  from it is told to drop it; the journal is opened again, with back-off, and read again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, final

import anyio

from durable.core.errors import JournalError
from durable.journal.base import OwnershipLostError

if TYPE_CHECKING:
    from collections.abc import Callable

    from durable.core.records import RunRecord
    from durable.journal.base import Change, Claim, Journal
    from durable.journal.connections import Writing
    from durable.runtime.watching import Watching

BATCH_BYTES_MAX = 32 * 1024 * 1024
"""A batch takes no more changes once their values are larger than this: it bounds the memory of a
commit, and how long it holds the journal."""

BATCH_WHOLE_MAX = 32
"""A batch of so few changes takes all there are: its cost is that of the commit."""

REOPEN_DELAY_MIN_S = 0.05
REOPEN_DELAY_MAX_S = 1.0
"""The waits between attempts to open a failed journal again; they double from min to max."""

Effects: TypeAlias = "list[tuple[Callable[[Any], None], Any]]"
"""What is to be called once a change is committed: functions, each with its argument."""


class WriterHost(Protocol):
    """What the writer tells the runner."""

    watching: Watching

    def reserve_claim(self) -> int | None:
        """Keep room for the runs of a claim; return for how many; ``None`` for no claim at all."""
        ...

    def now_ms(self) -> int:
        """Return the time that due runs are claimed by."""
        ...

    def on_claimed(self, claim: Claim) -> None:
        """Work on these runs."""
        ...

    def on_outage(self, error: JournalError) -> None:
        """Drop all that was made from uncommitted changes: their outcome is unknown."""
        ...

    def on_restored(self) -> None:
        """The journal is there again; it has to be read again."""
        ...


class Submitter(Protocol):
    """Who has a change committed."""

    def on_committed(self, change: Change, after: Effects, taken_by: RunRecord | None) -> None:
        """Do what follows from ``change``; of a start whose id is taken, hear who has it."""
        ...


class OtherWriting(Protocol):
    """Those whose own transactions take turns with the commits."""

    @property
    def is_waiting(self) -> bool:
        """Whether there are any."""
        ...

    async def take_turn(self) -> None:
        """Let one of them have its transaction.

        Raises:
            JournalError: The storage failed.
        """
        ...


Submitted: TypeAlias = "tuple[Change, Submitter, Effects]"
"""A change that is to be committed, who is told, and what follows from it."""


@final
class Writer:
    """The one that commits.

    Attributes:
        others: Who else writes, if anybody.
        is_claim_asked: Whether due runs are to be claimed.
    """

    def __init__(self, journal: Journal, host: WriterHost) -> None:
        self._journal = journal
        self._host = host
        self._pending: list[Submitted] = []
        self.is_claim_asked = False
        self._previous_count = 0
        self._is_busy = False
        self._is_stopping = False
        self._wake: asyncio.Event = asyncio.Event()
        self._idle: asyncio.Event = asyncio.Event()
        self._reopen_delay_s = REOPEN_DELAY_MIN_S
        self._failure: JournalError | None = None
        self.others: OtherWriting | None = None
        self.outage: JournalError | None = None
        self.commits_count = 0

    def submit(self, change: Change, submitter: Submitter, after: Effects) -> None:
        """Have ``change`` committed, and its submitter told then, with ``after``."""
        assert self.outage is None
        if not self._pending:
            self._wake.set()
        self._pending.append((change, submitter, after))

    def ask_claim(self) -> None:
        """Have the runs claimed that are due."""
        self.is_claim_asked = True
        self._wake.set()

    def wake(self) -> None:
        """Somebody else waits for a turn."""
        self._wake.set()

    def fail(self, error: JournalError) -> None:
        """Elsewhere, the storage has failed: have the journal opened again and read again."""
        if self.outage is None:
            self._failure = error
            self._wake.set()

    @property
    def pending_count(self) -> int:
        """How many changes wait for the next commit."""
        return len(self._pending)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is pending, asked for, or under way."""
        return not (
            self._is_busy
            or self._pending
            or self.is_claim_asked
            or self._failure
            or self._is_other_waiting
        )

    @property
    def _is_other_waiting(self) -> bool:
        return self.others is not None and self.others.is_waiting

    async def wait_until_idle(self) -> None:
        """Return when nothing is pending or under way."""
        while self._pending or self._is_busy or self._is_other_waiting:
            self._idle.clear()
            await self._idle.wait()

    def stop(self) -> None:
        """Let ``serve`` return once nothing is pending."""
        self._is_stopping = True
        self._wake.set()

    async def serve(self) -> None:
        """Commit and claim until stopped."""
        while True:
            if not (
                self._pending or self.is_claim_asked or self._failure or self._is_other_waiting
            ):
                self._idle.set()
                self._previous_count = 0
                if self._is_stopping:
                    return
                self._wake.clear()
                await self._wake.wait()
            self._is_busy = True
            try:
                await self._work()
                # Not as soon as it opens: a file with a damaged page opens, and fails again.
                self._reopen_delay_s = REOPEN_DELAY_MIN_S
            except OwnershipLostError:
                raise  # There is nothing to wait for: the engine ends.
            except JournalError as error:
                await self._recover(error)
            finally:
                self._is_busy = False

    async def _work(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._pending:
            batch = self._take_batch()
            taken = await self._journal.commit([change for change, _, _ in batch])
            self.on_committed(batch, taken)
        if self.is_claim_asked:
            self.is_claim_asked = False
            limit = self._host.reserve_claim()
            if limit is not None and not self._is_stopping:
                self._host.on_claimed(await self._journal.claim(self._host.now_ms(), limit))
        if self.others is not None and self.others.is_waiting:
            await self.others.take_turn()

    def take_pending(self) -> list[Submitted]:
        """Take all that is pending: it joins a transaction of others."""
        batch, self._pending = self._pending, []
        return batch

    def on_committed(self, batch: list[Submitted], taken: dict[str, RunRecord]) -> None:
        """Tell whose changes are in the journal now, and whose ids were taken."""
        self.commits_count += 1
        for change, submitter, after in batch:
            taken_by = taken.get(change.run_id) if change.is_start else None
            submitter.on_committed(change, after, taken_by)
        self._host.watching.on_committed(batch)

    def _take_batch(self) -> list[Submitted]:
        pending = self._pending
        count = len(pending)
        if count > BATCH_WHOLE_MAX and 0 < self._previous_count < count:
            # While one batch is written, the loop works on what follows from the one before. So two
            # take turns, and each waits for the larger: they are to be of one size.
            count = (count + self._previous_count + 1) // 2
        size = 0
        for index in range(count):
            size += pending[index][0].size()
            if size > BATCH_BYTES_MAX:
                count = index + 1
                break
        self._previous_count = count
        batch, self._pending = pending[:count], pending[count:]
        return batch

    async def _recover(self, error: JournalError) -> None:
        self.outage = error
        self._failure = None
        self._pending.clear()
        self._host.on_outage(error)
        while not self._is_stopping:
            with anyio.move_on_after(self._reopen_delay_s):
                await self._wait_until_stopping()
            self._reopen_delay_s = min(self._reopen_delay_s * 2, REOPEN_DELAY_MAX_S)
            try:
                await self._journal.reopen()
            except OwnershipLostError:
                raise
            except JournalError as again:
                self.outage = again
                continue
            self.outage = None
            self.is_claim_asked = True
            self._host.on_restored()
            return

    async def _wait_until_stopping(self) -> None:
        while not self._is_stopping:
            self._wake.clear()
            await self._wake.wait()


@final
class Joining:
    """What is pending, on its way into a transaction of others, in whose turn all of it happens."""

    def __init__(self, writer: Writer, journal: Journal, writing: Writing) -> None:
        self._writer = writer
        self._journal = journal
        self._writing = writing
        self._batch: list[Submitted] = []
        self._written: list[Change] = []

    def take(self) -> list[Change]:
        """Take what is pending now; all of it is to be written, in the order in which it came."""
        batch = self._writer.take_pending()
        self._batch += batch
        return [change for change, _, _ in batch]

    def write(self, changes: list[Change]) -> None:
        """Have the first changes written, while others are made.

        Raises:
            JournalError: The journal was closed.
        """
        self._writing.write(changes)
        self._written += changes

    async def commit(self, changes: list[Change], after: Effects) -> None:
        """Write the last changes, and commit the transaction; then do what it allows.

        Raises:
            JournalError: The outcome is unknown.
        """
        taken = await self._journal.commit_writing(self._writing, self._written + changes)
        for act, subject in after:
            act(subject)
        self._writer.on_committed(self._batch, taken)
