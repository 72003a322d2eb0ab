"""An event and something else at the same time: it is consumed once, kept, or refused."""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from clock import ManualClock
from cycles import at_cycle
from faults import Disk, leaving_nothing, opened
from waiting import WAIT_S_MAX, until, until_open, until_parked, until_waiting

import durable
from durable import (
    Engine,
    RunCanceled,
    RunFinishedError,
    RunNotFoundError,
    Step,
    StepState,
)
from durable.runtime.settings import PARK_AFTER_MS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

NAP_S = 10.0
PARK_S = 2 * PARK_AFTER_MS / 1000
CYCLES = 40
"""More cycles of the loop than any of these takes from its beginning to its end."""

gates: deque[asyncio.Event] = deque(maxlen=1)


@pytest.fixture(autouse=True)
def _new_gate() -> None:
    gates.append(asyncio.Event())


@durable.action
async def gated() -> None:
    await gates[0].wait()


@durable.workflow
async def waiting(step: Step) -> Any:  # noqa: ANN401
    return await step.wait_event("it")


@durable.workflow
async def in_time(step: Step) -> Any:  # noqa: ANN401
    try:
        return await step.wait_event("it", timeout=NAP_S)
    except TimeoutError:
        return ["too late", await step.wait_event("it")]


@durable.workflow
async def ending(_step: Step) -> str:
    await gated()
    return "over"


@durable.workflow
async def racing(step: Step) -> list[Any]:
    """Whichever is first, an event or an action: the event is there for who waits for it later."""
    wait = asyncio.create_task(step.wait_event("it"))
    work = asyncio.create_task(gated())
    await asyncio.wait([wait, work], return_when=asyncio.FIRST_COMPLETED)
    if wait.done():
        return ["event", wait.result()]
    wait.cancel()
    return ["action", await step.wait_event("it")]


def doing_at(
    cycle: int,
    what: Any,  # noqa: ANN401  a function that gives an awaitable
) -> tuple[Any, list[asyncio.Task[Any]]]:
    """Begin something in that cycle of the loop from here; the list then has its task."""
    tasks: list[asyncio.Task[Any]] = []

    async def do() -> Any:  # noqa: ANN401
        return await what()

    return at_cycle(cycle, lambda: tasks.append(asyncio.create_task(do()))), tasks


async def sending_and_at(cycle: int, run: durable.Run[Any], act: Callable[[], object]) -> Any:  # noqa: ANN401
    """Send an event, and do something in that cycle of the loop; return what came of the send."""
    acted = asyncio.Event()
    sending = asyncio.create_task(run.send_event("it", 1))

    def do() -> None:
        act()
        acted.set()

    with at_cycle(cycle, do):
        await asyncio.wait([sending])
        while not acted.is_set():  # noqa: ASYNC110  so many cycles
            await asyncio.sleep(0)
    return await outcome(sending)


async def close_when(is_asked: asyncio.Event, engine: Engine) -> None:
    await is_asked.wait()
    await engine.__aexit__(None, None, None)


async def outcome(awaitable: Awaitable[Any]) -> Any:  # noqa: ANN401
    """Return what came of it: a value or an exception."""
    async with asyncio.timeout(WAIT_S_MAX):
        return (await asyncio.gather(awaitable, return_exceptions=True))[0]


async def check_nothing_is_left(engine: Engine) -> None:
    runner = engine._runner
    assert runner is not None
    await until(lambda: runner.live_runs_count == 0 and runner.pool.is_settled)
    sends = runner.sends
    assert sends._submitted == set()
    assert sends._acks._by_run == {}
    assert sends._ids._locks == {}


async def events_of(engine: Engine, run_id: str) -> list[tuple[Any, ...]]:
    journal: Any = engine._journal
    journal = getattr(journal, "inner", journal)
    sql = "SELECT value, step_number FROM durable_event WHERE run_id = ? ORDER BY seq"
    rows: list[tuple[Any, ...]] = await journal._read(
        lambda db: db.execute(sql, [run_id]).fetchall()
    )
    return rows


@pytest.mark.slow
@pytest.mark.both_loops
async def test_a_send_while_the_run_leaves_memory_wakes_it(path: Path) -> None:
    """It is asked in each cycle from before the run parks until it is asleep."""
    clock = ManualClock()
    async with opened(path, clock) as engine:
        for cycle in range(CYCLES):
            run = await engine.start(waiting(), id=f"{cycle}")
            await until_open(run)
            at, tasks = doing_at(cycle, lambda run=run: run.send_event("it", run.id))
            with at:
                clock.advance(PARK_S)
                while not tasks:  # noqa: ASYNC110  so many cycles
                    await asyncio.sleep(0)
            assert not isinstance(await outcome(tasks[0]), Exception)
            assert await run.result(timeout=WAIT_S_MAX) == run.id
            assert len(await events_of(engine, run.id)) == 1
        await check_nothing_is_left(engine)


