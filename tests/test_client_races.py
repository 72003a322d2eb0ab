"""What another process asks of a run while that comes, goes, or is stuck in its owner's memory."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from faults import MONTH_S, Disk, Fault
from waiting import WAIT_S_MAX, until, until_state
from world import echo, echoing, gated, held, world

import durable
from durable import (
    Engine,
    JournalUnavailableError,
    RunCanceled,
    RunNotFoundError,
    RunState,
    Step,
)
from durable.core.records import CLEANUP_NUMBER
from durable.runtime.live import Phase

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


pytestmark = pytest.mark.usefixtures("only_noticed")


@durable.workflow
async def leaving(step: Step) -> None:
    await gated("gated")
    await step.sleep(MONTH_S)


@durable.workflow
async def sticking(_step: Step) -> None:
    world.bodies["sticking"] += 1
    task = asyncio.create_task(gated("gated"))
    await echo("a")
    with suppress(BaseException):  # It gets stuck by that.
        asyncio.get_running_loop().run_in_executor(None, print)
    await task


@asynccontextmanager
async def slow_owner(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Engine, Engine, Disk]]:
    """Open an owner whose writes the test can hold up, and a client whose writes it cannot."""
    async with Engine(path, worker=False) as client:
        disk = Disk()
        disk.install(monkeypatch)
        async with Engine(path, drain_timeout=0) as owner, asyncio.timeout(WAIT_S_MAX):
            yield owner, client, disk


async def claiming(disk: Disk, owner: Engine) -> None:
    """Hold up a claim of the owner's before it reads anything."""
    assert owner._runner is not None
    count = disk.calls["claim"]
    disk.answers.clear()
    owner._runner.writer.ask_claim()
    await until(lambda: disk.calls["claim"] > count)


def phase(owner: Engine, run_id: str) -> Phase | None:
    assert owner._runner is not None
    live = owner._runner.live(run_id)
    return None if live is None else live.phase


async def result(engine: Engine, run_id: str) -> Any:  # noqa: ANN401
    return await engine.get(run_id).result(timeout=WAIT_S_MAX)


