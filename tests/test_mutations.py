"""Mutations: what they write and their steps' outcomes are one commit."""

# ruff: noqa: PT012  what raises is the block, as a whole

from __future__ import annotations

import asyncio
import sqlite3
from typing import TYPE_CHECKING, Any

import bank
import pytest
from bank import ALL_KINDS, INSERT, adding, all_kinds, create, hooking, opened, texts, world
from clock import ManualClock
from faults import MONTH_S
from waiting import WAIT_S_MAX, until, until_parked, until_step

import durable
from durable import (
    Attempt,
    Engine,
    JournalUnavailableError,
    NotInWorkflowError,
    Retry,
    ReturnTypeError,
    RunCanceled,
    RunConflictError,
    RunFailed,
    Step,
    StepFailed,
    StepKind,
    StepState,
    Transaction,
    TransactionError,
)

if TYPE_CHECKING:
    from pathlib import Path

OR_ROLLBACK = "INSERT OR ROLLBACK INTO entry (text) VALUES ('there')"


class Refused(Exception):
    """What a mutation raises that its module names."""


async def outcome_of(engine: Engine, name: str) -> tuple[StepState, str | None]:
    """Return how the latest step of that name in the latest run ended."""
    (run,) = (await engine.list_runs(order="desc", limit=1)).items
    steps = [step async for step in engine.iter_steps(run.id) if step.name == name]
    error = steps[-1].error
    return steps[-1].state, None if error is None else error.type_name


# --- as a step -----------------------------------------------------------------------------------


async def test_each_kind_of_step_does_its_part(store: Path | str) -> None:
    async with opened(store) as engine:
        run = await engine.start(all_kinds())
        assert sorted(await run.result(timeout=WAIT_S_MAX)) == sorted(ALL_KINDS)
        assert sorted(await texts(engine)) == sorted(ALL_KINDS)
        steps = [step async for step in run.steps()]
        kinds = [step.kind for step in steps]
        assert kinds.count(StepKind.MUTATION) == 5
        assert kinds.count(StepKind.QUERY) == 2
        assert steps[1].args == {"text": "a"}
        assert steps[1].result == 1
        assert steps[1].attempts == 1
        assert steps[1].started_at is not None
        assert steps[1].finished_at is not None
        assert (steps[2].state, steps[2].result) == (StepState.FAILED, None)
        assert not any("tx" in step.args for step in steps)


async def test_step_run_gives_it_options(store: Path | str) -> None:
    @durable.workflow(name="test_step_run_gives_it_options")
    async def flow(step: Step) -> int:
        later = bank.add("later")
        return await step.run(
            later, name="put", retry=Retry(), timeout=5, run_after=0.01, unstable_args=True
        )

    async with opened(store) as engine:
        run = await engine.start(flow())
        assert await run.result(timeout=WAIT_S_MAX) == 1
        (step,) = [step async for step in run.steps()]
        assert (step.name, step.kind) == ("put", StepKind.MUTATION)


@pytest.mark.parametrize("retry", [True, False, Retry(max_attempts=5, initial_backoff=0)])
async def test_it_is_never_retried_after_an_exception(path: Path, retry: Retry | bool) -> None:
    @durable.workflow(name="test_it_is_never_retried", retry=Retry(), retry_actions_by_default=True)
    async def flow(step: Step) -> str:
        try:
            await step.run(bank.add_and_fail("a"), retry=retry)
        except LookupError as exc:
            return str(exc.args[0])
        return "nothing raised"

    async with opened(path, retry_actions_by_default=True) as engine:
        assert await engine.run(flow()) == "a"
        assert world.begun == ["a"]
        assert await texts(engine) == []