@pytest.mark.slow
@pytest.mark.both_loops
async def test_a_send_while_the_run_comes_back_is_received_once(path: Path) -> None:
    """Another event has woken it: this one is read by the claim, or handed over."""
    clock = ManualClock()

    @durable.workflow(name="test_events_races.two")
    async def two(step: Step) -> list[Any]:
        return [await step.wait_event("it"), await step.wait_event("it")]

    async with opened(path, clock) as engine:
        for cycle in range(CYCLES):
            run = await engine.start(two(), id=f"{cycle}")
            await until_open(run)
            clock.advance(PARK_S)
            await until_parked(engine)
            at, tasks = doing_at(cycle, lambda run=run: run.send_event("it", 2))
            with at:
                await run.send_event("it", 1)
                while not tasks:  # noqa: ASYNC110  so many cycles
                    await asyncio.sleep(0)
            assert not isinstance(await outcome(tasks[0]), Exception)
            assert sorted(await run.result(timeout=WAIT_S_MAX)) == [1, 2]
        await check_nothing_is_left(engine)


@pytest.mark.slow
@pytest.mark.both_loops
async def test_a_send_while_the_run_ends_is_kept_or_refused(path: Path) -> None:
    refused = 0
    async with opened(path, ManualClock()) as engine:
        for cycle in count():
            gates.append(asyncio.Event())
            run = await engine.start(ending(), id=f"{cycle}")
            await until_open(run)
            at, tasks = doing_at(cycle, lambda run=run: run.send_event("it", 1))
            with at:
                await asyncio.sleep(0)
                gates[0].set()
                assert await run.result(timeout=WAIT_S_MAX) == "over"
                for _ in range(3):
                    await asyncio.sleep(0)
            if not tasks:
                break
            came_of_it = await outcome(tasks[0])
            kept = await events_of(engine, run.id)
            if isinstance(came_of_it, RunFinishedError):
                refused += 1
                assert kept == []
            else:
                assert isinstance(came_of_it, durable.EventId)
                assert kept == [("1", None)]
        assert 0 < refused < cycle
        await check_nothing_is_left(engine)


@pytest.mark.slow
@pytest.mark.both_loops
async def test_of_an_event_and_a_time_out_one_wins(path: Path) -> None:
    clock = ManualClock()
    first: set[bool] = set()
    async with opened(path, clock) as engine:
        for cycle in range(CYCLES):
            run = await engine.start(in_time(), id=f"{cycle}")
            await until_open(run)
            assert not isinstance(
                await sending_and_at(cycle, run, lambda: clock.advance(NAP_S)), Exception
            )
            result = await run.result(timeout=WAIT_S_MAX)
            first.add(result == 1)
            assert result in (1, ["too late", 1])
            steps = [step async for step in run.steps()]
            assert [step.event_id is not None for step in steps].count(True) == 1
            assert steps[0].state is (StepState.COMPLETED if result == 1 else StepState.FAILED)
        assert first == {True, False}
        await check_nothing_is_left(engine)


@pytest.mark.slow
@pytest.mark.both_loops
async def test_of_an_event_and_a_cancel_one_wins(path: Path) -> None:
    won: set[str] = set()
    async with opened(path, ManualClock()) as engine:
        for cycle in range(CYCLES):
            run = await engine.start(waiting(), id=f"{cycle}")
            await until_open(run)
            at, tasks = doing_at(cycle, run.cancel)
            with at:
                for _ in range(2):
                    await asyncio.sleep(0)
                sent = await outcome(run.send_event("it", 1))
                while not tasks:  # noqa: ASYNC110  so many cycles
                    await asyncio.sleep(0)
            canceled = await outcome(tasks[0])
            result = await outcome(run.result())
            kept = await events_of(engine, run.id)
            if canceled:
                won.add("cancel")
                assert isinstance(result, RunCanceled)
                assert kept in ([], [("1", None)])
                assert (kept == []) is isinstance(sent, RunFinishedError)
            else:
                won.add("event")
                assert result == 1
                assert kept == [("1", 0)]
        assert won == {"cancel", "event"}
        await check_nothing_is_left(engine)


@pytest.mark.slow
@pytest.mark.both_loops
async def test_of_an_event_and_an_action_the_loser_loses_nothing(path: Path) -> None:
    won: set[str] = set()
    async with opened(path, ManualClock()) as engine:
        for cycle in range(CYCLES):
            gates.append(asyncio.Event())
            run = await engine.start(racing(), id=f"{cycle}")
            await until_waiting(run, 0)
            assert not isinstance(await sending_and_at(cycle, run, gates[0].set), Exception)
            who, value = await run.result(timeout=WAIT_S_MAX)
            won.add(who)
            assert value == 1
            ((_, step_number),) = await events_of(engine, run.id)
            assert (step_number == 0) is (who == "event")
        assert won == {"event", "action"}
        await check_nothing_is_left(engine)


