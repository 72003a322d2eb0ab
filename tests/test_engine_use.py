"""Which engine is current, what bodies may not do with one, and how much it does at once."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import anyio.from_thread
import pytest
from gates import a_gate, passing
from killing import Process
from waiting import until, until_state
from world import echoing

import durable
from durable import (
    Engine,
    EngineClosedError,
    NoEngineError,
    NonDeterminismError,
    Retry,
    RunFailed,
    RunState,
    Step,
)
from durable.current import find_current

# --- which one is current ------------------------------------------------------------------------


async def test_the_engine_opened_last_is_the_current_one(tmp_path: Path) -> None:
    with pytest.raises(NoEngineError, match="open one with `async with Engine"):
        Engine.current()
    first, second = Engine(tmp_path / "1.db"), Engine(tmp_path / "2.db")
    async with first:
        assert Engine.current() is first
        async with second:
            assert Engine.current() is second
            assert await asyncio.create_task(_current()) is second
        assert Engine.current() is first
    with pytest.raises(NoEngineError):
        Engine.current()


async def _current() -> Engine:
    return Engine.current()


async def test_engines_may_close_in_any_order(tmp_path: Path) -> None:
    first, second = Engine(tmp_path / "1.db"), Engine(tmp_path / "2.db")
    await first.__aenter__()
    await second.__aenter__()
    await first.__aexit__(None, None, None)
    assert Engine.current() is second
    assert await durable.run(echoing("by the second")) == "by the second"
    await second.__aexit__(None, None, None)


async def test_another_loops_engine_is_not_current(path: Path) -> None:
    async with Engine(path):
        with pytest.raises(NoEngineError):
            await asyncio.to_thread(asyncio.run, _current())


async def test_a_thread_that_is_no_action_s_has_no_engine(path: Path) -> None:
    async with Engine(path) as engine:
        with pytest.raises(NoEngineError):
            await asyncio.to_thread(Engine.current)
        assert await engine.run(echoing("a")) == "a"
        with pytest.raises(NoEngineError):
            await asyncio.to_thread(Engine.current)


@durable.action
async def start_another(text: str) -> str:
    run = await Engine.current().start(echoing(text), id="started by an action")
    return await run.result(timeout=5)


@durable.action
def start_another_from_a_thread(text: str) -> str:
    run = anyio.from_thread.run(
        partial(Engine.current().start, echoing(text), id="started by an action")
    )
    return anyio.from_thread.run(run.result, 5)


@durable.action
def use_in_a_thread() -> list[str]:
    engine = Engine.current()
    told: list[str] = []
    for use in (engine.statistics, partial(engine.set_max_parallelism, 1)):
        with pytest.raises(RuntimeError, match=r"another event loop.*by `anyio\.from_thread"):
            use()
        told.append(type(anyio.from_thread.run_sync(use)).__name__)
    return told


@durable.workflow
async def using_in_a_thread(_step: Step) -> list[str]:
    return await use_in_a_thread()


async def test_a_thread_has_to_call_the_engine_on_its_event_loop(path: Path) -> None:
    async with Engine(path) as engine:
        assert await engine.run(using_in_a_thread()) == ["EngineStatistics", "NoneType"]
        assert engine._max_parallelism == 1


@durable.workflow
async def starting_another(_step: Step, *, by_thread: bool) -> str:
    return await (start_another_from_a_thread("a") if by_thread else start_another("a"))


@pytest.mark.both_loops
@pytest.mark.parametrize("by_thread", [False, True])
async def test_an_action_may_use_the_engine(by_thread: bool, path: Path) -> None:
    async with Engine(path) as engine:
        assert await engine.run(starting_another(by_thread=by_thread)) == "a"
        assert (await engine.status("started by an action")).state == "completed"


found: dict[str, Engine | None] = {}
"""The engine that was current at each place of the actions below."""


def look(place: str) -> None:
    found[place] = find_current("a test")


@durable.action
async def look_async() -> None:
    look("async action")
    await asyncio.create_task(_look("its task"))
    await asyncio.to_thread(look, "its thread")


@durable.action
def look_sync() -> None:
    look("sync action")
    anyio.from_thread.run(_look, "its call into the event loop")
    asyncio.run(_look("its own event loop"))


async def _look(place: str) -> None:
    look(place)


@durable.workflow
async def looking(_step: Step) -> None:
    await look_async()
    await look_sync()


async def test_an_action_s_engine_is_the_one_that_runs_it(tmp_path: Path) -> None:
    """Also while another engine, opened later, is current for everybody else."""
    found.clear()
    async with Engine(tmp_path / "1.db") as first, Engine(tmp_path / "2.db") as second:
        await first.run(looking())
        assert Engine.current() is second
    assert found == {
        "async action": first,
        "its task": first,
        "its thread": first,
        "sync action": first,
        "its call into the event loop": first,
        "its own event loop": None,
    }


may_look = threading.Event()
has_begun = threading.Event()


@durable.action
def look_late() -> None:
    has_begun.set()
    may_look.wait(5)
    look("late")
    has_begun.clear()


@durable.workflow
async def looking_late(_step: Step) -> None:
    await look_late()


async def test_a_thread_that_outlives_its_engine_has_none(path: Path) -> None:
    found.clear()
    may_look.clear()
    async with Engine(path, drain_timeout=0) as engine:
        await engine.start(looking_late())
        await until(has_begun.is_set)
    may_look.set()
    await until(lambda: not has_begun.is_set())
    assert found == {"late": None}


# --- from a body ---------------------------------------------------------------------------------

FROM_BODIES: dict[str, Callable[[Engine], object]] = {
    "engine.start()": lambda engine: engine.start(echoing("a")),
    "engine.run()": lambda engine: engine.run(echoing("a")),
    "engine.get()": lambda engine: engine.get("r"),
    "engine.status()": lambda engine: engine.status("r"),
    "engine.list_runs()": lambda engine: engine.list_runs(),
    "engine.list_steps()": lambda engine: engine.list_steps("r"),
    "engine.set_max_parallelism()": lambda engine: engine.set_max_parallelism(1),
    "engine.statistics()": lambda engine: engine.statistics(),
    "Engine.current()": lambda _engine: Engine.current(),
    "durable.run()": lambda _engine: durable.run(echoing("a")),
    "run.result()": lambda _engine: shared["run"].result(),
    "an engine": lambda _engine: Engine("sqlite://").__aenter__(),
}
shared: dict[str, Any] = {}


@durable.workflow
async def misusing(_step: Step, what: str, *, swallow: bool) -> None:
    try:
        made = FROM_BODIES[what](shared["engine"])
        if isinstance(made, Coroutine):
            await made
    except NonDeterminismError:
        if not swallow:
            raise


@pytest.mark.parametrize("what", FROM_BODIES)
@pytest.mark.parametrize("swallow", [False, True])
async def test_a_body_may_not_use_the_engine(what: str, swallow: bool, path: Path) -> None:
    async with Engine(path) as engine:
        shared["engine"], shared["run"] = engine, engine.get("r")
        run = await engine.start(misusing(what, swallow=swallow))
        if swallow:
            await until_state(run, RunState.STUCK)
        else:
            with pytest.raises(RunFailed):
                await run.result(timeout=5)
        error = (await run.status()).error
        assert error is not None
        assert error.type_name == "durable.NonDeterminismError"
        assert f"may not use {what}: " in error.message
        assert "in an action" in error.message
        assert [status.name async for status in engine.iter_runs()] == ["test_engine_use:misusing"]


# --- parallelism and statistics ------------------------------------------------------------------


async def test_parallelism_can_be_changed_while_actions_run(
    path: Path, request: pytest.FixtureRequest
) -> None:
    name, gate = a_gate(request)
    async with Engine(path, max_parallelism=0) as engine:
        run = await engine.start(passing(name, 5))
        async with asyncio.timeout(5):
            while engine.statistics().queued_actions < 5:
                await run.status()
        assert gate.begun.empty()
        engine.set_max_parallelism(2)
        assert [await gate.begun.get(), await gate.begun.get()] == [0, 1]
        statistics = engine.statistics()
        assert (statistics.running_actions, statistics.queued_actions) == (2, 3)
        assert statistics.live_runs == 1
        engine.set_max_parallelism(1)
        await run.status()
        assert engine.statistics().running_actions == 2  # Nothing is killed.
        gate.open.set()
        assert await run.result(timeout=5) == [0, 1, 2, 3, 4]
        after = engine.statistics()
        assert (after.live_runs, after.queued_actions) == (0, 0)
        assert after.commits > statistics.commits > 0


@pytest.mark.parametrize(("count", "error"), [(-1, ValueError), ("1", TypeError), (1.0, TypeError)])
async def test_parallelism_is_a_count(count: Any, error: type[Exception], path: Path) -> None:  # noqa: ANN401
    engine = Engine(path)
    with pytest.raises(error, match="max_parallelism is"):
        engine.set_max_parallelism(count)
    async with engine:
        with pytest.raises(error, match="max_parallelism is"):
            engine.set_max_parallelism(count)
        assert await engine.run(echoing("a")) == "a"


async def test_parallelism_set_before_opening_holds(
    path: Path, request: pytest.FixtureRequest
) -> None:
    name, gate = a_gate(request)
    engine = Engine(path, max_parallelism=1, retry=Retry(1))
    engine.set_max_parallelism(2)
    async with engine:
        run = await engine.start(passing(name, 3))
        assert [await gate.begun.get(), await gate.begun.get()] == [0, 1]
        await run.status()
        assert gate.begun.empty()
        gate.open.set()
        assert await run.result(timeout=5) == [0, 1, 2]


NEVER_CLOSED = """
import asyncio, sys
import durable
from durable import Engine, Step

