"""That a run in memory is to end: it is asked for, and then told to the run's body.

Rules:

- Of several who ask, the first one counts.
- What is asked of a run in memory is recorded by the turn in which its body is told. Anything else
  is recorded before that: then the turn only says where among the deliveries it stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from durable.core.records import recorded_cancel

if TYPE_CHECKING:
    from collections.abc import Iterable

    from durable.core.records import StepRecord
    from durable.journal.base import Change


@final
class Cancel:
    """Whether one run was asked to end, and whether its body knows.

    Args:
        steps: All that the journal has of them.

    Attributes:
        pending: What was asked, and not told to the body yet.
        is_told: Whether the body was told; in a replay it may not have come to that yet.
        is_recorded: Whether the journal has what was asked, or has it before anything that follows.
    """

    __slots__ = ("is_recorded", "is_told", "pending")

    def __init__(self, steps: Iterable[StepRecord]) -> None:
        recorded = recorded_cancel(steps)
        self.is_recorded = recorded is not None
        self.is_told = recorded is not None and recorded.position is not None
        self.pending = None if self.is_told else recorded

    def ask(self, asked: StepRecord) -> bool:
        """Have the body told; return whether nobody has asked before."""
        if self.pending is not None or self.is_told:
            return False
        self.pending = asked
        return True

    def tell(self, delivered: StepRecord, change: Change) -> None:
        """The body is told, in the turn that ``change`` records."""
        if self.is_recorded:
            change.updated.append(delivered)
        else:
            change.asked = delivered
        self.pending = None
        self.is_told = True

    def settle(self, change: Change) -> StepRecord:
        """The run ends by ``change``, and its body is not told; return what was asked."""
        asked, self.pending = self.pending, None
        assert asked is not None
        if not self.is_recorded:
            change.asked = asked
        return asked
