"""An execution that notes where its body issues each command, for whoever looks at it by hand."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple, final

from durable.core.execution import Execution
from durable.core.loop import WorkflowLoop
from durable.core.places import frame_of_command, frame_of_task, place_of, place_of_caller

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Collection
    from types import FrameType

    from durable.core.commands import Command, CommandFuture, Raised, Returned
    from durable.core.places import Place
    from durable.core.records import RunRecord, StepRecord


@final
class Issued(NamedTuple):
    """A command, and the line of the user's code that issued it, if there is one."""

    command: Command
    place: Place | None


@final
class TracedExecution(Execution):
    """An execution whose turns can be looked at, one by one."""

    def __init__(
        self, run: RunRecord, history: Collection[StepRecord] = (), *, started_at_ms: int
    ) -> None:
        super().__init__(run, history, started_at_ms=started_at_ms)
        self._noted: list[Issued] = []

    @property
    def next_delivery(self) -> StepRecord | None:
        """What is delivered next; ``None`` at the end of what is recorded."""
        history = self._history
        return history.deliveries[-1] if history is not None and history.deliveries else None

    @property
    def end(self) -> Returned | Raised | None:
        """How the body has ended, if it has."""
        return None if self._body is None else self._body.outcome

    def take_turn_notes(self) -> tuple[list[Issued], list[Command]]:
        """Return what the last turn has issued, and what it has withdrawn."""
        noted, self._noted = self._noted, []
        withdrawn, self._withdrawn = self._withdrawn, []
        return [
            Issued(command, place or place_of(frame_of_command(self.loop, command.key)))
            for command, place in noted
        ], withdrawn

    def frame_of(self, step: StepRecord | None) -> FrameType | None:
        """Return the frame of the user's code that waits for a step; of none, the body's own."""
        if step is None or step.number < 0:
            return frame_of_task(self.loop, "0")
        return frame_of_command(self.loop, step.key)

    def issue(self, command: Command) -> CommandFuture:
        self._note(command)
        return super().issue(command)

    def start_timer(self, handle: asyncio.TimerHandle, when: float) -> None:
        super().start_timer(handle, when)
        self._note(self._issued[-1])

    def _note(self, command: Command) -> None:
        place = place_of_caller(sys._getframe(1), WorkflowLoop.pump.__code__)  # noqa: SLF001
        self._noted.append(Issued(command, place))
