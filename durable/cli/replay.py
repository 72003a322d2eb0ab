"""``replay``: one run's body executed again from its journal, here, where one can look at it."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, final

from durable.catalog import find_workflow
from durable.cli.debugging import BodyDebugger, DebuggerLeft
from durable.cli.loading import UsageError, import_code, journal_path
from durable.core.codec import DecodeError, safe_text
from durable.core.commands import Raised, Stuck
from durable.core.diff import WAYS_OUT, message_of, no_workflow, shorten
from durable.core.failures import decode_error
from durable.core.places import place_of, place_of_error
from durable.core.records import StepKind, StepState
from durable.core.replaying import DAMAGED, check_outcome
from durable.core.tracing import TracedExecution
from durable.core.versions import explain_versions
from durable.journal.reader import JournalReader

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

    from durable.core.execution import WorkflowSpec
    from durable.core.histories import RecordedRun
    from durable.core.records import StepRecord

FITS, DIFFERS = 0, 1

SHOWN_CHARS_MAX = 160


def run_replay(
    url: str | None,
    run_id: str,
    code: Sequence[str],
    *,
    to_step: int | None,
    with_debugger: bool,
) -> int:
    """Replay a run, and print what it does; return the exit status."""
    path = journal_path(url)
    import_code(code)
    with JournalReader(path) as reader:
        recorded = reader.read_run(run_id)
    if recorded is None:
        msg = f"the journal {path} has no run {run_id!r}: check the id, and the journal"
        raise UsageError(msg)
    run = recorded.run
    spec = find_workflow(run.name, run.version)
    if spec is None:
        msg = f"{no_workflow(run)}: name the module that defines it"
        raise UsageError(msg)
    if to_step is not None and all(step.number != to_step for step in recorded.steps):
        last = max((step.number for step in recorded.steps), default=-1)
        has = f"its steps are 0 to {last}" if last >= 0 else "it has no step"
        msg = f"run {run_id!r} has no step {to_step}: {has}"
        raise UsageError(msg)
    return _Replay(recorded, spec, to_step, BodyDebugger() if with_debugger else None).run()


@final
class _Replay:
    """One replay, as it is shown."""

    def __init__(
        self,
        recorded: RecordedRun,
        spec: WorkflowSpec,
        to_step: int | None,
        debugger: BodyDebugger | None,
    ) -> None:
        self._recorded = recorded
        self._spec = spec
        self._to_step = to_step
        self._debugger = debugger
        self._is_opened = False
        run = recorded.run
        self._execution = TracedExecution(run, recorded.steps, started_at_ms=run.started_at_ms or 0)

    def run(self) -> int:
        run, begun_with = self._recorded.run, self._recorded.begun_with
        versions = "" if begun_with is None else f", begun with {begun_with}"
        _say(f"Run {run.run_id} of {run.name}: {run.state}{versions}.")
        try:
            if run.started_at_ms is None:
                self._spec.check_arguments(self._execution)
                _say("It has not begun: there is nothing to replay.")
            else:
                self._replay()
        except Stuck as stuck:
            self._show_turn()
            versions = "" if begun_with is None else explain_versions(begun_with)
            _say(f"\nIt would get stuck: {message_of(stuck, WAYS_OUT, versions)}")
            with suppress(DebuggerLeft):
                self._look_at(self._execution.frame_of(stuck.record))
            return DIFFERS
        except DebuggerLeft:
            return FITS
        finally:
            if self._debugger is not None:
                sys.settrace(None)
            self._execution.close()
        return FITS

    def _replay(self) -> None:
        execution = self._execution
        _say("begins")
        execution.begin(self._spec.open)
        self._show_turn()
        is_left = True
        while is_left:
            delivery = execution.next_delivery
            if delivery is not None and delivery.number == self._to_step:
                _say(f"stopped before step {self._to_step} is delivered")
                if self._debugger is None:
                    self._show_waiting()
                    return
                frame = execution.frame_of(delivery)
                if frame is not None:
                    self._is_opened = True
                    self._debugger.step_from(frame)
            if delivery is not None:
                _say(f"delivers {_outcome_text(delivery)}")
            is_left = execution.replay(1)
            if self._debugger is not None:
                self._debugger.check_left()
            self._show_turn()
        check_outcome(execution, self._spec)
        self._show_end()

    def _look_at(self, frame: FrameType | None) -> None:
        """Let the user look at where the replay has ended, if that was not stopped before.

        Args:
            frame: Where the body waits, if it does; otherwise it is where it has raised.
        """
        if self._debugger is None or self._is_opened:
            return
        end = self._execution.end
        if frame is not None:
            self._debugger.look_at(frame)
        elif isinstance(end, Raised) and end.error.__traceback__ is not None:
            self._debugger.look_at_error(end.error)

    def _step_to_stop_at(self) -> StepRecord | None:
        steps = self._recorded.steps
        return next((step for step in steps if step.number == self._to_step), None)

    # --- what is shown ---------------------------------------------------------------------------

    def _show_turn(self) -> None:
        issued, withdrawn = self._execution.take_turn_notes()
        for command, place in issued:
            at = "" if place is None else f"  at {place}"
            _say(f"  issues {_step_text(command)}{at}")
        for command in withdrawn:
            _say(f"  withdraws {command.number} {command.name}")

    def _show_end(self) -> None:
        end = self._execution.end
        if end is None:
            self._show_waiting()
            self._look_at(self._execution.frame_of(self._step_to_stop_at()))
            return
        if isinstance(end, Raised):
            place = place_of_error(end.error)
            at = "" if place is None else f", at {place}"
            _say(f"ends with {type(end.error).__name__}: {safe_text(end.error)}{at}")
            self._look_at(None)
            return
        _say(f"returns {shorten(repr(end.value), SHOWN_CHARS_MAX)}")

    def _show_waiting(self) -> None:
        for command in self._execution.open_commands():
            place = place_of(self._execution.frame_of(command.record))
            at = "" if place is None else f"  at {place}"
            _say(f"waits for {_step_text(command)}{at}")


def _step_text(step: Any) -> str:  # noqa: ANN401  a record or a command
    number = f"{step.number} " if step.number >= 0 else ""
    return f"{number}{step.kind} {step.name} {shorten(step.args, SHOWN_CHARS_MAX)}"


def _outcome_text(step: StepRecord) -> str:
    if step.kind is StepKind.CANCEL:
        return "the cancel of the run"
    text = f"{step.number} {step.name}: "
    if step.state is StepState.FAILED:
        try:
            error = decode_error(step.error or "")
        except DecodeError:
            return text + DAMAGED
        return f"{text}{error.type_name}: {shorten(error.message, SHOWN_CHARS_MAX)}"
    return text + shorten(step.result or "null", SHOWN_CHARS_MAX)


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  a command line; in the order of what bodies print
