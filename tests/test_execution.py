"""One execution of a body: what it refuses, how it ends, and what a turn is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import anyio
import pytest
from corpus.actions import CorpusError, boom, echo
from msgspec.structs import replace
from player import START_MS, EngineOrder, Player, call_of, dice
from replay_driver import history_of, resume, run_live

from durable import DeadlockError, NonDeterminismError, Step
from durable.core import loop as loop_module
from durable.core.commands import DUE_MS_MAX, Raised, Returned, Stuck
from durable.core.records import StepKind

Body = Callable[[Step], Coroutine[Any, Any, object]]


def live(body: Body) -> Player:
    return run_live(call_of(body), EngineOrder())


def replayed(body: Body) -> Player:
    """Replay a body's first turn: it waits."""
    return resume(call_of(body), live(body).journal, 1, dice(0), settled_share=0)


# --- what cannot be replayed ---------------------------------------------------------------------


async def refused(_step: Step) -> None:
    await asyncio.to_thread(print)


def test_a_body_fails_with_a_refusal() -> None:
    player = live(refused)
    assert isinstance(player.outcome, Raised)
    assert isinstance(player.outcome.error, NonDeterminismError)


def test_a_body_that_swallows_a_refusal_is_stuck() -> None:
    """What it would do next is based on what cannot be replayed."""

    async def swallows(_step: Step) -> str:
        with suppress(BaseException):
            await asyncio.to_thread(print)
        return "fine"

    with pytest.raises(Stuck, match=r"loop\.run_in_executor\(\).*put it in an action"):
        live(swallows)


def test_a_body_whose_task_is_refused_is_stuck() -> None:
    """Nobody looked at the task: the error must not get lost."""

    async def forgets(_step: Step) -> str:
        task = asyncio.create_task(asyncio.to_thread(print))
        await asyncio.wait([task])
        return await echo("a")

    with pytest.raises(Stuck, match="run_in_executor"):
        live(forgets)


def test_a_body_that_runs_in_circles_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "HANDLES_PER_TURN_MAX", 1_000)

    async def circles(_step: Step) -> None:
        await echo("a")
        while True:  # noqa: ASYNC110  what is tested
            await asyncio.sleep(0)

    with pytest.raises(Stuck, match="ran in circles without waiting for anything"):
        live(circles)


def test_a_dead_lock_ends_the_body_and_says_where_it_waits() -> None:
    async def waits(_step: Step) -> None:
        await asyncio.gather(echo("a"), asyncio.Event().wait(), asyncio.Queue[int]().get())

    player = live(waits)
    assert isinstance(player.outcome, Raised)
    assert isinstance(player.outcome.error, DeadlockError)
    assert str(player.outcome.error).count("test_execution.py:") == 1
    assert "locks.py:" in str(player.outcome.error)


# --- how bodies end ------------------------------------------------------------------------------


def raising(error: BaseException) -> Body:
    async def raises(_step: Step) -> None:
        await echo("a")
        raise error

    return raises


