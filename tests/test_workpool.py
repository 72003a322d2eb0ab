"""Slots: who has one, who waits for one, and what becomes of work that nobody wants any more."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import defaultdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import durable
from clock import ManualClock
from durable import (
    Engine,
    EngineClosedError,
    OutcomeUnknown,
    Retry,
    RunFailed,
    Step,
    StepFailed,
    StepState,
)
from faults import WAIT_S_MAX, crashing, until, until_step


class Floor:
    """Where the actions of a test work: who is at it, in which order, and how many at a time."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.at_work: set[str] = set()
        self.at_work_max = 0
        self.gates: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.thread_gates: defaultdict[str, threading.Event] = defaultdict(threading.Event)
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def work(self, name: str) -> Any:  # noqa: ANN401  a context manager
        with self._lock:
            self.begun.append(name)
            self.at_work.add(name)
            self.at_work_max = max(self.at_work_max, len(self.at_work))
        try:
            yield
        finally:
            with self._lock:
                self.at_work.remove(name)
                self.ended.append(name)


floor: Floor = Floor()


@pytest.fixture(autouse=True)
def _new_floor(monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401  a generator
    monkeypatch.setattr("test_workpool.floor", Floor())
    yield
    for gate in floor.thread_gates.values():
        gate.set()  # A thread that still waits would keep the interpreter.


@durable.action
async def quick(name: str) -> str:
    with floor.work(name):
        for _ in range(3):
            await asyncio.sleep(0)
    return name


@durable.action
def in_thread(name: str) -> str:
    with floor.work(name):
        return name


@durable.action
async def gated(name: str) -> str:
    with floor.work(name):
        await floor.gates[name].wait()
    return name


@durable.action
def gated_in_thread(name: str) -> str:
    with floor.work(name):
        assert floor.thread_gates[name].wait(WAIT_S_MAX)
    return name


@durable.action
async def slow_to_end(name: str) -> str:
    """It has to clean up when it is cancelled, and awaits while it does."""
    with floor.work(name):
        try:
            await asyncio.Event().wait()
        finally:
            await floor.gates[name].wait()
    return name


@durable.action(retry=Retry(max_attempts=2, initial_backoff=60, jitter=False))
async def fail_once(name: str) -> str:
    with floor.work(name):
        if durable.attempt().number == 1:
            raise ValueError(name)
    return name


@durable.workflow
async def mixed(_: Step, run: str, count: int) -> list[str]:
    calls = [(in_thread if n % 3 == 0 else quick)(f"{run}{n}") for n in range(count)]
    return await asyncio.gather(*calls)


@durable.workflow
async def all_quick(_: Step, names: list[str]) -> list[str]:
    return await asyncio.gather(*(quick(name) for name in names))


@durable.workflow
async def all_gated(_: Step, names: list[str]) -> list[str]:
    return await asyncio.gather(*(gated(name) for name in names))


# --- how many, in which order --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.both_loops
@pytest.mark.parametrize("parallelism", [1, 3])
async def test_at_most_so_many_actions_run_at_every_instant(path: Path, parallelism: int) -> None:
    async with Engine(path, max_parallelism=parallelism) as engine:
        runs = [await engine.start(mixed(run, 20)) for run in "abc"]
        for run in runs:
            assert len(await run.result(timeout=WAIT_S_MAX)) == 20
    assert len(floor.begun) == 60
    assert floor.at_work_max <= parallelism


@pytest.mark.slow
async def test_a_recovery_keeps_to_the_parallelism_too(path: Path) -> None:
    """All interrupted steps are due at once; the slots are given one by one all the same."""
    names = [str(n) for n in range(12)]
    async with crashing(path) as engine:
        runs = [await engine.start(all_gated([f"{run}{name}" for name in names])) for run in "abc"]
        await until(lambda: len(floor.at_work) == 25)
    floor.at_work_max = 0
    floor.begun.clear()
    async with Engine(path, max_parallelism=2) as engine:
        for left in range(36, 0, -1):
            await until(lambda left=left: len(floor.at_work) == min(2, left))  # type: ignore[misc]
            floor.gates[min(floor.at_work)].set()
            await until(lambda left=left: len(floor.begun) - len(floor.at_work) == 37 - left)  # type: ignore[misc]
        for run in runs:
            await engine.get(run.id).result(timeout=WAIT_S_MAX)
    assert floor.at_work_max == 2
    assert len(floor.begun) == 36


async def test_with_one_slot_actions_run_in_the_order_of_their_issue(path: Path) -> None:
    async with Engine(path, max_parallelism=1) as engine:
        first = await engine.start(all_gated(["first"]))
        await until(lambda: floor.begun)
        runs = [await engine.start(all_quick([f"{r}1", f"{r}2", f"{r}3"])) for r in "abcd"]
        await until(lambda: engine.statistics().queued_actions == 12)
        floor.gates["first"].set()
        for run in [first, *runs]:
            await run.result(timeout=WAIT_S_MAX)
    assert floor.begun == ["first", *(f"{r}{n}" for r in "abcd" for n in (1, 2, 3))]


async def test_a_slot_that_is_free_is_taken_at_once(path: Path) -> None:
    """Not in batches: the third begins when one of the first two has ended."""
    async with Engine(path, max_parallelism=2) as engine:
        run = await engine.start(all_gated(["a", "b", "c", "d"]))
        await until(lambda: floor.at_work == {"a", "b"})
        floor.gates["b"].set()
        await until(lambda: floor.at_work == {"a", "c"})
        floor.gates["c"].set()
        await until(lambda: floor.at_work == {"a", "d"})
        floor.gates["a"].set()
        floor.gates["d"].set()
        assert await run.result(timeout=WAIT_S_MAX) == ["a", "b", "c", "d"]


# --- waiting holds no slot -----------------------------------------------------------------------


@durable.workflow
async def waiting_in_every_way(step: Step) -> list[str]:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(step.sleep(60))
        tasks.create_task(asyncio.sleep(60))
        delayed = tasks.create_task(step.run(quick("delayed"), run_after=60))
        retried = tasks.create_task(fail_once("retried"))
    return [delayed.result(), retried.result()]


async def test_sleeping_backing_off_and_delays_hold_no_slot(path: Path) -> None:
    clock = ManualClock()
    engine = Engine(path, max_parallelism=1)
    clock.install(engine)
    async with engine:
        run = await engine.start(waiting_in_every_way())
        await until(lambda: floor.ended == ["retried"])
        async with asyncio.timeout(WAIT_S_MAX):
            while (await until_step(run, fail_once.name, StepState.PENDING)).attempts != 1:
                pass
        assert engine.statistics().running_actions == 0
        assert await engine.run(all_quick(["other"])) == ["other"]
        clock.advance(60)
        assert await run.result(timeout=WAIT_S_MAX) == ["delayed", "retried"]


async def test_actions_that_wait_for_runs_are_no_deadlock_with_slots_enough(path: Path) -> None:
    """An action that starts a run and waits for it keeps its slot: it runs."""

    @durable.action(name="workpool.ask")
    async def ask(depth: int) -> int:
        return await Engine.current().run(asking(depth - 1))

    @durable.workflow(name="workpool.asking")
    async def asking(_: Step, depth: int) -> int:
        return 0 if depth == 0 else 1 + await ask(depth)

    async with Engine(path, max_parallelism=5) as engine:
        run = await engine.start(asking(5))
        assert await run.result(timeout=WAIT_S_MAX) == 5


# --- changing the number -------------------------------------------------------------------------


async def test_none_pauses_what_begins_and_ends_nothing(path: Path) -> None:
    async with Engine(path, max_parallelism=2) as engine:
        run = await engine.start(all_gated(["a", "b", "c", "d", "e"]))
        await until(lambda: floor.at_work == {"a", "b"})
        engine.set_max_parallelism(0)
        floor.gates["a"].set()
        await until_step(run, gated.name, StepState.PENDING)
        await until(lambda: floor.at_work == {"b"})
        assert await engine.start(all_quick(["other"]))
        assert engine.statistics().queued_actions == 4
        engine.set_max_parallelism(1)
        assert floor.at_work == {"b"}, "it is one already"
        engine.set_max_parallelism(3)
        await until(lambda: floor.at_work == {"b", "c", "d"})
        for name in "bcde":
            floor.gates[name].set()
        await run.result(timeout=WAIT_S_MAX)
    assert floor.at_work_max == 3


# --- withdrawn -----------------------------------------------------------------------------------

ACTIONS: dict[str, Any] = {
    "gated": gated,
    "thread": gated_in_thread,
    "slow": slow_to_end,
    "retried": fail_once,
}


@durable.workflow
async def giving_up(step: Step, what: list[str]) -> str:
    """Begin ``what``, give it up after ten seconds, and go on with something else."""
    tasks = [asyncio.create_task(ACTIONS[name](name)) for name in what]
    tasks.append(asyncio.create_task(step.run(quick("delayed"), run_after=20)))
    await step.sleep(10)
    for task in tasks:
        task.cancel()
    assert (await asyncio.gather(*tasks, return_exceptions=True)).count("") == 0
    return await quick("last")


@contextlib.asynccontextmanager
async def engine_and_clock(path: Path, max_parallelism: int) -> Any:  # noqa: ANN401  a generator
    engine, clock = Engine(path, max_parallelism=max_parallelism), ManualClock()
    clock.install(engine)
    async with engine:
        yield engine, clock


async def states_of(run: durable.Run[Any]) -> dict[str, tuple[str, int]]:
    return {
        step.args.get("name", step.name): (step.state.value, step.attempts)
        async for step in run.steps()
    }


async def test_a_queued_step_that_is_withdrawn_never_begins(path: Path) -> None:
    async with engine_and_clock(path, 1) as (engine, clock):
        front = await engine.start(all_gated(["front"]))
        await until(lambda: floor.at_work == {"front"})
        run = await engine.start(giving_up(["gated", "thread"]))
        await until_step(run, "sleep", StepState.RUNNING)
        clock.advance(10)
        await until_step(run, gated.name, StepState.CANCELED)
        floor.gates["front"].set()
        assert await run.result(timeout=WAIT_S_MAX) == "last"
        await front.result(timeout=WAIT_S_MAX)
        clock.advance(60)
        await engine.run(all_quick(["then"]))
        assert floor.begun == ["front", "last", "then"]
        assert await states_of(run) == {
            "gated": ("canceled", 0),
            "thread": ("canceled", 0),
            "delayed": ("canceled", 0),
            "sleep": ("completed", 0),
            "last": ("completed", 1),
        }
        assert all([step.finished_at async for step in run.steps()])


async def test_a_running_async_action_is_cancelled_and_its_slot_free_when_it_has_ended(
    path: Path,
) -> None:
    """It may await while it cleans up: a cancellation comes once, as asyncio has it."""
    async with engine_and_clock(path, 1) as (engine, clock):
        run = await engine.start(giving_up(["slow"]))
        await until(lambda: floor.at_work == {"slow"})
        clock.advance(10)
        await until_step(run, slow_to_end.name, StepState.CANCELED)
        await until_step(run, quick.name, StepState.PENDING)
        assert floor.begun == ["slow"]
        assert engine.statistics().running_actions == 1
        floor.gates["slow"].set()
        assert await run.result(timeout=WAIT_S_MAX) == "last"
        assert floor.at_work_max == 1
        assert (await states_of(run))["slow"] == ("canceled", 1)


async def test_a_running_sync_action_finishes_and_is_dropped(path: Path) -> None:
    async with engine_and_clock(path, 1) as (engine, clock):
        run = await engine.start(giving_up(["thread"]))
        await until(lambda: floor.at_work == {"thread"})
        clock.advance(10)
        await until_step(run, gated_in_thread.name, StepState.CANCELED)
        assert floor.begun == ["thread"]
        floor.thread_gates["thread"].set()
        assert await run.result(timeout=WAIT_S_MAX) == "last"
        assert floor.begun == ["thread", "last"]
        assert floor.at_work_max == 1
        assert (await states_of(run))["thread"] == ("canceled", 1)


async def test_a_step_in_back_off_that_is_withdrawn_is_not_tried_again(path: Path) -> None:
    async with engine_and_clock(path, 2) as (engine, clock):
        run = await engine.start(giving_up(["retried"]))
        await until(lambda: floor.ended == ["retried"])
        await until_step(run, fail_once.name, StepState.PENDING)
        clock.advance(10)
        assert await run.result(timeout=WAIT_S_MAX) == "last"
        clock.advance(100)
        await engine.run(all_quick(["then"]))
        assert floor.begun == ["retried", "last", "then"]


@durable.workflow
async def first_of(_: Step, names: list[str]) -> str:
    tasks = [asyncio.create_task(gated(name)) for name in names]
    done, _pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    return done.pop().result()


async def test_the_losers_of_a_race_are_withdrawn_also_when_the_body_ends(path: Path) -> None:
    """The winner is the first that ended; nobody waits for the others."""
    async with Engine(path) as engine:
        run = await engine.start(first_of(["a", "b", "c"]))
        await until(lambda: floor.at_work == {"a", "b", "c"})
        floor.gates["b"].set()
        assert await run.result(timeout=WAIT_S_MAX) == "b"
        await until(lambda: not floor.at_work)
        states = await states_of(run)
        assert states == {"a": ("canceled", 1), "b": ("completed", 1), "c": ("canceled", 1)}
        await until(lambda: engine.statistics().running_actions == 0)


# --- time-outs of sync actions -------------------------------------------------------------------


@durable.workflow
async def timing_out(step: Step) -> str:
    try:
        await step.run(gated_in_thread("late"), timeout=0.01)
    except TimeoutError as exc:
        return f"{exc} {await quick('next')}"
    return "in time"


async def test_a_thread_that_is_late_keeps_its_slot(path: Path) -> None:
    """It cannot be stopped: its step fails in time, but nothing else may use the slot."""
    async with Engine(path, max_parallelism=1) as engine:
        run = await engine.start(timing_out())
        await until_step(run, quick.name, StepState.PENDING)
        assert floor.at_work == {"late"}
        assert (await until_step(run, gated_in_thread.name, StepState.FAILED)).error is not None
        floor.thread_gates["late"].set()
        result = await run.result(timeout=WAIT_S_MAX)
        assert result == "the attempt took longer than its timeout of 0.01 s next"
        assert floor.at_work_max == 1


# --- what an action does to its own task ---------------------------------------------------------


@durable.action
async def cancel_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


@durable.workflow
async def with_self_cancelling(_: Step, count: int) -> list[str]:
    failures = await asyncio.gather(
        *(cancel_itself() for _ in range(count)), return_exceptions=True
    )
    return [str(failure) for failure in failures if isinstance(failure, StepFailed)]


@pytest.mark.parametrize("count", [1, 2])
async def test_an_action_that_cancels_its_own_task_has_failed(path: Path, count: int) -> None:
    async with Engine(path, max_parallelism=2) as engine:
        run = await engine.start(with_self_cancelling(count))
        assert len(await run.result(timeout=2)) == count
        assert await engine.run(all_quick(["after"])) == ["after"]


# --- closing -------------------------------------------------------------------------------------


@durable.workflow
async def gated_then_quick(_: Step, what: str) -> str:
    return f"{await ACTIONS[what](what)} {await quick('then')}"


@pytest.mark.parametrize("what", ["gated", "thread"])
async def test_closing_waits_for_what_runs_and_records_it(path: Path, what: str) -> None:
    """What comes after it is issued, and waits for the next engine."""
    engine = await Engine(path).__aenter__()
    run = await engine.start(gated_then_quick(what))
    await until(lambda: floor.at_work)
    closing = asyncio.create_task(engine.__aexit__(None, None, None))
    with pytest.raises(EngineClosedError):
        while True:
            await engine.start(all_quick(["other"]))
    assert floor.at_work == {what}
    floor.gates[what].set()
    floor.thread_gates[what].set()
    await closing
    assert floor.ended.count(what) == 1
    async with Engine(path, max_parallelism=0) as engine:
        states = await states_of(engine.get(run.id))
        assert states == {what: ("completed", 1), "then": ("pending", 0)}
        engine.set_max_parallelism(1)
        assert await engine.get(run.id).result(timeout=WAIT_S_MAX) == f"{what} then"
    assert floor.begun.count(what) == 1


@pytest.mark.parametrize("what", ["gated", "thread"])
@pytest.mark.parametrize("drain_timeout", [0.01, timedelta(milliseconds=10)])
async def test_closing_waits_no_longer_than_told(
    path: Path, what: str, drain_timeout: float | timedelta
) -> None:
    async with asyncio.timeout(WAIT_S_MAX):
        async with Engine(path, drain_timeout=drain_timeout) as engine:
            run = await engine.start(gated_then_quick(what))
            await until(lambda: floor.at_work)
    assert floor.ended == ([] if what == "thread" else [what])
    floor.gates[what].set()
    floor.thread_gates[what].set()
    async with Engine(path) as engine:
        assert await engine.get(run.id).result(timeout=WAIT_S_MAX) == f"{what} then"
    assert floor.begun == [what, what, "then"], "interrupted, and run again"
