"""What asyncio and anyio do in the order of addresses, a body does in the same order every time."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, Callable
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from corpus.actions import echo, traced
from player import AnyOrder, Journal, dice
from replay_driver import disturb_addresses, replay_all, run_live

import durable
from durable import NonDeterminismError, Step
from durable.call import Call
from durable.core.commands import Raised

ROUNDS = 6
LABELS = "abcdefgh"


def journal_of(call: Call[Any]) -> Journal:
    return run_live(call, AnyOrder(1)).journal


def check_in_any_memory(call: Call[Any]) -> None:
    """Run a body over and over, with everything at another address, and replay it."""
    first = journal_of(call)
    held: list[object] = []
    for seed in range(ROUNDS):
        disturb_addresses(dice(seed), held, objects_count=3_000)
        assert journal_of(call).turns == first.turns
        replay_all(call, first, dice(seed))


# --- sets of tasks, futures and calls ------------------------------------------------------------


@durable.workflow
async def sets(_step: Step) -> list[str]:
    """Who was put into a set comes out of it in the same order."""
    loop = asyncio.get_running_loop()
    tasks = {asyncio.create_task(echo(v), name=v) for v in LABELS}
    futures = {loop.create_future(): v for v in LABELS}
    calls = {echo(v) for v in LABELS}
    gatherings: list[Any] = [asyncio.gather(echo(v), echo(v + v)) for v in LABELS]
    names = dict(zip(gatherings, LABELS, strict=True))
    done, _ = await asyncio.wait({*tasks, *gatherings})
    return [
        *(task.get_name() for task in tasks),
        *(futures[future] for future in {*futures}),  # durable: allow
        *[await call for call in calls],
        *(names.get(future, "task") for future in done),
    ]


@durable.workflow
async def as_completed_of_coroutines(_step: Step) -> list[str]:
    """It makes tasks of them out of a set; they are steps of the same tasks nevertheless."""
    trace: list[str] = []
    coroutines = [traced(trace, echo(v)) for v in LABELS]
    for next_done in asyncio.as_completed(coroutines):
        await next_done
    return trace


@durable.workflow
async def as_completed_of_all_sorts(_step: Step) -> list[str]:
    """Coroutines, one of them twice, calls, tasks and gatherings, some of them done."""
    trace: list[str] = []
    tasks = [asyncio.create_task(traced(trace, echo(v))) for v in "ab"]
    await asyncio.wait(tasks)
    coroutine = traced(trace, echo("c"))
    mixed: list[Any] = [
        coroutine,
        *tasks,
        echo("d"),
        asyncio.gather(echo("e"), echo("f")),
        coroutine,
    ]
    mixed += [traced(trace, echo(v)) for v in "ghi"]
    trace += [str(await next_done) for next_done in asyncio.as_completed(mixed)]
    return trace


@durable.workflow
async def as_completed_nested(_step: Step) -> list[str]:
    trace: list[str] = []

    async def branch(label: str) -> None:
        coroutines = [traced(trace, echo(label + v)) for v in "xyz"]
        for next_done in asyncio.as_completed(coroutines):
            await next_done

    branches = [branch(v) for v in "abc"]
    for next_done in asyncio.as_completed(branches):
        await next_done
    return trace


@durable.workflow
async def as_completed_of_a_set_of_calls(_step: Step) -> list[str]:
    """Calls need no help: they hash by their number."""
    calls = asyncio.as_completed({echo(v) for v in LABELS})
    return [await next_done for next_done in calls]


# --- anyio's cancel scopes -----------------------------------------------------------------------


@durable.workflow
async def scopes_of_locks(_step: Step) -> list[str]:
    """A cancelled group cancels the scopes in it by address; those in them wait for a lock."""
    trace: list[str] = []
    lock = anyio.Lock()

    async def child(label: str) -> None:
        with anyio.CancelScope():
            try:
                async with lock:
                    await traced(trace, echo(label))
            finally:
                trace.append(f"out {label}")

    async with anyio.create_task_group() as group:
        for label in LABELS:
            group.start_soon(child, label)
        await echo("signal")
        group.cancel_scope.cancel()
    return trace


@durable.workflow
async def scopes_of_gatherings(_step: Step) -> list[str]:
    """The same, where a scope's task waits for a gathering of gatherings."""
    trace: list[str] = []

    async def child(label: str) -> None:
        with anyio.CancelScope():
            try:
                inner = asyncio.gather(asyncio.gather(traced(trace, echo(label))))
                await asyncio.gather(asyncio.gather(inner))
            finally:
                trace.append(f"out {label}")

    async with anyio.create_task_group() as group:
        for label in LABELS:
            group.start_soon(child, label)
        await echo("signal")
        group.cancel_scope.cancel()
    return trace