@pytest.mark.parametrize("what", ["cancel", "remove"])
async def test_what_is_asked_while_the_run_leaves_memory_is_heard(
    path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The claim takes its wake time, and its parking must not set the far one."""
    async with slow_owner(path, monkeypatch) as (owner, client, disk):
        run = await owner.start(leaving(), id="r")
        await world.reached.wait()
        await claiming(disk, owner)
        if what == "cancel":
            asked = asyncio.create_task(client.cancel("r"))
            await asked
        else:
            asked = asyncio.create_task(client.cleanup("r", force=True))
            await _until_asked(client)
        world.may_end.set()
        await until(lambda: phase(owner, "r") is Phase.LEAVING)
        disk.answers.set()
        if what == "cancel":
            with pytest.raises(RunCanceled):
                await result(client, run.id)
        else:
            assert await asked is True
            with pytest.raises(RunNotFoundError):
                await client.status("r")


async def _until_asked(client: Engine) -> None:
    assert client._journal is not None
    async with asyncio.timeout(WAIT_S_MAX):
        while not await client._journal.is_asked("r", CLEANUP_NUMBER):
            pass


@pytest.mark.parametrize("fault", [None, *Fault])
async def test_an_outage_right_then_loses_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault | None
) -> None:
    async with slow_owner(path, monkeypatch) as (owner, client, disk):
        await owner.start(leaving(), id="r")
        await world.reached.wait()
        await claiming(disk, owner)
        await client.cancel("r")
        world.may_end.set()
        await until(lambda: phase(owner, "r") is Phase.LEAVING)
        if fault is not None:
            disk.faults["commit", disk.calls["commit"] + 1] = fault
        disk.answers.set()
        with pytest.raises(RunCanceled):
            await result(client, "r")


@pytest.mark.parametrize(("what", "read"), [("cancel", "load_run"), ("cleanup", "load_tree")])
async def test_an_outage_while_a_client_looks_is_the_calls_error(
    path: Path, what: str, read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Engine(path) as owner, Engine(path, worker=False) as client:
        await owner.start(held("a"), id="r")
        await world.reached.wait()
        assert client._runner is not None
        writer, load = client._runner.writer, getattr(client._journal, read)

        async def load_and_fail(run_id: str) -> Any:  # noqa: ANN401
            found = await load(run_id)
            writer.outage = JournalUnavailableError("the disk is not there")
            return found

        monkeypatch.setattr(client._journal, read, load_and_fail)
        options = {"force": True} if what == "cleanup" else {}
        with pytest.raises(JournalUnavailableError, match="not there"):
            await getattr(client, what)("r", **options)
        writer.outage = None
        world.may_end.set()
        assert await result(owner, "r") == "a"


@pytest.mark.parametrize("what", ["cancel", "resume", "remove"])
async def test_what_is_asked_of_a_run_that_is_stuck_in_memory_is_heard(
    path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """It stays while an action of it runs, whose outcome is recorded."""
    async with slow_owner(path, monkeypatch) as (owner, client, _):
        run = await owner.start(sticking(), id="r")
        await until_state(run, RunState.STUCK)
        assert phase(owner, "r") is Phase.STUCK
        if what == "remove":
            assert await client.cleanup("r", force=True) is True
            with pytest.raises(RunNotFoundError):
                await owner.status("r")
            world.may_end.set()
            return
        if what == "cancel":
            assert await client.cancel("r") is True
        else:
            assert await client.resume("r") is True
        assert await client.run(echoing("asked later")) == "asked later"
        world.may_end.set()
        if what == "cancel":
            with pytest.raises(RunCanceled):
                await result(client, "r")
        else:  # It is tried again, and gets stuck again.
            await until(lambda: world.bodies["sticking"] == 2)
            await until(lambda: phase(owner, "r") is None)
            assert (await run.status()).state is RunState.STUCK


async def test_a_run_that_another_starts_in_between_is_worked_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner claims it while its own start of that id is on the way, which is then refused."""
    async with slow_owner(path, monkeypatch) as (owner, client, disk):
        await claiming(disk, owner)
        start = asyncio.create_task(owner.start(echoing("a"), id="r"))
        await until(lambda: phase(owner, "r") is Phase.STARTING)
        theirs = await client.start(echoing("a"), id="r")
        disk.answers.set()
        assert (await start).id == "r"
        assert await theirs.result(timeout=WAIT_S_MAX) == "a"
        assert world.begun == {"a": 1}


async def test_a_new_owner_hears_what_the_last_one_had_no_time_to(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Engine(path, worker=False) as client:
        disk = Disk()
        with monkeypatch.context() as slow:
            disk.install(slow)
            owner = Engine(path, drain_timeout=0)
            await owner.__aenter__()
            await owner.start(leaving(), id="r")
            await world.reached.wait()
            await claiming(disk, owner)
            await client.cancel("r")
            world.may_end.set()
            await until(lambda: phase(owner, "r") is Phase.LEAVING)
            disk.broken = Fault.LOST
            disk.answers.set()
            await owner.__aexit__(None, None, None)
        async with Engine(path):
            with pytest.raises(RunCanceled):
                await result(client, "r")


async def test_a_run_that_another_starts_before_its_own_first_turn_is_worked_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is claimed while a start of the same id has not even been submitted here."""
    async with Engine(path, drain_timeout=0) as owner, Engine(path, worker=False) as client:
        runner, journal = owner._runner, owner._journal
        assert runner is not None
        assert journal is not None
        with monkeypatch.context() as patch:
            patch.setattr(runner.writer, "ask_claim", lambda: None)
            await client.start(echoing("a"), id="r")
            claim = await journal.claim(runner.clock.now_ms(), 10)
        ((record, _),) = claim.runs
        spec = runner._catalog.find(record.name, record.version)
        assert spec is not None
        runner.starts._submit(record, spec, None)
        runner.on_claimed(claim)
        assert await result(client, "r") == "a"
        assert world.begun == {"a": 1}