async def test_an_exception_reaches_the_body_and_its_writes_nobody(store: Path | str) -> None:
    raised: list[Any] = [
        Refused("mine"),
        ZeroDivisionError("builtin"),
        sqlite3.IntegrityError("the driver's"),
        asyncio.CancelledError(),
        SystemExit(3),
    ]

    async def hook(tx: Transaction) -> None:
        await tx.execute(INSERT, "lost")
        raise raised[len(world.begun) - 1]

    world.hook = hook
    seen: list[str] = []

    @durable.workflow(name="test_an_exception_reaches_the_body")
    async def flow(step: Step) -> None:
        for _ in raised:
            try:
                await bank.hooked()
            except Exception as exc:  # noqa: BLE001
                seen.append(exc.type_name if isinstance(exc, StepFailed) else repr(exc))

    async with opened(store) as engine:
        await engine.run(flow())
        assert seen == [
            "Refused('mine')",
            "ZeroDivisionError('builtin')",
            "sqlite3.IntegrityError",
            "asyncio.exceptions.CancelledError",
            "SystemExit",
        ]
        assert await texts(engine) == []


async def test_a_failing_statement_that_is_caught_fails_nothing(store: Path | str) -> None:
    async def hook(tx: Transaction) -> str:
        await tx.execute(INSERT, "a")
        with pytest.raises(sqlite3.IntegrityError):
            await tx.execute(INSERT, "a")
        with pytest.raises(TransactionError, match="ended by its scope"):
            await tx.execute("COMMIT")
        return "done"

    world.hook = hook
    async with opened(store) as engine:
        assert await engine.run(hooking()) == "done"
        assert await texts(engine) == ["a"]


async def test_a_result_that_cannot_be_kept_undoes_the_writes(store: Path | str) -> None:
    @durable.mutation(name="test_a_result_that_cannot_be_kept")
    async def wrong(tx: Transaction) -> int:
        await tx.execute(INSERT, "lost")
        return "no number"  # type: ignore[return-value]

    @durable.workflow(name="test_a_result_that_cannot_be_kept")
    async def flow(step: Step) -> str:
        try:
            await wrong()
        except ReturnTypeError:
            return "caught"
        return "nothing raised"

    async with opened(store) as engine:
        assert await engine.run(flow()) == "caught"
        assert await texts(engine) == []


async def test_it_takes_no_slot(path: Path) -> None:
    async with opened(path, max_parallelism=0) as engine:
        assert await engine.run(adding("a")) == 1
        assert engine.statistics().running_actions == 0


async def test_it_knows_its_attempt(store: Path | str) -> None:
    seen: list[Attempt] = []

    async def hook(tx: Transaction) -> None:
        seen.append(durable.attempt())
        assert Engine.current() is engine

    world.hook = hook
    async with opened(store) as engine:
        run = await engine.start(hooking())
        await run.result(timeout=WAIT_S_MAX)
        (step,) = [step async for step in run.steps()]
        (attempt,) = seen
        assert (attempt.run_id, attempt.step_key) == (run.id, step.key)
        assert (attempt.number, attempt.interruptions) == (1, 0)


async def test_its_arguments_are_checked_before_anything_is_written(path: Path) -> None:
    @durable.workflow(name="test_its_arguments_are_checked")
    async def flow(step: Step) -> str:
        try:
            await bank.add(5)  # type: ignore[arg-type]
        except durable.ArgumentError as exc:
            return str(exc)
        return "nothing raised"

    async with opened(path) as engine:
        assert "text" in await engine.run(flow())
        assert world.begun == []


async def test_the_body_gets_the_decoded_result_on_replay_too(path: Path) -> None:
    seen: list[int] = []

    @durable.workflow(name="test_the_body_gets_the_decoded_result_on_replay_too")
    async def flow(step: Step) -> None:
        seen.append(await bank.add("a"))
        await step.sleep(MONTH_S)
        seen.append(await bank.add("b"))

    clock = ManualClock()
    engine = Engine(path)
    clock.install(engine)
    async with engine:
        await create(engine)
        run = await engine.start(flow())
        await until(lambda: seen)
        await until_parked(engine)
        clock.advance(MONTH_S)
        await run.result(timeout=WAIT_S_MAX)
    assert seen == [1, 1, 2]
    assert world.begun == ["a", "b"]


