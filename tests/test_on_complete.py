"""``start(on_complete=)``: what is owed when a run has ended."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from clock import ManualClock
from faults import MONTH_S, Disk, Fault, crashing, once_available, opened
from waiting import WAIT_S_MAX, until, until_open, until_state

import durable
from durable import (
    ArgumentError,
    Canceled,
    Completion,
    Engine,
    Failure,
    NonRetryable,
    PayloadTooLarge,
    Retry,
    RunNotFoundError,
    RunState,
    Step,
    Success,
    Transaction,
    registry,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class World:
    """What was called, and what is to fail."""

    def __init__(self) -> None:
        self.heard: list[Completion] = []
        self.calls: Counter[str] = Counter()
        self.failures_left = 0
        self.cleaned: list[bool] = []


world = World()


@pytest.fixture(autouse=True)
def _new_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_on_complete.world", World())


def maybe_fail(name: str) -> None:
    world.calls[name] += 1
    if world.failures_left:
        world.failures_left -= 1
        raise ValueError(f"not yet: {world.failures_left} more")


@durable.action
async def tell(completion: Completion) -> None:
    maybe_fail("tell")
    world.heard.append(completion)


@durable.mutation
async def record(tx: Transaction, completion: Completion) -> None:
    await tx.execute("INSERT INTO heard (run_id, kind) VALUES (?, ?)", completion.run_id, "x")
    maybe_fail("record")
    await tx.execute(
        "UPDATE heard SET kind = ? WHERE run_id = ?", completion.outcome.kind, completion.run_id
    )


@durable.workflow
async def follow_up(_step: Step, completion: Completion) -> str:
    await tell(completion)
    return completion.outcome.kind


@durable.action
async def work(number: int) -> int:
    if number == 13:
        raise ValueError("unlucky")
    return number + 1


@durable.workflow
async def job(step: Step, number: int) -> dict[str, int]:
    if number == 99:
        await step.sleep(MONTH_S)
    return {"result": await work(number)}


Either: TypeAlias = "durable.Action[Any, None] | durable.Mutation[Any, None]"
BOTH = pytest.mark.parametrize("callback", [tell, record], ids=["action", "mutation"])


async def until_heard(count: int) -> list[Completion]:
    await until(lambda: len(world.heard) >= count)
    return world.heard


async def heard_in_table(engine: Engine) -> list[tuple[str, str]]:
    async with engine.transaction() as tx:
        rows = await tx.fetch_all("SELECT run_id, kind FROM heard ORDER BY rowid")
    return [(row["run_id"], row["kind"]) for row in rows]


async def make_table(engine: Engine) -> None:
    async with engine.transaction() as tx:
        await tx.execute("CREATE TABLE IF NOT EXISTS heard (run_id TEXT, kind TEXT)")


async def until_paid(engine: Engine) -> None:
    """Wait until nothing is owed any more, and durable's own runs are gone."""
    async with asyncio.timeout(WAIT_S_MAX):
        while engine.statistics().live_runs:  # noqa: ASYNC110  it has no event
            await asyncio.sleep(0)


# --- what is called ------------------------------------------------------------------------------


async def test_it_is_told_how_the_run_has_ended(path: Path) -> None:
    async with Engine(path) as engine:
        context = {"customer": "Ada", "tags": [1, None]}
        good = await engine.start(job(1), id="good", on_complete=tell, context=context)
        [completion] = await until_heard(1)
        assert completion == Completion(
            run_id="good",
            name="test_on_complete:job",
            outcome=Success({"result": 2}),
            context=context,
        )
        assert (await good.status()).context == context
        await engine.start(job(13), on_complete=tell)
        completion = (await until_heard(2))[1]
        assert isinstance(completion.outcome, Failure)
        assert completion.outcome.error.type_name == "ValueError"
        assert completion.outcome.error.message == "unlucky"
        assert completion.context is None


@pytest.mark.parametrize("is_begun", [False, True])
async def test_a_cancelled_run_has_ended_too(path: Path, is_begun: bool) -> None:
    async with Engine(path) as engine:
        delay = None if is_begun else MONTH_S
        run = await engine.start(job(99), on_complete=tell, run_after=delay)
        if is_begun:
            await until_open(run)
        await run.cancel()
        [completion] = await until_heard(1)
        assert completion.outcome == Canceled()
        assert completion.outcome.kind == "canceled"


async def test_two_cancels_of_a_run_that_has_not_begun_are_one_end(path: Path) -> None:
    async with Engine(path) as engine:
        await make_table(engine)
        run = await engine.start(job(1), id="r", run_after=MONTH_S, on_complete=record)
        assert any(await asyncio.gather(run.cancel(), run.cancel()))
        await until(lambda: world.calls["record"])
        await until_paid(engine)
        assert await heard_in_table(engine) == [("r", "canceled")]
        assert await run.cancel() is False


