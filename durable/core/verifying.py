"""Executing a live run's body again after each of its turns: does it replay?

A body that does not is found on its first run, and not after a crash. A turn costs as much as all
turns before it together: this is for development.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from msgspec.structs import replace

from durable.core.commands import Stuck
from durable.core.ending import end_by
from durable.core.records import RunState, StepState
from durable.core.replaying import replay_run
from durable.core.transitions import new_step

if TYPE_CHECKING:
    from collections.abc import Iterable

    from durable.core.commands import Turn
    from durable.core.execution import Execution, WorkflowSpec
    from durable.core.host import Guard
    from durable.core.records import StepRecord

FOUND = (
    "verify_replay has executed the body again after this turn, and it did something else: {}. "
    "What is not the same each time belongs in an action; step.now(), step.random and step.uuid4() "
    "are."
)


@final
class Verifier:
    """What is recorded of a live run, for executing its body again.

    Args:
        recorded: The steps that the journal has of it.
        spec: The code.
        guard: What watches its body, if anything.
    """

    def __init__(
        self, recorded: Iterable[StepRecord], spec: WorkflowSpec, guard: Guard | None
    ) -> None:
        self._spec = spec
        self._guard = guard
        self._steps: dict[int, StepRecord] = {}
        self.note(recorded)

    def note(self, steps: Iterable[StepRecord]) -> None:
        """Take what is recorded otherwise than by a turn."""
        self._steps.update((step.number, step) for step in steps)

    def check(
        self, execution: Execution, delivered: StepRecord | None, turn: Turn, started_at_ms: int
    ) -> None:
        """Execute the body again, with the turn that it has just taken.

        Args:
            execution: The body's.
            delivered: What led to the turn; ``None`` for the first.
            turn: What the body did in it.
            started_at_ms: The run's time in its first turn.

        Raises:
            Stuck: The body did something else this time. The turn is not to be recorded.
        """
        steps = dict(self._steps)
        if delivered is not None:
            steps[delivered.number] = delivered
        for command in turn.withdrawn:
            step = steps[command.number]
            if not step.state.is_final:
                steps[command.number] = replace(step, state=StepState.CANCELED)
        steps.update((step.number, step) for step in turn.patches)
        steps.update((command.number, new_step(command)) for command in turn.issued)
        run = replace(
            execution.run,
            state=RunState.RUNNING,
            started_at_ms=started_at_ms,
            restarted_from=None,
        )
        if turn.end is not None:
            is_canceled = execution.is_canceled
            run = end_by(run, turn.end, self._spec, is_canceled=is_canceled, now_ms=started_at_ms)
        try:
            replay_run(run, list(steps.values()), self._spec, guard=self._guard)
        except Stuck as stuck:
            found = Stuck(FOUND.format(str(stuck).removesuffix(".")))
            found.diff = stuck.diff
            raise found from None
        self._steps = steps
