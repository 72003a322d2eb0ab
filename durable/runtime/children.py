"""Runs that others have called: how they begin and are cancelled, and how their end is heard; and
runs that are owed to the end of others.

Rules:

- A child's row is written by the change that has its parent's step. It begins after that commit, at
  once if there is room in memory; otherwise, or if it is delayed, it is claimed like any run.
- The change that ends a child makes its parent due that waits for it and is in nobody's memory. A
  parent that is in memory hears of it after the commit; one that is claimed finds it in the
  journal.
- The change that withdraws a child's step asks the child to end. One that is in memory is told when
  that change is submitted: what it submits from then on is committed after it, or not at all.
- A parent leaves memory only when its children have: it is going to be needed again soon.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, final

from msgspec.structs import replace

from durable.core.callbacks import callback_run
from durable.core.records import StepState
from durable.journal.base import Change, ChildChanges, Parked
from durable.runtime.ids import new_run_id
from durable.runtime.job import JOB_QUEUED, JOB_RESERVED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from durable.core.records import RunRecord, StepRecord
    from durable.runtime.live import LiveRun
    from durable.runtime.writer import Effects, Writer

CANCELED = StepState.CANCELED


class ChildrenHost(Protocol):
    """What children need from the runner."""

    writer: Writer

    @property
    def is_closing(self) -> bool:
        """Whether nothing begins any more."""
        ...

    @property
    def room(self) -> int:
        """How many more runs there may be in memory."""
        ...

    def live(self, run_id: str) -> LiveRun | None:
        """Return the run, if it is in memory."""
        ...

    def take_up(self, record: RunRecord, steps: list[StepRecord]) -> None:
        """Work on a run that this owner has claimed."""
        ...

    def claim_at(self, due_ms: int) -> None:
        """Have the runs claimed that are due then."""
        ...


@final
class Children:
    """The children that are in memory, or about to be."""

    def __init__(self, host: ChildrenHost) -> None:
        self._host = host
        # Those that are in memory after the commit of their start, and what was asked of them.
        self._promised: dict[str, StepRecord | None] = {}
        self._here: dict[str, dict[str, None]] = {}
        # What is asked of those that are not in memory, and is not committed: a claim that is under
        # way does not find it.
        self._asked: dict[str, StepRecord] = {}

    @property
    def promised_count(self) -> int:
        """How many are going to be in memory, and are not yet."""
        return len(self._promised)

    def are_here(self, parent_id: str) -> bool:
        """Whether any child of that run is in memory, or about to be."""
        return parent_id in self._here

    def family(self, run_id: str) -> list[str]:
        """Return what of the runs under that one is in memory, or about to be."""
        found = list(self._here.get(run_id, ()))
        for child_id in found:  # It grows meanwhile.
            found += self._here.get(child_id, ())
        return found

    # --- beginning -------------------------------------------------------------------------------

    def start(self, child: RunRecord, due_ms: int | None, change: Change, after: Effects) -> None:
        """Have a new child written by ``change``, and begun after its commit, or when it is due."""
        assert child.parent_id is not None
        if due_ms is None and self._host.room > 0:
            self._promised[child.run_id] = None
            self._enter(child)
            parked = None
            after.append((self._begin, child))
        else:
            wake_at_ms = child.created_at_ms if due_ms is None else due_ms
            parked = Parked(wake_at_ms)
            after.append((self._host.claim_at, wake_at_ms))
        _children_of(change).started.append((child, parked))

    def _begin(self, child: RunRecord) -> None:
        asked = self._promised.pop(child.run_id)
        if not self._host.is_closing:  # The next owner finds it claimed by this one.
            self._host.take_up(child, [] if asked is None else [asked])

    def void(self, change: Change) -> None:
        """The start of their parent came to nothing, and so did theirs."""
        if change.children is not None:
            for child, _ in change.children.started:
                if child.parent_id is None:
                    continue  # What would have been owed its end.
                self._promised.pop(child.run_id, None)
                self._exit(child)
            self._host.writer.ask_claim()

    def on_live(self, live: LiveRun) -> None:
        """A run is in memory."""
        record = live.record
        if record.parent_id is not None:
            self._enter(record)
            asked = self._asked.get(record.run_id)
            if asked is not None:
                live.cancel_recorded(asked)  # It is written before what the run writes.

    def owe(self, change: Change, now_ms: int, after: Effects) -> None:
        """Have what is owed the end of a run started by the change that ends it."""
        run = change.run
        assert run is not None
        if run.on_complete is None:
            return
        callback = callback_run(run, new_run_id(now_ms), now_ms)
        change.run = replace(run, callback_id=callback.run_id)
        _children_of(change).started.append((callback, Parked(now_ms)))
        after.append((self._host.claim_at, now_ms))

    # --- cancelling ------------------------------------------------------------------------------

    def cancel(
        self, steps: Sequence[StepRecord], asked: StepRecord, change: Change, after: Effects
    ) -> None:
        """Have the children of those ``steps`` that are withdrawn asked to end by ``change``."""
        child_ids = [
            step.child_run_id
            for step in steps
            if step.child_run_id is not None and step.state is CANCELED
        ]
        for child_id in child_ids:
            _children_of(change).canceled.append((child_id, asked))
            if child_id in self._promised:
                self._promised[child_id] = self._promised[child_id] or asked
            elif (live := self._host.live(child_id)) is not None:
                live.cancel_recorded(asked)
            else:
                self._asked.setdefault(child_id, asked)
                after.append((self._on_asked, child_id))
        if child_ids:
            self._hold(child_ids)
            after.append((self._claim, None))

    def _hold(self, run_ids: list[str]) -> None:
        """Let nothing begin any more in these runs and under them, before their turns come.

        What has been told before may be cleaning up, and goes on with that.
        """
        held: list[LiveRun] = []
        for run_id in run_ids:  # It grows meanwhile.
            live = self._host.live(run_id)
            if live is not None and not live.is_told:
                held.append(live)
                run_ids += self._here.get(run_id, ())
        for state in (JOB_QUEUED, JOB_RESERVED):  # A slot that is given back is taken at once.
            for live in held:
                live.hold(state)

    def _on_asked(self, child_id: str) -> None:
        self._asked.pop(child_id, None)

    def _claim(self, _: None) -> None:
        self._host.writer.ask_claim()

    # --- leaving, ending -------------------------------------------------------------------------

    def on_gone(self, record: RunRecord) -> None:
        """A run has left memory, or is over without having been there."""
        if record.parent_id is None:
            return
        self._exit(record)
        parent = self._host.live(record.parent_id)
        if not record.state.is_final:
            if parent is not None:
                parent.park_if_idle()
        elif parent is None:
            self._host.writer.ask_claim()
        elif not parent.on_child_ended(record):
            # It left memory in the meantime. Said again, it is found to wait there.
            self._host.writer.submit(Change(run_id=record.run_id, run=record), self, [])

    def on_committed(self, change: Change, after: Effects, taken_by: RunRecord | None) -> None:  # noqa: ARG002  a submitter's
        """A parent that was about to leave memory is due."""
        self._host.writer.ask_claim()

    def on_removed(self, run_id: str) -> None:
        """There is no such run any more, nor what is under it."""
        self._promised.pop(run_id, None)
        self._here.pop(run_id, None)
        self._asked.pop(run_id, None)

    def clear(self) -> None:
        """Forget them: nothing is in memory any more."""
        self._promised.clear()
        self._here.clear()
        self._asked.clear()

    # --- who is here -----------------------------------------------------------------------------

    def _enter(self, child: RunRecord) -> None:
        assert child.parent_id is not None
        self._here.setdefault(child.parent_id, {})[child.run_id] = None

    def _exit(self, child: RunRecord) -> None:
        assert child.parent_id is not None
        siblings = self._here.get(child.parent_id)
        if siblings is not None:
            siblings.pop(child.run_id, None)
            if not siblings:
                del self._here[child.parent_id]


def _children_of(change: Change) -> ChildChanges:
    if change.children is None:
        change.children = ChildChanges()
    return change.children
