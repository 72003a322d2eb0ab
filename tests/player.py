"""Plays bodies without an engine: an order of completions in, a journal of turns out.

Rules:

- A journal is the list of a run's turns, as the engine commits them.
- The steps' functions never suspend. As in the engine they begin when the turn that issued them is
  over, and their outcome waits for its delivery.
- What each turn issues and withdraws is noted from outside, the replayed turns included: nothing
  relies on the execution's own checks.
"""

from __future__ import annotations

import heapq
import random
import re
from collections import deque
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol, cast, final

import clock
import msgspec
from msgspec.structs import replace

import durable
from durable.catalog import BoundWorkflow
from durable.core.codec import encode_canonical
from durable.core.commands import UNSET, Raised, Returned
from durable.core.execution import Execution
from durable.core.failures import encode_exception, store_error
from durable.core.records import RunRecord, StepKind, StepRecord, StepState
from durable.core.retry import Retry
from durable.core.transitions import new_step
from durable.issue import Defaults

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Iterable, Iterator

    from durable import Step
    from durable.call import Call
    from durable.core.commands import Command, Turn

START_MS = clock.START_MS
DELAYS_MS = (0, 0, 1, 250, 3_000)
"""How much later than the last one a completion is."""

DELIVERIES_MAX = 2_000
"""More than any body here takes: one that does not end fails its test instead of hanging it."""

serial_numbers = count()
DEFAULTS = Defaults(retry=Retry(), retry_actions_by_default=False, payload_max=2**23)


class TurnRecord(msgspec.Struct, frozen=True):
    """What the journal knows of one turn.

    Attributes:
        delivered: The step whose outcome led to it; ``None`` for the first.
        issued: The steps that it issued, as issued.
        withdrawn: The numbers of those that it withdrew.
        end: How the body ended, in words.
    """

    delivered: StepRecord | None
    issued: list[StepRecord]
    withdrawn: list[int]
    end: str | None


class Journal(msgspec.Struct, frozen=True):
    """All turns of one run, in order."""

    run: RunRecord
    turns: list[TurnRecord]


class Chooser(Protocol):
    """Decides which open step completes next, and when."""

    def choose(self, player: Player, now_ms: int) -> tuple[int, int]:
        """Return the step's number and the time of its completion."""
        ...


class _Work(Protocol):
    def call(self, args: str) -> Any: ...  # noqa: ANN401  a coroutine

    def encode_result(self, result: object) -> tuple[str, object]: ...


@final
class Player:
    """One execution of a body, with all that it does noted down.

    Args:
        call: The workflow's call.
        run: The run, as recorded.
        history: Its steps, as recorded.
        on_command: Called within the turn whenever the body issues a step or a timer.
    """

    def __init__(
        self,
        call: Call[Any],
        run: RunRecord,
        history: Iterable[StepRecord] = (),
        *,
        on_command: Callable[[], object] = lambda: None,
    ) -> None:
        self._bound = BoundWorkflow(cast("Any", call.definition), DEFAULTS)
        self.run = run
        self.history = {step.number: step for step in history}
        self.execution = Execution(
            run, list(self.history.values()), started_at_ms=run.started_at_ms or START_MS
        )
        self.turns: list[TurnRecord] = []
        self.begun: list[int] = []
        self.outcome: Returned | Raised | None = None
        self._outcomes: dict[int, tuple[StepRecord, object]] = {}
        self._on_command = on_command
        self._watch(self.execution)

    def _watch(self, execution: Execution) -> None:
        take_turn = execution._take_turn
        issue, start_timer = execution.issue, execution.start_timer

        def noting_turn(record: StepRecord | None, value: object = UNSET) -> Turn:
            turn = take_turn(record, value)
            self.turns.append(self._note(record, turn))
            return turn

        def noting_issue(command: Command) -> Any:  # noqa: ANN401
            self._on_command()
            return issue(command)

        def noting_timer(handle: asyncio.TimerHandle, when: float) -> None:
            self._on_command()
            start_timer(handle, when)

        execution._take_turn = noting_turn  # type: ignore[method-assign]
        execution.issue = noting_issue  # type: ignore[method-assign]
        execution.start_timer = noting_timer  # type: ignore[method-assign]

    def _note(self, delivered: StepRecord | None, turn: Turn) -> TurnRecord:
        self.outcome = turn.end
        return TurnRecord(
            delivered=delivered,
            issued=[new_step(command) for command in turn.issued],
            withdrawn=sorted(command.number for command in turn.withdrawn),
            end=None if turn.end is None else self._describe(turn.end),
        )

    def _describe(self, end: Returned | Raised) -> str:
        if isinstance(end, Returned):
            self._bound.encode_result(end.value)
            return f"returned {encode_canonical(end.value)}"
        return f"raised {describe_error(end.error)}"

    @property
    def journal(self) -> Journal:
        """All turns so far."""
        return Journal(self.run, self.turns)

    def outcome_texts(self) -> tuple[str | None, ...]:
        """Return the body's end as an engine would record it, without the traceback."""
        assert self.outcome is not None
        if isinstance(self.outcome, Returned):
            return (self._bound.encode_result(self.outcome.value), None, None)
        error = store_error(self.outcome.error)
        return (None, error.type_name, error.message)

    def begin(self) -> None:
        """Run the body's first turn."""
        turn = self.execution.begin(self._bound.open)
        if not self.execution.is_replaying:
            self._begin_steps(turn.issued)

    def replay(self, slices: Iterator[int]) -> None:
        """Deliver what is recorded, so many at a time; then begin what is open, as engines do."""
        while self.execution.replay(next(slices)):
            pass
        self._begin_steps(self.execution.open_commands())

    def _begin_steps(self, commands: list[Command]) -> None:
        for command in commands:
            recorded = self.history.get(command.number)
            if recorded is not None and recorded.state.is_final:
                self._outcomes[command.number] = (recorded, UNSET)
            elif command.kind is not StepKind.SLEEP:
                self.begun.append(command.number)
                self._outcomes[command.number] = outcome_of(command)

    def deliver(self, number: int, now_ms: int) -> None:
        """Hand the outcome of an open step to the body."""
        fired = replace(new_step(self.execution.command(number)), state=StepState.COMPLETED)
        record, value = self._outcomes.pop(number, (fired, UNSET))
        position = self.execution.next_position
        self.deliver_record(replace(record, position=position, finished_at_ms=now_ms), value)

    def deliver_record(self, record: StepRecord, value: object = UNSET) -> None:
        """Hand an outcome to the body as it is recorded."""
        self._begin_steps(self.execution.deliver(record, value).issued)

    def play(self, chooser: Chooser) -> None:
        """Deliver what the chooser says until the body ends."""
        now_ms = START_MS
        for _ in range(DELIVERIES_MAX):
            if self.outcome is not None:
                return
            number, now_ms = chooser.choose(self, now_ms)
            self.deliver(number, now_ms)
        msg = f"{self.run.name} does not end"
        raise AssertionError(msg)

    def close(self) -> None:
        """Drop the body from memory, and check that nothing in it acts."""
        execution = self.execution
        issued = list(execution._issued)
        execution.close()
        expect_equal(execution._issued, issued, f"issued by {self.run.name}, dropped")
        expect_equal(execution.open_commands(), [], f"open in {self.run.name}, dropped")
        expect_equal(list(execution.loop._ready), [], f"ready in {self.run.name}, dropped")


