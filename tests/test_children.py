"""A workflow's call that a body awaits is a run of its own: its child."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from clock import START_MS, ManualClock
from families import check_families, children_of, steps_of, the_child
from faults import crashing, opened
from waiting import WAIT_S_MAX, until, until_state, until_step
from world import echo, echoing, held, world

import durable
from durable import (
    ArgumentError,
    Engine,
    PayloadTooLarge,
    RunCanceled,
    RunFailed,
    RunState,
    Step,
    StepKind,
    StepState,
)

if TYPE_CHECKING:
    from pathlib import Path

NAP_S = 10.0


class OwnError(Exception):
    """An exception of this module."""


@dataclass
class Receipt:
    """A result that has to be rebuilt from JSON."""

    order: str
    pair: tuple[int, int]


@durable.workflow
async def calling(_step: Step) -> str:
    return "got " + await held("it")


# --- what a child is -----------------------------------------------------------------------------


@pytest.mark.both_loops
async def test_a_child_is_a_run_of_its_own_and_a_step_of_its_parent(path: Path) -> None:
    async with opened(path) as engine:
        run = await engine.start(calling(), id="parent")
        await until(lambda: world.begun)
        child = await the_child(engine, "parent")
        assert (child.name, child.parent_id, child.state) == (
            held.name,
            "parent",
            RunState.RUNNING,
        )
        assert child.args == {"text": "it"}
        status = await run.status()
        (step,) = status.running
        assert (step.kind, step.name, step.args) == (StepKind.WORKFLOW, held.name, {"text": "it"})
        assert (step.child_run_id, step.state) == (child.id, StepState.RUNNING)
        assert step.started_at is not None
        assert step.finished_at is None
        assert status.parent_id is None
        world.may_end.set()
        assert await run.result(timeout=WAIT_S_MAX) == "got it"
        assert await engine.get(child.id).result(timeout=WAIT_S_MAX) == "it"
        (step,) = await steps_of(engine, "parent")
        assert (step.state, step.result, step.child_run_id) == (
            StepState.COMPLETED,
            "it",
            child.id,
        )
        await check_families(engine)


async def test_a_body_knows_its_parent(path: Path) -> None:
    @durable.workflow(name="children.knowing")
    async def knowing(step: Step, depth: int) -> list[str | None]:
        above = [] if depth == 0 else await knowing(depth - 1)
        return [step.parent_id, *above]

    async with opened(path) as engine:
        run = await engine.start(knowing(2), id="top")
        child = (await run.result(timeout=WAIT_S_MAX))[1:]
        assert child[0] == "top"
        statuses = {status.id: status async for status in engine.iter_runs()}
        assert child == ["top", statuses[str(child[1])].id]
        assert statuses[str(child[1])].parent_id == "top"


async def test_runs_are_listed_by_their_parent_page_by_page(path: Path) -> None:
    @durable.workflow(name="children.several")
    async def several(_step: Step) -> list[str]:
        return await asyncio.gather(*(echoing(f"{n}") for n in range(7)))

    async with opened(path) as engine:
        await engine.run(several(), id="a")
        await engine.run(several(), id="b")
        page = await engine.list_runs(parent="a", limit=5)
        more = await engine.list_runs(parent="a", limit=5, cursor=page.cursor)
        assert [status.args["text"] for status in page.items + more.items] == [*"0123456"]
        assert {status.parent_id for status in page.items + more.items} == {"a"}
        assert more.cursor is None
        assert (await engine.list_runs(parent="c")).items == []
        assert len((await engine.list_runs(parent="b", state="completed", name=echoing.name)).items)
        await check_families(engine)


async def test_each_await_of_one_call_is_a_child(path: Path) -> None:
    @durable.workflow(name="children.again")
    async def again(step: Step) -> list[str]:
        call = echoing("x")
        return [await call, await call, await step.run(call), await asyncio.create_task(call)]

    async with opened(path) as engine:
        assert await engine.run(again(), id="it") == ["x"] * 4
        assert len(await children_of(engine, "it")) == 4
        assert world.begun == {"x": 4}
        await check_families(engine)


async def test_the_whole_of_asyncio_works_with_children(path: Path) -> None:
    @durable.workflow(name="children.asyncio")
    async def vocabulary(_step: Step) -> list[str]:
        got = list(await asyncio.gather(echoing("a"), echoing("b")))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(echoing("c")), group.create_task(echoing("d"))]
        got += [task.result() for task in tasks]
        async with asyncio.timeout(60):
            got.append(await echoing("e"))
        got.append(await asyncio.wait_for(echoing("f"), 60))
        got.append(await asyncio.shield(asyncio.ensure_future(echoing("g"))))
        done, _ = await asyncio.wait([asyncio.ensure_future(echoing("h"))])
        got += [task.result() for task in done]
        return got

    async with opened(path) as engine:
        assert await engine.run(vocabulary(), id="it") == [*"abcdefgh"]
        assert world.begun == dict.fromkeys("abcdefgh", 1)
        await check_families(engine)


async def test_a_step_has_its_own_name_and_the_child_its_own(path: Path) -> None:
    @durable.workflow(name="children.naming")
    async def naming(step: Step) -> str:
        return await step.run(echoing("x"), name="first echoing")

    async with opened(path) as engine:
        await engine.run(naming(), id="it")
        (step,) = await steps_of(engine, "it")
        assert step.name == "first echoing"
        assert (await the_child(engine, "it")).name == echoing.name


async def test_a_child_has_the_version_of_the_definition_that_was_called(path: Path) -> None:
    @durable.workflow(name="children.versioned", version=1)
    async def first(_step: Step) -> str:
        return "first"

    @durable.workflow(name="children.versioned", version=2)
    async def second(_step: Step) -> str:
        return "second"

    @durable.workflow(name="children.of_versions")
    async def both(_step: Step) -> list[str]:
        return [await first(), await second()]

    async with opened(path) as engine:
        assert await engine.run(both(), id="it") == ["first", "second"]
        assert [child.version for child in await children_of(engine, "it")] == [1, 2]


async def test_a_body_gets_the_decoded_result_live_and_on_replay(
    path: Path,
) -> None:
    @durable.workflow(name="children.receipt")
    async def making(_step: Step, order: str) -> Receipt:
        return Receipt(order, (1, 2))

    seen: list[Receipt] = []

    @durable.workflow(name="children.taking")
    async def taking(step: Step) -> None:
        seen.append(await making("o"))
        await step.sleep(NAP_S)

    clock = ManualClock()
    async with opened(path, clock) as engine:
        run = await engine.start(taking(), id="it")
        await until_step(run, "sleep", StepState.RUNNING)
    async with opened(path, clock) as engine:
        clock.advance(NAP_S)
        await engine.get("it").result(timeout=WAIT_S_MAX)
        assert len(await children_of(engine, "it")) == 1
    assert seen == [Receipt("o", (1, 2))] * 2


# --- nesting -------------------------------------------------------------------------------------


@durable.workflow
async def nested(_step: Step, depth: int) -> int:
    await echo(f"{depth}")
    return 0 if depth == 0 else 1 + await nested(depth - 1)


@pytest.mark.both_loops
async def test_children_of_children_hold_no_slot_while_they_wait(path: Path) -> None:
    async with opened(path, max_parallelism=1) as engine:
        assert await engine.run(nested(5), id="top") == 5
        assert world.begun == {f"{depth}": 1 for depth in range(6)}
        run_id = "top"
        for _ in range(5):
            run_id = (await the_child(engine, run_id)).id
        assert await children_of(engine, run_id) == []
        await check_families(engine)


async def test_recursion_may_be_deep(path: Path) -> None:
    async with opened(path) as engine:
        assert await engine.run(nested(50), id="top") == 50
        await check_families(engine)


async def test_a_tree_of_recursion_comes_to_its_result(path: Path) -> None:
    @durable.workflow(name="children.fibonacci")
    async def fibonacci(_step: Step, n: int) -> int:
        if n < 2:
            return n
        one, two = await asyncio.gather(fibonacci(n - 1), fibonacci(n - 2))
        return one + two

    async with opened(path) as engine:
        assert await engine.run(fibonacci(8)) == 21
        await check_families(engine)


@pytest.mark.slow
async def test_a_thousand_children_take_few_commits(path: Path) -> None:
    @durable.workflow(name="children.thousand")
    async def thousand(_step: Step) -> int:
        return len(set(await asyncio.gather(*(echoing(f"{n}") for n in range(1_000)))))

    async with opened(path, max_parallelism=50) as engine:
        commits = engine.statistics().commits
        assert await engine.run(thousand(), id="it") == 1_000
        assert engine.statistics().commits - commits < 500
        assert max(world.begun.values()) == 1
        await check_families(engine)


# --- failures ------------------------------------------------------------------------------------


@durable.action
async def raise_own(text: str) -> None:
    raise OwnError(text)


@durable.workflow
async def failing(_step: Step, kind: str) -> None:
    if kind == "own":
        await raise_own("no")
    if kind == "builtin":
        raise LookupError(kind, 7)


@durable.workflow
async def catching(_step: Step, kind: str) -> list[str]:
    try:
        await failing(kind)
    except RunFailed as failed:
        cause = failed.__cause__
        return [
            failed.run_id,
            failed.error.type_name,
            failed.error.message,
            type(cause).__name__,
            str(cause),
            str(cause.__cause__)[-40:] if cause else "",
        ]
    return []


@pytest.mark.parametrize(
    ("kind", "cause", "type_name", "text"),
    [
        ("own", "OwnError", "test_children.OwnError", "no"),
        ("builtin", "LookupError", "LookupError", "('builtin', 7)"),
    ],
)
async def test_a_child_that_failed_can_be_caught_and_tells_why(
    path: Path, kind: str, cause: str, type_name: str, text: str
) -> None:
    async with opened(path) as engine:
        got = await engine.run(catching(kind), id="it")
        child = await the_child(engine, "it")
        assert got[:5] == [child.id, type_name, text, cause, text]
        assert text in got[5], "the traceback of the original"
        assert child.state is RunState.FAILED
        (step,) = await steps_of(engine, "it")
        assert step.state is StepState.FAILED
        assert step.error is not None
        assert step.error.type_name == "durable.RunFailed"
        await check_families(engine)


async def test_a_failure_that_nobody_catches_fails_all_above(path: Path) -> None:
    @durable.workflow(name="children.above")
    async def above(_step: Step, depth: int) -> None:
        await (failing("own") if depth == 0 else above(depth - 1))

    async with opened(path) as engine:
        run = await engine.start(above(2), id="top")
        with pytest.raises(RunFailed) as caught:
            await run.result(timeout=WAIT_S_MAX)
        assert caught.value.run_id == "top"
        child = await the_child(engine, "top")
        cause = caught.value.__cause__
        assert isinstance(cause, RunFailed)
        assert cause.run_id == child.id
        assert caught.value.error.type_name == "durable.RunFailed"
        assert "OwnError: no" in str(caught.value)
        await check_families(engine)


async def test_a_child_that_was_cancelled_alone_can_be_caught(path: Path) -> None:
    @durable.workflow(name="children.robbed")
    async def robbed(_step: Step) -> str:
        try:
            return await held("it")
        except RunCanceled as canceled:
            return canceled.run_id

    async with opened(path) as engine:
        run = await engine.start(robbed(), id="it")
        await until(lambda: world.begun)
        child = await the_child(engine, "it")
        assert await engine.cancel(child.id) is True
        assert await run.result(timeout=WAIT_S_MAX) == child.id
        (step,) = await steps_of(engine, "it")
        assert step.state is StepState.FAILED
        world.may_end.set()
        await check_families(engine)


async def test_a_canceled_child_that_nobody_catches_fails_its_parent(path: Path) -> None:
    """The parent was not cancelled: it failed, with what its await raised."""
    async with opened(path) as engine:
        run = await engine.start(calling(), id="it")
        await until(lambda: world.begun)
        child = await the_child(engine, "it")
        await engine.cancel(child.id)
        with pytest.raises(RunFailed) as caught:
            await run.result(timeout=WAIT_S_MAX)
        assert isinstance(caught.value.__cause__, RunCanceled)
        assert caught.value.__cause__.run_id == child.id
        world.may_end.set()
        await check_families(engine)


async def test_a_stuck_child_is_waited_for_until_it_can_go_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "fn", _swallowing_a_refusal)
    async with opened(path) as engine:
        run = await engine.start(calling(), id="it")
        child = engine.get((await _first_child(engine, "it")).id)
        await until_state(child, RunState.STUCK)
        assert (await run.status()).state is RunState.RUNNING
        monkeypatch.undo()
        world.may_end.set()
        assert await child.resume() is True
        assert await run.result(timeout=WAIT_S_MAX) == "got it"


async def _swallowing_a_refusal(_step: Step, text: str) -> str:
    try:
        asyncio.get_running_loop().run_in_executor(None, print)
    except durable.NonDeterminismError:
        await asyncio.sleep(NAP_S)
    return text


async def _first_child(engine: Engine, run_id: str) -> durable.RunStatus:
    async with asyncio.timeout(WAIT_S_MAX):
        while not (found := await children_of(engine, run_id)):
            pass
    return found[0]


# --- bad input -----------------------------------------------------------------------------------


@durable.workflow
async def strict(_step: Step, numbers: list[int]) -> int:
    return sum(numbers)


@durable.workflow
async def giving(step: Step, what: str) -> str:
    try:
        if what == "argument":
            await strict([1, "x"])  # type: ignore[list-item]
        elif what == "arity":
            await strict()  # type: ignore[call-arg]
        elif what == "size":
            await echoing("x" * 2_000)
        elif what == "retry":
            await step.run(echoing("x"), retry=durable.Retry())
        elif what == "at most once":
            await step.run(echoing("x"), retry=False)
        elif what == "timeout":
            await step.run(echoing("x"), timeout=1)
        elif what == "both":
            await step.run(echoing("x"), run_after=1, run_at=step.now())
        elif what == "naive":
            await step.run(echoing("x"), run_at=datetime(2030, 1, 1))  # noqa: DTZ001
    except (ArgumentError, PayloadTooLarge, TypeError, ValueError) as exc:
        return f"{type(exc).__name__}: {exc}, then {await echoing('after')}"
    return "nothing"


@pytest.mark.parametrize(
    ("what", "messages"),
    [
        ("argument", ["ArgumentError", "numbers[1]"]),
        ("arity", ["TypeError", "missing a required argument: 'numbers'"]),
        ("size", ["PayloadTooLarge", "max_payload"]),
        ("retry", ["TypeError", "step.run(echoing(...)) takes no retry="]),
        ("at most once", ["TypeError", "step.run(echoing(...)) takes no retry="]),
        ("timeout", ["TypeError", "takes no timeout=", "asyncio.timeout"]),
        ("both", ["ValueError", "not both"]),
        ("naive", ["ValueError", "aware"]),
    ],
)
async def test_bad_input_is_raised_at_the_await_and_can_be_caught(
    path: Path, what: str, messages: list[str]
) -> None:
    """Nothing of it is written, live or on replay."""
    async with opened(path, max_payload=1_000) as engine:
        got = await engine.run(giving(what), id="it")
        assert all(message in got for message in messages), got
        assert got.endswith("then after")
        (child,) = await children_of(engine, "it")
        assert child.args == {"text": "after"}
        assert len(await steps_of(engine, "it")) == 1


async def test_a_result_that_does_not_fit_fails_the_child_and_then_its_parent(path: Path) -> None:
    @durable.workflow(name="children.lying")
    async def lying(_step: Step) -> int:
        return "x"  # type: ignore[return-value]

    @durable.workflow(name="children.believing")
    async def believing(_step: Step) -> str:
        try:
            await lying()
        except RunFailed as failed:
            return failed.error.type_name
        return "nothing"

    async with opened(path) as engine:
        assert await engine.run(believing()) == "durable.ReturnTypeError"
        await check_families(engine)


# --- delays --------------------------------------------------------------------------------------


@durable.workflow
async def delaying(step: Step, at: datetime | None) -> str:
    if at is None:
        return await step.run(echoing("x"), run_after=timedelta(seconds=NAP_S))
    return await step.run(echoing("x"), run_at=at)


@pytest.mark.both_loops
@pytest.mark.parametrize("is_at", [True, False])
async def test_a_child_begins_when_it_is_due_and_not_before(path: Path, is_at: bool) -> None:
    clock = ManualClock()
    at = datetime.fromtimestamp(START_MS / 1000 + NAP_S, UTC) if is_at else None
    async with opened(path, clock) as engine:
        run = await engine.start(delaying(at), id="it")
        step = await until_step(run, echoing.name, StepState.PENDING)
        child = await the_child(engine, "it")
        assert (child.state, child.started_at, child.id) == (
            RunState.PENDING,
            None,
            step.child_run_id,
        )
        clock.advance(NAP_S - 0.001)
        await run.status()
        assert world.begun == {}
        assert (await the_child(engine, "it")).state is RunState.PENDING
        clock.advance(0.001)
        assert await run.result(timeout=WAIT_S_MAX) == "x"
        (step,) = await steps_of(engine, "it")
        due = START_MS + NAP_S * 1000
        child = await the_child(engine, "it")
        for began in (step.started_at, child.started_at):
            assert began is not None
            assert began.timestamp() * 1000 == due
        await check_families(engine)


async def test_a_delay_is_kept_over_a_restart(path: Path) -> None:
    """Neither extended nor skipped; one child all the same."""
    clock = ManualClock()
    async with opened(path, clock) as engine:
        run = await engine.start(delaying(None), id="it")
        await until_step(run, echoing.name, StepState.PENDING)
    clock.advance(NAP_S / 2)
    async with opened(path, clock) as engine:
        await until(lambda: engine.statistics().live_runs)
        clock.advance(NAP_S / 2 - 0.001)
        await engine.status("it")
        assert world.begun == {}
        clock.advance(0.001)
        assert await engine.get("it").result(timeout=WAIT_S_MAX) == "x"
        assert len(await children_of(engine, "it")) == 1
        assert world.begun == {"x": 1}


async def test_a_delayed_step_runs_once_its_child_does(path: Path) -> None:
    @durable.workflow(name="children.late")
    async def late(step: Step) -> str:
        return await step.run(held("x"), run_after=NAP_S)

    clock = ManualClock()
    async with opened(path, clock) as engine:
        run = await engine.start(late(), id="it")
        await until_step(run, held.name, StepState.PENDING)
        clock.advance(NAP_S)
        step = await until_step(run, held.name, StepState.RUNNING)
        assert step.started_at is not None
        await until(lambda: world.begun)
        world.may_end.set()
        assert await run.result(timeout=WAIT_S_MAX) == "x"


async def test_a_time_in_the_past_is_no_delay(path: Path) -> None:
    clock = ManualClock()
    async with opened(path, clock) as engine:
        past = datetime.fromtimestamp(START_MS / 1000 - NAP_S, UTC)
        assert await engine.run(delaying(past)) == "x"


# --- replay --------------------------------------------------------------------------------------


async def test_a_changed_call_of_a_child_is_a_divergence(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @durable.workflow(name="children.changing")
    async def changing(_step: Step) -> str:
        return await held("old")

    async def changed(_step: Step) -> str:
        return await held("new")

    async with crashing(path) as engine:
        run = await engine.start(changing(), id="it")
        await until(lambda: world.begun)
    monkeypatch.setattr(changing, "fn", changed)
    async with opened(path) as engine:
        status = await until_state(engine.get("it"), RunState.STUCK)
        assert status.error is not None
        assert '"old"' in status.error.message
        assert '"new"' in status.error.message
        assert "workflow" in status.error.message
        world.may_end.set()
        (child,) = await children_of(engine, "it")
        assert await engine.get(child.id).result(timeout=WAIT_S_MAX) == "old"
        assert (await engine.status("it")).state is RunState.STUCK
        monkeypatch.undo()
        assert await engine.resume("it") is True
        assert await engine.get(run.id).result(timeout=WAIT_S_MAX) == "old"
        assert len(await children_of(engine, "it")) == 1


async def test_unstable_arguments_are_not_compared(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = iter(["first", "second"])

    @durable.workflow(name="children.unstable")
    async def unstable(step: Step) -> str:
        return await step.run(held(next(names)), unstable_args=True)

    async with crashing(path) as engine:
        await engine.start(unstable(), id="it")
        await until(lambda: world.begun)
    async with opened(path) as engine:
        world.may_end.set()
        assert await engine.get("it").result(timeout=WAIT_S_MAX) == "first"
        assert (await the_child(engine, "it")).args == {"text": "first"}
