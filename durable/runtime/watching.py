"""Who watches which run, and what they see of it.

Rules:

- Watchers of one run share a *topic*. It is read again after each change, once for all of them;
  what changes while it is read is read next. So nothing is missed, and a flood of changes is one.
- A watcher first sees what was read after it came, so there is no gap before its first snapshot.
- The end of a run that this process works on is shown as it was committed: it is seen even if the
  run is removed right after.
- A topic lives as long as a watcher refers to it: one that is dropped leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import weakref
from itertools import islice
from typing import TYPE_CHECKING, Protocol, TypeAlias, final

import anyio

from durable.core.errors import JournalError, JournalUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from durable.core.records import RunRecord, StepRecord
    from durable.journal.base import Change, Journal

    OnWaiting = Callable[[str, asyncio.Future[None]], None]

Snapshot: TypeAlias = "tuple[RunRecord, list[StepRecord]]"
"""A run and its open steps, of one moment."""

READ_RUNS_MAX = 500
"""How many runs one read takes, so that no reader holds the journal for long."""

READ_TRIES_MAX = 3
READ_AGAIN_S = 0.1
"""A read may fail before a commit does, which says that the journal is out: it is tried again."""


class WatchingHost(Protocol):
    """What watching asks of the runner."""

    @property
    def outage(self) -> JournalError | None:
        """Why the journal cannot be used now, if so."""
        ...


@final
class Topic:
    """One run that is watched.

    Attributes:
        asked_count: How often a read of it was asked for.
        read_count: As many of them are answered by ``snapshot``.
        snapshot: What was read last; ``None`` when there is no such run.
        is_over: Whether no change of it follows: it is final, or gone.
        failure: What makes the error that its watchers get.
    """

    __slots__ = (
        "__weakref__",
        "_on_waiting",
        "_waiters",
        "asked_count",
        "failure",
        "is_over",
        "read_count",
        "run_id",
        "snapshot",
    )

    def __init__(self, run_id: str, on_waiting: OnWaiting | None) -> None:
        self.run_id = run_id
        self.asked_count = self.read_count = 0
        self.snapshot: Snapshot | None = None
        self.is_over = False
        self.failure: Callable[[], Exception] | None = None
        self._on_waiting = on_waiting
        self._waiters: dict[asyncio.Future[None], None] = {}

    async def wait(self) -> None:
        """Return when what is known of the run has changed."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        if self._on_waiting is not None:
            self._on_waiting(self.run_id, waiter)
        try:
            await waiter
        finally:
            self._waiters.pop(waiter, None)

    def publish(self, snapshot: Snapshot | None, count: int) -> None:
        """Show what was found when a read had been asked for so often."""
        if self.is_over or (snapshot is None and count < self.asked_count):
            return  # It is read again: a run may have got the id since.
        self.is_over = snapshot is None or snapshot[0].state.is_final
        self.snapshot = snapshot
        self.read_count = count
        self._tell()

    def fail(self, make_error: Callable[[], Exception]) -> None:
        """Give its watchers an error."""
        if not self.is_over:
            self.failure = make_error
            self._tell()

    def _tell(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


@final
class Watcher:
    """One who watches a run."""

    def __init__(self, topic: Topic) -> None:
        self._topic = topic
        self._count = topic.asked_count
        self._seen: Snapshot | None = None

    async def next(self) -> Snapshot | None:
        """Return what is new of the run, at once if something is; ``None`` when it is gone.

        Raises:
            JournalUnavailableError: The storage fails.
            JournalCorruptError: A row of it is damaged.
            EngineClosedError: The engine was closed.
        """
        topic = self._topic
        while True:
            is_read = topic.is_over or topic.read_count >= self._count
            if is_read and (topic.snapshot is None or topic.snapshot is not self._seen):
                self._seen = topic.snapshot
                return self._seen
            if topic.failure is not None:
                raise topic.failure()
            await topic.wait()


@final
class Watching:
    """All that is watched of one journal.

    Attributes:
        on_waiting: Called whenever a watcher begins to wait, if given, with the run's id and what
            is done once the wait is over.
    """

    def __init__(self, journal: Journal, host: WatchingHost) -> None:
        self.on_waiting: OnWaiting | None = None
        self._journal = journal
        self._host = host
        self._topics: weakref.WeakValueDictionary[str, Topic] = weakref.WeakValueDictionary()
        self._changed: dict[str, None] = {}
        self._wake = asyncio.Event()

    def join(self, run_id: str) -> Watcher:
        """Watch a run, from now on."""
        topic = self._topics.get(run_id)
        if topic is None or topic.is_over or topic.failure is not None:
            self._topics[run_id] = topic = Topic(run_id, self.on_waiting)
        self._ask(topic)
        return Watcher(topic)

    def on_committed(self, changes: Iterable[tuple[Change, object, object]]) -> None:
        """These changes are in the journal."""
        if not self._topics:
            return
        for change, _, _ in changes:
            topic = self._topics.get(change.run_id)
            if topic is not None:
                self._ask(topic)

    def on_final(self, record: RunRecord) -> None:
        """A run has ended, which is in the journal."""
        topic = self._topics.get(record.run_id)
        if topic is not None:
            topic.publish((record, []), topic.asked_count)

    def look_again(self, is_known: Callable[[str], bool] | None = None) -> None:
        """Read all again but what is known here: others have written, or the journal was out."""
        for topic in list(self._topics.values()):
            if is_known is None or not is_known(topic.run_id):
                self._ask(topic)

    def fail_all(self, make_error: Callable[[], Exception]) -> None:
        """The engine is closed: nobody will see anything any more."""
        for topic in list(self._topics.values()):
            topic.fail(make_error)

    def _ask(self, topic: Topic) -> None:
        if not topic.is_over:
            topic.asked_count += 1
            self._changed[topic.run_id] = None
            self._wake.set()

    async def serve(self) -> None:
        """Read what has changed, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._changed and self._host.outage is None:
                await self._read()

    async def _read(self) -> None:
        run_ids = list(islice(self._changed, READ_RUNS_MAX))
        for run_id in run_ids:
            del self._changed[run_id]
        topics = {run_id: topic for run_id in run_ids if (topic := self._topics.get(run_id))}
        if not topics:
            return
        counts = [topic.asked_count for topic in topics.values()]
        try:
            found = await self._load(list(topics))
        except JournalError as exc:
            error = exc
            for topic in topics.values():
                topic.fail(lambda: _again(error))
            return
        if found is None:  # All is read again when the outage is over.
            return
        for topic, count in zip(topics.values(), counts, strict=True):
            snapshot = found.get(topic.run_id)
            if isinstance(snapshot, JournalError):
                damage = snapshot
                topic.fail(lambda damage=damage: _again(damage))  # type: ignore[misc]
            else:
                topic.publish(snapshot, count)

    async def _load(self, run_ids: list[str]) -> dict[str, Snapshot | JournalError] | None:
        """Read runs; return ``None`` in an outage."""
        tries_count = 0
        while True:
            try:
                return await self._journal.load_statuses(run_ids)
            except JournalUnavailableError:
                tries_count += 1
                if self._host.outage is None:
                    if tries_count == READ_TRIES_MAX:
                        raise
                    await anyio.sleep(READ_AGAIN_S)
                if self._host.outage is not None:
                    return None


def _again(error: JournalError) -> Exception:
    """Return an error of its own for each watcher: tracebacks grow on those that are raised."""
    again = type(error)(*error.args)
    again.__cause__ = error.__cause__
    return again
