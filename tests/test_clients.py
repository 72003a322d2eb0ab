"""An engine that does not work: what it starts, asks for and sees of the runs of another one."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from clock import ManualClock
from faults import MONTH_S, leaving_nothing, opened
from msgspec.structs import replace
from waiting import WAIT_S_MAX, until, until_open, until_state, until_step
from world import echo, echoing, gated, held, world

import durable
from durable import (
    ArgumentError,
    Engine,
    EngineClosedError,
    JournalCorruptError,
    RunCanceled,
    RunConflictError,
    RunFailed,
    RunNotFoundError,
    RunState,
    Step,
    StepState,
)
from durable.core.records import cancel_record
from durable.journal.base import Change, Parked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from durable.core.records import StepRecord

pytestmark = pytest.mark.usefixtures("only_noticed")


@durable.workflow
async def failing(_step: Step) -> None:
    raise LookupError("no such thing")


@durable.workflow
async def cleaning(step: Step, name: str) -> str:
    try:
        await step.sleep(MONTH_S)
    finally:
        await echo(name)
    return name


@durable.workflow
async def napping(step: Step, seconds: float) -> str:
    await step.sleep(seconds)
    return "slept"


@asynccontextmanager
async def both(path: Path) -> AsyncIterator[tuple[Engine, Engine]]:
    """Open an owner and a client of one journal, for as long as a test may wait."""
    async with (
        Engine(path, drain_timeout=0) as owner,
        Engine(path, worker=False) as client,
        asyncio.timeout(WAIT_S_MAX),
    ):
        yield owner, client


def live_runs(engine: Engine) -> int:
    return engine.statistics().live_runs


async def result(run: durable.Run[Any]) -> Any:  # noqa: ANN401
    return await run.result(timeout=WAIT_S_MAX)


# --- with an owner -------------------------------------------------------------------------------


async def test_what_a_client_starts_is_run_by_the_owner(path: Path) -> None:
    async with leaving_nothing(), both(path) as (owner, client):
        run = await client.start(echoing("a"), id="r")
        assert await result(run) == "a"
        assert live_runs(client) == 0
        assert await owner.status("r") == await client.status("r")
        assert [step.name async for step in run.steps()] == [echo.name]
        assert [each.id for each in (await client.list_runs()).items] == ["r"]
        assert await client.run(echoing("b")) == "b"
        assert client.statistics().running_actions == 0


async def test_each_start_is_noticed_by_the_owner_and_each_result_by_the_client(path: Path) -> None:
    async with both(path) as (_, client):
        for number in range(10):
            assert await client.run(echoing(str(number)), id=str(number)) == str(number)


async def test_errors_and_refusals_are_those_of_an_owner(path: Path) -> None:
    async with both(path) as (owner, client):
        with pytest.raises(RunFailed, match="no such thing") as failed:
            await client.run(failing(), id="f")
        assert isinstance(failed.value.__cause__, LookupError)
        with pytest.raises(ArgumentError):
            await client.start(echoing(5))  # type: ignore[arg-type]
        await owner.start(echoing("a"), id="r")
        assert await result(await client.start(echoing("a"), id="r")) == "a"
        with pytest.raises(RunConflictError):
            await client.start(echoing("b"), id="r")
        with pytest.raises(RunNotFoundError):
            await result(client.get("nobody"))
        for call in (client.status, client.cancel, client.resume):
            with pytest.raises(RunNotFoundError):
                await call("nobody")
        with pytest.raises(RunNotFoundError):
            await anext(client.watch("nobody"))
        assert await client.cleanup("nobody") is False
        with pytest.raises(TimeoutError):
            await (await client.start(held("h"))).result(timeout=0)


async def test_two_starts_of_one_id_at_the_same_time_are_one_run(path: Path) -> None:
    async with both(path) as (owner, client):
        for number in range(30):
            call = echoing(f"{number}")
            engines = [owner, client] if number % 2 else [client, owner]
            runs = await asyncio.gather(*(each.start(call, id=f"r{number}") for each in engines))
            assert [await result(run) for run in runs] == [f"{number}"] * 2
        assert world.begun == Counter(map(str, range(30)))


async def test_a_delayed_start_of_a_client_is_kept_by_the_owners_clock(path: Path) -> None:
    clock = ManualClock()
    async with opened(path, clock), opened(path, clock, worker=False) as client:
        run = await client.start(echoing("later"), run_after=60)
        early = asyncio.create_task(client.start(echoing("late"), run_after=3600))
        await early
        assert (await run.status()).state is RunState.PENDING
        ended = asyncio.create_task(result(run))
        assert await client.run(echoing("at once")) == "at once"
        assert not ended.done()
        clock.advance(61)
        assert await ended == "later"
        assert (await early.result().status()).state is RunState.PENDING


async def test_a_client_watches_to_the_end(path: Path) -> None:
    async with both(path) as (owner, client):
        run = await owner.start(held("a"), id="r")
        await world.reached.wait()
        watches = [client.watch("r") for _ in range(10)]
        for each in watches:
            assert (await anext(each)).running[0].state is StepState.RUNNING
        world.may_end.set()
        await result(run)
        for each in watches:
            seen = [status async for status in each]
            assert seen[-1] == await owner.status("r")
            assert seen[-1].result == "a"


@pytest.mark.parametrize("how", ["running", "parked", "delayed"])
async def test_a_clients_cancel_reaches_the_owner(path: Path, how: str) -> None:
    async with both(path) as (owner, client):
        if how == "running":
            run = await owner.start(cleaning("x"))
            await until_open(run)
            other = await owner.start(held("x"))
            await world.reached.wait()
        elif how == "parked":
            run = other = await owner.start(cleaning("x"))
            await until_open(run)
            await until(lambda: live_runs(owner) == 0)
        else:
            run = other = await owner.start(cleaning("x"), run_after=3600)
        for each in {run.id: run, other.id: other}.values():
            assert await client.cancel(each.id) is True
            assert await client.cancel(each.id) in (True, False)
            with pytest.raises(RunCanceled):
                await result(each)
            assert (await until_state(each, RunState.CANCELED)).state is RunState.CANCELED
        assert await client.cancel(run.id) is False
        assert world.begun["x"] == {"running": 2, "parked": 1, "delayed": 0}[how]
        world.may_end.set()


async def test_a_cancel_with_interrupt_ends_the_running_action(path: Path) -> None:
    async with both(path) as (owner, client):
        run = await owner.start(held("a"))
        await world.reached.wait()
        assert await client.cancel(run.id, interrupt=True)
        with pytest.raises(RunCanceled):
            await result(run)
        await until(lambda: owner.statistics().running_actions == 0)


async def test_what_is_asked_of_a_run_in_memory_needs_no_room_there(path: Path) -> None:
    async with (
        opened(path, live_runs_max=1, drain_timeout=0) as owner,
        Engine(path, worker=False) as client,
    ):
        run = await owner.start(held("a"))
        await world.reached.wait()
        waiting = await owner.start(echoing("b"))
        assert live_runs(owner) == 1
        assert await client.cancel(run.id, interrupt=True)
        with pytest.raises(RunCanceled):
            await result(run)
        assert await result(waiting) == "b"


async def test_cancels_from_everywhere_are_one(path: Path) -> None:
    async with both(path) as (owner, client):
        for number in range(10):
            run = await owner.start(cleaning(str(number)))
            if number % 2:
                await until_open(run)
            asked = [engine.cancel(run.id) for engine in (client, owner, client, owner)]
            assert True in await asyncio.gather(*asked)
            with pytest.raises(RunCanceled):
                await result(run)
            assert world.begun[str(number)] <= 1


async def test_an_owner_that_was_asked_by_two_replays_what_it_has_done(path: Path) -> None:
    """The client's record was first in the journal, the owner's first at the body."""
    async with Engine(path, drain_timeout=0) as owner:
        run = await owner.start(cleaning("a"), id="r")
        await until_open(run)
        assert owner._journal is not None
        async with Engine(path, worker=False) as client:
            await until(lambda: live_runs(owner) == 0)
            assert client._journal is not None
            asked = cancel_record(1, interrupt=True)
            await client._journal.commit([Change(run_id="r", asked=asked)])
            delivered = replace(cancel_record(2, interrupt=False), position=0)
            await owner._journal.commit([Change(run_id="r", asked=delivered)])
            await client._journal.commit([Change(run_id="r", asked=asked)])
        steps = await _history(owner, "r")
        assert [(step.position, step.finished_at_ms) for step in steps if step.number < 0] == [
            (0, 2)
        ]


async def _history(owner: Engine, run_id: str) -> list[StepRecord]:
    assert owner._journal is not None
    await owner._journal.commit([Change(run_id=run_id, parked=Parked(0))])
    ((_, steps),) = (await owner._journal.claim(1, 10)).runs
    return steps


async def test_a_client_resumes_and_removes(path: Path) -> None:
    async with both(path) as (owner, client):
        run = await client.start(echoing("a"))
        assert await result(run) == "a"
        assert await client.resume(run.id) is False
        assert await client.cleanup(run.id) is True
        with pytest.raises(RunNotFoundError):
            await owner.status(run.id)


async def test_a_client_restarts_what_is_over(path: Path) -> None:
    async with both(path) as (owner, client):
        assert await client.run(echoing("a"), id="r") == "a"
        run = await client.restart("r", from_step=0)
        assert await result(run) == "a"
        assert world.begun == {"a": 2}
        assert (await owner.status("r")).generation == 1
    async with Engine(path, worker=False) as client:
        await client.restart("r", from_step=0)
        assert (await client.status("r")).state is RunState.PENDING
        async with Engine(path):
            assert await result(client.get("r")) == "a"
    assert world.begun == {"a": 3}


@pytest.mark.parametrize("how", ["running", "parked", "delayed"])
async def test_a_client_removes_by_force_what_the_owner_works_on(path: Path, how: str) -> None:
    async with both(path) as (owner, client):
        if how == "running":
            run = await owner.start(held("a"), id="r")
            await world.reached.wait()
        elif how == "parked":
            run = await owner.start(cleaning("a"), id="r")
            await until_open(run)
            await until(lambda: live_runs(owner) == 0)
        else:
            run = await owner.start(echoing("a"), id="r", run_after=3600)
        waiting = asyncio.create_task(result(run))
        watching = asyncio.create_task(_all(client, "r"))
        await asyncio.sleep(0)
        assert await client.cleanup("r") is False
        assert await client.cleanup("r", force=True) is True
        for engine in (owner, client):
            with pytest.raises(RunNotFoundError):
                await engine.status("r")
        with pytest.raises(RunNotFoundError):
            await waiting
        await asyncio.wait([watching])
        assert live_runs(owner) == 0
        world.may_end.set()
        assert await client.run(echoing("again"), id="r") == "again"


async def _all(engine: Engine, run_id: str) -> list[durable.RunStatus]:
    return [status async for status in engine.watch(run_id)]


async def test_a_stuck_run_is_resumed_by_a_client(path: Path) -> None:
    """The owner's code does not have the workflow at first, and the client's does."""
    async with both(path) as (owner, client):
        missing = owner._catalog
        find, asked = missing.find, asyncio.Event()

        def find_none(name: str, version: int) -> Any:  # noqa: ANN401
            asked.set()
            return None

        missing.find = find_none  # type: ignore[method-assign]
        run = await client.start(echoing("a"), id="r")
        await until_state(run, RunState.STUCK)
        other = await client.start(echoing("b"), id="s")
        await until_state(other, RunState.STUCK)
        assert await client.cancel("s") is True
        with pytest.raises(RunCanceled):
            await result(other)
        missing.find = find  # type: ignore[method-assign]
        assert await client.resume("r") is True
        assert await result(run) == "a"


# --- without an owner ----------------------------------------------------------------------------


async def test_what_is_asked_without_an_owner_is_taken_up_by_the_next(path: Path) -> None:
    async with Engine(path, worker=False) as client:
        for number in range(3):
            await client.start(echoing(str(number)), id=str(number))
        assert await client.cancel("1") is True
        assert await client.cancel("1") is True
        assert await client.cleanup("2") is False
        assert await client.cleanup("2", force=True) is True
        assert (await client.status("0")).state is RunState.PENDING
        with pytest.raises(TimeoutError):
            await client.get("0").result(timeout=0)
    assert not world.begun
    async with Engine(path, worker=False) as client:
        waiting = asyncio.create_task(result(client.get("0")))
        async with Engine(path):
            assert await waiting == "0"
            with pytest.raises(RunCanceled):
                await result(client.get("1"))
            with pytest.raises(RunNotFoundError):
                await client.status("2")
    assert world.begun == {"0": 1}


async def test_a_client_removes_what_a_dead_owner_worked_on(path: Path) -> None:
    async with Engine(path, drain_timeout=0) as owner:
        run = await owner.start(held("a"), id="r")
        await world.reached.wait()
    assert run.id == "r"
    async with Engine(path, worker=False) as client:
        assert await client.cleanup("r", force=True) is True
        with pytest.raises(RunNotFoundError):
            await client.status("r")


async def test_a_client_never_works_even_when_the_owner_is_gone(path: Path) -> None:
    async with Engine(path, worker=False) as client:
        async with Engine(path):
            assert await client.run(echoing("a")) == "a"
        run = await client.start(echoing("b"))
        await _until_looked(client, 3)
        assert (await run.status()).state is RunState.PENDING
        assert world.begun == {"a": 1}


async def _until_looked(engine: Engine, count: int) -> None:
    """Wait until an engine has looked at the file so often."""
    journal: Any = engine._journal
    lookout = journal._locks._lookout
    look, looks = lookout._look, []

    def note() -> bool | None:
        answer: bool | None = look()
        looks.append(answer)
        return answer

    lookout._is_busy = lambda: True  # Then each look is whole.
    lookout._look = note
    await until(lambda: len(looks) >= count)


async def test_closing_a_client_ends_what_waits(path: Path) -> None:
    async with Engine(path) as owner:
        run = await owner.start(held("a"))
        await world.reached.wait()
        async with leaving_nothing():
            async with Engine(path, worker=False) as client:
                statuses = client.watch(run.id)
                await anext(statuses)
                waiting = [
                    asyncio.create_task(client.get(run.id).result()),
                    asyncio.create_task(_next(statuses)),
                ]
                await asyncio.sleep(0)
            for each in waiting:
                with pytest.raises(EngineClosedError):
                    await each
        assert (await until_step(run, gated.name, StepState.RUNNING)).attempts == 1
        world.may_end.set()


async def _next(statuses: AsyncIterator[durable.RunStatus]) -> durable.RunStatus:
    return await anext(statuses)


def test_a_client_of_a_journal_in_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="in memory"):
        Engine("sqlite://", worker=False)
    with pytest.raises(TypeError, match="worker="):
        Engine("sqlite:///a.db", worker=0)  # type: ignore[arg-type]


async def test_a_client_refuses_a_file_that_is_no_journal(path: Path) -> None:
    await asyncio.to_thread(path.write_bytes, b"something else" * 100)
    with pytest.raises(JournalCorruptError):
        async with Engine(path, worker=False):
            pass


async def test_many_runs_from_a_client(path: Path) -> None:
    async with both(path) as (_, client):
        names = [str(number) for number in range(300)]
        assert await asyncio.gather(*(client.run(echoing(name)) for name in names)) == names
        assert world.begun == Counter(names)
