"""What is shown of runs and steps, page by page."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from clock import START_MS, ManualClock

import durable
from durable import (
    Engine,
    ErrorInfo,
    Page,
    Retry,
    Run,
    RunState,
    RunStatus,
    Step,
    StepInfo,
    StepKind,
    StepState,
)

RUNS = 250
NOW = datetime.fromtimestamp(START_MS / 1000, UTC)

Order = Literal["asc", "desc"]


@durable.action(retry=Retry(2, initial_backoff=10, jitter=False))
async def flaky(item: str, counts: tuple[int, int] = (1, 2)) -> dict[str, tuple[int, int]]:
    if durable.attempt().number == 1:
        raise LookupError(item)
    return {item: counts}


@durable.workflow
async def shopping(step: Step, item: str) -> datetime:
    await flaky(item)
    await asyncio.gather(step.sleep(60, name="nap"), step.run(flaky("b", (3, 4)), name="later"))
    return step.now()


@durable.workflow
async def small(_step: Step, number: int) -> int:
    if number % 10 == 0:
        raise ValueError(number)
    return number


@durable.action
async def nothing(number: int) -> None: ...


@durable.workflow
async def large(_step: Step, steps: int) -> None:
    await asyncio.gather(*(nothing(number) for number in range(steps)))


async def _until_backing_off(run: Run[Any], name: str) -> RunStatus:
    async with asyncio.timeout(5):
        while True:
            status = await run.status()
            if any(step.error and step.name == name for step in status.running):
                return status


async def test_a_status_tells_where_a_run_stands(path: Path) -> None:
    clock, engine = ManualClock(), Engine(path)
    clock.install(engine)
    async with engine:
        run = await engine.start(shopping("a"), id="r")
        status = await _until_backing_off(run, flaky.name)
        (step,) = status.running
        assert status == RunStatus(
            id="r",
            name="test_observing:shopping",
            version=0,
            state=RunState.RUNNING,
            args={"item": "a"},
            result=None,
            error=None,
            context=None,
            running=[step],
            parent_id=None,
            generation=0,
            created_at=NOW,
            started_at=NOW,
            finished_at=None,
        )
        assert step.error is not None
        assert (step.error.type_name, step.error.message) == ("LookupError", "a")
        assert step == StepInfo(
            number=0,
            key="0:0",
            name="test_observing:flaky",
            kind=StepKind.ACTION,
            args={"item": "a"},
            result=None,
            error=step.error,
            state=StepState.PENDING,
            attempts=1,
            started_at=NOW,
            finished_at=None,
            child_run_id=None,
            event_id=None,
        )

        clock.advance(10)
        status = await _until_backing_off(run, "later")
        assert [(s.name, s.kind, s.number) for s in status.running] == [
            ("nap", StepKind.SLEEP, 1),
            ("later", StepKind.ACTION, 2),
        ]
        clock.advance(60)
        ended = await run.result(timeout=5)
        assert ended == NOW + timedelta(seconds=70)
        status = await run.status()
        assert (status.state, status.running, status.error) == (RunState.COMPLETED, [], None)
        assert status.result == ended.isoformat().replace("+00:00", "Z")
        assert status.finished_at == ended

        first, nap, later = [step async for step in run.steps()]
        assert first.result == {"a": [1, 2]}
        assert (first.state, first.attempts, first.error) == (StepState.COMPLETED, 2, None)
        assert (first.started_at, first.finished_at) == (NOW, NOW + timedelta(seconds=10))
        assert (nap.args, nap.result, nap.attempts) == ({"seconds": 60.0}, None, 0)
        assert later.args == {"item": "b", "counts": [3, 4]}
        assert (await engine.list_steps("r")).items == [first, nap, later]


def test_what_is_shown_is_frozen() -> None:
    page = Page[int](items=[1], cursor=None)
    with pytest.raises(AttributeError):
        page.cursor = "5"  # type: ignore[misc]
    error = ErrorInfo("ValueError", "text")
    with pytest.raises(AttributeError):
        error.message = "other"  # type: ignore[misc]


@pytest.mark.slow
async def test_lists_come_in_pages(path: Path) -> None:
    async with Engine(path) as engine:
        ids = [f"r{number:03}" for number in range(RUNS)]
        calls = [small(number) for number in range(RUNS)]
        await asyncio.gather(*(engine.start(c, id=i) for c, i in zip(calls, ids, strict=True)))
        await asyncio.gather(
            *(engine.get(i).result(timeout=5) for i in ids), return_exceptions=True
        )
        page = await engine.list_runs()
        assert ([run.id for run in page.items], page.cursor is None) == (ids[:100], False)
        assert [run.id async for run in engine.iter_runs()] == ids
        assert [run.id async for run in engine.iter_runs(order="desc")] == ids[::-1]
        failed = [run.id async for run in engine.iter_runs(state="failed")]
        assert failed == ids[::10]
        assert [run.id async for run in engine.iter_runs(state=RunState.FAILED)] == failed
        assert [run.id async for run in engine.iter_runs(name=small.name, state="pending")] == []
        assert [run.id async for run in engine.iter_runs(name="small")] == []
        assert [run.id async for run in engine.iter_runs(parent="r000")] == []
        assert len((await engine.list_runs(limit=1000)).items) == RUNS
        whole = await engine.list_runs(limit=RUNS)
        assert (len(whole.items), whole.cursor) == (RUNS, None)


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages_stay_right_while_runs_are_added(order: Order, path: Path) -> None:
    async with Engine(path) as engine:
        old = [f"old{number}" for number in range(7)]
        new = [f"new{number}" for number in range(4)]
        for run_id in old:
            await engine.start(small(1), id=run_id)
        found: list[str] = []
        cursor: str | None = None
        added = iter(new)
        while True:
            page = await engine.list_runs(limit=2, order=order, cursor=cursor)
            found += [run.id for run in page.items]
            if (another := next(added, None)) is not None:
                await engine.start(small(1), id=another)
            if page.cursor is None:
                break
            cursor = page.cursor
        assert found == (old + new if order == "asc" else old[::-1])


async def test_a_cursor_is_of_no_use_in_the_other_order(path: Path) -> None:
    async with Engine(path) as engine:
        for _ in range(3):
            await engine.start(small(1))
        page = await engine.list_runs(limit=1, order="desc")
        with pytest.raises(ValueError, match="in the same order"):
            await engine.list_runs(limit=1, cursor=page.cursor)
        assert (await engine.list_runs(limit=2, order="desc", cursor=page.cursor)).cursor is None


async def test_steps_come_in_pages(path: Path) -> None:
    async with Engine(path) as engine:
        run = await engine.start(large(230))
        await run.result(timeout=5)
        assert [step.number async for step in run.steps()] == list(range(230))
        backwards = [step.args async for step in engine.iter_steps(run.id, order="desc")]
        assert backwards == [{"number": number} for number in range(229, -1, -1)]
        page = await engine.list_steps(run.id, limit=50)
        page = await engine.list_steps(run.id, limit=50, cursor=page.cursor)
        assert [step.number for step in page.items] == list(range(50, 100))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"order": "up"}, ValueError, "order is 'asc' or 'desc', not 'up'"),
        ({"limit": 0}, ValueError, "limit is from 1 to 1000, not 0; use iter_"),
        ({"limit": 1001}, ValueError, "limit is from 1 to 1000, not 1001"),
        ({"limit": "5"}, TypeError, "limit is a whole number, not '5'"),
        ({"cursor": "next"}, ValueError, "'next' is no cursor of such a page: pass Page.cursor"),
        ({"cursor": "-1"}, ValueError, "is no cursor"),
        ({"cursor": "9" * 19}, ValueError, "is no cursor"),
        ({"cursor": 5}, ValueError, "5 is no cursor"),
    ],
)
async def test_a_wrong_page_is_refused(
    options: dict[str, Any], error: type[Exception], message: str, path: Path
) -> None:
    async with Engine(path) as engine:
        with pytest.raises(error, match=message):
            await engine.list_runs(**options)
        with pytest.raises(error, match=message):
            await engine.list_steps("r", **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"state": "done"}, ValueError, "state is one of pending, running, .*, not 'done'"),
        ({"name": small}, TypeError, "name= is text"),
        ({"name": "\ud800"}, ValueError, "lone surrogate"),
        ({"parent": 5}, TypeError, "a run's id is text, not 5"),
    ],
)
async def test_a_wrong_filter_is_refused(
    options: dict[str, Any], error: type[Exception], message: str, path: Path
) -> None:
    async with Engine(path) as engine:
        with pytest.raises(error, match=message):
            await engine.list_runs(**options)
        with pytest.raises(error, match=message):
            await anext(engine.iter_runs(**options))
