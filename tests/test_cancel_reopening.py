"""A cancel outlives its process: asked, told, in the middle of the clean-up, or after it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from clock import ManualClock
from faults import MONTH_S, Disk, crashing, opened
from waiting import WAIT_S_MAX, until, until_open, until_parked, until_state, until_step
from world import echo, gated, held, world

import durable
from durable import Engine, RunCanceled, RunState, Step, StepState, registry

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

NAP_S = 10.0
UNDONE = [f"undo {n}" for n in range(3)]


@durable.workflow
async def cleaning_up(step: Step, nap_s: float) -> None:
    """Its clean-up is steps, timers and a second task."""
    world.bodies["it"] += 1
    background = asyncio.create_task(gated("background"))
    try:
        await echo("work")
        await step.sleep(nap_s)
        await echo("more")
    finally:
        for text in UNDONE:
            await echo(text)
            await step.sleep(nap_s)
        assert background.cancelled()


async def canceled(engine: Engine, run_id: str = "it") -> list[durable.StepInfo]:
    """Wait for the run's end, and return its steps: all are settled."""
    run = engine.get(run_id)
    with pytest.raises(RunCanceled):
        await run.result(timeout=WAIT_S_MAX)
    status = await run.status()
    assert (status.state, status.error) == (RunState.CANCELED, None)
    steps = [step async for step in run.steps()]
    assert all(step.state.is_final and step.finished_at for step in steps)
    await until_parked(engine)
    return steps


async def until_naps(run: durable.Run[Any], count: int) -> None:
    """Wait until the run is in its how-manieth sleep."""
    async with asyncio.timeout(WAIT_S_MAX):
        while True:
            naps = [step.state async for step in run.steps() if step.name == "sleep"]
            if len(naps) == count and naps[-1] is StepState.RUNNING:
                return


def check_done_once(steps: list[durable.StepInfo]) -> None:
    done = [step for step in steps if step.state is StepState.COMPLETED]
    texts = [step.args["text"] for step in done if step.name == echo.name]
    assert texts == ["work", *UNDONE]
    assert {text: world.begun[text] for text in UNDONE} == dict.fromkeys(UNDONE, 1)
    assert world.begun["work"] == 1
    assert world.begun["more"] == 0


@pytest.mark.parametrize("nap_s", [NAP_S, MONTH_S])
@pytest.mark.parametrize("end", [opened, crashing])
async def test_a_clean_up_goes_on_in_the_next_life(
    path: Path,
    clock: ManualClock,
    nap_s: float,
    end: Any,  # noqa: ANN401  both are partial
) -> None:
    """One life for each of its sleeps: in memory or, with the longer ones, in the journal."""
    async with end(path, clock) as engine:
        run = await engine.start(cleaning_up(nap_s), id="it")
        await until_naps(run, 1)
        assert await run.cancel() is True
        await until_naps(run, 2)
    for naps in (2, 3, 4):
        async with end(path, clock) as engine:
            run = engine.get("it")
            assert (await run.status()).state is RunState.CANCELING
            await until_naps(run, naps)
            assert await run.cancel() is True
            assert (await run.status()).state is RunState.CANCELING
            await until_naps(run, naps)
            clock.advance(nap_s)
            if naps < 4:
                await until_naps(run, naps + 1)
            else:
                await canceled(engine)
    async with end(path, clock) as engine:
        steps = await canceled(engine)
    check_done_once(steps)
    bodies = world.bodies["it"]
    async with end(path, clock) as engine:
        assert await canceled(engine) == steps
        assert await engine.cancel("it") is False
        clock.advance(MONTH_S)
        await canceled(engine)
    assert world.bodies["it"] == bodies, "a run that is over is not taken up again"


