"""A call does nothing by itself: who awaits it decides."""

import asyncio
import contextvars
import gc
import inspect
import itertools
import threading
import types
import warnings
from collections.abc import Coroutine, Generator
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

import durable
from durable import Call, Engine, Step

REQUEST: contextvars.ContextVar[str] = contextvars.ContextVar("request")


@dataclass
class Receipt:
    order: str
    cents: int


@durable.action
async def charge(order: str, cents: int = 500) -> Receipt:
    await asyncio.sleep(0)
    return Receipt(order, cents)


@durable.action
def charge_in_thread(order: str) -> tuple[str, str, int]:
    return order, REQUEST.get("none"), threading.get_ident()


@durable.action
async def fail(text: str) -> None:
    raise LookupError(text)


@durable.workflow
async def checkout(_step: Step, order: str) -> Receipt:
    return await charge(order, 700)


def test_a_call_shows_what_it_is() -> None:
    call = charge("o-1", cents=7)
    assert (call.definition, call.arguments) == (charge, {"order": "o-1", "cents": 7})
    assert repr(call) == "<Call test_calls:charge(order='o-1', cents=7)>"


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "test_calls:charge: missing a required argument: 'order'"),
        (("o", 1, 2), {}, "test_calls:charge: too many positional arguments"),
        (("o",), {"order": "p"}, "test_calls:charge: multiple values for argument 'order'"),
        (("o",), {"dollars": 5}, "test_calls:charge: got an unexpected keyword argument 'dollars'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_where_the_call_is_written(
    args: tuple[str, ...], kwargs: dict[str, str], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        charge(*args, **kwargs)  # type: ignore[arg-type]


def test_a_parameter_may_have_any_name() -> None:
    @durable.action(name="oddly named")
    async def oddly_named(self: int, args: int, **kwargs: int) -> None: ...

    call = oddly_named(self=1, args=2, kwargs=3)
    assert call.arguments == {"self": 1, "args": 2, "kwargs": {"kwargs": 3}}


def test_a_workflows_step_is_not_the_callers_to_give() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument '_step'"):
        checkout("o", _step=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["arguments", "definition", "new"])
def test_a_call_is_immutable(name: str) -> None:
    call = charge("o-1")
    with pytest.raises(AttributeError, match="a Call is immutable; make another one"):
        setattr(call, name, {})
    with pytest.raises(AttributeError, match="a Call is immutable"):
        delattr(call, name)
    assert call.arguments == {"order": "o-1"}


def test_a_call_that_is_never_awaited_warns_of_nothing() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        charge("o-1")
        checkout("o-1")
        gc.collect()
    assert caught == []


def test_a_call_equals_itself_alone() -> None:
    one, two = charge("o"), charge("o")
    assert one == one  # noqa: PLR0124
    assert one != two
    assert len({one, two, one}) == 2
    assert hash(one) == hash(one)


def test_a_call_is_a_coroutine_to_whoever_asks() -> None:
    call = charge("o")
    assert isinstance(call, Coroutine)
    assert asyncio.iscoroutine(call)
    assert inspect.isawaitable(call)


# --- anywhere but in a body ----------------------------------------------------------------------


async def test_an_actions_call_runs_the_function_directly() -> None:
    call = charge("o")
    assert await call == Receipt("o", 500)
    assert await call == Receipt("o", 500)  # Each await of it is a run of its own.
    with pytest.raises(LookupError, match="gone"):
        await fail("gone")


async def test_a_plain_action_runs_in_a_worker_thread_with_the_context() -> None:
    REQUEST.set("r-1")
    order, request, thread = await charge_in_thread("o")
    assert (order, request) == ("o", "r-1")
    assert thread != threading.get_ident()


async def test_called_directly_an_action_is_no_attempt() -> None:
    @durable.action
    async def who() -> str:
        return durable.attempt().run_id

    with pytest.raises(
        durable.NotInWorkflowError, match=r"durable\.attempt\(\) works in an action"
    ):
        await who()


@pytest.mark.both_loops
async def test_a_call_goes_wherever_a_coroutine_goes() -> None:
    expected = Receipt("o", 500)
    assert await asyncio.create_task(charge("o")) == expected
    assert await asyncio.ensure_future(charge("o")) == expected
    assert await asyncio.wait_for(charge("o"), 5) == expected
    assert await asyncio.shield(charge("o")) == expected
    found = await asyncio.gather(charge("a"), charge("b"))
    assert [receipt.order for receipt in found] == ["a", "b"]
    async with asyncio.TaskGroup() as group:
        task = group.create_task(charge("o"))
    assert task.result() == expected
    for future in asyncio.as_completed([charge("o")]):
        assert await future == expected
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(charge, "o", 7)


def test_asyncio_runs_a_call() -> None:
    assert asyncio.run(charge("o")) == Receipt("o", 500)
    with pytest.raises(LookupError):
        asyncio.run(fail("gone"))


async def test_two_tasks_drive_one_call_each_on_its_own() -> None:
    numbers = itertools.count()
    begun: asyncio.Queue[int] = asyncio.Queue()
    go_on = asyncio.Event()

    @durable.action
    async def wait() -> int:
        number = next(numbers)
        begun.put_nowait(number)
        await go_on.wait()
        return number

    call = wait()
    first, second = asyncio.create_task(call), asyncio.create_task(call)
    assert [await begun.get(), await begun.get()] == [0, 1]
    first.cancel()
    await asyncio.wait([first])
    go_on.set()
    assert first.cancelled()
    assert await second == 1


async def test_cancelling_who_awaits_it_cancels_the_function() -> None:
    cleaned_up: list[str] = []
    begun = asyncio.Event()

    @durable.action
    async def wait() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned_up.append("yes")

    task = asyncio.create_task(wait())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned_up == ["yes"]


@types.coroutine
def _pause() -> Generator[str, None, None]:
    yield "paused"


def test_a_call_driven_by_hand_behaves_as_a_coroutine() -> None:
    cleaned_up: list[str] = []

    @durable.action
    async def wait() -> None:
        try:
            await _pause()
        finally:
            cleaned_up.append("yes")

    call = wait()
    call.close()  # Nothing was begun.
    assert call.send(None) == "paused"
    call.close()
    assert cleaned_up == ["yes"]
    call.send(None)
    with pytest.raises(KeyError):
        call.throw(KeyError("thrown in"))
    assert cleaned_up == ["yes", "yes"]


async def test_a_workflows_call_is_run_durably(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DURABLE_URL", f"sqlite:///{path}")
    assert await checkout("o-1") == Receipt("o-1", 700)
    async with Engine(path) as engine:
        assert [run.args async for run in engine.iter_runs()] == [{"order": "o-1"}]
        assert await checkout("o-2") == Receipt("o-2", 700)  # By the engine that is open.
        assert [run.args["order"] async for run in engine.iter_runs()] == ["o-1", "o-2"]


# --- in a body -----------------------------------------------------------------------------------


@durable.workflow
async def awaiting(_step: Step) -> list[Receipt]:
    call = charge("twice")
    found = [await call, await call, await asyncio.create_task(charge("task"))]
    found += await asyncio.gather(charge("a"), charge("b"))
    async with anyio.create_task_group() as group:
        group.start_soon(charge, "anyio", 1)
    charge("never awaited")
    return found


async def test_in_a_body_each_await_is_a_step(path: Path) -> None:
    async with Engine(path) as engine:
        run = await engine.start(awaiting())
        orders = [receipt.order for receipt in await run.result(timeout=5)]
        assert orders == ["twice", "twice", "task", "a", "b"]
        steps = [step.args["order"] async for step in run.steps()]
        assert steps == ["twice", "twice", "task", "a", "b", "anyio"]


@durable.workflow
async def hashing(_step: Step) -> list[bool]:
    orders = [str(number) for number in range(50)]
    calls = [charge(order) for order in orders]
    hashes = [hash(call) for call in calls]
    return [
        hashes == sorted(hashes),
        [call.arguments["order"] for call in set(calls)] == orders,  # durable: allow
        calls[0] != calls[1],
        len({calls[0], calls[0], calls[1]}) == 2,
    ]


async def test_in_a_body_calls_hash_in_the_order_they_were_made(path: Path) -> None:
    """So that ``asyncio.wait`` and ``as_completed``, which use sets, replay."""
    async with Engine(path) as engine:
        assert await engine.run(hashing()) == [True, True, True, True]


@durable.workflow
async def wrongly_awaiting(step: Step, what: str) -> str:
    try:
        if what == "options":
            await step.run(checkout("o"), retry=True)
        elif what == "arity":
            charge()  # type: ignore[call-arg]
    except TypeError as exc:
        return str(exc)
    return "nothing"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("options", "takes no retry="),
        ("arity", "missing a required argument: 'order'"),
    ],
)
async def test_a_wrong_call_in_a_body_can_be_caught_there(
    path: Path, what: str, message: str
) -> None:
    async with Engine(path) as engine:
        assert message in await engine.run(wrongly_awaiting(what))


async def test_calls_made_outside_can_be_awaited_in_a_body(path: Path) -> None:
    made: list[Call[Receipt]] = [charge("outside")]

    @durable.workflow
    async def flow(_step: Step) -> Receipt:
        return await made[0]

    async with Engine(path) as engine:
        assert await engine.run(flow()) == Receipt("outside", 500)
