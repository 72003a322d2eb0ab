"""Cancelling a run reaches all that is under it; children that are withdrawn are cancelled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from clock import ManualClock
from families import check_families, check_nothing_is_left, children_of, steps_of, the_child
from faults import MONTH_S, Disk, cancel_while_claiming, crashing, opened
from waiting import WAIT_S_MAX, until, until_parked, until_state, until_step
from world import echo, gated, held, world

import durable
from durable import Engine, RunCanceled, RunState, Step, StepKind, StepState

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAP_S = 10.0
DEPTH = 3


@durable.workflow
async def napping(step: Step, nap_s: float) -> str:
    world.bodies["napping"] += 1
    await step.sleep(nap_s)
    return await echo("slept")


@durable.workflow
async def cleaning_up(step: Step) -> None:
    """Its clean-up takes a step and a nap."""
    try:
        await step.sleep(NAP_S)
    finally:
        await echo("clean")
        await step.sleep(NAP_S)
        await echo("clean again")


@durable.workflow
async def above(_step: Step, depth: int) -> str:
    return await (held("deep") if depth == 0 else above(depth - 1))


@durable.workflow
async def above_a_nap(_step: Step, nap_s: float) -> str:
    world.bodies["above"] += 1
    return await napping(nap_s)


@durable.workflow
async def above_a_clean_up(_step: Step) -> None:
    await cleaning_up()


async def family(engine: Engine, run_id: str) -> list[str]:
    """Return the ids of a run and all under it."""
    ids = [run_id]
    for each in ids:
        ids += [child.id for child in await children_of(engine, each)]
    return ids


async def until_all_canceled(engine: Engine, run_ids: list[str]) -> None:
    for run_id in run_ids:
        with pytest.raises(RunCanceled):
            await engine.get(run_id).result(timeout=WAIT_S_MAX)
        assert all(step.state.is_final for step in await steps_of(engine, run_id))


# --- the run is cancelled ------------------------------------------------------------------------


@pytest.mark.both_loops
@pytest.mark.parametrize("interrupt", [True, False])
async def test_a_cancel_reaches_all_that_is_under_the_run(path: Path, interrupt: bool) -> None:
    """What runs there finishes, or is cancelled with ``interrupt``."""
    async with opened(path) as engine:
        run = await engine.start(above(DEPTH), id="top")
        await until(lambda: world.begun)
        ids = await family(engine, "top")
        assert len(ids) == DEPTH + 2
        assert await run.cancel(interrupt=interrupt) is True
        await until_all_canceled(engine, ids)
        if interrupt:
            await until(lambda: world.interrupted)
            assert world.interrupted == ["deep"]
        else:
            assert engine.statistics().running_actions == 1
            world.may_end.set()
        await until(lambda: engine.statistics().running_actions == 0)
        assert len(world.interrupted) == interrupt
        await check_families(engine)
        assert await engine.cancel(ids[1]) is False


async def test_that_a_child_is_to_end_is_in_the_commit_that_acknowledges_the_cancel(
    path: Path, clock: ManualClock
) -> None:
    """The process dies with that: the next one cancels the child, and its children."""
    async with crashing(path, clock) as engine:
        run = await engine.start(above_a_nap(MONTH_S), id="top")
        await until(lambda: world.bodies["napping"] and engine.statistics().live_runs == 0)
        ids = await family(engine, "top")
        assert engine._runner is not None
        engine._runner.writer.ask_claim = lambda: None  # type: ignore[method-assign]
        engine._runner.writer.is_claim_asked = False
        claim = engine._runner.writer
        asking = asyncio.create_task(run.cancel())
        await until(lambda: claim.commits_count)
        asking.cancel()
    async with opened(path, clock) as engine:
        await engine.cancel("top")
        await until_all_canceled(engine, ids)
        assert world.begun == {}
        await check_families(engine)


async def test_no_queued_step_of_a_child_begins(path: Path) -> None:
    @durable.workflow(name="children.queued")
    async def queued(_step: Step) -> list[str]:
        return list(await asyncio.gather(held("a"), above(1), held("b")))

    async with opened(path, max_parallelism=1) as engine:
        run = await engine.start(queued(), id="top")
        await until(lambda: world.begun and engine.statistics().queued_actions == 2)
        before = dict(world.begun)
        assert await run.cancel() is True
        world.may_end.set()
        await until_all_canceled(engine, await family(engine, "top"))
        assert world.begun == before
        await check_families(engine)


@pytest.mark.both_loops
async def test_a_child_cleans_up_while_its_parent_is_over(path: Path, clock: ManualClock) -> None:
    """The parent waits for nobody, and is not woken."""
    async with opened(path, clock) as engine:
        run = await engine.start(above_a_clean_up(), id="top")
        await until(lambda: engine.statistics().live_runs == 2)
        child = await the_child(engine, "top")
        await until_step(engine.get(child.id), "sleep", StepState.RUNNING)
        assert await run.cancel() is True
        assert (await run.status()).state is RunState.CANCELED
        await until_step(engine.get(child.id), echo.name, StepState.COMPLETED)
        await until_step(engine.get(child.id), "sleep", StepState.RUNNING)
        assert (await engine.status(child.id)).state is RunState.CANCELING
        clock.advance(NAP_S)
        await until_all_canceled(engine, [child.id])
        assert world.begun == {"clean": 1, "clean again": 1}
        await check_families(engine)


@pytest.mark.parametrize("is_told_late", [True, False])
async def test_a_childs_clean_up_goes_on_in_the_next_life(
    path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, is_told_late: bool
) -> None:
    """It was told once, at that place of its history; be it that its turn came only after the
    commit that asked it to end."""
    async with crashing(path, clock) as engine:
        run = await engine.start(above_a_clean_up(), id="top")
        await until(lambda: engine.statistics().live_runs == 2)
        child = engine.get((await the_child(engine, "top")).id)
        await until_step(child, "sleep", StepState.RUNNING)
        with monkeypatch.context() as patch:
            if is_told_late:
                assert engine._runner is not None
                patch.setattr(engine._runner.live(child.id), "advance", lambda _count: None)
            assert await run.cancel() is True
        await until_step(child, echo.name, StepState.COMPLETED)
        await until_step(child, "sleep", StepState.RUNNING)
    async with opened(path, clock) as engine:
        clock.advance(NAP_S)
        await until_all_canceled(engine, ["top", child.id])
        assert world.begun == {"clean": 1, "clean again": 1}
        assert [step.state for step in await steps_of(engine, child.id)] == [
            StepState.CANCELED,
            *[StepState.COMPLETED] * 3,
        ]
        await check_families(engine)


async def test_a_cancel_that_meets_a_claim_is_told_once(
    path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was asked while the run was in the journal, and is written when it is in memory."""

    @durable.workflow(name="children.sleeping_and_cleaning")
    async def sleeping_and_cleaning(step: Step) -> None:
        try:
            await step.sleep(MONTH_S)
        finally:
            await step.sleep(MONTH_S)
            await echo("clean")

    disk = Disk()
    disk.install(monkeypatch)
    async with crashing(path, clock) as engine:
        run = await engine.start(sleeping_and_cleaning(), id="it")
        await until_step(run, "sleep", StepState.RUNNING)
        await until_parked(engine)
        assert await cancel_while_claiming(engine, clock, disk, run)
        await until_parked(engine)
        assert (await run.status()).state is RunState.CANCELING
    async with opened(path, clock) as engine:
        clock.advance(MONTH_S)
        await until_all_canceled(engine, ["it"])
        assert world.begun == {"clean": 1}


