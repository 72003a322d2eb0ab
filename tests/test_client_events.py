"""Events and children, between a client and the owner."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from clock import ManualClock
from families import children_of
from faults import MONTH_S, Disk, Fault, leaving_nothing, opened
from waiting import WAIT_S_MAX, until, until_open, until_parked, until_state
from world import echo, gated, world

import durable
from durable import (
    Engine,
    EventAlreadySentError,
    RunCanceled,
    RunFinishedError,
    RunNotFoundError,
    RunState,
    Step,
)
from durable.journal.base import Claim
from durable.runtime.live import Phase
from durable.runtime.neighbours import Neighbours

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@durable.workflow
async def collecting(step: Step, count: int) -> list[Any]:
    return [await step.wait_event("e") for _ in range(count)]


@durable.workflow
async def busy(step: Step, count: int) -> list[Any]:
    await gated("gated")
    return [await step.wait_event("e") for _ in range(count)]


@durable.workflow
async def child(step: Step, text: str) -> str:
    await step.sleep(MONTH_S)
    return await echo(text)


@durable.workflow
async def waking(step: Step, text: str) -> Any:  # noqa: ANN401
    return text, await step.wait_event("e")


@durable.workflow
async def parent(_step: Step, how: str) -> Any:  # noqa: ANN401
    return await (child("c") if how == "sleeping" else waking("c"))


@durable.workflow
async def lingering(step: Step) -> None:
    try:
        await step.wait_event("never")
    finally:
        await gated("gated")


@durable.workflow
async def parting(step: Step) -> str:
    task = asyncio.ensure_future(lingering())
    await step.wait_event("part")
    task.cancel()
    return "over"


clock = ManualClock()


@pytest.fixture(autouse=True)
def _new_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "clock", ManualClock())


@asynccontextmanager
async def both(path: Path) -> AsyncIterator[tuple[Engine, Engine]]:
    """Open an owner and a client of one journal."""
    async with (
        opened(path, clock, drain_timeout=0) as owner,
        opened(path, clock, worker=False) as client,
    ):
        yield owner, client


async def result(engine: Engine, run_id: str) -> Any:  # noqa: ANN401
    return await engine.get(run_id).result(timeout=WAIT_S_MAX)


def live_runs(engine: Engine) -> int:
    return engine.statistics().live_runs


# --- events --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["waiting", "parked", "busy"])
async def test_a_run_gets_what_a_client_sends(path: Path, how: str) -> None:
    async with leaving_nothing(), both(path) as (owner, client):
        workflow = busy if how == "busy" else collecting
        run = await owner.start(workflow(2), id="r")
        if how == "busy":
            await world.reached.wait()
        else:
            await until_open(run)
        if how == "parked":
            await until_parked(owner, clock)
        await client.send_event("r", "e", 1)
        event_id = await client.create_event("r", "e")
        await client.send_event_id(event_id, 2)
        with pytest.raises(EventAlreadySentError):
            await owner.send_event_id(event_id, 3)
        world.may_end.set()
        assert await result(client, "r") == [1, 2]
        with pytest.raises(RunFinishedError):
            await client.send_event("r", "e", 4)
        with pytest.raises(RunFinishedError):
            await client.create_event("r", "e")
        with pytest.raises(RunNotFoundError):
            await client.send_event("nobody", "e", 4)


async def test_what_several_send_comes_once_and_in_the_order_of_each(path: Path) -> None:
    count = 15
    async with both(path) as (owner, client), Engine(path) as standby:
        run = await owner.start(collecting(3 * count), id="r")
        await until_open(run)

        async def send(engine: Engine, name: str) -> None:
            for number in range(count):
                await engine.send_event("r", "e", f"{name}{number:02}")

        await asyncio.gather(send(owner, "o"), send(client, "c"), send(standby, "s"))
        got = await result(client, "r")
        assert len(set(got)) == len(got) == 3 * count
        for name in "ocs":
            own = [each for each in got if each.startswith(name)]
            assert own == sorted(own)


@pytest.mark.slow
async def test_of_two_who_send_one_event_one_is_told_that_it_was_late(path: Path) -> None:
    async with both(path) as (owner, client):  # Both send at the same millisecond.
        for number in range(20):
            run = await owner.start(collecting(1))
            if number % 3:
                await until_open(run)
            event_id = await (owner if number % 2 else client).create_event(run.id, "e")
            sent = [owner.send_event_id(event_id, "o"), client.send_event_id(event_id, "c")]
            if number % 2:
                sent.reverse()
            outcomes = await asyncio.gather(*sent, return_exceptions=True)
            refused = [type(each) for each in outcomes if each is not None]
            # The run may have ended by the first of them.
            assert refused in ([EventAlreadySentError], [RunFinishedError])
            winner = outcomes.index(None)
            want = "co"[winner] if number % 2 else "oc"[winner]
            assert await result(client, run.id) == [want]


async def test_an_event_begins_no_run_before_its_time(path: Path) -> None:
    async with both(path) as (owner, client):
        run = await client.start(collecting(1), id="r", run_after=60)
        await client.send_event("r", "e", "early")
        assert owner._runner is not None
        owner._runner.writer.ask_claim()
        await owner.run(collecting(0))
        assert (await run.status()).state is RunState.PENDING
        clock.advance(61)
        assert await result(client, "r") == ["early"]


async def test_what_is_sent_without_an_owner_is_kept_for_the_next(path: Path) -> None:
    async with Engine(path) as owner:
        await until_open(await owner.start(collecting(2), id="r"))
    async with Engine(path, worker=False) as client:
        await client.send_event("r", "e", 1)
        event_id = await client.create_event("r", "e")
        await client.send_event_id(event_id, 2)
    async with Engine(path) as owner:
        assert await result(owner, "r") == [1, 2]


@pytest.mark.parametrize("fault", [None, *Fault])
async def test_what_is_sent_while_the_run_leaves_memory_is_heard(
    path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault | None
) -> None:
    async with Engine(path, worker=False) as client:
        disk = Disk()
        disk.install(monkeypatch)
        async with opened(path, clock, drain_timeout=0) as owner:
            assert owner._runner is not None
            run = await owner.start(collecting(1), id="r")
            await until_open(run)
            count = disk.calls["claim"]
            disk.answers.clear()
            owner._runner.writer.ask_claim()
            await until(lambda: disk.calls["claim"] > count)
            await client.send_event("r", "e", "a")
            live = owner._runner.live("r")
            assert live is not None
            while live.phase is not Phase.LEAVING:
                clock.advance(1)
                await asyncio.sleep(0)
            if fault is not None:
                disk.faults["commit", disk.calls["commit"] + 1] = fault
            disk.answers.set()
            assert await result(client, "r") == ["a"]


@pytest.mark.parametrize("how", ["by name", "by id", "within"])
async def test_what_the_owner_sends_comes_after_what_another_process_has_sent(
    path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Even if it knows nothing of that yet."""

    async def look(_self: Neighbours) -> None:
        return

    monkeypatch.setattr(Neighbours, "_look", look)
    async with both(path) as (owner, client):
        run = await owner.start(collecting(3), id="r")
        await until_open(run)
        event_id = await owner.create_event("r", "e")
        await client.send_event("r", "e", 1)
        await client.send_event("r", "e", 2)
        assert (await run.status()).running[0].number == 0
        if how == "by name":
            await run.send_event("e", 3)
        elif how == "by id":
            await owner.send_event_id(event_id, 3)
        else:
            async with owner.transaction() as tx:
                await run.send_event("e", 3, tx=tx)
        assert await result(owner, "r") == [1, 2, 3]


