"""Code that no longer matches its journal is stuck, with both sides named."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from corpus.actions import double, echo
from msgspec.structs import replace
from player import START_MS, AnyOrder, EngineOrder, Player, call_of, dice
from replay_driver import resume, run_live

from durable import Step
from durable.core.commands import Stuck
from durable.core.records import StepState

Body = Callable[[Step], Coroutine[Any, Any, object]]


def replayed(old: Body, new: Body, turns_count: int) -> Player:
    """Replay the first turns of one body with another."""
    journal = run_live(call_of(old), EngineOrder()).journal
    return resume(call_of(new), journal, turns_count, dice(0), settled_share=0)


def diverge(old: Body, new: Body, turns_count: int) -> str:
    with pytest.raises(Stuck) as caught:
        replayed(old, new, turns_count)
    return str(caught.value)


async def a_then_b(_step: Step) -> str:
    return await echo("a") + await echo("b")


async def a_beside_b(_step: Step) -> tuple[str, ...]:
    return await asyncio.gather(echo("a"), echo("b"))


async def b_withdrawn(_step: Step) -> str:
    task = asyncio.create_task(echo("b"))
    value = await echo("a")
    task.cancel()
    return value + await echo("c")


async def b_not_withdrawn(_step: Step) -> str:
    task = asyncio.create_task(echo("b"))
    value = await echo("a")
    return value + await echo("c") + await task


def test_a_changed_name() -> None:
    async def new(step: Step) -> None:
        await step.run(echo("a"), name="other")

    assert diverge(a_then_b, new, 1) == (
        """the journal has step 0 'corpus.echo' (action, key 0:0) with arguments {"value":"a"}; """
        """the code now issues step 'other' (action, key 0:0) with arguments {"value":"a"}."""
    )


def test_a_changed_kind() -> None:
    async def old(step: Step) -> None:
        await step.sleep(1, name="same")

    async def new(step: Step) -> None:
        await step.run(echo("a"), name="same")

    assert diverge(old, new, 1) == (
        """the journal has step 0 'same' (sleep, key 0:0) with arguments {"seconds":1.0}; """
        """the code now issues step 'same' (action, key 0:0) with arguments {"value":"a"}."""
    )


def test_changed_arguments() -> None:
    async def new(_step: Step) -> str:
        return await echo("a") + await echo("c")

    assert diverge(a_then_b, new, 2) == (
        """the journal has step 1 'corpus.echo' (action, key 0:1) with arguments {"value":"b"}; """
        """the code now issues step 'corpus.echo' (action, key 0:1) with arguments {"value":"c"}."""
    )


def test_long_arguments_are_shown_in_part() -> None:
    async def old(_step: Step) -> None:
        await echo("x" * 1_000)

    async def new(_step: Step) -> None:
        await echo("y" * 1_000)

    message = diverge(old, new, 1)
    assert "x[...]" in message
    assert "y[...]" in message
    assert len(message) < 1_200


def test_a_step_less() -> None:
    async def new(_step: Step) -> str:
        return await asyncio.create_task(echo("a"))

    assert diverge(a_beside_b, new, 1) == (
        "The journal has step 1 'corpus.echo' (action, key 0.1:0) with arguments "
        """{"value":"b"}. The code does not issue it any more."""
    )


def test_a_step_more() -> None:
    async def new(_step: Step) -> tuple[str, ...]:
        return await asyncio.gather(echo("a"), echo("b"), echo("c"))

    assert diverge(a_beside_b, new, 1) == (
        "the code now issues step 'corpus.echo' (action, key 0.2:0) with arguments "
        """{"value":"c"}, which the journal does not have. The journal holds no further step."""
    )


def test_a_step_in_place_of_another() -> None:
    """The next recorded step is named: it is where the code went another way."""

    async def new(_step: Step) -> None:
        await asyncio.create_task(echo("a"))

    assert diverge(a_then_b, new, 2) == (
        "the code now issues step 'corpus.echo' (action, key 0.0:0) with arguments "
        """{"value":"a"}, which the journal does not have. The journal has step 0 'corpus.echo' """
        """(action, key 0:0) with arguments {"value":"a"}."""
    )


def test_the_body_returns_early() -> None:
    async def new(_step: Step) -> str:
        return await echo("a")

    assert diverge(a_then_b, new, 2) == (
        "the body now returns, where the journal goes on. The journal has step 1 'corpus.echo' "
        """(action, key 0:1) with arguments {"value":"b"}."""
    )


def test_the_body_fails_early() -> None:
    async def new(_step: Step) -> None:
        await echo("a")
        raise ValueError("not any more")

    assert diverge(a_then_b, new, 2).startswith(
        "the body now ends with ValueError: not any more, where the journal goes on."
    )


def test_the_body_waits_for_ever() -> None:
    async def new(_step: Step) -> None:
        await echo("a")
        await asyncio.Event().wait()

    assert "ends with DeadlockError" in diverge(a_then_b, new, 2)


def test_the_body_goes_on_where_it_waited() -> None:
    """A step that was not there before, in a turn in which the journal has none."""

    async def old(_step: Step) -> None:
        await asyncio.gather(echo("a"), echo("b"))

    async def new(_step: Step) -> None:
        async def first() -> None:
            await echo("a")
            await echo("more")

        await asyncio.gather(first(), echo("b"))

    assert "key 0.0:1" in diverge(old, new, 2)


def test_a_delivery_that_nobody_waits_for() -> None:
    async def new(_step: Step) -> str:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(echo("b"))
            value = await echo("a")
            task.cancel()
        return value + await echo("c")

    async def old(_step: Step) -> str:
        task = asyncio.create_task(echo("b"))
        return await echo("a") + await task + await echo("c")

    assert diverge(old, new, 3) == (
        "the journal goes on with the outcome of step 1 'corpus.echo' (action, key 0.0:0) with "
        """arguments {"value":"b"}, which the code does not wait for at this point."""
    )


def test_a_step_that_is_now_withdrawn() -> None:
    assert diverge(b_not_withdrawn, b_withdrawn, 2) == (
        "the code now withdraws step 1 'corpus.echo' (action, key 0.0:0) with arguments "
        """{"value":"b"}, for which the journal still waits."""
    )


def test_a_step_that_is_not_withdrawn_any_more() -> None:
    assert diverge(b_withdrawn, b_not_withdrawn, 2) == (
        "the journal says that the body withdrew step 1 'corpus.echo' (action, key 0.0:0) with "
        """arguments {"value":"b"}, for which the code now waits."""
    )


def test_a_result_that_no_longer_fits() -> None:
    async def old(step: Step) -> None:
        await step.run(echo("text"), name="n", unstable_args=True)
        await echo("next")

    async def new(step: Step) -> None:
        await step.run(double(1), name="n", unstable_args=True)
        await echo("next")

    message = diverge(old, new, 2)
    assert message.startswith("the recorded result of step 0 'n' (action, key 0:0)")
    assert "does not fit the code's annotation any more: Expected `int`, got `str`" in message


def test_an_outcome_that_is_damaged() -> None:
    journal = run_live(call_of(a_then_b), EngineOrder()).journal
    first, *turns = journal.turns
    delivered = turns[0].delivered
    assert delivered is not None
    broken = replace(delivered, state=StepState.FAILED, result=None, error="{}")
    damaged = replace(journal, turns=[first, replace(turns[0], delivered=broken), *turns[1:]])
    with pytest.raises(Stuck, match="is damaged: it is failed"):
        resume(call_of(a_then_b), damaged, 2, dice(0))


def test_arguments_left_out_of_the_check() -> None:
    async def old(step: Step) -> str:
        return await step.run(echo("a"), unstable_args=True) + await echo("b")

    async def new(step: Step) -> str:
        return await step.run(echo("changed"), unstable_args=True) + await echo("b")

    player = replayed(old, new, 2)
    player.play(AnyOrder(0))
    assert player.turns[-1].end == 'returned "ab"'


def test_a_changed_delay_leaves_the_due_time_that_was_fixed() -> None:
    async def old(step: Step) -> None:
        await asyncio.gather(asyncio.sleep(5), step.sleep(6))

    async def new(step: Step) -> None:
        await asyncio.gather(asyncio.sleep(50), step.sleep(60))

    commands = replayed(old, new, 1).execution.open_commands()
    assert {command.due_ms for command in commands} == {START_MS + 5_000, START_MS + 6_000}


def test_a_refusal_in_a_recorded_turn_is_stuck() -> None:
    """The code did not do so when the turn was recorded."""

    async def new(_step: Step) -> str:
        value = await echo("a")
        with_refusal = asyncio.create_task(asyncio.to_thread(print))
        await asyncio.wait([with_refusal])
        return value + await echo("b")

    assert "run_in_executor" in diverge(a_then_b, new, 2)