@pytest.mark.parametrize(
    "error",
    [
        ValueError("text"),
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError(),
        BaseExceptionGroup("group", [SystemExit(), ValueError()]),
        StopAsyncIteration(),
        CorpusError("own"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_body_raises_is_how_it_ends(error: BaseException) -> None:
    outcome = live(raising(error)).outcome
    assert isinstance(outcome, Raised)
    assert type(outcome.error) is type(error)


def test_what_a_coroutine_cannot_raise_is_a_runtime_error() -> None:
    outcome = live(raising(StopIteration())).outcome
    assert isinstance(outcome, Raised)
    assert isinstance(outcome.error, RuntimeError)


def test_a_system_exit_in_a_task_that_nobody_awaits_is_that_tasks_own() -> None:
    async def child() -> None:
        raise SystemExit

    async def body(_step: Step) -> str:
        task = asyncio.create_task(child())
        await asyncio.wait([task])
        return await echo(type(task.exception()).__name__)

    assert live(body).turns[-1].end == 'returned "SystemExit"'


def test_tasks_left_behind_clean_up_before_the_end_and_the_result_stands() -> None:
    trace: list[str] = []

    async def child(label: str) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            trace.append(await echo(label))

    async def body(_step: Step) -> str:
        tasks = [asyncio.create_task(child(label)) for label in "ab"]
        return await echo(f"{len(tasks)} tasks")

    player = live(body)
    assert trace == ["a", "b"]
    assert player.turns[-1].end == 'returned "2 tasks"'
    assert player.turns[1].withdrawn == [1, 2]


def test_what_is_open_when_the_body_has_ended_is_withdrawn() -> None:
    """A task swallows its cancellation, and waits for what never comes beside a step."""

    async def child() -> None:
        try:
            await echo("lost")
        except asyncio.CancelledError:
            await asyncio.Event().wait()

    async def body(_step: Step) -> str:
        task = asyncio.create_task(child())
        return await echo(task.get_name())

    player = live(body)
    assert player.turns[-1].end == 'returned "Task-0.0"'
    assert player.turns[-1].withdrawn == [1]
    assert player.execution.open_commands() == []


def test_a_callback_that_fails_is_reported_once_and_not_in_replay() -> None:
    async def body(_step: Step) -> str:
        asyncio.get_running_loop().call_soon(lambda: 1 // 0)
        return await echo("a")

    player = live(body)
    assert [type(each["exception"]) for each in player.execution.failures] == [ZeroDivisionError]
    assert not replayed(body).execution.failures


# --- turns, numbers and time ---------------------------------------------------------------------


def test_steps_are_numbered_as_issued_and_keyed_by_their_task() -> None:
    async def branch(label: str) -> None:
        await echo(f"{label}1")
        await echo(f"{label}2")

    async def body(_step: Step) -> None:
        await asyncio.gather(branch("a"), branch("b"), asyncio.sleep(1))
        await echo("last")

    issued = [step for turn in live(body).turns for step in turn.issued]
    assert [step.number for step in issued] == list(range(6))
    assert [step.key for step in issued] == ["0.0:0", "0.1:0", "0.2:0", "0.0:1", "0.1:1", "0:0"]


def test_what_is_issued_and_withdrawn_in_one_turn_is_never_there() -> None:
    async def body(_step: Step) -> str:
        async with asyncio.timeout(5):
            task = asyncio.create_task(echo("brief"))
            await asyncio.sleep(0)
            task.cancel()
        return await echo("a")

    player = live(body)
    assert [step.key for step in player.turns[0].issued] == ["0:1"]
    assert player.turns[0].withdrawn == []


def test_time_stands_still_within_a_turn_and_is_that_of_the_delivery() -> None:
    async def body(step: Step) -> list[float]:
        times = [step.now().timestamp()]
        await asyncio.sleep(2)
        times += [step.now().timestamp(), asyncio.get_running_loop().time()]
        await asyncio.sleep(0.0005)
        return [*times, step.now().timestamp()]

    start = START_MS / 1000
    outcome = live(body).outcome
    assert isinstance(outcome, Returned)
    assert outcome.value == [start, start + 2, start + 2, start + 2.001]


def test_a_deadline_of_anyio_is_one_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Due times are whole milliseconds, but the sum of a time and 0.7 may be a hair after its own.

    A cancel scope that looks at the time then sets its timer again, and again.
    """

    async def body(_step: Step) -> str:
        with anyio.move_on_after(0.7):
            await anyio.Event().wait()
        return await echo("moved on")

    for start_ms in range(START_MS, START_MS + 50):
        monkeypatch.setattr("player.START_MS", start_ms)
        player = live(body)
        timers = [step for turn in player.turns for step in turn.issued if step.name == "timer"]
        assert [timer.due_at_ms for timer in timers] == [start_ms + 700]
        assert player.turns[-1].end == 'returned "moved on"'


def test_a_timer_beyond_all_time_is_due_at_its_end() -> None:
    async def body(_step: Step) -> None:
        await asyncio.wait_for(echo("a"), float("inf"))

    timers = [step for step in live(body).turns[0].issued if step.kind is StepKind.SLEEP]
    assert [step.due_at_ms for step in timers] == [DUE_MS_MAX]


def test_replay_goes_in_slices_and_then_the_body_is_live() -> None:
    async def body(_step: Step) -> None:
        for label in "abcde":
            await echo(label)

    call = call_of(body)
    first = run_live(call, EngineOrder())
    run = replace(first.run, started_at_ms=START_MS)
    player = Player(call, run, history_of(first.journal, 5, dice(0), settled_share=0))
    player.begin()
    assert player.execution.is_replaying
    assert [player.execution.replay(3) for _ in range(2)] == [True, False]
    assert not player.execution.is_replaying
    assert player.execution.next_position == 4


def test_places_are_the_lines_at_which_the_tasks_wait() -> None:
    async def body(_step: Step) -> None:
        await asyncio.gather(echo("a"), asyncio.sleep(1))

    places = replayed(body).execution.places()
    assert len(places) == 3
    assert "test_execution.py:" in places[0]


def test_a_dropped_execution_refuses_the_steps_of_a_finally() -> None:
    tried: list[str] = []

    async def body(step: Step) -> None:
        try:
            await echo("a")
        finally:
            tried.append("call")
            try:
                await echo("b")
            finally:
                tried.append("step")
                await step.sleep(1)
                tried.append("went on")

    player = replayed(body)
    tried.clear()
    player.close()
    assert tried == ["call", "step"]


def test_a_failing_step_is_rebuilt_with_its_traceback_as_its_cause() -> None:
    async def body(_step: Step) -> str:
        try:
            return await boom("corpus")
        except CorpusError as error:
            return f"{error!r} from {'boom' in str(error.__cause__)}"

    assert live(body).turns[-1].end == """returned "CorpusError('corpus') from True\""""