async def test_a_cancel_that_has_looked_before_another_ended_the_run_ends_it_no_more(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Engine(path) as engine:
        await make_table(engine)
        run = await engine.start(job(1), id="r", run_after=MONTH_S, on_complete=record)
        journal: Any = engine._journal
        load, may_see = journal.load_status, asyncio.Event()

        async def see_late(run_id: str) -> Any:  # noqa: ANN401
            found = await load(run_id)
            await may_see.wait()
            return found

        with monkeypatch.context() as patch:
            patch.setattr(journal, "load_status", see_late)
            late = asyncio.create_task(run.cancel())
            await asyncio.sleep(0)
        assert await run.cancel() is True
        may_see.set()
        assert await late is False
        await until(lambda: world.calls["record"])
        await until_paid(engine)
        assert await heard_in_table(engine) == [("r", "canceled")]


async def test_a_mutation_is_called_in_one_transaction_with_its_record(path: Path) -> None:
    async with Engine(path) as engine:
        await make_table(engine)
        async with asyncio.TaskGroup() as starts:
            for number in range(20):
                starts.create_task(engine.run(job(number), id=str(number), on_complete=record)) if (
                    number != 13
                ) else None
        async with asyncio.timeout(WAIT_S_MAX):
            while len(await heard_in_table(engine)) < 19:
                pass
        assert {kind for _, kind in await heard_in_table(engine)} == {"success"}
        assert world.calls["record"] == 19


async def test_a_workflow_is_started_once(path: Path) -> None:
    async with Engine(path) as engine:
        await engine.run(job(1), on_complete=follow_up)
        await until_heard(1)
        runs = [run async for run in engine.iter_runs(name=follow_up.name)]
        assert len(runs) == 1
        assert await engine.get(runs[0].id).result(timeout=WAIT_S_MAX) == "success"
        assert runs[0].parent_id is None


async def test_it_is_in_no_list_and_leaves_nothing(path: Path) -> None:
    async with Engine(path) as engine:
        run = await engine.start(job(1), on_complete=tell)
        await until_heard(1)
        await until_paid(engine)
        assert [each.id async for each in engine.iter_runs()] == [run.id]
        assert (await run.status()).callback_error is None
        async with engine.transaction() as tx:
            assert await tx.fetch_value("SELECT count(*) FROM durable_run") == 1
            assert await tx.fetch_value("SELECT count(*) FROM durable_step") == 1


# --- failing -------------------------------------------------------------------------------------


@BOTH
async def test_it_is_tried_again_until_it_succeeds(
    path: Path, clock: ManualClock, callback: Either
) -> None:
    world.failures_left = 8
    async with opened(path, clock) as engine:
        await make_table(engine)
        run = await engine.start(job(1), on_complete=callback)
        assert await run.result(timeout=WAIT_S_MAX) == {"result": 2}
        for left in range(7, -1, -1):
            await until(lambda: world.failures_left == left)  # noqa: B023  at once
            async with asyncio.timeout(WAIT_S_MAX):
                while (error := (await run.status()).callback_error) is None or (
                    error.message != f"not yet: {left} more"
                ):
                    pass
            status = await run.status()
            assert status.state is RunState.COMPLETED
            assert status.result == {"result": 2}
            await until(lambda: engine._runner is not None and engine._runner.pump.is_idle)
            await let_back_off(engine)
            clock.advance(60)
        async with asyncio.timeout(WAIT_S_MAX):
            while (await run.status()).callback_error is not None:
                clock.advance(1)
        assert sum(world.calls.values()) == 9
        if callback is record:
            assert await heard_in_table(engine) == [(run.id, "success")]
        else:
            assert len(world.heard) == 1


@durable.action
async def refuse(_completion: Completion) -> None:
    world.calls["refuse"] += 1
    raise NonRetryable("no")


@durable.mutation
async def refuse_in_transaction(_tx: Transaction, _completion: Completion) -> None:
    world.calls["refuse_in_transaction"] += 1
    raise NonRetryable("no")


@pytest.mark.parametrize("callback", [tell, record, refuse, refuse_in_transaction])
async def test_one_that_always_fails_does_not_make_the_journal_grow(
    path: Path, clock: ManualClock, callback: Either
) -> None:
    world.failures_left = 100
    async with opened(path, clock) as engine:
        await make_table(engine)
        await engine.run(job(1), on_complete=callback)
        counts: list[int] = []
        for calls in range(1, 9):
            await until(lambda: sum(world.calls.values()) == calls)  # noqa: B023  at once
            await let_back_off(engine)
            counts.append(await steps_count(engine))
            clock.advance(60)
        assert len(set(counts)) == 1


@durable.action
async def hang(completion: Completion) -> None:
    world.calls["hang"] += 1
    if world.calls["hang"] < 3:
        await asyncio.Event().wait()
    world.heard.append(completion)


async def test_one_that_its_process_has_died_of_too_often_is_called_again(
    path: Path, clock: ManualClock
) -> None:
    for calls in (1, 2):
        async with crashing(path, clock, max_interruptions=1) as engine:
            await engine.start(job(1), id="it", on_complete=hang)
            await until(lambda: world.calls["hang"] == calls)  # noqa: B023  at once
    async with opened(path, clock, max_interruptions=1) as engine:
        async with asyncio.timeout(WAIT_S_MAX):
            while (error := (await engine.status("it")).callback_error) is None:
                pass
        assert error.type_name == "durable.StepInterrupted"
        await let_back_off(engine)
        assert world.calls["hang"] == 2
        clock.advance(1)
        assert [completion.run_id for completion in await until_heard(1)] == ["it"]


async def steps_count(engine: Engine) -> int:
    """Return how many steps are in the journal, durable's own included."""
    journal: Any = engine._journal
    found: list[tuple[int]] = await journal._read(
        lambda db: db.execute("SELECT count(*) FROM durable_step").fetchall()
    )
    return found[0][0]


async def let_back_off(engine: Engine) -> None:
    """Wait until all that has failed waits for its next attempt."""
    assert engine._runner is not None
    runner = engine._runner
    await runner.writer.wait_until_idle()
    for _ in range(20):
        await asyncio.sleep(0)
    await runner.writer.wait_until_idle()


@BOTH
async def test_it_outlives_the_process(path: Path, callback: Either) -> None:
    """And so does that it has failed: the next owner keeps to its due time."""
    clock = ManualClock()
    world.failures_left = 1
    async with crashing(path, clock) as engine:
        await make_table(engine)
        run = await engine.start(job(1), id="it", on_complete=callback)
        await run.result(timeout=WAIT_S_MAX)
        await until(lambda: sum(world.calls.values()) == 1)
        await let_back_off(engine)
    async with opened(path, clock) as engine:
        await until(lambda: engine.statistics().live_runs == 1)
        await let_back_off(engine)
        assert sum(world.calls.values()) == 1
        clock.advance(1)
        await until_paid(engine)
        assert sum(world.calls.values()) == 2
        if callback is record:
            assert await heard_in_table(engine) == [("it", "success")]
        else:
            assert [completion.run_id for completion in world.heard] == ["it"]


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("failures", [0, 1])
@pytest.mark.parametrize("number", range(1, 9))
async def test_whichever_commit_fails_a_mutation_has_its_effect_once(
    path: Path, number: int, failures: int, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.failures_left = failures
    disk = Disk()
    async with Engine(path) as engine:
        await make_table(engine)
    disk.install(monkeypatch)
    disk.faults[("commit", number)] = fault
    async with Engine(path, retry=Retry(initial_backoff=0)) as engine:
        start = partial(engine.start, job(1), id="it", on_complete=record)
        run = await once_available(disk, start)
        await once_available(disk, partial(run.result, WAIT_S_MAX))

        async def until_called() -> None:
            async with asyncio.timeout(WAIT_S_MAX):
                while ("it", "success") not in await heard_in_table(engine):
                    pass

        await once_available(disk, until_called)
        disk.faults.clear()  # To look is a transaction too.
        await until_paid(engine)
        heard = await once_available(disk, partial(heard_in_table, engine))
        assert heard == [("it", "success")]


async def test_code_that_is_not_there_is_waited_for_and_said(
    path: Path, forget: Callable[[Any], None]
) -> None:
    @durable.action(name="a callback that goes away")
    async def gone(completion: Completion) -> None:
        world.heard.append(completion)

    async with crashing(path, max_parallelism=0) as engine:
        run = await engine.start(job(99), id="it", on_complete=gone)
        await run.cancel()
        await until_state(run, RunState.CANCELED)
    forget(gone)
    async with Engine(path) as engine:
        run = engine.get("it")
        async with asyncio.timeout(WAIT_S_MAX):
            while (error := (await run.status()).callback_error) is None:
                pass
        assert "a callback that goes away" in error.message
    registry.register(gone)
    async with Engine(path) as engine:
        await until_heard(1)
        await until_paid(engine)
        assert (await engine.status("it")).callback_error is None


@pytest.mark.parametrize("by", ["owner", "client"])
async def test_what_does_not_take_a_completion_any_more_is_said_and_resumed(
    path: Path, forget: Callable[[Any], None], by: str
) -> None:
    name = f"a callback that changes {by}"

    @durable.action(name=name)
    async def before(completion: Completion) -> None:
        raise NotImplementedError

    async with crashing(path, max_parallelism=0) as engine:
        run = await engine.start(job(99), id="it", on_complete=before)
        await run.cancel()
        await until_state(run, RunState.CANCELED)
    forget(before)

    @durable.action(name=name)
    async def wrong(completion: int) -> None:
        raise NotImplementedError

    async with Engine(path) as engine, Engine(path, worker=False) as client:
        asking = engine if by == "owner" else client
        async with asyncio.timeout(WAIT_S_MAX):
            while (error := (await engine.status("it")).callback_error) is None:
                pass
        assert "does not take a Completion" in error.message
        forget(wrong)

        @durable.action(name=name)
        async def mended(completion: Completion) -> None:
            world.heard.append(completion)

        async with asyncio.timeout(WAIT_S_MAX):
            while not await asking.resume("it"):
                pass
        await until_heard(1)
        await until_paid(engine)
        assert (await engine.status("it")).callback_error is None
        assert await asking.resume("it") is False


async def test_a_result_and_a_context_need_not_fit_into_one_value(path: Path) -> None:
    async with Engine(path, max_payload=1_000) as engine:
        for on_complete in (tell, tell_in_a_transaction):
            run = await engine.start(large(900), on_complete=on_complete, context="y" * 900)
            assert len(await run.result(timeout=WAIT_S_MAX)) == 900
        await until_heard(2)
        for heard in world.heard:
            assert heard.outcome == Success("x" * 900)
            assert heard.context == "y" * 900


@durable.workflow
async def large(_step: Step, size: int) -> str:
    return "x" * size


@durable.mutation
async def tell_in_a_transaction(tx: Transaction, completion: Completion) -> None:
    world.heard.append(completion)


# --- with other calls ----------------------------------------------------------------------------


@durable.action
async def clean(completion: Completion) -> None:
    world.cleaned.append(await Engine.current().cleanup(completion.run_id))


async def test_it_may_clean_up_its_run(path: Path) -> None:
    async with Engine(path) as engine:
        run = await engine.start(job(1), on_complete=clean)
        await until(lambda: world.cleaned)
        assert world.cleaned == [True]
        with pytest.raises(RunNotFoundError):
            await run.status()
        await until_paid(engine)
        assert world.cleaned == [True]


async def test_a_restarted_run_owes_it_again(path: Path) -> None:
    async with Engine(path) as engine:
        run = await engine.start(job(1), on_complete=tell)
        await until_heard(1)
        await run.restart()
        await until_heard(2)
        await until_paid(engine)
        assert [each.outcome.kind for each in world.heard] == ["success", "success"]


async def test_a_start_in_a_transaction_owes_it_too(path: Path) -> None:
    async with Engine(path) as engine:
        async with engine.transaction() as tx:
            await engine.start(job(1), id="it", on_complete=tell, context="tx", tx=tx)
        [completion] = await until_heard(1)
        assert (completion.run_id, completion.context) == ("it", "tx")


async def test_an_idempotent_start_owes_it_once(path: Path) -> None:
    async with Engine(path) as engine:
        for _ in range(3):
            await engine.start(job(1), id="it", on_complete=tell)
        await until_heard(1)
        await until_paid(engine)
        assert len(world.heard) == 1


# --- bad input -----------------------------------------------------------------------------------


@durable.action
async def no_arguments() -> None: ...


@durable.action
async def two_arguments(completion: Completion, more: int) -> None: ...


@durable.action
async def something_else(completion: int) -> None: ...


@durable.query
async def a_query(tx: Transaction, completion: Completion) -> None: ...


@pytest.mark.parametrize(
    "callback",
    [no_arguments, two_arguments, something_else, a_query, work(1), print, "tell"],
    ids=repr,
)
async def test_what_cannot_be_called_back_is_refused(
    path: Path,
    callback: Any,  # noqa: ANN401  anything
) -> None:
    async with Engine(path) as engine:
        with pytest.raises(TypeError, match="on_complete"):
            await engine.start(job(1), on_complete=callback)
        assert not [run async for run in engine.iter_runs()]
        if asyncio.iscoroutine(callback):
            callback.close()


async def test_a_context_has_to_have_a_json_form_and_a_bound(path: Path) -> None:
    async with Engine(path, max_payload=100) as engine:
        with pytest.raises(ArgumentError, match="context"):
            await engine.start(job(1), context=object())
        with pytest.raises(PayloadTooLarge, match="context"):
            await engine.start(job(1), context="x" * 200)
        assert not [run async for run in engine.iter_runs()]