# --- elsewhere -----------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [bank.add("a"), bank.look()])
async def test_elsewhere_its_call_says_what_to_do(path: Path, call: durable.Call[Any]) -> None:
    @durable.action(name=f"elsewhere.{call.definition.kind}")
    async def sly() -> str:
        with pytest.raises(NotInWorkflowError, match=r"engine\.transaction"):
            await call
        return "refused"

    @durable.workflow(name=f"elsewhere.{call.definition.kind}")
    async def flow(step: Step) -> str:
        return await sly()

    for _ in range(2):
        with pytest.raises(NotInWorkflowError, match=r"engine\.transaction.*\.fn\(tx"):
            await call
    async with opened(path) as engine:
        with pytest.raises(NotInWorkflowError):
            await engine.start(call)
        assert await engine.run(flow()) == "refused"
        assert world.begun == []


def test_it_needs_its_transaction_and_to_be_a_coroutine() -> None:
    with pytest.raises(TypeError, match="`tx` as its first"):

        @durable.mutation  # type: ignore[arg-type]
        async def without() -> None: ...

    with pytest.raises(TypeError, match="async def"):

        @durable.query  # type: ignore[arg-type]
        def plain(tx: Transaction) -> None: ...

    with pytest.raises(TypeError):
        bank.add("a", "b")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        bank.add(tx=None, text="a")  # type: ignore[call-arg]
    assert bank.add.kind is StepKind.MUTATION
    assert bank.add.name == "bank:add"
    assert repr(bank.look) == "<query 'bank:look'>"


def test_names_are_unique_among_those_of_one_kind() -> None:
    @durable.mutation(name="same")
    async def one(tx: Transaction) -> None: ...

    @durable.query(name="same")
    async def other_kind(tx: Transaction) -> None: ...

    with pytest.raises(durable.DuplicateDefinitionError, match="same"):

        @durable.mutation(name="same")
        async def another(tx: Transaction) -> None: ...


# --- calls within it -----------------------------------------------------------------------------


async def test_what_would_wait_for_its_own_commit_is_refused(store: Path | str) -> None:
    async def hook(tx: Transaction) -> int:
        for ask in (engine.start, engine.run):
            with pytest.raises(TransactionError, match="would wait"):
                await ask(adding("b"))
        with pytest.raises(TransactionError, match="would wait"):
            async with engine.transaction():
                pass
        return 5

    world.hook = hook
    async with opened(store) as engine:
        async with asyncio.timeout(WAIT_S_MAX):
            assert await engine.run(hooking()) == 5


@pytest.mark.parametrize("is_failing", [False, True])
async def test_a_run_that_it_starts_is_there_if_its_writes_are(
    store: Path | str, *, is_failing: bool
) -> None:
    async def hook(tx: Transaction) -> None:
        await tx.execute(INSERT, "by the mutation")
        await engine.start(adding("by the run"), id="mine", tx=tx)
        if is_failing:
            raise Refused

    world.hook = hook
    async with opened(store) as engine:
        if is_failing:
            with pytest.raises(RunFailed):
                await engine.run(hooking())
            with pytest.raises(durable.RunNotFoundError):
                await engine.status("mine")
            assert await texts(engine) == []
        else:
            await engine.run(hooking())
            assert await engine.get("mine").result(timeout=WAIT_S_MAX) == 2
            assert await texts(engine) == ["by the mutation", "by the run"]


async def test_a_taken_id_fails_the_mutation_alone(store: Path | str) -> None:
    async def hook(tx: Transaction) -> None:
        await engine.start(adding("other"), id="taken", tx=tx)

    world.hook = hook
    async with opened(store) as engine:
        await engine.run(adding("a"), id="taken")
        with pytest.raises(RunFailed) as failed:
            await engine.run(hooking())
        assert isinstance(failed.value.__cause__, RunConflictError)
        assert await texts(engine) == ["a"]


# --- several at once -----------------------------------------------------------------------------


async def test_mutations_of_many_runs_share_commits(path: Path) -> None:
    async with opened(path) as engine:
        before = engine.statistics().commits
        names = [f"r{n}" for n in range(100)]
        counts = await asyncio.gather(*(engine.run(adding(name)) for name in names))
        assert sorted(counts) == list(range(1, 101)), "each saw those before it"
        assert sorted(await texts(engine)) == sorted(names)
        assert engine.statistics().commits - before < 100


