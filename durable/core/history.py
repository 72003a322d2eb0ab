"""What the journal holds of a run, and what replay checks against it.

Each check that fails raises ``Stuck``: the code does not do what the journal says it did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from durable.core.codec import safe_text
from durable.core.commands import Damaged, Raised, Stuck
from durable.core.diff import describe, shorten, shorten_pair, way_of
from durable.core.failures import type_name_of
from durable.core.records import RunState, StepKind, StepState

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from durable.core.commands import Command, Returned
    from durable.core.records import RunRecord, StepRecord


@final
class History:
    """What the journal holds of a run that is replayed.

    Args:
        run: The run. After a restart nothing is recorded from the step on that it was restarted
            from: the code may be another, but for the steps before it.
        recorded: All that is recorded of it.

    Attributes:
        recorded: All that is recorded of it.
        steps: What the body has not issued again yet, by key.
        deliveries: What was handed to the body and is to be again, the next one last.
        withdrawn_again: What the body has withdrawn after a restart, as it had before.
        issued_anew: What the body has issued after a restart that is not recorded, with the time.
        patched_anew: What is new in the code there, as records.
    """

    __slots__ = (
        "_has_ended",
        "_is_cut_off",
        "_restarted_from",
        "_run_id",
        "_withdrawn_too_early",
        "deliveries",
        "issued_anew",
        "patched_anew",
        "recorded",
        "steps",
        "withdrawn_again",
    )

    def __init__(self, run: RunRecord, recorded: Collection[StepRecord]) -> None:
        self.recorded = recorded
        self._run_id = run.run_id
        self._restarted_from = run.restarted_from
        # A run can be cancelled without its body being told: it has ended, its body has not.
        self._is_cut_off = run.state is RunState.CANCELED and not any(
            step.kind is StepKind.CANCEL and step.position is not None for step in recorded
        )
        self._has_ended = run.state.is_final and not self._is_cut_off
        self.withdrawn_again: list[StepRecord] = []
        self.issued_anew: list[tuple[Command, int]] = []
        self.patched_anew: list[StepRecord] = []
        self.steps = {step.key: step for step in recorded if step.number >= 0}
        self.deliveries = [step for step in recorded if step.position is not None]
        self.deliveries.sort(key=_position_of, reverse=True)
        self._withdrawn_too_early: Command | None = None

    @property
    def is_past_restart(self) -> bool:
        """Whether what the body does now is recorded no more: its run was restarted from there."""
        return self._restarted_from is not None and not self.deliveries and not self.steps

    def pop_delivery(self, open_commands: Mapping[int, Command]) -> StepRecord:
        """Return the next delivery, for which the body has to wait."""
        record = self.deliveries.pop()
        if record.number >= 0 and record.number not in open_commands:
            msg = (
                f"the journal goes on with the outcome of {describe(record)}, which the code does "
                "not wait for at this point."
            )
            waited = ", ".join(f"{each.number} {each.name}" for each in open_commands.values())
            raise Stuck(msg, record=record, now=f"waits for {waited or 'nothing'}")
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
            raise Stuck(msg, command=command)
        is_same = (record.kind, record.name) == (command.kind, command.name)
        if not is_same or (command.compares_args and record.args != command.args):
            before, now = shorten_pair(record.args, command.args)
            msg = (
                f"the journal has {describe(record, before)}; the code now issues "
                f"{describe(command, now)}."
            )
            raise Stuck(msg, record=record, command=command)
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
        may_end = self._restarted_from is not None or self._has_ended
        if may_end and not self.deliveries and not self.steps:
            return
        how, way = "returns", "returns"
        if isinstance(outcome, Raised):
            how = f"ends with {type(outcome.error).__name__}: {safe_text(outcome.error)}"
            way = type_name_of(type(outcome.error))
        msg = f"the body now {how}, where the journal goes on. {self._describe_next()}"
        raise Stuck(msg, now=f"the body {shorten(how)}", way=(way, *self._way_of_next()))

    def check_end(self, open_commands: Iterable[Command], *, is_over: bool) -> None:
        """Check that the body has come to where the journal ends.

        Args:
            open_commands: What it waits for.
            is_over: Whether it has ended.
        """
        if self.steps:
            msg = f"{self._describe_next()} The code does not issue it any more."
            raise Stuck(msg, now="the body waits", way=("not issued", *self._way_of_next()))
        if self._withdrawn_too_early is not None:
            withdrawn = self._withdrawn_too_early
            msg = (
                f"the code now withdraws {describe(withdrawn)}, for which the journal still waits."
            )
            raise Stuck(msg, record=withdrawn.record, now="withdrawn", way=("withdrawn",))
        for command in open_commands:
            if command.record is None:
                continue
            if command.record.state is StepState.CANCELED and not self._is_cut_off:
                msg = (
                    f"the journal says that the body withdrew {describe(command.record)}, for "
                    "which the code now waits."
                )
                now = "the body waits for it"
                raise Stuck(msg, record=command.record, now=now, way=("not withdrawn",))
            if command.kind is StepKind.SLEEP and command.due_ms is None:
                why = (
                    f"the recorded timer {describe(command.record)} is damaged: it has no due time"
                )
                raise Damaged(self._run_id, why)
        if self._has_ended and not is_over:
            msg = "the journal says that the body ended here, where the code now goes on."
            raise Stuck(msg, now="the body waits", way=("not ended",))

    def _describe_next(self) -> str:
        step = self._next()
        if step is None:
            return "The journal holds no further step."
        return f"The journal has {describe(step)}."

    def _way_of_next(self) -> tuple[str, ...]:
        step = self._next()
        return () if step is None else way_of(step)

    def _next(self) -> StepRecord | None:
        return min(self.steps.values(), key=_number_of, default=None)


def _position_of(step: StepRecord) -> int:
    assert step.position is not None
    return step.position


def _number_of(step: StepRecord) -> int:
    return step.number
