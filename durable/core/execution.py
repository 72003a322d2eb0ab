"""One execution of one run's body: history and completions in, commands and the outcome out.

Rules:

- The body is run from one completion to the point where nothing is ready (*quiescence*): a
  *turn*. What it issued and withdrew in a turn is committed as a whole, with the delivery that led
  to it. So a journal is always a prefix of a run's turns.
- Replay is the same code: the recorded deliveries, in the recorded order, to a fresh body. A turn
  that was recorded must issue exactly what is recorded, or the run is *stuck*.
- A command is known by its task's path and its ordinal in that task; kind, name and arguments are
  compared. Its ``number`` is the order of issue in the run.
- The run's time is that of the latest delivery: constant within a turn, the same on replay.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

from durable.core.body import Body
from durable.core.commands import (
    DUE_MS_MAX,
    UNSET,
    Command,
    CommandFuture,
    Raised,
    Returned,
    Stuck,
    Turn,
)
from durable.core.diff import diff_of
from durable.core.errors import DeadlockError, NonDeterminismError
from durable.core.history import History
from durable.core.loop import TurnTooLongError, WorkflowLoop
from durable.core.outcomes import decode_result, rebuild_error
from durable.core.records import StepKind, StepRecord, StepState, patch_record
from durable.core.tasks import unlink

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection, Coroutine, Sequence

    from durable.core.host import Guard
    from durable.core.records import RunRecord

PLACES_SHOWN_MAX = 10
"""How many of a body's tasks a message shows."""


# By themselves: before Python 3.12 each mention of a member by its class is a slow lookup.
COMPLETED = StepState.COMPLETED
CANCEL = StepKind.CANCEL


class Environment(Protocol):
    """What surrounds a body: the layers above."""

    def issue(self, execution: Execution, call: Any) -> CommandFuture:  # noqa: ANN401
        """Make a step of a call that the body awaits."""
        ...


class WorkflowSpec(Protocol):
    """A workflow's definition, as what executes bodies sees it."""

    def open(self, execution: Execution) -> Coroutine[Any, Any, object]:
        """Make the body's coroutine.

        Raises:
            Stuck: The recorded arguments do not fit the code any more.
        """
        ...

    def check_arguments(self, execution: Execution) -> None:
        """Raise ``Stuck`` when the recorded arguments do not fit the code any more."""
        ...

    def encode_result(self, value: object) -> str:
        """Return the body's result as JSON. Raises what the run is to fail with."""
        ...

    def is_same_result(self, one: str, other: str) -> bool:
        """Whether two results, as JSON, are the same value."""
        ...