async def test_what_is_consumed_and_not_committed_is_not_handed_out_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim shows it, as it was before the turn that is under way; and puts all in order."""
    disk = Disk()
    disk.install(monkeypatch)
    async with Engine(path, drain_timeout=0) as owner:
        runner, journal = owner._runner, owner._journal
        assert runner is not None
        assert journal is not None
        await until_open(await owner.start(collecting(3), id="r"))
        ids = [await owner.create_event("r", "e") for _ in range(3)]
        await owner.send_event_id(ids[0], "a")
        for name, event_id in (("b", ids[1]), ("c", ids[2])):
            disk.answers.set()
            await owner.send_event_id(event_id, name)
            disk.answers.clear()
        found = await journal.load_history("r")
        assert found is not None
        events = [await journal.load_event(event_id.id) for event_id in ids]
        sent = [event for event in events if event is not None]
        runner.on_claimed(Claim([found], None, events={"r": sent}))
        disk.answers.set()
        assert await result(owner, "r") == ["a", "b", "c"]


# --- children ------------------------------------------------------------------------------------


async def only_child(engine: Engine, run_id: str) -> str:
    async with asyncio.timeout(WAIT_S_MAX):
        while True:
            found = await children_of(engine, run_id)
            if found and found[0].state is not RunState.PENDING:
                return found[0].id


async def test_a_client_has_a_parent_with_its_child(path: Path) -> None:
    async with both(path) as (_, client):
        await client.start(parent("waking"), id="p")
        child_id = await only_child(client, "p")
        await client.send_event(child_id, "e", 5)
        assert await result(client, "p") == ["c", 5]
        assert await client.cleanup(child_id) is True
        assert await client.cleanup("p") is True


@pytest.mark.parametrize("how", ["in memory", "parked"])
async def test_a_client_cancels_a_child_and_its_parent_hears(path: Path, how: str) -> None:
    async with both(path) as (owner, client):
        await client.start(parent("sleeping" if how == "parked" else "waking"), id="p")
        child_id = await only_child(client, "p")
        if how == "parked":
            await until_parked(owner, clock)
        assert await client.cleanup(child_id) is False
        assert await client.cleanup(child_id, force=True) is False
        assert await client.cancel(child_id) is True
        with pytest.raises(durable.RunFailed) as failed:
            await result(client, "p")
        assert isinstance(failed.value.__cause__, RunCanceled)


async def test_a_client_cancels_a_parent_with_its_child(path: Path) -> None:
    async with both(path) as (_, client):
        await client.start(parent("sleeping"), id="p")
        child_id = await only_child(client, "p")
        assert await client.cancel("p") is True
        for run_id in ("p", child_id):
            with pytest.raises(RunCanceled):
                await result(client, run_id)
        assert world.begun == {}


@pytest.mark.parametrize("how", ["sleeping", "waking", "over"])
async def test_a_client_removes_all_of_a_tree_by_force(path: Path, how: str) -> None:
    async with leaving_nothing(), both(path) as (owner, client):
        await owner.start(parting() if how == "over" else parent(how), id="p")
        child_id = await only_child(client, "p")
        if how == "over":
            await client.send_event("p", "part")
            assert await result(client, "p") == "over"
            await until(world.reached.is_set)
        assert await client.cleanup("p") is False
        assert await client.cleanup("p", force=True) is True
        for run_id in ("p", child_id):
            with pytest.raises(RunNotFoundError):
                await owner.status(run_id)
        world.may_end.set()
        await until(lambda: live_runs(owner) == 0)


@pytest.mark.slow
async def test_a_client_restarts_a_parent_with_another_child(path: Path) -> None:
    async with both(path) as (_, client):
        await client.start(parent("waking"), id="p")
        first_id = await only_child(client, "p")
        await client.send_event(first_id, "e", 1)
        assert await result(client, "p") == ["c", 1]
        run = await client.restart("p", from_step=0)
        await until_state(run, RunState.RUNNING)
        second_id = first_id
        async with asyncio.timeout(WAIT_S_MAX):
            while second_id == first_id:
                second_id = (await children_of(client, "p"))[-1].id
        await client.send_event(second_id, "e", 2)
        assert await result(client, "p") == ["c", 2]