@pytest.mark.parametrize("is_caught", [False, True])
async def test_one_that_ends_the_transaction_fails_alone(
    store: Path | str, *, is_caught: bool
) -> None:
    """The others of its commit are run again, and their writes are there once."""

    async def hook(tx: Transaction) -> None:
        await tx.execute(INSERT, "lost")
        try:
            await tx.execute(OR_ROLLBACK)
        except sqlite3.IntegrityError:
            if not is_caught:
                raise

    world.hook = hook
    async with opened(store) as engine:
        await engine.run(adding("there"))
        before = [f"b{n}" for n in range(5)]
        after = [f"a{n}" for n in range(5)]
        results = await asyncio.gather(
            *(engine.run(adding(name)) for name in before),
            engine.run(hooking()),
            *(engine.run(adding(name)) for name in after),
            return_exceptions=True,
        )
        failed = [result for result in results if isinstance(result, BaseException)]
        assert len(failed) == 1
        assert isinstance(failed[0], RunFailed)
        assert isinstance(failed[0].__cause__, TransactionError if is_caught else StepFailed)
        assert sorted(await texts(engine)) == sorted(["there", *before, *after])
        assert world.begun.count("hooked") == 1


async def test_a_failing_one_undoes_nothing_of_the_others(store: Path | str) -> None:
    @durable.workflow(name="test_a_failing_one_undoes_nothing_of_the_others")
    async def flow(step: Step) -> list[Any]:
        calls = [bank.add_and_fail(f"f{n}") if n % 3 == 0 else bank.add(f"a{n}") for n in range(9)]
        found = await asyncio.gather(*calls, return_exceptions=True)
        return [None if isinstance(each, LookupError) else each for each in found]

    async with opened(store) as engine:
        assert await engine.run(flow()) == [None, 1, 2, None, 3, 4, None, 5, 6]
        assert await texts(engine) == ["a1", "a2", "a4", "a5", "a7", "a8"]


# --- bounded in time -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", ["nothing", "connection", "statement"])
async def test_one_that_fails_undoes_nothing_of_those_before_whatever_it_has_done(
    store: Path | str, how: str
) -> None:
    """One without a statement has no savepoint of its own."""

    async def hook(tx: Transaction) -> None:
        if how == "connection":
            await tx.connection.execute(INSERT, ("lost",))
        elif how == "statement":
            await tx.execute(INSERT, "lost")
        raise LookupError

    @durable.workflow(name=f"test_one_that_fails_undoes_nothing_of_those_before {how} {store}")
    async def flow(step: Step) -> None:
        calls = [bank.add("a"), bank.hooked(), bank.add("b"), bank.hooked(), bank.hooked()]
        await asyncio.gather(*calls, bank.add("c"), return_exceptions=True)

    world.hook = hook
    async with opened(store) as engine:
        before = engine.statistics().commits
        await engine.run(flow())
        assert await texts(engine) == ["a", "b", "c"]
        assert engine.statistics().commits - before <= 4, "they share their commits"


@durable.workflow
async def hooking_for_long(step: Step) -> str:
    try:
        await step.run(bank.hooked(), timeout=0.05)
    except TimeoutError as exc:
        return str(exc)
    return "nothing raised"


@pytest.mark.parametrize("is_swallowed", [False, True])
async def test_one_that_takes_too_long_fails_and_writes_nothing(
    store: Path | str, *, is_swallowed: bool
) -> None:
    async def hook(tx: Transaction) -> None:
        await tx.execute(INSERT, "lost")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if not is_swallowed:
                raise

    world.hook = hook
    async with opened(store) as engine:
        assert "0.05 s" in await engine.run(hooking_for_long())
        assert await outcome_of(engine, "bank:hooked") == (StepState.FAILED, "TimeoutError")
        assert await texts(engine) == []