EXACT = [
    sets,
    as_completed_of_coroutines,
    as_completed_of_all_sorts,
    as_completed_nested,
    as_completed_of_a_set_of_calls,
    scopes_of_locks,
    scopes_of_gatherings,
]


@pytest.mark.slow
@pytest.mark.parametrize("workflow", EXACT, ids=lambda workflow: workflow.__name__)
def test_the_order_does_not_depend_on_addresses(workflow: Callable[[], Call[Any]]) -> None:
    check_in_any_memory(workflow())


@durable.workflow
async def unordered(_step: Step, kind: str) -> str:
    coroutines: Any = [traced([], echo(v)) for v in LABELS]
    given: Any = {"set": {*coroutines}, "iterator": iter(coroutines)}[kind]
    try:
        for next_done in asyncio.as_completed(given):
            await next_done
    finally:
        for coroutine in coroutines:
            coroutine.close()
    return "done"


@pytest.mark.parametrize("kind", ["set", "iterator"])
def test_as_completed_refuses_coroutines_whose_order_is_lost(kind: str) -> None:
    player = run_live(unordered(kind), AnyOrder(0))
    assert isinstance(player.outcome, Raised)
    assert isinstance(player.outcome.error, NonDeterminismError)
    assert "give it a list" in str(player.outcome.error)


# --- async generators ----------------------------------------------------------------------------

KEPT: ContextVar[list[AsyncGenerator[str, None]]] = ContextVar("KEPT")


async def guarded_values(trace: list[str], label: str) -> AsyncGenerator[str, None]:
    try:
        yield label
        yield label
    finally:
        await traced(trace, echo(f"close {label}"))


def in_the_hole() -> object:
    """Return something that takes the memory which was freed last, or nothing."""


@durable.workflow
async def generators_left_open(_step: Step) -> str:
    """The one begun last may lie where one lay that was begun, and ended, before the others."""
    trace: list[str] = []
    first, second = (guarded_values(trace, v) for v in "ab")
    await anext(first)
    await anext(second)
    async for _ in first:
        pass
    del first
    filled = in_the_hole()
    third = guarded_values(trace, "c")
    await anext(third)
    KEPT.set([second, third])
    del filled
    return await echo("end")


def test_generators_are_closed_in_the_order_in_which_they_were_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    journal = journal_of(generators_left_open())
    monkeypatch.setitem(globals(), "in_the_hole", lambda: guarded_values([], "x"))
    assert journal_of(generators_left_open()).turns == journal.turns
    closed = [step.args for turn in journal.turns for step in turn.issued if "close" in step.args]
    assert closed == [f'{{"value":"close {v}"}}' for v in "abc"]


@durable.workflow
async def generator_in_a_cycle(_step: Step) -> list[str]:
    """Only the collector finds it, whenever that may be; it is closed when the body has ended."""
    trace: list[str] = []
    cycle: list[Any] = [guarded_values(trace, "a")]
    await anext(cycle[0])
    cycle.append(cycle)
    del cycle
    for label in "xyz":
        await traced(trace, echo(label))
    return list(trace)


def test_a_generator_that_the_collector_finds_is_closed_when_the_body_has_ended() -> None:
    gc.disable()
    try:
        journal = journal_of(generator_in_a_cycle())
    finally:
        gc.enable()
    replay_all(generator_in_a_cycle(), journal, dice(0), on_command=gc.collect)
    replay_all(generator_in_a_cycle(), journal, dice(0))
    assert journal.turns[-1].end == 'returned ["x","y","z"]'
    assert "close a" in journal.turns[-2].issued[0].args