async def test_a_child_that_is_claimed_while_its_parent_is_cancelled_begins_nothing(
    path: Path, clock: ManualClock, disk: Disk
) -> None:
    """Its claim does not find that it is to end, which is written after it."""

    @durable.workflow(name="children.claimed_late")
    async def late(step: Step) -> None:
        await step.sleep(MONTH_S)
        await echo("late")

    @durable.workflow(name="children.calling_late")
    async def calling_late(_step: Step) -> None:
        await asyncio.gather(late(), held("it"))

    async with opened(path, clock) as engine:
        run = await engine.start(calling_late(), id="it")
        await until(lambda: world.begun["it"] and engine.statistics().live_runs == 2)
        assert await cancel_while_claiming(engine, clock, disk, run)
        world.may_end.set()
        await until_parked(engine)
        children = [status.id async for status in engine.iter_runs(parent="it")]
        await until_all_canceled(engine, ["it", *children])
        assert not world.begun["late"]
        await check_families(engine)


async def test_a_child_that_cleans_up_already_is_left_to_it(path: Path) -> None:
    """It was cancelled alone: its steps, and the children that it calls for that, go on."""

    @durable.workflow(name="children.cleaning_by_children")
    async def cleaning_by_children(_step: Step) -> None:
        try:
            await gated("work")
        finally:
            await asyncio.gather(above_a_quick(), echo("clean"))

    @durable.workflow(name="children.above_cleaning_by_children")
    async def above_it(_step: Step) -> None:
        await asyncio.gather(cleaning_by_children(), held("other"))

    async with opened(path, max_parallelism=2) as engine:
        run = await engine.start(above_it(), id="top")
        await until(lambda: len(world.begun) == 2)
        cleaning, other = await children_of(engine, "top")
        assert await engine.cancel(cleaning.id) is True
        await until(lambda: engine.statistics().queued_actions == 2)
        assert await run.cancel() is True
        world.may_end.set()
        await until_all_canceled(engine, ["top", cleaning.id, other.id])
        assert world.begun == {"work": 1, "other": 1, "quick": 1, "clean": 1}
        await check_families(engine)