class Execution:
    """A body, live on its own loop.

    Args:
        run: The run, as recorded.
        history: All of its steps, as recorded.
        started_at_ms: The run's time in its first turn.
        guard: What watches the body while its code runs, if anything does.

    Attributes:
        environment: What makes steps of the body's calls.
        failures: What no part of the body could catch, for the runtime to log.
        withdrawn_again: After a restart, what the body has withdrawn in its replay.
        issued_anew: After a restart, what the body has issued in its replay that is not recorded,
            each with the time; some of it may be withdrawn already.
        patched_anew: After a restart, what is new in the code that its replay came to.
        early_end: After a restart, how the body has ended in its replay, if it has.
    """

    def __init__(
        self,
        run: RunRecord,
        history: Collection[StepRecord] = (),
        *,
        started_at_ms: int,
        guard: Guard | None = None,
    ) -> None:
        self.run = run
        self.loop = WorkflowLoop(self, run.run_id, guard)  # type: ignore[abstract]  # pyright: ignore[reportAbstractUsage]
        self.environment: Environment | None = None
        self.failures: Sequence[dict[str, Any]] = ()
        self._now_ms = started_at_ms
        self._next_number = self._next_position = 0
        # What is replayed; none of it is left once the body is live. A run that has begun has at
        # least its first turn in the journal.
        self._history: History | None = None
        if run.started_at_ms is not None:
            self._history = History(run, history)
            self._next_number = len(self._history.steps)
            self._next_position = len(self._history.deliveries)
        self._open: dict[int, Command] = {}
        self._timers: dict[int, Command] = {}
        self._issued: list[Command] = []
        self._withdrawn: list[Command] = []
        self._is_any_unissued = False
        self._patches = {step.name: True for step in history if step.kind is StepKind.PATCH}
        self._new_patches: Sequence[StepRecord] = ()
        self._refusal: NonDeterminismError | None = None
        self._body: Body | None = None
        self.is_canceled = False
        self.withdrawn_again: Sequence[StepRecord] = ()
        self.issued_anew: Sequence[tuple[Command, int]] = ()
        self.patched_anew: Sequence[StepRecord] = ()
        self.early_end: Returned | Raised | None = None

    # --- what the runtime does -------------------------------------------------------------------

    def begin(self, open_body: Callable[[Execution], Coroutine[Any, Any, object]]) -> Turn:
        """Start the body: its first turn. When that is recorded, nothing in it is new.

        Raises:
            Stuck: The turn differs from the recorded one, or did what cannot be replayed.
        """
        assert self._body is None
        self._body = Body(self.loop, open_body(self))
        try:
            return self._take_turn(None)
        except Stuck as stuck:
            self._explain(stuck)
            raise

    def replay(self, deliveries_max: int) -> bool:
        """Deliver recorded completions; return whether more of them are left.

        Raises:
            Stuck: The body does not do what the journal says it did.
        """
        history = self._history
        assert history is not None
        try:
            for _ in range(deliveries_max):
                if not history.deliveries:
                    break
                self._take_turn(history.pop_delivery(self._open))
            if history.deliveries:
                return True
            history.check_end(self._open.values(), is_over=self.early_end is not None)
        except Stuck as stuck:
            self._explain(stuck)
            raise
        self.withdrawn_again = history.withdrawn_again
        self.issued_anew = history.issued_anew
        self.patched_anew = history.patched_anew
        self._history = None
        return False

    def deliver(self, record: StepRecord, value: object = UNSET) -> Turn:
        """Hand a completion to the body and run it to quiescence.

        Args:
            record: The settled step, with its outcome and its position.
            value: What the recorded result decodes to, when it is at hand.

        Raises:
            Stuck: The body did what cannot be replayed, or the recorded result does not fit.
        """
        assert self._history is None
        assert record.position == self._next_position
        self._next_position += 1
        return self._take_turn(record, value)

    @property
    def is_replaying(self) -> bool:
        """Whether the body does again what the journal has of it."""
        return self._history is not None

    @property
    def next_number(self) -> int:
        """The number that the next command gets."""
        return self._next_number

    @property
    def next_position(self) -> int:
        """The position that the next delivery gets."""
        return self._next_position

    def open_commands(self) -> list[Command]:
        """Return the commands that the body waits for, in order of issue."""
        return list(self._open.values())

    def command(self, number: int) -> Command:
        """Return the open command of that number."""
        return self._open[number]

    def is_open(self, number: int) -> bool:
        """Whether the body waits for the command of that number."""
        return number in self._open

    def places(self) -> list[str]:
        """Return where the body waits: ``file:line`` of each of its tasks, the first ones."""
        return [
            f"{frame.f_code.co_filename}:{frame.f_lineno}"
            for task in self.loop.unfinished_tasks()[:PLACES_SHOWN_MAX]
            for frame in task.get_stack(limit=1)
        ]

    def close(self) -> None:
        """Drop the body from memory. Nothing in it can act any more."""
        if self.loop.is_closed():
            return
        self.loop.close()
        # What refers to each other is freed without the collector.
        if self._body is not None:
            self._body.drop()
        for command in self._open.values():
            unlink(command.future)
            command.future = command.handle = None
        self._open.clear()
        self._timers.clear()

    # --- what the body does ----------------------------------------------------------------------

    def issue_call(self, call: Any) -> CommandFuture:  # noqa: ANN401  what the core does not know
        """Make a step of a call that the body awaits."""
        assert self.environment is not None
        return self.environment.issue(self, call)

    def next_key(self) -> str:
        """Return the key of the next command of the task that runs now."""
        self.loop.refuse_when_closed()
        scope = self.loop.scope()
        key = f"{scope.path}:{scope.commands_count}"
        scope.commands_count += 1
        return key

    def recorded(self, key: str) -> StepRecord | None:
        """Return what the journal holds of the command with that key."""
        return None if self._history is None else self._history.steps.get(key)

    def issue(self, command: Command) -> CommandFuture:
        """Take a command of the body; return the future of its outcome."""
        future = command.future = CommandFuture(self.loop)
        future.issuer, future.command = self, command
        if not self.loop.is_closed():
            self._issued.append(command)
        return future

    def withdraw(self, command: Command) -> None:
        """The body does not wait for ``command`` any more."""
        assert not command.is_withdrawn
        command.is_withdrawn = True
        command.future = command.handle = None
        if command.number >= 0:
            del self._open[command.number]
            self._withdrawn.append(command)
            if self._history is not None:
                self._history.note_withdrawn(command)
        else:
            self._is_any_unissued = True

    def patched(self, change_id: str) -> bool:
        """Return whether the body is to do what is new: recorded, once the answer is yes."""
        known = self._patches.get(change_id)
        if known is None:
            history = self._history
            known = self._patches[change_id] = history is None or history.is_past_restart
            if known:
                recorded_count = sum(self._patches.values()) - 1
                patch = patch_record(change_id, recorded_count, self._now_ms)
                if history is None:
                    self._new_patches = (*self._new_patches, patch)
                else:
                    history.patched_anew.append(patch)
        return known

    # --- LoopHost --------------------------------------------------------------------------------

    def time_ms(self) -> int:
        """Return the time of the latest delivery."""
        return self._now_ms

    def start_timer(self, handle: asyncio.TimerHandle, when: float) -> None:
        """Issue a timer that asyncio asked for."""
        command = Command(
            StepKind.SLEEP,
            "timer",
            self.next_key(),
            due_ms=_due_ms(when),
            compares_args=False,
        )
        command.handle = handle
        self._timers[id(handle)] = command
        self._issued.append(command)

    def cancel_timer(self, handle: asyncio.TimerHandle) -> None:
        """Withdraw a timer, if it has not fired."""
        command = self._timers.pop(id(handle), None)
        if command is not None:
            self.withdraw(command)

    def report_refusal(self, error: NonDeterminismError) -> None:
        """Remember the first refusal of the turn."""
        self._refusal = self._refusal or error

    def report_exception(self, context: dict[str, Any]) -> None:
        """Keep what no part of the body can catch, for the runtime to log."""
        if self._history is None:
            self.failures = (*self.failures, context)

    # --- turns -----------------------------------------------------------------------------------

    def _explain(self, stuck: Stuck) -> None:
        """Say where the body stands, and what is around it: it still has its frames."""
        history = self._history
        if history is None:
            return
        place = None if self._body is None else self._body.place_of_end()
        stuck.diff = diff_of(
            stuck, list(history.recorded), history.steps, self._issued, loop=self.loop, place=place
        )

    def _take_turn(self, record: StepRecord | None, value: object = UNSET) -> Turn:
        self._issued = []
        self._withdrawn = []
        self._is_any_unissued = False
        body = self._body
        assert body is not None
        try:
            if record is None:
                self.loop.pump()
            else:
                self._now_ms = record.finished_at_ms or self._now_ms
                if record.kind is CANCEL:
                    self.is_canceled = True
                    body.cancel()
                else:
                    command = self._open.pop(record.number)
                    self.loop.pump(self._settle, command, record, value)
            return self._close_turn(body)
        except TurnTooLongError:
            msg = (
                f"the body of {self.run.name!r} ran in circles without waiting for anything. "
                "Await a step or a timer in its loop."
            )
            raise Stuck(msg) from None

    def _settle(self, command: Command, record: StepRecord, value: object) -> None:
        if command.handle is not None:
            self._timers.pop(id(command.handle), None)
            self.loop.fire(command.handle)
            return
        future, work = command.future, command.work
        assert future is not None
        command.future = None  # They refer to each other: free them without the collector.
        if record.state is COMPLETED:
            if value is UNSET:
                value = None
                if work is not None:
                    value = decode_result(record, work, self.run.run_id)
            future.set_result(value)
        else:
            assert work is not None
            future.set_exception(rebuild_error(record, work, self.run.run_id))

    def _close_turn(self, body: Body) -> Turn:
        is_over = body.advance_end()
        issued, patches = self._issued, self._new_patches
        self._new_patches = ()
        if self._is_any_unissued:
            issued = [command for command in issued if not command.is_withdrawn]
        if self._refusal is not None:
            self._check_refusal(is_failed=is_over and isinstance(body.outcome, Raised))
        if not is_over:
            if issued or self._open:
                history = self._history
                for command in issued:
                    if history is None or not history.match(command, self._now_ms):
                        command.number = self._next_number
                        self._next_number += 1
                    self._open[command.number] = command
                return Turn(issued, self._withdrawn, patches, None)
            # Nothing is ready, nothing is under way: no turn will ever follow. A leftover task
            # that waits for ever, after the body has ended, is dropped with it.
            if body.outcome is None:
                body.outcome = Raised(DeadlockError(self._describe_deadlock()))
        return self._close_last_turn(body, patches)

    def _close_last_turn(self, body: Body, patches: Sequence[StepRecord]) -> Turn:
        end = body.outcome
        assert end is not None
        left = list(self._open.values())
        for command in left:
            command.is_withdrawn = True
        if self._history is not None:
            self._history.check_early_end(end)
            self.early_end = end
            for command in left:
                self._history.note_withdrawn(command)
        self.close()
        return Turn([], self._withdrawn + left, patches, end)

    def _check_refusal(self, *, is_failed: bool) -> None:
        """A refusal that did not end the body was swallowed: what the body did is unknown."""
        refusal, self._refusal = self._refusal, None
        if not is_failed:
            raise Stuck(str(refusal))

    def _describe_deadlock(self) -> str:
        return (
            f"the body of {self.run.name!r} waits for something that nothing can bring about: no "
            f"step and no timer is open. It waits at {', '.join(self.places())}. Await only "
            "what a step, a timer or another task of the body completes."
        )


def _due_ms(when: float) -> int:
    """Turn a loop's time into milliseconds: never early, and exact for whole milliseconds."""
    if when >= DUE_MS_MAX / 1000:
        return DUE_MS_MAX
    return math.ceil(when * 1000 - 0.001)
