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
- A body that has ended is followed by what ``asyncio.run`` does: the tasks still running are
  cancelled and awaited, then its async generators are closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Protocol

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
from durable.core.diff import describe, diff_of, shorten, way_of
from durable.core.errors import DeadlockError, NonDeterminismError, damaged
from durable.core.failures import type_name_of
from durable.core.history import History
from durable.core.loop import TurnTooLongError, WorkflowLoop
from durable.core.places import place_of_body, place_of_error
from durable.core.records import StepKind, StepRecord, StepState, patch_record
from durable.core.tasks import unlink

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Sequence

    from durable.core.commands import Work
    from durable.core.host import Guard
    from durable.core.records import RunRecord
    from durable.core.tasks import WorkflowTask

PLACES_SHOWN_MAX = 10
"""How many of a body's tasks a message shows."""


class _Ending(Enum):
    """What of a body is to end next."""

    BODY = auto()
    TASKS = auto()
    GENERATORS = auto()
    DONE = auto()


# By themselves: before Python 3.12 each mention of a member by its class is a slow lookup.
BODY, TASKS, GENERATORS, DONE = _Ending
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
        self._ending = BODY
        self._outcome: Returned | Raised | None = None
        self._root: WorkflowTask[Any] | None = None
        self.is_canceled = False
        self.withdrawn_again: Sequence[StepRecord] = ()
        self.issued_anew: Sequence[tuple[Command, int]] = ()
        self.early_end: Returned | Raised | None = None

    # --- what the runtime does -------------------------------------------------------------------

    def begin(self, open_body: Callable[[Execution], Coroutine[Any, Any, object]]) -> Turn:
        """Start the body: its first turn. When that is recorded, nothing in it is new.

        Raises:
            Stuck: The turn differs from the recorded one, or did what cannot be replayed.
        """
        assert self._root is None
        self._root = self.loop.spawn_root(open_body(self))
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
        self._root = None
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
            known = self._patches[change_id] = self._history is None
            if known:
                recorded_count = sum(self._patches.values()) - 1
                patch = patch_record(change_id, recorded_count, self._now_ms)
                self._new_patches = (*self._new_patches, patch)
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
        place = None
        if isinstance(self._outcome, Raised):
            place = place_of_error(self._outcome.error)
        elif self._outcome is not None and self._root is not None:
            place = place_of_body(self._root.get_coro())
        stuck.diff = diff_of(
            stuck, list(history.recorded), history.steps, self._issued, loop=self.loop, place=place
        )

    def _take_turn(self, record: StepRecord | None, value: object = UNSET) -> Turn:
        self._issued = []
        self._withdrawn = []
        self._is_any_unissued = False
        try:
            if record is None:
                self.loop.pump()
            else:
                self._now_ms = record.finished_at_ms or self._now_ms
                if record.kind is CANCEL:
                    self._cancel_body()
                else:
                    command = self._open.pop(record.number)
                    self.loop.pump(self._settle, command, record, value)
            self._advance_end()
        except TurnTooLongError:
            msg = (
                f"the body of {self.run.name!r} ran in circles without waiting for anything. "
                "Await a step or a timer in its loop."
            )
            raise Stuck(msg) from None
        return self._close_turn()

    def _cancel_body(self) -> None:
        """Cancel the body's task, and then those that it did not cancel by that.

        So that nothing the body waited for is left: each task gets the cancellation where it waits.
        """
        self.is_canceled = True
        root = self._root
        assert root is not None
        waiting = [(task, task.cancels_count) for task in self.loop.unfinished_tasks()]
        self.loop.pump(root.cancel)
        if root.done() and self._ending is BODY:
            return  # It ends by this: its tasks are cancelled as at any end, and not twice.
        # Not ``cancelling()``: a task may have taken its cancellation back, or had one before.
        left = [task for task, n in waiting if task.cancels_count == n and not task.done()]
        if left:
            self.loop.pump(lambda: [task.cancel() for task in left])

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
                    value = self._decode(record, work)
            future.set_result(value)
        else:
            assert work is not None
            future.set_exception(self._rebuild(record, work))

    def _decode(self, record: StepRecord, work: Work) -> object:
        try:
            return work.decode(record.result or "null")
        except Exception as exc:  # noqa: BLE001  a user's decoding hook may raise anything
            msg = (
                f"the recorded result of {describe(record)} does not fit the code's annotation "
                f"any more: {exc}. Annotate it so that both fit, or give the workflow a new "
                "version."
            )
            way = ("result", type_name_of(type(exc)), *way_of(record))
            raise Stuck(msg, way=way) from None

    def _rebuild(self, record: StepRecord, work: Work) -> BaseException:
        try:
            assert record.state is StepState.FAILED
            return work.rebuild(record.error or "")
        except Exception as exc:
            error = shorten(record.error or "")
            why = (
                f"the recorded outcome of {describe(record)} is damaged: it is {record.state}, "
                f"with the error {error!r}"
            )
            raise Stuck(damaged(f"run {self.run.run_id!r}", why)) from exc

    def _close_turn(self) -> Turn:
        issued, patches = self._issued, self._new_patches
        self._new_patches = ()
        if self._is_any_unissued:
            issued = [command for command in issued if not command.is_withdrawn]
        if self._refusal is not None:
            self._check_refusal()
        if self._ending is not DONE:
            if issued or self._open:
                for command in issued:
                    self._enter(command)
                return Turn(issued, self._withdrawn, patches, None)
            # Nothing is ready, nothing is under way: no turn will ever follow. A leftover task
            # that waits for ever, after the body has ended, is dropped with it.
            if self._outcome is None:
                self._outcome = Raised(DeadlockError(self._describe_deadlock()))
        assert self._outcome is not None
        left = list(self._open.values())
        for command in left:
            command.is_withdrawn = True
        if self._history is not None:
            self._history.check_early_end(self._outcome)
            self.early_end = self._outcome
            for command in left:
                self._history.note_withdrawn(command)
        self.close()
        return Turn([], self._withdrawn + left, patches, self._outcome)

    def _check_refusal(self) -> None:
        """A refusal that did not end the body was swallowed: what the body did is unknown."""
        refusal, self._refusal = self._refusal, None
        if not (self._ending is DONE and isinstance(self._outcome, Raised)):
            raise Stuck(str(refusal))

    def _enter(self, command: Command) -> None:
        if self._history is None or not self._history.match(command, self._now_ms):
            command.number = self._next_number
            self._next_number += 1
        self._open[command.number] = command

    def _advance_end(self) -> None:
        """Once the body has ended, end its tasks and then its async generators."""
        if self._ending is BODY:
            root = self._root
            assert root is not None
            if not root.done():
                return
            self._outcome = _outcome_of(root)
            left, generators = self.loop.unfinished_tasks(), self.loop.open_generators()
            if not left and not generators:
                self._ending = DONE
                return
            self._ending = TASKS
            if left:
                self.loop.pump(lambda: [task.cancel() for task in left])
        if self._ending is TASKS and not self.loop.unfinished_tasks():
            self._ending = GENERATORS
            generators = self.loop.open_generators()
            if generators:
                self.loop.pump(self._close_generators, generators)
        if self._ending is GENERATORS and not self.loop.unfinished_tasks():
            self._ending = DONE

    def _close_generators(self, generators: list[Any]) -> None:
        async def close_all() -> None:
            for generator in generators:
                with contextlib.suppress(Exception):
                    await generator.aclose()

        self.loop.create_task(close_all(), context=self.loop.context)

    def _describe_deadlock(self) -> str:
        return (
            f"the body of {self.run.name!r} waits for something that nothing can bring about: no "
            f"step and no timer is open. It waits at {', '.join(self.places())}. Await only "
            "what a step, a timer or another task of the body completes."
        )


def _outcome_of(task: asyncio.Task[Any]) -> Returned | Raised:
    if task.cancelled():
        return Raised(asyncio.CancelledError())
    error = task.exception()
    return Returned(task.result()) if error is None else Raised(error)


def _due_ms(when: float) -> int:
    """Turn a loop's time into milliseconds: never early, and exact for whole milliseconds."""
    if when >= DUE_MS_MAX / 1000:
        return DUE_MS_MAX
    return math.ceil(when * 1000 - 0.001)