def outcome_of(command: Command) -> tuple[StepRecord, object]:
    """Call a step's function; return the settled step, and what its result decodes to."""
    record = replace(new_step(command), state=StepState.COMPLETED)
    work = cast("_Work", command.work)
    try:
        text, value = work.encode_result(_run_to_its_end(work.call(command.args)))
    except Exception as exc:  # noqa: BLE001  whatever it raises is its outcome
        return replace(record, state=StepState.FAILED, error=encode_exception(exc)), UNSET
    return replace(record, result=text), value


def _run_to_its_end(coroutine: Any) -> object:  # noqa: ANN401
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    msg = "a step of these tests does not suspend"
    raise AssertionError(msg)


ADDRESS = re.compile(r"cancel scope [0-9a-f]+")
"""How anyio says whose cancellation it is."""


def describe_error(error: BaseException) -> str:
    """Return an exception's type and text, and those of the exceptions in it."""
    text = f"{type(error).__qualname__}({ADDRESS.sub('cancel scope', str(error))})"
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        text += f"[{', '.join(describe_error(each) for each in group.exceptions)}]"
    return text


def dice(seed: int | str) -> random.Random:
    """Return random numbers, the same ones for the same seed."""
    return random.Random(seed)  # noqa: S311  no secret


def expect_equal(actual: object, expected: object, what: str) -> None:
    """Raise ``AssertionError`` with both sides unless they are equal."""
    if actual != expected:
        msg = f"{what}:\n  expected {expected}\n  but was  {actual}"
        raise AssertionError(msg)


def call_of(body: Callable[[Step], Coroutine[Any, Any, object]]) -> Call[Any]:
    """Make a workflow of a body that is written within a test, and a call of it."""
    name = f"body.{next(serial_numbers)}.{body.__name__}"
    call: Call[Any] = durable.workflow(name=name)(body)()
    return call


# --- orders of completion ------------------------------------------------------------------------


@final
class AnyOrder:
    """Any open step or timer is next; no timer is early, but any may be late."""

    def __init__(self, seed: int) -> None:
        self._rng = dice(seed)

    def choose(self, player: Player, now_ms: int) -> tuple[int, int]:
        command = self._rng.choice(player.execution.open_commands())
        now_ms += self._rng.choice(DELAYS_MS)
        return command.number, max(now_ms, command.due_ms or 0)


@final
class EngineOrder:
    """First issued, first completed, as instantaneous steps are; else the next timer fires."""

    def __init__(self) -> None:
        self._ready: deque[int] = deque()
        self._waiting: list[tuple[int, int]] = []
        self._seen_count = 0

    def choose(self, player: Player, now_ms: int) -> tuple[int, int]:
        for turn in player.turns[self._seen_count :]:
            for step in turn.issued:
                if step.due_at_ms is None:
                    self._ready.append(step.number)
                else:
                    heapq.heappush(self._waiting, (step.due_at_ms, step.number))
        self._seen_count = len(player.turns)
        while True:
            while self._ready:
                number = self._ready.popleft()
                if player.execution.is_open(number):
                    return number, now_ms
            now_ms = max(now_ms, self._waiting[0][0])
            while self._waiting and self._waiting[0][0] <= now_ms:
                self._ready.append(heapq.heappop(self._waiting)[1])