@durable.mutation
async def write(tx):
    await tx.execute("CREATE TABLE t (x)")

@durable.workflow
async def flow(step: Step) -> str:
    await write()
    return "done"

async def main():
    engine = await Engine(sys.argv[1]).__aenter__()
    print(await engine.run(flow(), id="r"))
    await engine.start(flow(), id="more")

asyncio.run(main())
"""


@pytest.mark.slow
def test_an_engine_that_is_never_closed_lets_the_interpreter_end(path: Path) -> None:
    """As a crash would end it: nothing that was acknowledged is lost."""
    with Process("-c", NEVER_CLOSED, f"sqlite:///{path}") as process:
        assert process.read_line() == "done"
        assert process.wait() == 0

    async def look() -> None:
        async with Engine(path) as engine:
            assert (await engine.status("r")).result == "done"
            assert [run.id async for run in engine.iter_runs()] == ["r", "more"]

    asyncio.run(look())


CANCELLED_WITH_A_COMMIT_UNDER_WAY = """
import asyncio, sqlite3, sys, threading
import durable
from durable import Engine, Step

class OtherProgram(threading.Thread):
    # Keeps the write lock until the loop is about to close, and a bit longer.
    def __init__(self, path):
        super().__init__()
        self.locked, self.release = threading.Event(), threading.Event()
        self.path = path

    def run(self):
        db = sqlite3.connect(self.path, isolation_level=None)
        db.execute("BEGIN IMMEDIATE")
        self.locked.set()
        self.release.wait()
        db.execute("ROLLBACK")
        db.close()

