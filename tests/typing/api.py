"""What type checkers see of the surface. Nobody runs this: mypy --strict and pyright read it.

Where an error is expected, ``type: ignore`` says so to both, and both complain when there is none.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

import asyncio
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, assert_type

import anyio

import durable
from durable import (
    Action,
    Attempt,
    Call,
    Engine,
    EngineStatistics,
    ErrorInfo,
    Event,
    EventId,
    Mutation,
    Page,
    Query,
    Retry,
    Row,
    Run,
    RunFailed,
    RunState,
    RunStatus,
    Step,
    StepInfo,
    StepKind,
    StepState,
    Transaction,
    Workflow,
    testing,
)


@dataclass
class Receipt:
    order: str
    cents: int


# --- decorators keep the signature ---------------------------------------------------------------


@durable.action
async def charge(order: str, cents: int = 500, *, currency: str = "EUR") -> Receipt:
    return Receipt(f"{order} in {currency}", cents)


@durable.action(retry=Retry(max_attempts=3), timeout=timedelta(seconds=5), raises=(KeyError,))
async def charge_carefully(order: str, cents: int) -> Receipt:
    return Receipt(order, cents)


@durable.action
def count_words(text: str) -> int:
    return len(text.split())


@durable.action(name="counting", retry=False, timeout=1.5)
def count_letters(text: str) -> int:
    return len(text)


@durable.workflow
async def checkout(step: Step, order: str, cents: int = 500) -> Receipt:
    return await step.run(charge(order, cents))


@durable.workflow(name="checkout", version=2, retry=Retry(), retry_actions_by_default=True)
async def checkout_v2(step: Step, order: str) -> Receipt:
    return await step.run(charge_carefully(order, 5))


@durable.workflow()
async def nothing(step: Step) -> None: ...


@durable.query
async def balance(tx: Transaction, account: str) -> int:
    assert_type(await tx.fetch_one("SELECT 1"), Row | None)
    assert_type(await tx.fetch_all("SELECT 1"), list[Row])
    assert_type(await tx.fetch_value("SELECT 1"), Any)
    return int(await tx.fetch_value("SELECT cents FROM account WHERE name = ?", account))


@durable.query(name="total")
async def total(tx: Transaction) -> int:
    return 5


@durable.mutation
async def pay(tx: Transaction, account: str, cents: int = 5) -> Receipt:
    assert_type(await tx.execute("UPDATE account SET cents = ?", cents), int)
    assert_type(await tx.executemany("UPDATE account SET cents = ?", [(cents,)]), int)
    return Receipt(account, cents)


@durable.mutation(name="put in order")
async def vacuum(tx: Transaction) -> None: ...


async def transactions(step: Step, engine: Engine) -> None:
    assert_type(total, Query[[], int])
    assert_type(vacuum, Mutation[[], None])
    assert_type(balance("a"), Call[int])
    assert_type(pay("a"), Call[Receipt])
    assert_type(await step.run(pay("a", 7)), Receipt)
    assert_type(await pay("a", cents=7), Receipt)
    pay()  # type: ignore[call-arg]
    pay("a", "7")  # type: ignore[arg-type]
    async with engine.transaction() as tx:
        assert_type(tx, Transaction)
        assert_type(await engine.start(nothing(), tx=tx), Run[None])
        row = await tx.fetch_one("SELECT 1 AS one")
        assert row is not None
        assert_type(row["one"], Any)
        assert_type(row[0], Any)
        pay(tx, "a")  # type: ignore[arg-type]
        await pay.fn(tx, "a")
    async with engine.transaction(timeout=timedelta(minutes=1)):
        pass


def definitions() -> None:
    assert_type(nothing, Workflow[[], None])
    assert_type(nothing_done, Action[[], None])
    assert_type(count_letters("a"), Call[int])
    assert_type(checkout_v2("o"), Call[Receipt])
    assert_type(charge.name, str)
    assert_type(charge.kind, StepKind)


# --- calls ---------------------------------------------------------------------------------------


def calls() -> None:
    assert_type(charge("o", 1), Call[Receipt])
    assert_type(charge("o", currency="USD"), Call[Receipt])
    assert_type(charge_carefully("o", 1), Call[Receipt])
    assert_type(count_words("a b"), Call[int])
    assert_type(checkout("o", 1), Call[Receipt])
    assert_type(checkout("o"), Call[Receipt])
    assert_type(nothing(), Call[None])
    assert_type(asyncio.run(charge("o")), Receipt)
    coroutine: Coroutine[Any, Any, Receipt] = charge("o")
    coroutine.close()


def wrong_calls(step: Step) -> None:
    charge()  # type: ignore[call-arg]
    charge(1)  # type: ignore[arg-type]
    charge("o", "1")  # type: ignore[arg-type]
    charge("o", 1, 2)  # type: ignore[call-arg, arg-type]
    charge("o", dollars=1)  # type: ignore[call-arg]
    charge_carefully("o")  # type: ignore[call-arg]
    count_words(5)  # type: ignore[arg-type]
    checkout(step, "o")  # type: ignore[arg-type]
    checkout("o", step=step)  # type: ignore[call-arg]
    nothing(1)  # type: ignore[call-arg]


def wrong_assignments() -> None:
    number: Call[int] = charge("o")  # type: ignore[assignment]
    print(number)  # noqa: T201


# --- in a body -----------------------------------------------------------------------------------


@durable.workflow
async def everything(step: Step, order: str) -> str:
    receipt = await charge(order)
    assert_type(receipt, Receipt)
    assert_type(await count_words("a b"), int)
    assert_type(await step.run(charge(order), name="charge", retry=True), Receipt)
    assert_type(await step.run(count_words(order), run_after=timedelta(1), timeout=5), int)
    assert_type(await step.run(nothing_done(), run_at=step.now(), unstable_args=True), None)

    assert_type(await checkout("o"), Receipt)
    assert_type(await step.run(checkout("o"), name="child", run_after=1), Receipt)
    assert_type(asyncio.create_task(checkout("o")), asyncio.Task[Receipt])

    both = await asyncio.gather(charge("a"), count_words("b"))
    assert_type(both, tuple[Receipt, int])
    many = await asyncio.gather(*(charge(name) for name in "abc"))
    assert_type(many, list[Receipt])
    assert_type(await asyncio.wait_for(charge("a"), 5), Receipt)
    task = asyncio.create_task(charge("a"))
    assert_type(task, asyncio.Task[Receipt])
    async with asyncio.TaskGroup() as group:
        assert_type(group.create_task(count_words("a")), asyncio.Task[int])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(charge, "o", 5)

    assert_type(await step.sleep(timedelta(days=30), name="a month"), None)
    assert_type(await step.sleep_until(datetime(2030, 1, 1, tzinfo=UTC)), None)
    assert_type(step.now(), datetime)
    assert_type(step.run_id, str)
    assert_type(step.workflow, str)
    assert_type(step.generation, int)
    assert_type(step.parent_id, str | None)
    assert_type(step.random.random(), float)
    assert_type(step.uuid4().hex, str)
    return receipt.order


approval = Event("approval", Receipt)
maybe = Event("maybe", int | None)
anything = Event("anything")


async def events_in_a_body(step: Step, event_id: EventId) -> None:
    assert_type(await step.wait_event(approval), Receipt)
    assert_type(await step.wait_event(approval, timeout=timedelta(hours=1)), Receipt)
    assert_type(await step.wait_event("approval", timeout=5), Any)
    assert_type(await step.wait_event(event_id), Any)
    assert_type(await step.wait_event(anything), Any)
    print(await step.wait_event(approval))  # noqa: T201  as an object
    await step.wait_event(5)  # type: ignore[call-overload]
    await step.wait_event("approval", 5)  # type: ignore[call-overload]


async def events(engine: Engine, run: Run[Any]) -> None:
    assert_type(approval, Event[Receipt])
    assert_type(anything, Event[Any])
    assert_type(approval.name, str)
    assert_type(await engine.send_event("r", approval, Receipt("o", 1)), EventId)
    assert_type(await engine.send_event("r", approval, error="no"), EventId)
    assert_type(await engine.send_event("r", "approval", 5), EventId)
    assert_type(await engine.send_event("r", "approval", error=ValueError("no")), EventId)
    assert_type(await engine.send_event("r", anything), EventId)
    assert_type(await engine.send_event("r", maybe, 5), EventId)
    assert_type(await run.send_event(approval, Receipt("o", 1)), EventId)
    assert_type(await run.send_event("approval"), EventId)
    event_id = await engine.create_event("r", approval)
    assert_type(event_id, EventId)
    async with engine.transaction() as tx:
        assert_type(await engine.send_event("r", approval, Receipt("o", 1), tx=tx), EventId)
        assert_type(await engine.send_event("r", approval, error="no", tx=tx), EventId)
        assert_type(await run.send_event("approval", tx=tx), EventId)
    assert_type(await engine.send_event_id(event_id, 5), None)
    assert_type(await engine.send_event_id(event_id, error="no"), None)
    assert_type(EventId.parse(str(event_id)), EventId)
    await engine.send_event("r", approval, 5)  # type: ignore[misc]
    await engine.send_event("r", approval)  # type: ignore[arg-type]
    await run.send_event(approval, "no")  # type: ignore[misc]
    await engine.send_event("r", event_id, 5)  # type: ignore[call-overload]
    await engine.send_event_id("r")  # type: ignore[arg-type]


@durable.action
async def nothing_done() -> None:
    assert_type(durable.attempt(), Attempt)
    assert_type(durable.attempt().number, int)
    assert_type(durable.attempt().idempotency_key, str)


async def wrong_in_a_body(step: Step) -> None:
    await step.run(5)  # type: ignore[arg-type]
    await step.run(charge)  # type: ignore[arg-type]
    await step.run(charge("o"), "name")  # type: ignore[call-arg]
    await step.run(charge("o"), retry=3)  # type: ignore[arg-type]
    await step.sleep("5")  # type: ignore[arg-type]
    text: str = await charge("o")  # type: ignore[assignment]
    print(text)  # noqa: T201


# --- engine --------------------------------------------------------------------------------------


async def engine_calls() -> None:
    async with Engine(
        Path("runs.db"),
        max_parallelism=5,
        retry=Retry(3),
        retry_actions_by_default=True,
        drain_timeout=timedelta(seconds=5),
    ) as engine:
        assert_type(engine, Engine)
        assert_type(await engine.start(checkout("o"), id="r", run_after=5), Run[Receipt])
        assert_type(await engine.run(checkout("o")), Receipt)
        assert_type(await engine.run(nothing()), None)
        assert_type(await durable.run(checkout("o"), id="r", url="sqlite://"), Receipt)

        run = await engine.start(everything("o"))
        assert_type(run, Run[str])
        assert_type(run.id, str)
        assert_type(await run.result(timeout=timedelta(seconds=5)), str)
        assert_type(await run.status(), RunStatus)
        async for step in run.steps():
            assert_type(step, StepInfo)
            assert_type(step.state, StepState)
        assert_type(await engine.get("r").result(), Any)

        page = await engine.list_runs(state=RunState.FAILED, order="desc", limit=5)
        assert_type(page, Page[RunStatus])
        assert_type(page.items, list[RunStatus])
        assert_type(page.cursor, str | None)
        assert_type(await engine.list_steps("r"), Page[StepInfo])
        async for status in engine.iter_runs(name=checkout.name):
            assert_type(status.error, ErrorInfo | None)
        assert_type(engine.statistics(), EngineStatistics)
        assert_type(engine.set_max_parallelism(0), None)
        try:
            await run.result()
        except RunFailed as failed:
            assert_type(failed.error, ErrorInfo)
            assert_type(failed.run_id, str)
    assert_type(engine.watch("r"), AsyncIterator[RunStatus])
    assert_type(engine.get("r").watch(), AsyncIterator[RunStatus])
    Engine("sqlite:///a.db", worker=False)
    assert_type(Engine.current(), Engine)
    assert_type(Engine.from_env(), Engine)


async def wrong_engine_calls(engine: Engine) -> None:
    await engine.start(checkout)  # type: ignore[arg-type]
    await engine.list_runs(order="up")  # type: ignore[arg-type]
    Engine(5)  # type: ignore[arg-type]
    Engine("sqlite://", 5)  # type: ignore[call-arg]
    Engine("sqlite://", retry=True)  # type: ignore[arg-type]
    number: Run[int] = await engine.start(checkout("o"))  # type: ignore[arg-type]
    print(number)  # noqa: T201


# --- wrong functions -----------------------------------------------------------------------------


@durable.workflow  # type: ignore[arg-type]
async def no_step() -> None: ...


@durable.workflow  # type: ignore[arg-type]
async def no_step_but_another(order: str) -> None: ...


@durable.workflow  # type: ignore[arg-type]
def no_coroutine(step: Step) -> None: ...


durable.action(5)  # type: ignore[call-overload]
durable.action(retry=3)  # type: ignore[call-overload]
durable.workflow(version="2")  # type: ignore[call-overload]


class Subclass(Engine):  # type: ignore[misc]
    pass


# --- the test kit --------------------------------------------------------------------------------


async def fake_charge(order: str, cents: int = 500, *, currency: str = "EUR") -> Receipt:
    return Receipt(order, 0)


def plain_fake_charge(order: str, cents: int = 500, *, currency: str = "EUR") -> Receipt:
    return Receipt(order, 0)


async def the_test_kit() -> None:
    env = testing.engine("sqlite://", auto=False, max_parallelism=1, retention=timedelta(days=1))
    testing.engine(max_paralelism=1)  # type: ignore[call-arg]
    async with env:
        assert_type(env.now, datetime)
        assert_type(env.engine, Engine)
        assert_type(await env.run(checkout("o-1")), Receipt)
        run = await env.start(checkout("o-1"))
        assert_type(run, Run[Receipt])
        assert_type(await env.result(run), Receipt)
        assert_type(await env.advance(1.5), None)
        assert_type(await env.ask(lambda engine: engine.status("r")), RunStatus)
        env.replace(charge, fake_charge)
        env.replace(charge, plain_fake_charge)
        env.replace(charge, Receipt("o-1", 5))
        env.replace(charge, LookupError)
        env.replace(charge, 5)  # type: ignore[misc]
        assert_type(env.calls(charge), list[testing.StepCall])
        assert_type(await env.crash_everywhere(checkout("o-1")), testing.Crashes)
        assert_type(await testing.shuffle(checkout("o-1"), seeds=[7]), testing.Shuffled)
