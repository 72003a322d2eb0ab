"""The children that one run's body waits for: how their steps begin, and by what they are settled.

Rules:

- A step that is new has a child's id, and writes the child's row in its own change. After a restart
  its child is still to be started.
- A delayed child's step is pending until its due time; then it runs until the child's end.
- What ended while the body was not in memory, or was replayed, settles its step when that is over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, final

from durable.core.commands import Work
from durable.core.nesting import is_child_started, settle_by
from durable.core.records import RunRecord, StepState
from durable.core.transitions import start_child

if TYPE_CHECKING:
    from collections.abc import Iterable

    from durable.core.records import StepRecord
    from durable.journal.base import Change
    from durable.runtime.children import Children
    from durable.runtime.writer import Effects

RUNNING = StepState.RUNNING


class ChildWork(Work, Protocol):
    """What the command of a workflow's call stands for."""

    name: str
    version: int


@final
class ChildSteps:
    """The children of one run that its body waits for.

    Args:
        ended: Those that are over, before the body comes to wait for them.
    """

    def __init__(self, run_id: str, children: Children, ended: Iterable[RunRecord] = ()) -> None:
        self._run_id = run_id
        self._children = children
        self._numbers: dict[str, int] = {}
        self._ended = {child.run_id: child for child in ended}

    def __len__(self) -> int:
        return len(self._numbers)

    def start(
        self, step: StepRecord, work: ChildWork, now_ms: int, change: Change, after: Effects
    ) -> StepRecord:
        """Have a step's child started by ``change``; return the step's new record."""
        assert step.child_run_id is not None
        child = RunRecord(
            run_id=step.child_run_id,
            name=work.name,
            version=work.version,
            parent_id=self._run_id,
            args=step.args,
            created_at_ms=now_ms,
        )
        is_delayed = step.due_at_ms is not None and step.due_at_ms > now_ms
        due_ms = step.due_at_ms if is_delayed else None
        self._children.start(child, due_ms, change, after)
        return self._wait(step, now_ms)

    def resume(
        self, step: StepRecord, work: ChildWork, now_ms: int, change: Change, after: Effects
    ) -> StepRecord:
        """Go on, after a replay, with a step that has no outcome; return its new record."""
        if not is_child_started(step):
            return self.start(step, work, now_ms, change, after)
        child = self._ended.get(step.child_run_id or "")
        if child is not None:
            return settle_by(step, child, now_ms)
        return self._wait(step, now_ms)

    def _wait(self, step: StepRecord, now_ms: int) -> StepRecord:
        assert step.child_run_id is not None
        self._numbers[step.child_run_id] = step.number
        if step.state is RUNNING or (step.due_at_ms is not None and step.due_at_ms > now_ms):
            return step
        return start_child(step, now_ms)

    def note_end(self, child: RunRecord) -> None:
        """A child is over; the body is being replayed, and may wait for it."""
        self._ended[child.run_id] = child

    def ended_at_ms(self, step: StepRecord) -> int:
        """Return when the step's child ended, if that was before the replay was over."""
        child = self._ended.get(step.child_run_id or "")
        return 0 if child is None else child.finished_at_ms or 0

    def on_resumed(self) -> None:
        """What had ended by the end of the replay has settled its steps."""
        self._ended.clear()

    def end_wait(self, run_id: str) -> int | None:
        """Wait for a child no more; return the number of its step, if it was waited for."""
        return self._numbers.pop(run_id, None)
