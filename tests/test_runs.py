"""Starting runs, and what becomes of them."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from clock import START_MS, ManualClock
from corpus import actions
from odd import unawaited
from waiting import until, until_open

import durable
from durable import (
    Engine,
    NotInWorkflowError,
    Run,
    RunConflictError,
    RunFailed,
    RunNotFoundError,
    RunState,
    Step,
)

STARTS = 50
begun: Counter[str] = Counter()


class OutOfStock(Exception):
    """Named by this module, so that it arrives as itself."""

    def __init__(self, item: str, left: int) -> None:
        super().__init__(item, left)
        self.left = left


@durable.action
async def reserve(item: str, left: int) -> int:
    if left < 1:
        raise OutOfStock(item, left)
    return left - 1


@durable.workflow
async def ordering(step: Step, item: str, left: int = 5) -> int:
    begun[step.run_id] += 1
    return await reserve(item, left)


@durable.workflow
async def other(_step: Step, item: str) -> str:
    return item


@durable.workflow
async def waiting(step: Step) -> str:
    await step.sleep(60, name="nap")
    return "woken"


def now() -> datetime:
    return datetime.fromtimestamp(START_MS / 1000, UTC)


# --- ids -----------------------------------------------------------------------------------------


async def test_a_run_without_an_id_gets_one_that_sorts_by_time(path: Path) -> None:
    async with Engine(path) as engine:
        runs = [await engine.start(ordering("a")) for _ in range(20)]
        ids = [run.id for run in runs]
        assert len(set(ids)) == 20
        assert [run_id[:12] for run_id in ids] == sorted(run_id[:12] for run_id in ids)
        assert repr(runs[0]) == f"<Run {ids[0]!r}>"


async def test_the_same_start_gives_the_same_run_at_any_time(path: Path) -> None:
    clock, engine = ManualClock(), Engine(path)
    clock.install(engine)
    async with engine:
        run = await engine.start(waiting(), id="same")
        assert (await engine.start(waiting(), id="same")).id == "same"
        await until_open(run)
        assert (await engine.start(waiting(), id="same")).id == "same"
        clock.advance(60)
        assert await run.result(timeout=5) == "woken"
        assert await engine.run(waiting(), id="same") == "woken"
    async with engine:
        assert await engine.run(waiting(), id="same") == "woken"
        assert len([status async for status in engine.iter_runs()]) == 1
        assert len([step async for step in run.steps()]) == 1


async def test_an_id_belongs_to_one_workflow_and_its_arguments(path: Path) -> None:
    async with Engine(path) as engine:
        assert await engine.run(ordering("a", 3), id="r") == 2
        for call in (ordering("b", 3), ordering("a"), other("a")):
            with pytest.raises(RunConflictError, match="Use another id, or the same arguments"):
                await engine.start(call, id="r")
        with pytest.raises(RunConflictError) as info:
            await engine.run(other("a"), id="r")
        for part in ("'r'", "test_runs:ordering", '{"item":"a","left":3}', "test_runs:other"):
            assert part in str(info.value)
        assert [status.args async for status in engine.iter_runs()] == [{"item": "a", "left": 3}]


async def test_a_cancelled_start_can_be_asked_again(path: Path) -> None:
    async with Engine(path) as engine:
        for _ in range(STARTS):
            start = asyncio.create_task(engine.start(ordering("a"), id="asked"))
            await asyncio.sleep(0)
            start.cancel()
            await asyncio.wait([start])
        assert await engine.run(ordering("a"), id="asked") == 4
        assert len([status async for status in engine.iter_runs()]) == 1


@pytest.mark.parametrize(
    ("run_id", "error"),
    [
        ("", ValueError),
        ("a\0b", ValueError),
        ("a\nb", ValueError),
        ("\ud800", ValueError),
        ("x" * 513, ValueError),
        (5, TypeError),
        (b"r", TypeError),
    ],
)
async def test_an_id_is_printable_text(run_id: Any, error: type[Exception], path: Path) -> None:  # noqa: ANN401
    async with Engine(path) as engine:
        with pytest.raises(error, match="a run's id is"):
            await engine.start(other("a"), id=run_id)
        with pytest.raises(error, match="a run's id is"):
            engine.get(run_id)
        with pytest.raises(error, match="a run's id is"):
            await engine.status(run_id)
        assert [status async for status in engine.iter_runs()] == []


@pytest.mark.parametrize("run_id", ["x" * 512, "order/1 \N{SNOWMAN} '; --", "..", "%00"])
async def test_an_id_may_be_any_printable_text(run_id: str, path: Path) -> None:
    async with Engine(path) as engine:
        assert await engine.run(other("a"), id=run_id) == "a"
        assert (await engine.status(run_id)).id == run_id


# --- what is started -----------------------------------------------------------------------------


async def test_only_a_workflows_call_can_be_started(path: Path) -> None:
    async with Engine(path) as engine:
        wrong: list[tuple[Any, type[Exception], str]] = [
            (reserve("a", 1), NotInWorkflowError, "call it in a workflow's body, and start that"),
            (other, TypeError, r"start a call: other\(\.\.\.\), with its arguments"),
            (unawaited(), TypeError, r"a workflow's call, such as checkout\('o-1'\)"),
            (None, TypeError, "a run is started from a workflow's call"),
            ("test_runs:other", TypeError, "a run is started from a workflow's call"),
        ]
        for call, error, message in wrong:
            for start in (engine.start, engine.run):
                with pytest.raises(error, match=message):
                    await start(call)
        assert [status async for status in engine.iter_runs()] == []


@pytest.mark.parametrize(
    ("delay", "error", "message"),
    [
        ({"run_after": 1, "run_at": now()}, ValueError, "run_after= or run_at=, not both"),
        ({"run_after": "1"}, TypeError, "run_after= is seconds or a timedelta, not '1'"),
        ({"run_after": float("nan")}, ValueError, "run_after= is not a number"),
        ({"run_at": now().replace(tzinfo=None)}, ValueError, "aware datetime: .* no time zone"),
        ({"run_at": 5}, TypeError, "run_at= is a datetime, not 5"),
    ],
)
async def test_a_wrong_delay_is_refused(
    delay: dict[str, Any], error: type[Exception], message: str, path: Path
) -> None:
    async with Engine(path) as engine:
        with pytest.raises(error, match=message):
            await engine.start(other("a"), **delay)
        assert [status async for status in engine.iter_runs()] == []


@pytest.mark.parametrize(
    "delay",
    [
        {"run_after": 90},
        {"run_after": timedelta(seconds=90)},
        {"run_at": now() + timedelta(seconds=90)},
    ],
    ids=str,
)
@pytest.mark.parametrize("reopened", [False, True])
async def test_a_delayed_start_begins_at_its_time_and_not_before(
    delay: dict[str, Any], reopened: bool, path: Path
) -> None:
    clock, engine = ManualClock(), Engine(path)
    clock.install(engine)
    run_id = f"delayed {delay} {reopened}"
    async with engine:
        run = await engine.start(ordering("a"), id=run_id, **delay)
        assert (await engine.start(ordering("a"), id=run_id)).id == run_id
        if reopened:
            await engine.__aexit__(None, None, None)
            clock.advance(80)
            await engine.__aenter__()
            clock.advance(-80)
        clock.advance(89.999)
        for _ in range(5):
            assert (await run.status()).state is RunState.PENDING
        assert begun[run_id] == 0
        clock.advance(0.001)
        assert await run.result(timeout=5) == 4
        status = await run.status()
        assert (status.created_at, status.started_at) == (now(), now() + timedelta(seconds=90))


@pytest.mark.parametrize(
    "delay",
    [
        {"run_after": 0},
        {"run_after": -5},
        {"run_after": timedelta(-1)},
        {"run_at": now() - timedelta(1)},
    ],
    ids=str,
)
async def test_a_delay_that_is_over_is_none(delay: dict[str, Any], path: Path) -> None:
    clock, engine = ManualClock(), Engine(path)
    clock.install(engine)
    async with engine:
        assert await engine.run(other("a"), **delay) == "a"


@pytest.mark.parametrize(
    "delay", [float("inf"), timedelta.max, 10**400], ids=["float", "timedelta", "int"]
)
async def test_a_delay_may_be_for_ever(delay: Any, path: Path) -> None:  # noqa: ANN401
    clock, engine = ManualClock(), Engine(path)
    clock.install(engine)
    async with engine:
        run = await engine.start(other("a"), run_after=delay)
        clock.advance(1_000_000_000)
        assert (await run.status()).state is RunState.PENDING
        assert await engine.run(other("b")) == "b"


# --- results -------------------------------------------------------------------------------------


async def test_a_result_that_is_late_leaves_the_run_alone(path: Path) -> None:
    clock, engine = ManualClock(), Engine(path)
    clock.install(engine)
    async with engine:
        run = await engine.start(waiting(), id="r")
        for timeout in (0.001, timedelta(milliseconds=1), 0):
            with pytest.raises(TimeoutError, match=r"run 'r' did not end within .* s"):
                await run.result(timeout=timeout)
        waiter = asyncio.create_task(run.result())
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.wait([waiter])
        waiters = [asyncio.create_task(engine.get("r").result()) for _ in range(5)]
        await until_open(run)
        clock.advance(60)
        assert await asyncio.gather(*waiters) == ["woken"] * 5
        assert await run.result(timeout=5) == "woken"


@pytest.mark.parametrize("given", [0, timedelta(0), -1, 1e-9])
async def test_a_result_that_is_there_needs_no_time(given: float | timedelta, path: Path) -> None:
    """Who polls looks once, and does not have to guess how long looking takes."""
    clock = ManualClock()
    for _ in range(2):
        engine = Engine(path)
        clock.install(engine)
        async with engine:
            assert await engine.run(ordering("a"), id="ended") == 4
            assert await engine.get("ended").result(timeout=given) == 4
            sleeping = await engine.start(waiting(), id="sleeping")
            with pytest.raises(TimeoutError, match="run 'sleeping' did not end within"):
                await sleeping.result(timeout=given)
            with pytest.raises(RunNotFoundError):
                await engine.get("gone").result(timeout=given)


async def test_a_result_is_there_once_its_status_says_so(path: Path) -> None:
    """A reader may see a commit before the engine hears of it."""
    async with Engine(path) as engine:
        for _ in range(20):
            run = await engine.start(ordering("a"))
            while (await run.status()).state is not RunState.COMPLETED:
                pass
            assert await run.result(timeout=0) == 4


async def test_a_start_under_way_has_not_ended(path: Path) -> None:
    async with Engine(path) as engine:
        start = asyncio.create_task(engine.start(ordering("a"), id="r"))
        await until(lambda: engine._runner and engine._runner.starts._starting)
        with pytest.raises(TimeoutError):
            await engine.get("r").result(timeout=0)
        assert await (await start).result() == 4


@pytest.mark.parametrize(("given", "error"), [("5", TypeError), (float("nan"), ValueError)])
async def test_a_wrong_timeout_is_refused(given: Any, error: type[Exception], path: Path) -> None:  # noqa: ANN401
    async with Engine(path) as engine:
        with pytest.raises(error, match="timeout is"):
            await engine.get("r").result(timeout=given)


async def test_a_failed_run_tells_how_to_every_reader(path: Path) -> None:
    async with Engine(path) as engine:
        run = await engine.start(ordering("a", 0), id="r")
        with pytest.raises(RunFailed) as first:
            await run.result(timeout=5)
    async with Engine(path) as engine:
        with pytest.raises(RunFailed) as later:
            await engine.get("r").result(timeout=5)
        with pytest.raises(RunFailed) as again:
            await engine.run(ordering("a", 0), id="r")
        status = await engine.status("r")
    for info in (first, later, again):
        failed = info.value
        assert failed.run_id == "r"
        assert failed.error.type_name == "test_runs.OutOfStock"
        assert failed.error.message == "('a', 0)"
        assert "in reserve" in failed.error.traceback
        assert str(failed) == "run 'r' failed: test_runs.OutOfStock: ('a', 0)"
        cause = failed.__cause__
        assert isinstance(cause, OutOfStock)
        assert (cause.args, cause.left) == (("a", 0), 0)
    assert (status.state, status.error) == (RunState.FAILED, first.value.error)


@durable.workflow
async def letting_pass(_step: Step) -> None:
    await actions.boom("corpus")


async def test_what_fails_an_action_and_then_its_run_is_rebuilt_as_the_action_s_module_has_it(
    path: Path,
) -> None:
    async with Engine(path) as engine:
        with pytest.raises(RunFailed) as failed:
            await engine.run(letting_pass())
    assert isinstance(failed.value.__cause__, actions.CorpusError)


async def test_a_run_that_is_not_there(path: Path) -> None:
    async with Engine(path) as engine:
        run: Run[object] = engine.get("gone")
        expected = "the journal has no run 'gone': check the id"
        for ask in (run.result, run.status):
            with pytest.raises(RunNotFoundError, match=expected):
                await ask()
        with pytest.raises(RunNotFoundError, match=expected):
            await engine.list_steps("gone")
        with pytest.raises(RunNotFoundError, match=expected):
            assert [step async for step in run.steps()] == []


async def test_a_script_runs_one_workflow_durably(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await durable.run(ordering("a"), id="script", url=path) == 4
    assert await durable.run(ordering("a"), id="script", url=f"sqlite:///{path}") == 4
    assert begun["script"] == 1
    monkeypatch.setenv("DURABLE_URL", f"sqlite:///{path}")
    with pytest.raises(RunConflictError):
        await durable.run(ordering("b"), id="script")
    async with Engine(path) as engine:
        assert await durable.run(other("by the open engine"), id="o") == "by the open engine"
        assert [status.id async for status in engine.iter_runs()] == ["script", "o"]
