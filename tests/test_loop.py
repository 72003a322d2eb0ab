"""The private loop of a body: in which order it runs things, and how it is dropped."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import signal
import sys
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from bare_loop import NOW_MS, Host, begin, current, new_loop, nothing, run

from durable.core import closing
from durable.core import loop as loop_module
from durable.core.loop import TurnTooLongError, WorkflowLoop
from durable.core.tasks import PATH_CHARS_MAX


def test_callbacks_and_tasks_run_first_come_first_served(loop: WorkflowLoop) -> None:
    trace: list[str] = []

    async def child(label: str) -> None:
        for turn in range(2):
            trace.append(f"{label}{turn}")
            await asyncio.sleep(0)

    async def body() -> None:
        tasks = [asyncio.create_task(child(label)) for label in "ab"]
        current().call_soon(trace.append, "soon")
        current().call_soon(trace.append, "never").cancel()
        await asyncio.gather(*tasks)

    run(loop, body())
    assert trace == ["a0", "b0", "soon", "a1", "b1"]


def test_a_timer_that_is_due_fires_at_once_and_another_is_the_hosts(
    loop: WorkflowLoop, host: Host
) -> None:
    trace: list[str] = []

    async def body() -> None:
        loop = asyncio.get_running_loop()
        assert loop.time() == NOW_MS / 1000
        loop.call_at(loop.time(), trace.append, "now")
        loop.call_later(-3, trace.append, "past")
        later, dropped = (loop.call_later(s, trace.append, "later") for s in (1, 2))
        dropped.cancel()
        dropped.cancel()
        assert later.when() == 6.0
        with pytest.raises(ValueError, match="not a number"):
            loop.call_later(float("nan"), nothing)

    run(loop, body())
    assert trace == ["now", "past"]
    assert list(host.timers.values()) == [6.0]
    assert host.cancelled == [7.0]


def test_tasks_have_paths_for_names_and_short_ones_however_deep(loop: WorkflowLoop) -> None:
    async def descend(depth: int) -> list[str]:
        task: Any = asyncio.current_task()
        below = await asyncio.create_task(descend(depth - 1)) if depth else []
        return [task.path, *below]

    async def body() -> list[list[str]]:
        return [await asyncio.create_task(descend(2)), await asyncio.create_task(descend(50))]

    shallow, deep = run(loop, body())
    assert shallow == ["0.0", "0.0.0", "0.0.0.0"]  # noqa: S104  no address
    assert deep[0] == "0.1"
    assert len({*deep}) == 51
    assert all(len(path) <= PATH_CHARS_MAX for path in deep)


async def test_a_pump_in_a_running_loop_leaves_it_as_it_was(loop: WorkflowLoop) -> None:
    """The host's loop, its current task and the hooks of async generators, also after an error."""
    outer, hooks = asyncio.get_running_loop(), sys.get_asyncgen_hooks()
    seen: list[object] = []

    async def body() -> None:
        seen.append(asyncio.get_running_loop())
        seen.append(sys.get_asyncgen_hooks() == hooks)

    run(loop, body())
    assert seen == [loop, False]
    with pytest.raises(ZeroDivisionError):
        loop.pump(lambda: 1 // 0)
    assert asyncio.get_running_loop() is outer
    assert sys.get_asyncgen_hooks() == hooks
    loop.close()
    assert asyncio.get_running_loop() is outer


def test_a_body_has_context_variables_of_its_own(loop: WorkflowLoop) -> None:
    """What the host has set must not reach it: on replay another host sets something else."""
    variable = contextvars.ContextVar("variable", default="default")
    variable.set("of the host")

    async def body() -> str:
        before = variable.get()
        variable.set("of the body")
        return before

    assert run(loop, body()) == "default"
    assert variable.get() == "of the host"


def test_a_body_that_runs_in_circles_is_stopped(
    loop: WorkflowLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "HANDLES_PER_TURN_MAX", 100)

    async def body() -> None:
        while True:  # noqa: ASYNC110  the point of it
            await asyncio.sleep(0)

    with pytest.raises(TurnTooLongError):
        begin(loop, body())


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_body_cannot_end_the_process(loop: WorkflowLoop, error: type[BaseException]) -> None:
    """What it raises is its outcome, and its other tasks go on."""
    trace: list[str] = []

    async def child() -> None:
        await asyncio.sleep(0)
        trace.append("went on")

    async def body() -> None:
        asyncio.create_task(child())  # noqa: RUF006  the loop keeps it
        raise error

    task = begin(loop, body())
    assert isinstance(task.exception(), error)
    assert trace == ["went on"]


def test_ctrl_c_in_a_body_is_the_hosts(loop: WorkflowLoop) -> None:
    async def body() -> None:
        signal.raise_signal(signal.SIGINT)

    # A process in the background may ignore it.
    outer = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            begin(loop, body())
    finally:
        signal.signal(signal.SIGINT, outer)
    assert asyncio._get_running_loop() is None


def test_a_callback_that_raises_is_reported_and_the_rest_goes_on(
    loop: WorkflowLoop, host: Host
) -> None:
    trace: list[str] = []

    async def body() -> None:
        current().call_soon(lambda: 1 // 0)
        current().call_soon(trace.append, "next")

    run(loop, body())
    assert trace == ["next"]
    assert [type(context["exception"]) for context in host.exceptions] == [ZeroDivisionError]


@pytest.mark.parametrize("cycles_count", [0, 50, 1_000])
def test_a_task_that_spins_until_it_is_cancelled_is_cancelled(
    loop: WorkflowLoop, cycles_count: int
) -> None:
    """anyio delivers a cancellation in each cycle of the loop, and counts on that."""

    async def body() -> bool:
        with anyio.CancelScope() as scope:
            scope.cancel()
            with anyio.CancelScope(shield=True):
                for _ in range(cycles_count):
                    await asyncio.sleep(0)
            await anyio.lowlevel.checkpoint_if_cancelled()
        return scope.cancelled_caught

    assert run(loop, body())


def test_a_task_that_swallows_its_cancellation_does_not_keep_the_loop_busy(
    loop: WorkflowLoop, host: Host
) -> None:
    """In asyncio's own loops it spins until what it waits for comes: here, in another turn."""

    async def body() -> str:
        cleaned_up = asyncio.Event()
        current().call_later(1, cleaned_up.set)
        with anyio.CancelScope() as scope:
            scope.cancel()
            while not cleaned_up.is_set():
                with suppress(asyncio.CancelledError):
                    await cleaned_up.wait()
        return "done"

    task = begin(loop, body())
    assert not task.done()
    (timer,) = host.timers
    loop.pump(lambda: loop.fire(timer))
    assert task.result() == "done"


async def values(trace: list[str]) -> AsyncGenerator[int, None]:
    try:
        for n in range(3):
            yield n
    finally:
        await asyncio.sleep(0)
        trace.append("closed")


def test_a_generator_that_a_body_drops_is_closed_by_the_bodys_loop(loop: WorkflowLoop) -> None:
    trace: list[str] = []

    async def body() -> None:
        async for _ in values(trace):
            break
        trace.append("dropped")

    run(loop, body())
    assert trace == ["dropped", "closed"]
    assert loop.open_generators() == []


# --- how it is dropped ---------------------------------------------------------------------------


async def for_ever() -> None:
    await current().create_future()


def test_a_dropped_loop_is_dropped_once_and_takes_no_notice_of_what_comes_late(
    loop: WorkflowLoop, host: Host
) -> None:
    futures: list[asyncio.Future[str]] = []

    async def body() -> str:
        futures.append(current().create_future())
        return await futures[0]

    task = begin(loop, body())
    loop.close()
    loop.close()
    futures[0].set_result("late")
    assert loop.is_closed()
    assert not task.done()
    assert not loop._ready
    del task, futures[0]
    gc.collect()
    assert host.exceptions == []


def test_a_dropped_body_is_freed_without_the_collector(host: Host) -> None:
    """Idle runs leave memory by the thousand."""

    class Held:
        pass

    async def body() -> None:
        held = Held()
        found.append(weakref.ref(held))
        await for_ever()

    found: list[weakref.ref[Held]] = []
    gc.disable()
    try:
        loop = new_loop(host)
        begin(loop, body())
        loop.close()
        assert found[0]() is None
    finally:
        gc.enable()


ATTEMPTS: dict[str, Callable[[], Any]] = {
    "sleep": lambda: asyncio.sleep(1),
    "time-out": lambda: asyncio.timeout(1).__aenter__(),
    "task": lambda: asyncio.create_task(for_ever()),
    "shield": lambda: asyncio.shield(asyncio.ensure_future(for_ever())),
    "future": for_ever,
    "executor": lambda: asyncio.to_thread(nothing),
    "timer": lambda: current().call_later(0, nothing),
}


@pytest.mark.parametrize("attempt", ATTEMPTS.values(), ids=ATTEMPTS)
def test_a_dropped_body_cannot_act(
    loop: WorkflowLoop, host: Host, attempt: Callable[[], Any]
) -> None:
    """Its ``finally`` blocks run, as Python has it, but nothing that they try is done."""
    trace: list[str] = []

    async def body() -> None:
        try:
            await for_ever()
        finally:
            trace.append("began")
            made = attempt()
            if isinstance(made, Awaitable):
                await made
            trace.append("went on")

    begin(loop, body())
    loop.close()
    assert trace == ["began"]
    assert host.timers == {}
    assert host.refusals == []
    assert not loop._ready
    gc.collect()


@pytest.mark.parametrize("name", sorted(ATTEMPTS.keys() - {"executor"}))
def test_a_body_that_swallows_everything_for_ever_is_dropped_too(
    loop: WorkflowLoop, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process must not hang with it when a sleeping run leaves memory."""
    kept: list[Any] = []
    monkeypatch.setattr(closing, "_unclosable", kept)
    tries, is_over = 0, False

    async def body() -> None:
        nonlocal tries
        while not is_over:
            tries += 1
            try:
                made = ATTEMPTS[name]()
                if isinstance(made, Awaitable):
                    await made
                await for_ever()
            except BaseException:  # noqa: BLE001, S110  the point of it
                pass

    begin(loop, body())
    loop.close()
    assert 1 < tries < 1_000
    assert len(kept) >= 1
    is_over = True
    for coroutine in kept:
        coroutine.close()