@durable.workflow
async def flow(step: Step) -> str:
    return "done"

async def start(engine, other):
    try:
        await engine.start(flow(), id="more")
    finally:
        # After the loop's other tasks were cancelled, while the commit waits for the lock.
        asyncio.get_running_loop().call_soon(other.release.set)

async def main():
    path = sys.argv[1]
    engine = await Engine(f"sqlite:///{path}").__aenter__()
    print(await engine.run(flow(), id="r"))
    other = OtherProgram(path)
    other.start()
    other.locked.wait()
    asyncio.create_task(start(engine, other))
    while engine.statistics().live_runs == 0:
        await asyncio.sleep(0)
    while engine._runner.writer._is_busy is False:
        await asyncio.sleep(0)
    other_threads.extend(threading.enumerate())

other_threads = []
asyncio.run(main())
other_threads.remove(threading.current_thread())
for thread in other_threads:
    thread.join(10)
    print(thread.is_alive())
"""


@pytest.mark.slow
def test_an_engine_that_its_host_cancels_leaves_no_thread_at_work(path: Path) -> None:
    """A thread that came back to a loop that is closed would say so, by a traceback."""
    with Process("-c", CANCELLED_WITH_A_COMMIT_UNDER_WAY, str(path)) as process:
        assert process.read_line() == "done"
        assert process.read_line() == "False"
        assert process.wait() == 0


@durable.workflow
async def napping(step: Step) -> None:
    await step.sleep(60)


async def test_an_engine_that_is_cancelled_says_so_and_closes(path: Path) -> None:
    engine = await Engine(path).__aenter__()
    run = await engine.start(napping(), id="r")
    result = asyncio.ensure_future(run.result())
    (serving,) = [task for task in asyncio.all_tasks() if task.get_name() == "durable.engine"]
    await asyncio.sleep(0)
    serving.cancel()
    await asyncio.wait((serving,))
    with pytest.raises(EngineClosedError, match="the engine was cancelled"):
        await result
    with pytest.raises(EngineClosedError, match="the engine was cancelled"):
        await engine.start(napping())
    await engine.__aexit__(None, None, None)
    async with engine:
        assert (await engine.status("r")).state == "running"