@pytest.mark.slow
async def test_a_send_while_the_run_is_removed_is_refused_or_removed(path: Path) -> None:
    async with opened(path, ManualClock()) as engine:
        for cycle in range(CYCLES // 2):
            run = await engine.start(waiting(), id="it")
            await until_open(run)
            at, tasks = doing_at(cycle, lambda run=run: run.send_event("other", 1))
            with at:
                assert await run.cleanup(force=True)
                while not tasks:  # noqa: ASYNC110  so many cycles
                    await asyncio.sleep(0)
            came_of_it = await outcome(tasks[0])
            assert isinstance(came_of_it, (durable.EventId, RunNotFoundError))
            assert await events_of(engine, "it") == []
        await check_nothing_is_left(engine)


async def test_a_send_while_the_run_starts_is_received(path: Path) -> None:
    async with opened(path, ManualClock()) as engine:
        starting = asyncio.create_task(engine.start(waiting(), id="it"))
        await asyncio.sleep(0)
        sent = await outcome(engine.send_event("it", "it", 1))
        run = await starting
        if isinstance(sent, RunNotFoundError):
            await run.send_event("it", 1)
        assert await run.result(timeout=WAIT_S_MAX) == 1


async def test_a_send_that_meets_a_claim_is_received_once(path: Path, disk: Disk) -> None:
    """It is submitted while the journal is being read for the run, and committed after it."""
    clock = ManualClock()

    @durable.workflow(name="test_events_races.sleeping")
    async def sleeping(step: Step) -> list[Any]:
        await step.sleep(PARK_S)
        got = [await step.wait_event("it")]
        try:
            got.append(await step.wait_event("it", timeout=0))
        except TimeoutError:
            return got
        return got

    async with opened(path, clock) as engine:
        run = await engine.start(sleeping(), id="it")
        await until_open(run)
        await until_parked(engine)
        claims = disk.calls["claim"]
        disk.answers.clear()
        clock.advance(PARK_S)
        await until(lambda: disk.calls["claim"] > claims)
        sending = asyncio.create_task(run.send_event("it", 1))
        runner = engine._runner
        assert runner is not None
        await until(lambda: runner.writer._pending)
        disk.answers.set()
        assert not isinstance(await outcome(sending), Exception)
        assert await run.result(timeout=WAIT_S_MAX) == [1]


async def test_a_send_that_is_committed_while_a_park_is_pending_wakes_the_run(
    path: Path, disk: Disk
) -> None:
    """The park is submitted while the send is being written: it finds the event in the journal."""
    clock = ManualClock()
    async with opened(path, clock) as engine:
        runner = engine._runner
        assert runner is not None
        run = await engine.start(waiting(), id="it")
        await until_open(run)
        commits = disk.calls["commit"]
        disk.answers.clear()
        sending = asyncio.create_task(run.send_event("it", 1))
        await until(lambda: disk.calls["commit"] > commits)
        clock.advance(PARK_S)
        await until(lambda: runner.writer._pending)
        disk.answers.set()
        assert not isinstance(await outcome(sending), Exception)
        assert await run.result(timeout=WAIT_S_MAX) == 1


@pytest.mark.slow
async def test_closing_at_any_moment_of_a_send_loses_nothing(path: Path) -> None:
    """It is acknowledged, and then in the journal; or its caller is told, and may ask again."""
    told: set[type[object]] = set()
    async with leaving_nothing():
        for cycle in range(CYCLES):
            file = path.with_name(f"{cycle}.db")
            engine = Engine(file)
            await engine.__aenter__()
            run = await engine.start(waiting(), id="it")
            await until_open(run)
            is_asked = asyncio.Event()
            closing = asyncio.create_task(close_when(is_asked, engine))
            with at_cycle(cycle, is_asked.set):
                came_of_it = await outcome(run.send_event("it", 1))
                while not is_asked.is_set():  # noqa: ASYNC110  so many cycles
                    await asyncio.sleep(0)
            await closing
            told.add(type(came_of_it))
            async with opened(file) as engine:
                if isinstance(came_of_it, durable.EngineClosedError):
                    if await events_of(engine, "it") == []:
                        await engine.send_event("it", "it", 1)
                else:
                    assert isinstance(came_of_it, durable.EventId)
                assert await engine.get("it").result(timeout=WAIT_S_MAX) == 1
    assert durable.EventId in told
