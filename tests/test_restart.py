"""``restart``: a run that is over goes on from a step, or from its beginning."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from changing import HOUR_S, act, changing, complete, fail, today
from clock import ManualClock
from faults import Disk, Fault, once_available, opened
from waiting import WAIT_S_MAX, until, until_open, until_state, until_step

import durable
from durable import (
    Engine,
    Run,
    RunCanceled,
    RunFailed,
    RunNotFinishedError,
    RunNotFoundError,
    RunState,
    Step,
    StepNotFoundError,
    StepState,
)

if TYPE_CHECKING:
    from pathlib import Path


async def straight(_step: Step) -> list[str]:
    return [await act(text) for text in "abcd"]


async def beside(_step: Step) -> list[str]:
    return list(await asyncio.gather(*(act(text) for text in "abcd")))


async def numbers(run: Run[Any]) -> list[int]:
    return [step.number async for step in run.steps()]


# --- which step ----------------------------------------------------------------------------------


async def test_by_default_the_step_that_failed_runs_again(path: Path) -> None:
    async with Engine(path) as engine:
        run = await fail(engine, straight, "c")
        again = await engine.restart(run.id)
        assert again.id == run.id
        assert await again.result(timeout=WAIT_S_MAX) == ["a", "b", "c", "d"]
        assert today.begun == {"c": 1, "d": 1}
        status = await run.status()
        assert (status.state, status.generation) == (RunState.COMPLETED, 1)
        assert await numbers(run) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("from_step", "begun"),
    [(0, "abcd"), (1, "bcd"), (3, "d"), (act, "d"), (act.name, "d")],
)
async def test_from_a_step_on_all_runs_again(
    path: Path, from_step: int | str | durable.Action[Any, Any], begun: str
) -> None:
    async with Engine(path) as engine:
        run = await complete(engine, straight)
        await run.restart(from_step=from_step)
        assert await run.result(timeout=WAIT_S_MAX) == ["a", "b", "c", "d"]
        assert today.begun == Counter(begun)


async def test_a_name_is_that_of_the_last_step_that_has_it(path: Path) -> None:
    async def named(step: Step) -> list[str]:
        names = ["x", "y", "x", "z"]
        return [await step.run(act(f"{n}{i}"), name=n) for i, n in enumerate(names)]

    async with Engine(path) as engine:
        run = await complete(engine, named)
        await run.restart(from_step="x")
        await run.result(timeout=WAIT_S_MAX)
        assert today.begun == {"x2": 1, "z3": 1}


async def test_when_all_steps_succeeded_the_body_alone_runs_again(path: Path) -> None:
    """So that a mistake behind the last step can be mended."""

    async def mistaken(_step: Step) -> str:
        await act("a")
        await act("b")
        raise ValueError

    async def mended(_step: Step) -> str:
        return await act("a") + await act("b")

    async with Engine(path) as engine:
        run = await fail(engine, mistaken)
        today.code = mended
        await run.restart()
        assert await run.result(timeout=WAIT_S_MAX) == "ab"
        assert not today.begun


async def test_a_body_without_steps_runs_again(path: Path) -> None:
    async def mistaken(_step: Step) -> str:
        raise ValueError

    async def mended(_step: Step) -> str:
        return "done"

    async with Engine(path) as engine:
        run = await fail(engine, mistaken)
        today.code = mended
        await run.restart()
        assert await run.result(timeout=WAIT_S_MAX) == "done"


async def test_from_the_beginning_the_code_may_be_another(path: Path) -> None:
    async def other(_step: Step) -> str:
        return await act("other")

    async with Engine(path) as engine:
        run = await complete(engine, straight)
        today.code = other
        await run.restart(from_step=0)
        assert await run.result(timeout=WAIT_S_MAX) == "other"
        assert await numbers(run) == [0]


async def test_from_a_step_on_the_code_may_be_another(path: Path) -> None:
    async def other(_step: Step) -> list[str]:
        return [await act("a"), await act("b"), await act("mended")]

    async with Engine(path) as engine:
        for from_step in (2, None, act):
            run = await fail(engine, straight, "c")
            today.code = other
            await run.restart(from_step=from_step)
            assert await run.result(timeout=WAIT_S_MAX) == ["a", "b", "mended"]
            assert today.begun == {"mended": 1}
            assert await numbers(run) == [0, 1, 2]


async def test_before_that_step_it_may_not(path: Path) -> None:
    async def other(_step: Step) -> list[str]:
        return [await act("other")]

    async with Engine(path) as engine:
        run = await fail(engine, straight, "c")
        today.code = other
        await run.restart()
        await until_state(run, RunState.STUCK)
        assert not today.begun
        today.code = straight
        assert await run.resume()
        assert await run.result(timeout=WAIT_S_MAX) == ["a", "b", "c", "d"]
        assert today.begun == {"c": 1, "d": 1}


# --- parallel steps ------------------------------------------------------------------------------


@pytest.mark.parametrize("from_step", range(5))
async def test_of_parallel_steps_the_earlier_ones_keep_their_outcome(
    path: Path, from_step: int
) -> None:
    async with Engine(path) as engine:
        run = await complete(engine, beside)
        if from_step == 4:
            await run.restart()
        else:
            await run.restart(from_step=from_step)
        assert await run.result(timeout=WAIT_S_MAX) == ["a", "b", "c", "d"]
        assert today.begun == Counter("abcd"[from_step:])


async def test_steps_that_the_failure_withdrew_run_again(path: Path) -> None:
    async def group(_step: Step) -> list[str]:
        async with asyncio.TaskGroup() as tasks:
            made = [tasks.create_task(act(text)) for text in "abc"]
        return [task.result() for task in made]

    async with Engine(path) as engine:
        today.held |= {"a", "c"}
        run = await fail(engine, group, "b")
        today.held.clear()
        await run.restart()
        assert await run.result(timeout=WAIT_S_MAX) == ["a", "b", "c"]
        assert today.begun == {"a": 1, "b": 1, "c": 1}


async def test_what_a_race_withdrew_before_stays_withdrawn(path: Path) -> None:
    async def racing(_step: Step) -> list[str]:
        tasks = [asyncio.create_task(act(text)) for text in ("slow", "quick")]
        done, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in left:
            task.cancel()
        return [task.result() for task in done] + [await act("end")]

    async with Engine(path) as engine:
        today.held.add("slow")
        run = await fail(engine, racing, "end")
        await run.restart()
        assert await run.result(timeout=WAIT_S_MAX) == ["quick", "end"]
        assert today.begun == {"end": 1}
        states = {step.args["text"]: step.state async for step in run.steps()}
        assert states["slow"] is StepState.CANCELED
        today.begun.clear()
        await run.restart(from_step=1)
        today.held.clear()
        await run.result(timeout=WAIT_S_MAX)
        assert today.begun["slow"] == today.begun["quick"] == today.begun["end"] == 1


async def test_deliveries_after_the_dropped_one_are_made_again(path: Path) -> None:
    """An early step that ended late: its outcome stands, its place does not."""

    async def crossing(_step: Step) -> list[str]:
        order: list[str] = []

        async def branch(text: str) -> None:
            order.append(await act(text))
            order.append(await act(f"{text}2"))

        await asyncio.gather(branch("a"), branch("b"))
        return order

    async with Engine(path) as engine:
        today.code = crossing
        today.held |= {"a"}
        run = await engine.start(changing())
        await until_step(run, act.name, StepState.COMPLETED)
        await until(lambda: today.begun["b2"])
        today.may_end.set()
        assert sorted(await run.result(timeout=WAIT_S_MAX)) == ["a", "a2", "b", "b2"]
        today.begun.clear()
        today.held.clear()
        await run.restart(from_step=1)
        assert sorted(await run.result(timeout=WAIT_S_MAX)) == ["a", "a2", "b", "b2"]
        assert today.begun == {"b": 1, "a2": 1, "b2": 1}
        assert await numbers(run) == [0, 1, 2, 3]


# --- timers, retries, patches --------------------------------------------------------------------


async def test_a_sleep_that_runs_again_takes_its_time_again(path: Path) -> None:
    async def sleeping(step: Step) -> str:
        await act("a")
        await step.sleep(HOUR_S)
        return await act("b")

    clock = ManualClock()
    async with opened(path, clock) as engine:
        today.code = sleeping
        today.failing.add("b")
        run = await engine.start(changing())
        await until_step(run, "sleep", StepState.RUNNING)
        clock.advance(HOUR_S)
        with pytest.raises(RunFailed):
            await run.result(timeout=WAIT_S_MAX)
        today.failing.clear()
        clock.advance(100 * HOUR_S)
        began_ms = clock.now_ms()
        await run.restart(from_step="sleep")
        nap = await until_step(run, "sleep", StepState.RUNNING)
        assert nap.started_at is not None
        assert nap.started_at.timestamp() * 1000 == began_ms
        clock.advance(HOUR_S / 2)
        await until_state(run, RunState.RUNNING)
        clock.advance(HOUR_S / 2)
        assert await run.result(timeout=WAIT_S_MAX) == "b"


async def test_attempts_are_counted_anew(path: Path) -> None:
    async def retrying(step: Step) -> str:
        retry = durable.Retry(max_attempts=2, initial_backoff=0)
        return await step.run(act("a"), retry=retry)

    async with Engine(path) as engine:
        run = await fail(engine, retrying, "a")
        await run.restart()
        assert await run.result(timeout=WAIT_S_MAX) == "a"
        assert [step.attempts async for step in run.steps()] == [1]


# --- cancelled runs ------------------------------------------------------------------------------


@pytest.mark.parametrize("from_step", [None, 0, 1, 2])
async def test_a_cancelled_run_goes_on_as_if_it_had_not_been(
    path: Path, from_step: int | None
) -> None:
    async def cleaning(_step: Step) -> str:
        await act("a")
        try:
            return await act("b")
        finally:
            await act("clean")

    async with Engine(path) as engine:
        today.code = cleaning
        today.held.add("b")
        run = await engine.start(changing())
        await until(lambda: today.begun["b"])
        assert await run.cancel(interrupt=True)
        with pytest.raises(RunCanceled):
            await run.result(timeout=WAIT_S_MAX)
        today.held.clear()
        today.begun.clear()
        await run.restart(from_step=from_step)
        assert await run.result(timeout=WAIT_S_MAX) == "b"
        assert today.begun == Counter(["a"] * (from_step == 0) + ["b", "clean"])
        assert await numbers(run) == [0, 1, 2]


@durable.action
async def begun_before_or_after() -> int:
    today.begun["it"] += 1
    number = today.begun["it"]
    if number == 1:
        await today.may_end.wait()
    return number


async def test_an_attempt_from_before_the_restart_is_fenced_and_not_waited_for(path: Path) -> None:
    """A cancel lets what runs finish; it finishes in a run that has gone on since."""

    async def once(_step: Step) -> int:
        return await begun_before_or_after()

    async with Engine(path) as engine:
        today.code = once
        run = await engine.start(changing())
        await until(lambda: today.begun["it"])
        assert await run.cancel()
        await run.restart(from_step=0)
        assert await run.result(timeout=WAIT_S_MAX) == 2
        assert engine.statistics().running_actions == 1, "the old attempt still runs"
        ended = await run.status()
        (step,) = [step async for step in run.steps()]
        today.may_end.set()
        await until(lambda: engine.statistics().running_actions == 0)
        await engine.run(restarted(), id="another")  # A commit behind what the old one would write.
        assert await run.status() == ended
        assert [step async for step in run.steps()] == [step]
        assert (step.result, step.state) == (2, StepState.COMPLETED)


@durable.workflow
async def restarted(step: Step) -> tuple[str, str, int]:
    return step.run_id, step.workflow, step.generation


async def test_a_body_knows_its_run_and_its_generation(path: Path) -> None:
    async with Engine(path) as engine:
        for generation in range(3):
            run = await engine.start(restarted(), id="it")
            expected = ("it", "test_restart:restarted", generation)
            assert await run.result(timeout=WAIT_S_MAX) == expected
            assert (await run.status()).generation == generation
            await run.restart()


async def test_a_restarted_run_can_be_cancelled_again(path: Path) -> None:
    async with Engine(path) as engine:
        run = await fail(engine, straight, "c")
        today.held.add("c")
        await run.restart()
        await until(lambda: today.begun["c"])
        assert await run.cancel(interrupt=True)
        with pytest.raises(RunCanceled):
            await run.result(timeout=WAIT_S_MAX)
        today.held.clear()
        await run.restart()
        assert await run.result(timeout=WAIT_S_MAX) == ["a", "b", "c", "d"]
        assert (await run.status()).generation == 2


# --- what is refused -----------------------------------------------------------------------------


async def test_a_run_that_is_not_over_is_left_alone(path: Path) -> None:
    async with Engine(path) as engine:
        today.code = straight
        today.held.add("b")
        run = await engine.start(changing())
        await until_open(run)
        with pytest.raises(RunNotFinishedError, match="not over"):
            await run.restart(from_step=0)
        today.may_end.set()
        assert await run.result(timeout=WAIT_S_MAX) == ["a", "b", "c", "d"]
        assert (await run.status()).generation == 0


async def test_unknown_runs_and_steps_are_named(path: Path) -> None:
    async with Engine(path) as engine:
        with pytest.raises(RunNotFoundError, match="nobody"):
            await engine.restart("nobody")
        run = await complete(engine, straight)
        for from_step in (4, 99, "unheard", changing):
            with pytest.raises(StepNotFoundError, match="list_steps"):
                await run.restart(from_step=from_step)
        assert (await run.status()).state is RunState.COMPLETED


@pytest.mark.parametrize(
    ("from_step", "error"), [(-1, ValueError), (True, TypeError), (1.5, TypeError), ([], TypeError)]
)
async def test_a_step_is_named_by_number_name_or_definition(
    path: Path,
    from_step: Any,  # noqa: ANN401  anything
    error: type[Exception],
) -> None:
    async with Engine(path) as engine:
        run = await complete(engine, straight)
        with pytest.raises(error, match="from_step"):
            await run.restart(from_step=from_step)


async def test_of_two_restarts_at_once_one_is_refused(path: Path) -> None:
    async with Engine(path) as engine:
        run = await fail(engine, straight, "c")
        today.held.add("c")
        restarts = await asyncio.gather(run.restart(), run.restart(), return_exceptions=True)
        assert sorted(type(each).__name__ for each in restarts) == ["Run", "RunNotFinishedError"]
        today.may_end.set()
        assert await run.result(timeout=WAIT_S_MAX) == ["a", "b", "c", "d"]
        assert today.begun == {"c": 1, "d": 1}


# --- crashes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("number", range(1, 4))
async def test_a_commit_that_fails_repeats_nothing(
    path: Path, number: int, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk()
    disk.install(monkeypatch)
    async with Engine(path) as engine:
        run = await fail(engine, straight, "b")
        disk.faults[("commit", disk.calls["commit"] + number)] = fault

        async def restart() -> None:
            if (await run.status()).generation == 0:
                await run.restart()

        await once_available(disk, restart)
        ask = partial(run.result, WAIT_S_MAX)
        assert await once_available(disk, ask) == ["a", "b", "c", "d"]
        assert disk.outages == 1
        assert today.begun["a"] == 0
        assert (await run.status()).generation == 1


async def test_a_restart_outlives_its_engine(path: Path) -> None:
    async with Engine(path) as engine:
        run = await fail(engine, straight, "b")
    async with Engine(path, max_parallelism=0) as engine:
        await engine.restart(run.id)
    today.begun.clear()
    async with Engine(path) as engine:
        assert await engine.get(run.id).result(timeout=WAIT_S_MAX) == ["a", "b", "c", "d"]
        assert today.begun == {"b": 1, "c": 1, "d": 1}