@pytest.mark.slow
async def test_once_a_cancel_is_acknowledged_nothing_queued_begins_in_a_large_family(
    path: Path,
) -> None:
    """Although the bodies under it have not been told all yet."""

    @durable.workflow(name="children.large")
    async def large(_step: Step) -> None:
        await asyncio.gather(*(above(0) for _ in range(500)))

    async with opened(path, max_parallelism=3) as engine:
        run = await engine.start(large(), id="top")
        await until(lambda: engine.statistics().queued_actions == 497 and world.begun["deep"] == 3)
        assert await run.cancel() is True
        world.may_end.set()
        await until_parked(engine)
        assert world.begun == {"deep": 3}
        await check_families(engine)


@pytest.mark.parametrize("parent_nap_s", [NAP_S, MONTH_S])
async def test_a_parent_that_cleans_up_is_not_woken_by_the_child_that_it_cancelled(
    path: Path, clock: ManualClock, parent_nap_s: float
) -> None:
    """Neither in memory nor in the journal."""

    @durable.workflow(name="children.both_clean_up")
    async def both_clean_up(step: Step) -> None:
        world.bodies["parent"] += 1
        try:
            await cleaning_up()
        finally:
            await step.sleep(parent_nap_s)
            await echo("parent")

    async with opened(path, clock) as engine:
        run = await engine.start(both_clean_up(), id="top")
        await until(lambda: engine.statistics().live_runs == 2)
        child = await the_child(engine, "top")
        await until_step(engine.get(child.id), "sleep", StepState.RUNNING)
        assert await run.cancel() is True
        await until_step(engine.get(child.id), echo.name, StepState.COMPLETED)
        await until_step(engine.get(child.id), "sleep", StepState.RUNNING)
        parents_count = int(parent_nap_s == NAP_S)
        await until(lambda: engine.statistics().live_runs == 1 + parents_count)
        if parents_count:
            assert engine._runner is not None
            live = engine._runner.live("top")
            assert live is not None
        clock.advance(NAP_S / 2)
        assert await engine.cancel(child.id) is True, "it is cancelled already"
        if not parents_count:
            clock.advance(NAP_S / 2)
            await until_all_canceled(engine, [child.id])
            assert world.bodies["parent"] == 1
            assert (await run.status()).state is RunState.CANCELING
            clock.advance(MONTH_S)
        else:
            clock.advance(NAP_S)
        await until_all_canceled(engine, ["top", child.id])
        assert world.begun == {"clean": 1, "clean again": 1, "parent": 1}
        await check_families(engine)