async def test_a_cancel_that_its_process_could_not_tell_is_told_by_the_next(
    path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in the journal beside a run that is parked, and is acknowledged by that.

    What has become due meanwhile does not begin.
    """
    disk = Disk()
    disk.install(monkeypatch)
    async with crashing(path, clock) as engine:
        run = await engine.start(sleeping_for_long(), id="it")
        await until(lambda: engine.statistics().live_runs == 0 and disk.calls["commit"])
        await until_step(run, "sleep", StepState.RUNNING)
        asking = asyncio.create_task(run.cancel())
        assert engine._runner is not None
        reserve = engine._runner.writer._host.reserve_claim
        monkeypatch.setattr(engine._runner, "reserve_claim", lambda: (reserve() or 0) * 0)
        assert await asking is True
        assert (await run.status()).state is RunState.RUNNING
        bodies = world.bodies["it"]
    clock.advance(MONTH_S)
    async with opened(path, clock) as engine:
        steps = await canceled(engine)
    assert world.bodies["it"] == bodies + 1
    assert world.begun == {"undo": 1}
    assert [(step.name, step.state) for step in steps] == [
        ("sleep", StepState.CANCELED),
        (echo.name, StepState.CANCELED),
        (echo.name, StepState.COMPLETED),
    ]


@durable.workflow
async def sleeping_for_long(step: Step) -> None:
    world.bodies["it"] += 1
    try:
        await asyncio.gather(step.sleep(MONTH_S), step.run(echo("late"), run_after=MONTH_S))
    finally:
        await echo("undo")


@durable.workflow
async def sleeping_only(step: Step) -> None:
    await step.sleep(MONTH_S)


async def test_a_parked_run_is_woken_to_be_cancelled(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(sleeping_for_long(), id="it")
        await until_open(run)
        await until_parked(engine)
        assert await run.cancel() is True
        assert (await run.status()).state in (RunState.CANCELING, RunState.CANCELED)
        await canceled(engine)
        assert world.begun == {"undo": 1}


async def test_a_parked_run_that_does_not_clean_up_is_over_when_its_cancel_is_acknowledged(
    path: Path, clock: ManualClock
) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(sleeping_only(), id="it")
        await until_open(run)
        await until_parked(engine)
        assert await run.cancel() is True
        assert (await run.status()).state is RunState.CANCELED
        assert await run.cleanup() is True


async def test_a_cancel_of_a_parked_run_is_acknowledged_where_there_is_no_room_for_it(
    path: Path, clock: ManualClock
) -> None:
    async with opened(path, clock, live_runs_max=1) as engine:
        run = await engine.start(sleeping_only(), id="it")
        await until_open(run)
        await until_parked(engine)
        other = await engine.start(held("other"))
        await world.reached.wait()
        assert await run.cancel() is True
        assert (await run.status()).state is RunState.RUNNING
        world.may_end.set()
        assert await other.result(timeout=WAIT_S_MAX) == "other"
        await canceled(engine)


async def test_nothing_begins_of_a_run_that_comes_back_to_be_cancelled(
    path: Path, clock: ManualClock
) -> None:
    """Neither what was interrupted nor what had not begun, nor what is due."""
    async with crashing(path, clock, max_parallelism=1) as engine:
        run = await engine.start(working_at_much(), id="it")
        await until(lambda: world.begun["a"] and engine.statistics().queued_actions == 1)
    world.begun.clear()
    async with opened(path, clock, max_parallelism=0) as engine:
        run = engine.get("it")
        clock.advance(MONTH_S)
        assert await run.cancel() is True
        engine.set_max_parallelism(5)
        steps = await canceled(engine)
    assert world.begun == {}
    assert {step.state for step in steps} <= {StepState.CANCELED, StepState.COMPLETED}
    assert [step.state for step in steps if step.name == gated.name] == [StepState.CANCELED] * 2


@durable.workflow
async def working_at_much(step: Step) -> None:
    await asyncio.gather(
        gated("a"), gated("b"), step.run(echo("c"), run_after=NAP_S), step.sleep(NAP_S)
    )


# --- stuck runs, and runs without code -----------------------------------------------------------


def defined(
    body: Callable[[Step], Coroutine[Any, Any, object]], monkeypatch: pytest.MonkeyPatch
) -> durable.Workflow[[], object]:
    """Define a workflow, in the place of the one before that has its name."""
    for key in [key for key in registry._definitions if key[1] == "cancel.changing"]:
        monkeypatch.delitem(registry._definitions, key)
    return durable.workflow(name="cancel.changing")(body)


async def first_version(step: Step) -> None:
    try:
        await echo("first")
        await step.sleep(NAP_S)
    finally:
        await echo("undo")
        await step.sleep(NAP_S)
        await echo("undo more")


async def diverging_at_once(_step: Step) -> None:
    await echo("second")


async def diverging_in_its_clean_up(step: Step) -> None:
    try:
        await echo("first")
        await step.sleep(NAP_S)
    finally:
        await echo("undo otherwise")


async def test_a_cancel_ends_a_stuck_run(
    path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(defined(first_version, monkeypatch)(), id="it")
        await until_step(run, "sleep", StepState.RUNNING)
    defined(diverging_at_once, monkeypatch)
    async with opened(path, clock) as engine:
        run = engine.get("it")
        await until_state(run, RunState.STUCK)
        waiting = asyncio.create_task(run.result())
        assert await run.cancel() is True
        steps = await canceled(engine)
        with pytest.raises(RunCanceled):
            await waiting
        assert [step.state for step in steps] == [StepState.COMPLETED, StepState.CANCELED]
        assert await run.cancel() is False
    defined(first_version, monkeypatch)
    async with opened(path, clock) as engine:
        assert await canceled(engine) == steps
    assert world.begun == {"first": 1}


async def test_a_cancel_ends_a_stuck_run_whose_action_still_runs(
    path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The action finishes, and its result is dropped."""

    async def going_astray(step: Step) -> None:
        await asyncio.gather(gated("work"), _astray(step))

    async def _astray(step: Step) -> None:
        await step.sleep(NAP_S)
        try:
            asyncio.get_running_loop().run_in_executor(None, print)
        except durable.NonDeterminismError:
            await asyncio.sleep(NAP_S)

    async with opened(path, clock) as engine:
        run = await engine.start(defined(going_astray, monkeypatch)(), id="it")
        await until_step(run, "sleep", StepState.RUNNING)
        await until(lambda: world.begun)
        clock.advance(NAP_S)
        await until_state(run, RunState.STUCK)
        cancelling = asyncio.create_task(run.cancel())
        await asyncio.sleep(0)
        world.may_end.set()
        async with asyncio.timeout(WAIT_S_MAX):
            assert await cancelling is True
        await canceled(engine)
        await until(lambda: engine.statistics().running_actions == 0)


async def test_a_cancel_ends_a_run_whose_code_is_not_there(
    path: Path,
    clock: ManualClock,
    forget: Callable[[Any], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workflow = defined(first_version, monkeypatch)
    async with opened(path, clock) as engine:
        run = await engine.start(workflow(), id="it")
        delayed = await engine.start(workflow(), id="delayed", run_after=MONTH_S)
        await until_step(run, "sleep", StepState.RUNNING)
    forget(workflow)
    async with opened(path, clock) as engine:
        await until_state(engine.get("it"), RunState.STUCK)
        for run_id in (run.id, delayed.id):
            assert await engine.cancel(run_id) is True
            await canceled(engine, run_id)
        registry.register(workflow)
        await canceled(engine)
    async with opened(path, clock) as engine:
        clock.advance(MONTH_S)
        for run_id in (run.id, delayed.id):
            await canceled(engine, run_id)
    assert world.begun == {"first": 1}


async def test_a_clean_up_that_diverges_is_stuck_until_a_second_cancel(
    path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(defined(first_version, monkeypatch)(), id="it")
        await until_step(run, "sleep", StepState.RUNNING)
        assert await run.cancel() is True
        await until_step(run, "sleep", StepState.RUNNING)
    for is_mended in (True, False):
        defined(diverging_in_its_clean_up, monkeypatch)
        async with opened(path, clock) as engine:
            run = engine.get("it")
            status = await until_state(run, RunState.STUCK)
            assert status.error is not None
            assert "'undo'" in status.error.message.replace('"', "'")
            assert "undo otherwise" in status.error.message
            if not is_mended:
                assert await run.cancel() is True
                await canceled(engine)
        if is_mended:
            defined(first_version, monkeypatch)
            async with opened(path, clock) as engine:
                status = await until_state(engine.get("it"), RunState.CANCELING)
                assert status.error is None
    assert world.begun == {"first": 1, "undo": 1}


async def test_a_stuck_clean_up_goes_on_with_code_that_fits(
    path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(path, clock) as engine:
        run = await engine.start(defined(first_version, monkeypatch)(), id="it")
        await until_step(run, "sleep", StepState.RUNNING)
        assert await run.cancel() is True
        await until_step(run, "sleep", StepState.RUNNING)
    defined(diverging_in_its_clean_up, monkeypatch)
    async with opened(path, clock) as engine:
        await until_state(engine.get("it"), RunState.STUCK)
    defined(first_version, monkeypatch)
    async with opened(path, clock) as engine:
        await until_state(engine.get("it"), RunState.CANCELING)
        clock.advance(NAP_S)
        await canceled(engine)
    assert world.begun == {"first": 1, "undo": 1, "undo more": 1}
