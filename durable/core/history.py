"""What the journal holds of a run, and what replay checks against it.

Each check that fails raises ``Stuck``: the code does not do what the journal says it did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from durable.core.codec import safe_text
from durable.core.commands import Raised, Stuck
from durable.core.errors import damaged
from durable.core.records import StepKind, StepState

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from durable.core.commands import Command, Returned
    from durable.core.records import StepRecord

SHOWN_CHARS_MAX = 400
"""How much of a step's arguments, or of its error, a message shows."""


@final
class History:
    """What the journal holds of a run that is replayed.

    Args:
        run_id: The run.
        steps: All that is recorded of it.
        restarted_from: After a restart, the step from which on nothing is recorded: the code may
            be another, but for the steps before it.

    Attributes:
        steps: What the body has not issued again yet, by key.
        deliveries: What was handed to the body and is to be again, the next one last.
        withdrawn_again: What the body has withdrawn after a restart, as it had before.
        issued_anew: What the body has issued after a restart that is not recorded, with the time.
    """

    __slots__ = (
        "_restarted_from",
        "_run_id",
        "_withdrawn_too_early",
        "deliveries",
        "issued_anew",
        "steps",
        "withdrawn_again",
    )

    def __init__(
        self, run_id: str, steps: Collection[StepRecord], restarted_from: int | None
    ) -> None:
        self._run_id = run_id
        self._restarted_from = restarted_from
        self.withdrawn_again: list[StepRecord] = []
        self.issued_anew: list[tuple[Command, int]] = []
        self.steps = {step.key: step for step in steps if step.number >= 0}
        self.deliveries = [step for step in steps if step.position is not None]
        self.deliveries.sort(key=_position_of, reverse=True)
        self._withdrawn_too_early: Command | None = None

    def pop_delivery(self, open_commands: Mapping[int, Command]) -> StepRecord:
        """Return the next delivery, for which the body has to wait."""
        record = self.deliveries.pop()
        if record.number >= 0 and record.number not in open_commands:
            msg = (
                f"the journal goes on with the outcome of {describe(record)}, which the code does "
                "not wait for at this point."
            )
            raise Stuck(msg)
        return record

    def match(self, command: Command, now_ms: int) -> bool:
        """Give a command that the body issues again its record, which has to be of the same.

        Returns:
            Whether it has one. After a restart it may be new.
        """
        record = self.steps.pop(command.key, None)
        if record is None and self._restarted_from is not None:
            self.issued_anew.append((command, now_ms))
            return False
        if record is None:
            msg = (
                f"the code now issues {describe(command)}, which the journal does not have. "
                f"{self._describe_next()}"
            )
            raise Stuck(msg)
        is_same = (record.kind, record.name) == (command.kind, command.name)
        if not is_same or (command.compares_args and record.args != command.args):
            msg = f"the journal has {describe(record)}; the code now issues {describe(command)}."
            raise Stuck(msg)
        command.number = record.number
        command.record = record
        command.due_ms = record.due_at_ms
        return True

    def note_withdrawn(self, command: Command) -> None:
        """Take note that the body does not wait for a command that it has issued again."""
        record = command.record
        if record is not None and not record.state.is_final:
            if self._restarted_from is not None:
                self.withdrawn_again.append(record)
            else:
                self._withdrawn_too_early = self._withdrawn_too_early or command

    def check_early_end(self, outcome: Returned | Raised) -> None:
        """The body has ended: refused before the journal has.

        After a restart the code may end it as soon as nothing is left of what is recorded.
        """
        if self._restarted_from is not None and not self.deliveries and not self.steps:
            return
        how = "returns"
        if isinstance(outcome, Raised):
            how = f"ends with {type(outcome.error).__name__}: {safe_text(outcome.error)}"
        msg = f"the body now {how}, where the journal goes on. {self._describe_next()}"
        raise Stuck(msg)

    def check_end(self, open_commands: Iterable[Command]) -> None:
        """Check that the body has come to where the journal ends."""
        if self.steps:
            msg = f"{self._describe_next()} The code does not issue it any more."
            raise Stuck(msg)
        if self._withdrawn_too_early is not None:
            msg = (
                f"the code now withdraws {describe(self._withdrawn_too_early)}, for which the "
                "journal still waits."
            )
            raise Stuck(msg)
        for command in open_commands:
            if command.record is None:
                continue
            if command.record.state is StepState.CANCELED:
                msg = (
                    f"the journal says that the body withdrew {describe(command.record)}, for "
                    "which the code now waits."
                )
                raise Stuck(msg)
            if command.kind is StepKind.SLEEP and command.due_ms is None:
                why = (
                    f"the recorded timer {describe(command.record)} is damaged: it has no due time"
                )
                raise Stuck(damaged(f"run {self._run_id!r}", why))

    def _describe_next(self) -> str:
        if not self.steps:
            return "The journal holds no further step."
        return f"The journal has {describe(min(self.steps.values(), key=_number_of))}."


def shorten(text: str) -> str:
    """Return as much of a text as a message shows."""
    return text if len(text) <= SHOWN_CHARS_MAX else text[:SHOWN_CHARS_MAX] + "[...]"


def describe(step: StepRecord | Command) -> str:
    """Return what a message says of a step."""
    args = shorten(step.args)
    number = f"{step.number} " if step.number >= 0 else ""
    return f"step {number}{step.name!r} ({step.kind}, key {step.key}) with arguments {args}"


def _position_of(step: StepRecord) -> int:
    assert step.position is not None
    return step.position


def _number_of(step: StepRecord) -> int:
    return step.number