async def test_children_that_are_over_keep_their_outcome(path: Path) -> None:
    @durable.workflow(name="children.one_over")
    async def one_over(_step: Step) -> None:
        await above_a_quick()
        await held("it")

    async with opened(path) as engine:
        run = await engine.start(one_over(), id="top")
        await until(lambda: world.begun["it"])
        first, second = await children_of(engine, "top")
        assert await run.cancel() is True
        await until_all_canceled(engine, ["top", second.id])
        assert await engine.get(first.id).result() == "quick"
        assert (await engine.status(first.id)).state is RunState.COMPLETED
        first_step, second_step = await steps_of(engine, "top")
        assert (first_step.state, first_step.result) == (StepState.COMPLETED, "quick")
        assert second_step.state is StepState.CANCELED
        world.may_end.set()
        await check_families(engine)


@durable.workflow
async def above_a_quick(_step: Step) -> str:
    return await echo("quick")


async def test_a_child_that_is_delayed_never_begins(path: Path, clock: ManualClock) -> None:
    @durable.workflow(name="children.delayed")
    async def delayed(step: Step) -> None:
        await step.run(held("it"), run_after=MONTH_S)

    async with opened(path, clock) as engine:
        run = await engine.start(delayed(), id="top")
        await until_step(run, held.name, StepState.PENDING)
        await until_parked(engine)
        child = await the_child(engine, "top")
        assert await run.cancel() is True
        await until_all_canceled(engine, ["top", child.id])
        clock.advance(MONTH_S)
        assert (await engine.status(child.id)).started_at is None
        assert await steps_of(engine, child.id) == []
        assert world.begun == {}
        await check_families(engine)