@pytest.mark.slow
async def test_one_that_does_not_end_when_cancelled_is_left_to_itself(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durable.runtime.mutation.ABANDON_AFTER_S", 0.05)
    refused: list[str] = []

    async def hook(tx: Transaction) -> None:
        await tx.execute(INSERT, "lost")
        while not world.may_end.is_set():
            try:
                await world.may_end.wait()
            except asyncio.CancelledError:
                continue
        try:
            await tx.execute(INSERT, "late")
        except TransactionError as exc:
            refused.append(str(exc))

    world.hook = hook
    async with opened(path) as engine:
        assert "nor when cancelled" in await engine.run(hooking_for_long())
        assert await engine.run(adding("a")) == 1
        world.may_end.set()
        await until(lambda: refused)
        assert await texts(engine) == ["a"]


@pytest.mark.slow
async def test_a_statement_without_end_is_interrupted(store: Path | str) -> None:
    """An interrupted write ends the transaction: the others of its commit are run again."""
    endless = (
        "INSERT INTO entry (text) "
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT 'n' || x FROM n"
    )

    async def hook(tx: Transaction) -> None:
        await tx.execute(endless)

    @durable.workflow(name="test_a_statement_without_end_is_interrupted")
    async def flow(step: Step) -> list[Any]:
        calls = [bank.add("a"), step.run(bank.hooked(), timeout=0.1), bank.add("b")]
        found = await asyncio.gather(*calls, return_exceptions=True)
        return [None if isinstance(each, TimeoutError) else each for each in found]

    world.hook = hook
    async with opened(store) as engine:
        async with asyncio.timeout(WAIT_S_MAX):
            assert await engine.run(flow()) == [1, None, 2]
        assert await texts(engine) == ["a", "b"]


# --- withdrawn, cancelled, closed ----------------------------------------------------------------


@pytest.mark.parametrize("how", ["timeout", "cancel", "interrupt", "cleanup"])
async def test_one_that_is_not_wanted_any_more_is_undone(path: Path, how: str) -> None:
    """Its step is ``canceled``, and so its writes are not there. It makes room at once."""

    @durable.workflow(name="test_one_that_is_not_wanted_any_more")
    async def flow(step: Step) -> str:
        try:
            async with asyncio.timeout(0.05 if how == "timeout" else None):
                await bank.add_slowly("lost")
        except TimeoutError:
            return "timed out"
        return "not timed out"

    async with opened(path) as engine:
        run = await engine.start(flow())
        await until(lambda: world.begun)
        async with asyncio.timeout(WAIT_S_MAX):
            if how == "timeout":
                assert await run.result() == "timed out"
            elif how == "cleanup":
                assert await engine.cleanup(run.id, force=True)
            else:
                assert await run.cancel(interrupt=how == "interrupt")
                with pytest.raises(RunCanceled):
                    await run.result()
        if how != "cleanup":
            state, _ = await outcome_of(engine, "bank:add_slowly")
            assert state is StepState.CANCELED
        assert await texts(engine) == []
        assert await engine.run(adding("a")) == 1


async def test_one_that_waits_for_its_turn_never_begins_when_withdrawn(path: Path) -> None:
    @durable.workflow(name="test_one_that_waits_for_its_turn")
    async def flow(step: Step) -> str:
        try:
            async with asyncio.timeout(0.05):
                await asyncio.gather(bank.add_slowly("first"), bank.add("queued"))
        except TimeoutError:
            return "timed out"
        return "not timed out"

    async with opened(path) as engine:
        run = await engine.start(flow())
        assert await run.result(timeout=WAIT_S_MAX) == "timed out"
        steps = [step async for step in run.steps() if step.kind is StepKind.MUTATION]
        assert [step.state for step in steps] == [StepState.CANCELED] * 2
        assert world.begun == ["first"]
        assert await texts(engine) == []


@pytest.mark.slow
async def test_whenever_it_is_withdrawn_its_writes_are_there_if_its_step_is_completed(
    path: Path,
) -> None:
    @durable.workflow(name="whenever_it_is_withdrawn")
    async def flow(step: Step, cycles: int) -> None:
        task = asyncio.create_task(bank.add(f"w{cycles}"))
        for n in range(cycles):
            await bank.act(f"{n}")
        task.cancel()

    async with opened(path) as engine:
        states: set[StepState] = set()
        for cycles in range(1, 6):
            for others in range(4):
                text = f"w{cycles}"
                run = await engine.start(flow(cycles))
                noise = [engine.run(adding(f"{cycles} {others} {n}")) for n in range(others)]
                await asyncio.gather(run.result(), *noise)
                (step,) = [s async for s in run.steps() if s.name == "bank:add"]
                states.add(step.state)
                async with engine.transaction() as tx:
                    is_there = await tx.execute("DELETE FROM entry WHERE text = ?", text) == 1
                assert is_there == (step.state is StepState.COMPLETED)
        assert StepState.COMPLETED in states


async def test_closing_lets_it_finish_and_begins_no_other(path: Path) -> None:
    @durable.workflow(name="test_closing_lets_it_finish")
    async def flow(step: Step) -> int:
        await bank.add_slowly("a")
        return await bank.add("b")

    async with opened(path) as engine:
        run = await engine.start(flow())
        await until(lambda: world.begun)
        asyncio.get_running_loop().call_soon(world.may_end.set)
    assert world.begun == ["a"]
    async with Engine(path) as engine:
        assert await engine.get(run.id).result(timeout=WAIT_S_MAX) == 2
        assert await texts(engine) == ["a", "b"]
        steps = [step async for step in engine.iter_steps(run.id)]
        assert [step.attempts for step in steps] == [1, 1]


async def test_one_that_outlasts_the_closing_is_run_again(path: Path) -> None:
    seen: list[int] = []

    async def hook(tx: Transaction) -> int:
        await tx.execute(INSERT, f"by {len(world.begun)}")
        seen.append(durable.attempt().interruptions)
        if len(world.begun) == 1:
            await asyncio.Event().wait()
        return len(world.begun)

    world.hook = hook
    async with opened(path, drain_timeout=0) as engine:
        run = await engine.start(hooking())
        await until_step(run, "bank:hooked", StepState.RUNNING)
        await until(lambda: seen)
    async with Engine(path) as engine:
        assert await engine.get(run.id).result(timeout=WAIT_S_MAX) == 2
        assert await texts(engine) == ["by 2"]
        assert seen == [0, 1]


async def test_one_that_kills_its_process_over_and_over_fails(path: Path) -> None:
    async def hook(tx: Transaction) -> None:
        await asyncio.Event().wait()

    world.hook = hook
    run_id = ""
    for life in range(3):
        async with opened(path, drain_timeout=0, max_interruptions=2) as engine:
            run_id = run_id or (await engine.start(hooking())).id
            await until(lambda: len(world.begun) == life + 1)  # noqa: B023
    async with Engine(path, max_interruptions=2) as engine:
        with pytest.raises(RunFailed) as failed:
            await engine.get(run_id).result(timeout=WAIT_S_MAX)
        assert isinstance(failed.value.__cause__, durable.StepInterrupted)
    assert len(world.begun) == 3


# --- the storage ---------------------------------------------------------------------------------


async def test_a_full_disk_is_the_journal_s_failure_not_the_step_s(path: Path) -> None:
    """The step is run again once there is room."""

    async def hook(tx: Transaction) -> str:
        if len(world.begun) == 1:
            await tx.connection._execute(lambda: _limit(tx))  # type: ignore[no-untyped-call]
            with pytest.raises(JournalUnavailableError, match="full"):
                await tx.execute("INSERT INTO entry (text) SELECT hex(zeroblob(100000))")
            return "swallowed"
        await tx.execute(INSERT, "a")
        return "done"

    world.hook = hook
    async with opened(path) as engine:
        assert await engine.run(hooking()) == "done"
        assert len(world.begun) == 2
        assert await texts(engine) == ["a"]
        assert await outcome_of(engine, "bank:hooked") == (StepState.COMPLETED, None)


def _limit(tx: Transaction) -> None:
    """Let the database not grow any more."""
    app: Any = tx._scope._app
    guard, raw = app._guard, app._raw
    with guard.own():
        (count,) = raw.execute("PRAGMA page_count").fetchone()
        raw.execute(f"PRAGMA max_page_count = {count}")


async def test_a_lost_file_is_the_journal_s_failure_too(path: Path) -> None:
    async with opened(path) as engine:
        with pytest.raises(JournalUnavailableError, match="removed"):
            async with engine.transaction() as tx:
                await tx.execute(INSERT, "lost")
                await asyncio.to_thread(path.unlink)
