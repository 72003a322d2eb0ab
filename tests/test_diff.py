"""A divergence shows both sides line by line, where it is, and what is around it."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import pytest
from clock import ManualClock
from corpus.actions import echo
from player import EngineOrder, call_of, dice
from replay_driver import resume, run_live
from waiting import until_state, until_step

import durable
from durable import Engine, RunState, Step, StepState
from durable.core.commands import Stuck
from durable.core.diff import shorten_pair
from durable.core.places import place_of_error

if TYPE_CHECKING:
    from pathlib import Path

Body = Callable[[Step], Coroutine[Any, Any, object]]


def diff_of(old: Body, new: Body, turns_count: int) -> str:
    """Replay the first turns of one body with another; return the diff, without the place."""
    journal = run_live(call_of(old), EngineOrder()).journal
    with pytest.raises(Stuck) as caught:
        resume(call_of(new), journal, turns_count, dice(0), settled_share=0)
    return caught.value.diff


def lines_of(diff: str) -> list[str]:
    """Return the lines between the place and the legend."""
    return diff.split("\n\n")[1].splitlines()


def place_in(diff: str) -> str:
    """Return the first line of a diff."""
    return diff.splitlines()[0]


def line_of(body: Callable[..., object], text: str) -> str:
    """Return ``file:line in function`` of the line of a body that has the text."""
    lines, first = inspect.getsourcelines(body)
    index = next(index for index, line in enumerate(lines) if text in line)
    return f"{__file__}:{first + index} in {body.__qualname__}"


async def five(_step: Step) -> None:
    for text in "abcde":
        await echo(text)


def test_the_neighbours_are_shown() -> None:
    async def new(_step: Step) -> None:
        for text in "abXde":
            await echo(text)

    diff = diff_of(five, new, 5)
    assert lines_of(diff) == [
        """    0  action  corpus.echo  {"value":"a"}""",
        """    1  action  corpus.echo  {"value":"b"}""",
        """  - 2  action  corpus.echo  {"value":"c"}""",
        """  + 2  action  corpus.echo  {"value":"X"}""",
        """  . 3  action  corpus.echo  {"value":"d"}""",
        """  . 4  action  corpus.echo  {"value":"e"}""",
    ]
    assert place_in(diff) == f"In task 0, at {line_of(new, 'await echo')}:"


def test_what_is_left_beyond_the_neighbours_is_counted() -> None:
    async def new(_step: Step) -> None:
        await echo("X")

    assert lines_of(diff_of(five, new, 5))[-1].split() == [".", "and", "2", "more"]


def test_a_changed_kind_is_a_pair() -> None:
    async def old(step: Step) -> None:
        await step.sleep(1, name="same")

    async def new(step: Step) -> None:
        await step.run(echo("a"), name="same")

    assert lines_of(diff_of(old, new, 1)) == [
        """  - 0  sleep   same  {"seconds":1.0}""",
        """  + 0  action  same  {"value":"a"}""",
    ]


def test_recorded_steps_that_are_left_over() -> None:
    async def new(_step: Step) -> None:
        await echo("a")
        await asyncio.create_task(echo("b"))

    async def waits(_step: Step) -> None:
        async def first() -> None:
            await echo("a")

        async with asyncio.TaskGroup() as group:
            group.create_task(first())
            group.create_task(asyncio.sleep(60))

    async def waits_less(_step: Step) -> None:
        async def first() -> None:
            await echo("a")

        async with asyncio.TaskGroup() as group:
            group.create_task(first())

    assert lines_of(diff_of(five, new, 2)) == [
        """    0  action  corpus.echo  {"value":"a"}""",
        """  +    action  corpus.echo  {"value":"b"}""",
        """  - 1  action  corpus.echo  {"value":"b"}""",
    ]
    assert lines_of(diff_of(waits, waits_less, 1)) == [
        """    0  action  corpus.echo  {"value":"a"}""",
        """  - 1  sleep   timer        {}""",
        """  +                         the body waits""",
    ]


def test_a_body_that_ends_early_shows_what_is_left_and_where_it_ended() -> None:
    async def returns(_step: Step) -> None:
        await echo("a")

    async def raises(_step: Step) -> None:
        await echo("a")
        raise ValueError("no more")

    diff = diff_of(five, returns, 3)
    assert lines_of(diff) == [
        """    0  action  corpus.echo  {"value":"a"}""",
        """  - 1  action  corpus.echo  {"value":"b"}""",
        """  +                         the body returns""",
        """  . 2  action  corpus.echo  {"value":"c"}""",
    ]
    assert line_of(returns, "async def") in place_in(diff)
    diff = diff_of(five, raises, 3)
    assert "the body ends with ValueError: no more" in diff
    assert line_of(raises, "raise ValueError") in place_in(diff)


def test_steps_of_other_tasks_that_are_not_reached_are_told_from_those_that_are() -> None:
    async def old(_step: Step) -> None:
        await asyncio.gather(echo("a"), echo("b"), echo("c"))

    async def new(_step: Step) -> None:
        await asyncio.gather(echo("a"), echo("X"), echo("c"))

    assert [line[2] for line in lines_of(diff_of(old, new, 1))] == [" ", "-", "+", " "]


async def in_an_inner_function(text: str) -> str:
    return await echo(text)


async def from_a_generator() -> Any:  # noqa: ANN401
    yield await echo("X")


@pytest.mark.parametrize("where", ["inner", "generator", "gather", "task"])
def test_the_place_is_the_innermost_line_of_the_users_own_code(where: str) -> None:
    """Not that of asyncio, and not that of durable, however the step is awaited."""

    async def new(step: Step) -> None:
        if where == "inner":
            await step.run(echo("X"))
        elif where == "generator":
            async for _ in from_a_generator():
                pass
        elif where == "gather":
            await asyncio.gather(echo("X"), echo("Y"))
        else:
            await asyncio.create_task(in_an_inner_function("X"))

    place = place_in(diff_of(five, new, 1))
    expected = {
        "inner": line_of(new, "step.run("),
        "generator": line_of(from_a_generator, "yield"),
        "gather": line_of(new, "asyncio.gather("),
        "task": line_of(in_an_inner_function, "return await echo"),
    }
    assert expected[where] in place


def test_a_body_that_waits_within_asyncio_is_shown_in_its_own_code() -> None:
    async def old(_step: Step) -> None:
        task = asyncio.create_task(asyncio.sleep(60))
        await echo("a")
        await task

    async def new(_step: Step) -> None:
        task = asyncio.create_task(asyncio.sleep(60))
        await asyncio.Event().wait()
        await task

    assert f"at {line_of(new, 'Event().wait()')}:" in place_in(diff_of(old, new, 1))


def test_the_place_of_an_exception_is_in_the_users_own_code() -> None:
    async def body(_step: Step) -> None:
        await asyncio.wait_for(fails(), 60)

    async def fails() -> None:
        raise ValueError("x")

    player = run_live(call_of(body), EngineOrder())
    place = place_of_error(player.outcome.error)  # type: ignore[union-attr]
    assert str(place) == line_of(fails, "raise Val")


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("same", "same", ("same", "same")),
        ("a" * 99 + "b", "a" * 99 + "c", ("a" * 99 + "b", "a" * 99 + "c")),
        (
            "x" * 300 + "A" + "y" * 300,
            "x" * 300 + "B" + "y" * 300,
            tuple("[...]" + "x" * 40 + each + "y" * 59 + "[...]" for each in "AB"),
        ),
        ("A" + "y" * 300, "B" + "y" * 300, tuple(c + "y" * 99 + "[...]" for c in "AB")),
        ("x" * 300, "x" * 310, ("[...]" + "x" * 40, "[...]" + "x" * 50)),
    ],
)
def test_long_arguments_are_shortened_around_the_first_difference(
    one: str, other: str, expected: tuple[str, str]
) -> None:
    assert shorten_pair(one, other, 100) == expected


# --- in an engine --------------------------------------------------------------------------------

deployed: list[Body] = []


@durable.workflow
async def changing(step: Step) -> None:
    await deployed[-1](step)


async def before(step: Step) -> None:
    await echo("old")
    await step.sleep(60)


async def after(step: Step) -> None:
    await echo("new")
    await step.sleep(60)


AFTER = line_of(after, "echo")


async def test_the_diff_is_in_the_status_and_in_the_log(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A line that says why, and the diff below it."""
    deployed[:] = [before]
    clock = ManualClock()
    engine = Engine(path)
    clock.install(engine)
    async with engine:
        run = await engine.start(changing(), id="r")
        await until_step(run, "sleep", StepState.RUNNING)
    deployed[:] = [after]
    with caplog.at_level(logging.ERROR, logger="durable"):
        async with Engine(path) as engine:
            status = await until_state(engine.get("r"), RunState.STUCK)
    assert status.error is not None
    summary, _, diff = status.error.message.partition("\n\n")
    assert summary.startswith("the journal has step 0 'corpus.echo'")
    assert summary.endswith("The run goes on when the engine is opened with code that fits.")
    assert "\n" not in summary
    assert place_in(diff) == f"In task 0, at {AFTER}:"
    assert lines_of(diff)[:2] == [
        """  - 0  action  corpus.echo  {"value":"old"}""",
        """  + 0  action  corpus.echo  {"value":"new"}""",
    ]
    for line in lines_of(diff):
        assert line in caplog.text