async def test_children_that_have_left_memory_are_cancelled(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(above_a_nap(MONTH_S), id="top")
        await until(lambda: world.bodies["napping"] and engine.statistics().live_runs == 0)
        assert await run.cancel() is True
        await until_all_canceled(engine, await family(engine, "top"))
        await check_families(engine)
        clock.advance(MONTH_S)
        await check_nothing_is_left(engine)
    assert world.begun == {}


async def test_a_stuck_child_is_cancelled_with_its_parent(
    path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with crashing(path, clock) as engine:
        await engine.start(above_a_nap(NAP_S), id="top")
        await until(lambda: world.bodies["napping"])
        child = await the_child(engine, "top")
        await until_step(engine.get(child.id), "sleep", StepState.RUNNING)
    monkeypatch.setattr(napping, "fn", _otherwise)
    async with opened(path, clock) as engine:
        await until_state(engine.get(child.id), RunState.STUCK)
        assert await engine.cancel("top") is True
        await until_all_canceled(engine, ["top", child.id])
        await check_families(engine)


async def _otherwise(_step: Step, nap_s: float) -> str:
    return await echo("otherwise")


@pytest.mark.parametrize("is_changed", [True, False])
async def test_a_stuck_child_whose_action_still_runs_is_cancelled_with_its_parent(
    path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, is_changed: bool
) -> None:
    """The action finishes, and its result is dropped; be it that the code has changed since."""

    @durable.workflow(name="children.going_astray")
    async def going_astray(step: Step) -> None:
        await asyncio.gather(gated("work"), _astray(step))

    @durable.workflow(name="children.above_one_astray")
    async def above_one_astray(_step: Step) -> None:
        await going_astray()

    async with opened(path, clock) as engine:
        run = await engine.start(above_one_astray(), id="top")
        await until(lambda: world.begun)
        child = await the_child(engine, "top")
        clock.advance(NAP_S)
        await until_state(engine.get(child.id), RunState.STUCK)
        if is_changed:
            monkeypatch.setattr(going_astray, "fn", sleeping_instead)
        assert await run.cancel() is True
        await until_all_canceled(engine, ["top", child.id])
        assert world.interrupted == []
        world.may_end.set()
        await until(lambda: engine.statistics().running_actions == 0)
        await check_families(engine)


async def sleeping_instead(step: Step) -> None:
    await step.sleep(NAP_S)


async def _astray(step: Step) -> None:
    await step.sleep(NAP_S)
    try:
        asyncio.get_running_loop().run_in_executor(None, print)
    except durable.NonDeterminismError:
        await asyncio.sleep(NAP_S)


@pytest.mark.parametrize("nap_s", [NAP_S, MONTH_S])
async def test_a_child_without_code_is_cancelled_with_its_parent(
    path: Path, clock: ManualClock, forget: Callable[[Any], None], nap_s: float
) -> None:
    """So are its own children; it was about to go on, or asleep."""

    @durable.workflow(name="children.vanishing")
    async def vanishing(_step: Step) -> str:
        return await napping(nap_s)

    @durable.workflow(name="children.above_one_vanishing")
    async def above_one_vanishing(step: Step) -> None:
        await asyncio.gather(vanishing(), step.sleep(NAP_S))

    async with crashing(path, clock) as engine:
        await engine.start(above_one_vanishing(), id="top")
        await until(lambda: world.bodies["napping"])
        ids = await family(engine, "top")
        assert len(ids) == 3
        await until_step(engine.get(ids[2]), "sleep", StepState.RUNNING)
    forget(vanishing)
    async with opened(path, clock) as engine:
        assert await engine.cancel("top") is True
        await until_all_canceled(engine, ids)
        await check_families(engine)


async def test_a_stuck_parent_that_is_cancelled_cancels_its_children(
    path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its body cannot be told: what it waited for is in the journal."""
    async with crashing(path, clock) as engine:
        await engine.start(above_a_nap(NAP_S), id="top")
        await until(lambda: world.bodies["napping"])
        child = await the_child(engine, "top")
        await until_step(engine.get(child.id), "sleep", StepState.RUNNING)
    monkeypatch.setattr(above_a_nap, "fn", _otherwise)
    async with opened(path, clock) as engine:
        await until_state(engine.get("top"), RunState.STUCK)
        assert (await engine.status(child.id)).state is RunState.RUNNING
        assert await engine.cancel("top") is True
        await until_all_canceled(engine, ["top", child.id])
        await check_families(engine)


async def test_a_parent_whose_cancelled_body_is_stuck_cancels_its_children(
    path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was asked to end while it was not in memory, and does not fit when it comes back."""
    async with opened(path, clock) as engine:
        run = await engine.start(above_a_nap(MONTH_S), id="top")
        await until(lambda: world.bodies["napping"] and engine.statistics().live_runs == 0)
        child = await the_child(engine, "top")
        monkeypatch.setattr(above_a_nap, "fn", _otherwise)
        assert await run.cancel() is True
        await until_all_canceled(engine, ["top", child.id])
        await check_families(engine)


# --- the body withdraws --------------------------------------------------------------------------


@durable.workflow
async def timing_out(_step: Step, nap_s: float) -> str:
    try:
        async with asyncio.timeout(nap_s):
            await above(1)
    except TimeoutError:
        return "late"
    return "in time"


@pytest.mark.both_loops
@pytest.mark.parametrize("nap_s", [NAP_S, MONTH_S])
async def test_a_child_that_is_too_late_is_cancelled(
    path: Path, clock: ManualClock, nap_s: float
) -> None:
    """The parent waits for it no more; its actions finish, as those of a cancelled run do."""
    async with opened(path, clock) as engine:
        run = await engine.start(timing_out(nap_s), id="top")
        await until(lambda: world.begun)
        await until_step(run, "timer", StepState.RUNNING)
        clock.advance(nap_s)
        assert await run.result(timeout=WAIT_S_MAX) == "late"
        await until_all_canceled(engine, (await family(engine, "top"))[1:])
        steps = {step.kind: step.state for step in await steps_of(engine, "top")}
        assert steps == {
            StepKind.WORKFLOW: StepState.CANCELED,
            StepKind.SLEEP: StepState.COMPLETED,
        }
        assert world.interrupted == []
        world.may_end.set()
        await check_families(engine)


async def test_a_child_whose_task_is_cancelled_is_cancelled(path: Path) -> None:
    @durable.workflow(name="children.racing")
    async def racing(_step: Step) -> str:
        slow = asyncio.create_task(held("slow"))
        result = await above_a_quick()
        slow.cancel()
        await echo("after")
        return result

    async with opened(path) as engine:
        run = await engine.start(racing(), id="top")
        assert await run.result(timeout=WAIT_S_MAX) == "quick"
        fast, slow = await children_of(engine, "top")
        await until_all_canceled(engine, [slow.id])
        assert (await engine.status(fast.id)).state is RunState.COMPLETED
        world.may_end.set()
        await check_families(engine)


async def test_a_child_that_is_withdrawn_before_its_start_is_committed_never_begins(
    path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second turn withdraws it while the commit of the first is under way."""
    disk = Disk()
    disk.install(monkeypatch)

    @durable.workflow(name="children.withdrawing")
    async def withdrawing(step: Step) -> str:
        async def call() -> None:
            await step.sleep(NAP_S)
            await held("slow")

        calling = asyncio.create_task(call())
        await gated("go")
        calling.cancel()
        await echo("after")
        return "withdrawn"

    async with opened(path, clock) as engine:
        run = await engine.start(withdrawing(), id="top")
        await until_step(run, "sleep", StepState.RUNNING)
        await until(lambda: world.begun["go"])
        disk.answers.clear()
        clock.advance(NAP_S)
        assert engine._runner is not None
        children = engine._runner.children
        await until(lambda: children.promised_count == 1)
        world.may_end.set()
        await until(lambda: next(iter(children._promised.values()), None) is not None)
        disk.answers.set()
        assert await run.result(timeout=WAIT_S_MAX) == "withdrawn"
        child = await the_child(engine, "top")
        await until_all_canceled(engine, [child.id])
        assert world.begun == {"go": 1, "after": 1}
        assert (await engine.status(child.id)).started_at is None
        await check_families(engine)


async def test_children_that_their_parent_does_not_wait_for_end_with_it(path: Path) -> None:
    """As the tasks of ``asyncio.run`` do."""

    @durable.workflow(name="children.leaving")
    async def leaving(_step: Step) -> str:
        task = asyncio.create_task(above(1))
        await above_a_quick()
        return f"left {not task.done()}"

    async with opened(path) as engine:
        run = await engine.start(leaving(), id="top")
        assert await run.result(timeout=WAIT_S_MAX) == "left True"
        _, second = await children_of(engine, "top")
        await until_all_canceled(engine, await family(engine, second.id))
        world.may_end.set()
        await check_families(engine)


async def test_a_failing_sibling_cancels_the_others(path: Path) -> None:
    @durable.workflow(name="children.raising")
    async def raising(_step: Step) -> None:
        await echo("before")
        raise LookupError

    @durable.workflow(name="children.group")
    async def group(_step: Step) -> str:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(above(1))
                tasks.create_task(raising())
        except* durable.RunFailed:
            pass
        return "over"

    async with opened(path) as engine:
        run = await engine.start(group(), id="top")
        assert await run.result(timeout=WAIT_S_MAX) == "over"
        first, second = await children_of(engine, "top")
        await until_all_canceled(engine, await family(engine, first.id))
        assert (await engine.status(second.id)).state is RunState.FAILED
        world.may_end.set()
        await check_families(engine)


async def test_a_shielded_child_outlives_a_time_out_and_not_its_parent(
    path: Path, clock: ManualClock
) -> None:
    @durable.workflow(name="children.shielding")
    async def shielding(step: Step) -> str:
        child = asyncio.ensure_future(held("it"))
        try:
            async with asyncio.timeout(NAP_S):
                await asyncio.shield(child)
        except TimeoutError:
            await echo("late")
        await step.sleep(NAP_S)
        return "over"

    async with opened(path, clock) as engine:
        run = await engine.start(shielding(), id="top")
        await until(lambda: world.begun["it"])
        await until_step(run, "timer", StepState.RUNNING)
        clock.advance(NAP_S)
        await until_step(run, "sleep", StepState.RUNNING)
        child = await the_child(engine, "top")
        assert child.state is RunState.RUNNING
        clock.advance(NAP_S)
        assert await run.result(timeout=WAIT_S_MAX) == "over"
        await until_all_canceled(engine, [child.id])
        world.may_end.set()
        await check_families(engine)
