"""What stands in for steps in a test, how they fail and are delayed, and what is seen of them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

import pytest

import durable
from durable import ReturnTypeError, RunFailed, Step, Transaction, testing

paid: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_is_paid() -> None:
    paid.clear()


@durable.action(retry=durable.Retry(max_attempts=3, initial_backoff=10))
async def charge(order: str, cents: int = 5) -> str:
    paid.append(order)
    return f"paid {cents} for {order}"


@durable.action(timeout=30)
def look_up(order: str) -> str:
    return f"{order}, looked up in {threading.current_thread().name}"


@durable.mutation
async def store(tx: Transaction, order: str) -> int:
    return await tx.execute("INSERT INTO stored VALUES (?)", order)


@durable.query
async def count(tx: Transaction) -> int:
    found: int = await tx.fetch_value("SELECT count(*) FROM stored")
    return found


@durable.workflow
async def checkout(step: Step, order: str) -> str:
    return await charge(order)


@durable.workflow
async def looking(step: Step, order: str) -> str:
    return await look_up(order)


@durable.workflow
async def storing(step: Step, order: str) -> list[int]:
    return [await store(order), await count()]


async def fake_charge(order: str, cents: int = 5) -> str:
    await asyncio.sleep(0)
    return f"a gift: {order}"


def plain_fake_charge(order: str, cents: int = 5) -> str:
    return f"a gift: {order}"


@pytest.mark.parametrize("fake", [fake_charge, plain_fake_charge, "a gift: o-1"])
async def test_something_else_stands_in(fake: Callable[..., str] | str) -> None:
    async with testing.engine() as env:
        env.replace(charge, cast("str", fake))
        assert await env.run(checkout("o-1")) == "a gift: o-1"
        assert paid == []


@pytest.mark.parametrize("error", [LookupError("gone"), LookupError])
async def test_an_exception_stands_in(error: Exception | type[Exception]) -> None:
    async with testing.engine() as env:
        env.replace(charge, error)
        with pytest.raises(RunFailed, match="LookupError"):
            await env.run(checkout("o-1"))
        assert len(env.calls(charge)) == 3


async def test_a_replacement_ends_with_its_block() -> None:
    async with testing.engine() as env:
        env.replace(charge, "one")
        with env.replace(charge, "two"):
            assert await env.run(checkout("o-1")) == "two"
        assert await env.run(checkout("o-1")) == "one"
        env.restore(charge)
        assert await env.run(checkout("o-1")) == "paid 5 for o-1"


async def test_it_holds_in_its_environment_alone() -> None:
    async with testing.engine() as env, testing.engine() as other:
        env.replace(charge, "free")
        results = await asyncio.gather(env.run(checkout("a")), other.run(checkout("b")))
        assert results == ["free", "paid 5 for b"]  # type: ignore[comparison-overlap]
        assert [call.args for call in other.calls(charge)] == [{"order": "b"}]


async def test_what_stands_in_has_to_keep_to_the_types() -> None:
    async with testing.engine() as env:
        wrong: Any = 5
        env.replace(charge, wrong)
        with pytest.raises(RunFailed) as caught:
            await env.run(checkout("o-1"))
        assert isinstance(caught.value.__cause__, ReturnTypeError)


async def test_mutations_and_queries_are_replaced_without_their_transaction() -> None:
    async with testing.engine() as env:
        stored: list[str] = []

        def remember(order: str) -> int:
            stored.append(order)
            return 1

        env.replace(store, remember)
        env.replace(count, 7)
        assert await env.run(storing("o-1")) == [1, 7]
        assert stored == ["o-1"]


# --- workflows -----------------------------------------------------------------------------------


@durable.workflow
async def ordering(step: Step, order: str) -> str:
    try:
        return await step.run(checkout(order), name="checked out")
    except RunFailed as failed:
        return f"failed: {failed.error.message}"


async def fake_checkout(order: str) -> str:
    await asyncio.sleep(3600)
    return await charge(order, 1)


def plain_fake_checkout(order: str) -> str:
    return f"a gift: {order}"


@pytest.mark.parametrize(
    ("fake", "result"),
    [
        ("a gift: o-1", "a gift: o-1"),
        (plain_fake_checkout, "a gift: o-1"),
        (fake_checkout, "paid 1 for o-1"),
        (LookupError("gone"), "failed: gone"),
    ],
)
async def test_a_child_is_replaced_and_stays_a_run(fake: object, result: str) -> None:
    async with testing.engine(verify_replay=True) as env:
        began = env.now
        env.replace(checkout, cast("str", fake))
        assert await env.run(ordering("o-1"), id="parent") == result
        assert env.now - began == timedelta(hours=1 if fake is fake_checkout else 0)
        (child,) = (await env.engine.list_runs(parent="parent")).items
        assert (child.name, child.args) == (checkout.name, {"order": "o-1"})
        assert paid == (["o-1"] if fake is fake_checkout else [])
        env.restore(checkout)
        assert await env.run(ordering("o-2")) == "paid 5 for o-2"


async def test_a_workflow_is_replaced_where_it_is_started_too_and_for_a_block() -> None:
    async with testing.engine() as env, testing.engine() as other:
        with env.replace(checkout, "free"):
            assert await env.run(checkout("o-1")) == "free"
            assert await other.run(checkout("o-1")) == "paid 5 for o-1"
        assert await env.run(checkout("o-1")) == "paid 5 for o-1"


async def test_what_stands_in_for_a_workflow_has_to_keep_to_the_types() -> None:
    async with testing.engine() as env:
        wrong: Any = 5
        env.replace(checkout, wrong)
        with pytest.raises(RunFailed) as caught:
            await env.run(checkout("o-1"))
        assert isinstance(caught.value.__cause__, ReturnTypeError)
        wrong = lambda: "takes no order"  # noqa: E731
        env.replace(checkout, wrong)
        with pytest.raises(RunFailed, match="positional argument"):
            await env.run(checkout("o-1"))


async def test_a_fake_of_a_workflow_is_a_body_and_does_no_io() -> None:
    async with testing.engine() as env:
        env.replace(checkout, lambda order: asyncio.to_thread(str, order))
        with pytest.raises(RunFailed, match="put it in an action"):
            await env.run(checkout("o-1"))


@pytest.mark.slow
async def test_a_replaced_child_recovers_from_every_crash() -> None:
    async with testing.engine() as env:
        env.replace(checkout, fake_checkout)
        crashes = await env.crash_everywhere(ordering("o-1"))
        assert crashes.outcome.result == "paid 1 for o-1"
        shuffled = await env.shuffle(ordering("o-1"), seeds=3)
        assert {outcome.result for outcome in shuffled.outcomes.values()} == {"paid 1 for o-1"}


async def test_attempts_of_a_workflow_are_none() -> None:
    async with testing.engine() as env:
        for steer in (lambda: env.fail(checkout, OSError), lambda: env.calls(checkout)):
            with pytest.raises(TypeError, match=r"env\.replace\(child, fake\)"):
                steer()
        with pytest.raises(TypeError, match="only an action"):
            env.delay(checkout, 5)
        function: Any = plain_fake_checkout
        with pytest.raises(TypeError, match="no action, query, mutation or workflow"):
            env.replace(function, "x")


# --- failures and delays -------------------------------------------------------------------------


async def test_attempts_fail_by_their_number() -> None:
    async with testing.engine() as env:
        env.fail(charge, ConnectionError("down"), on_attempt=[1, 2])
        before = env.now
        assert await env.run(checkout("o-1")) == "paid 5 for o-1"
        assert paid == ["o-1"]
        assert env.now - before == timedelta(seconds=30)
        calls = env.calls(charge)
        assert [call.attempt for call in calls] == [1, 2, 3]
        assert [isinstance(call.error, ConnectionError) for call in calls] == [True, True, False]


async def test_a_failing_mutation_has_no_effect() -> None:
    async with testing.engine() as env:
        async with env.engine.transaction() as tx:
            await tx.execute("CREATE TABLE stored (value TEXT)")
        env.fail(store, LookupError)
        with pytest.raises(RunFailed, match="LookupError"):
            await env.run(storing("o-1"))
        async with env.engine.transaction() as tx:
            assert await count.fn(tx) == 0


async def test_a_delay_is_of_the_test_s_time() -> None:
    async with testing.engine() as env:
        env.delay(charge, timedelta(hours=5))
        before = env.now
        await env.run(checkout("o-1"))
        assert env.now - before == timedelta(hours=5)


async def test_a_delayed_attempt_times_out() -> None:
    async with testing.engine() as env:
        env.delay(look_up, 3600)
        before = env.now
        with pytest.raises(RunFailed, match="longer than its timeout of 30 s"):
            await env.run(looking("o-1"))
        assert env.now - before == timedelta(seconds=30)


async def test_one_attempt_is_delayed() -> None:
    async with testing.engine() as env:
        env.fail(charge, OSError)
        env.delay(charge, 100, on_attempt=2)
        before = env.now
        await env.run(checkout("o-1"))
        assert env.now - before == timedelta(seconds=10 + 100)


async def test_a_delayed_step_can_be_canceled_at_once() -> None:
    async with testing.engine() as env:
        env.delay(charge, 3600)
        run = await env.start(checkout("o-1"))
        await env.run_until_idle()
        await env.cancel(run.id, interrupt=True)
        with pytest.raises(durable.RunCanceled):
            await env.result(run)
        assert paid == []


async def test_only_actions_are_delayed() -> None:
    async with testing.engine() as env:
        with pytest.raises(TypeError, match="only an action"):
            env.delay(store, 1)
        with pytest.raises(ValueError, match="does not go back"):
            env.delay(charge, -1)


async def test_real_calls_are_seen_and_made_as_in_production() -> None:
    async with testing.engine() as env:
        result = await env.run(looking("o-1"), id="r-1")
        assert "MainThread" not in result
        (call,) = env.calls(look_up)
        assert (call.run_id, call.step_key, call.attempt) == ("r-1", "0:0", 1)
        assert call.args == {"order": "o-1"}
        assert (call.is_over, call.result, call.error) == (True, result, None)
        assert call.began_at == env.now


async def test_what_is_changed_holds_for_steps_that_wait() -> None:
    async with testing.engine(auto=False) as env:
        env.replace(charge, OSError)
        run = await env.start(checkout("o-1"))
        await env.run_until_idle()
        env.restore(charge)
        await env.advance(10)
        assert await run.result() == "paid 5 for o-1"


@pytest.mark.parametrize("name", ["advance", "run_until_idle"])
async def test_a_fake_is_told_that_the_time_is_the_test_s(name: str) -> None:
    async with asyncio.timeout(20), testing.engine() as env:

        async def fake(order: str, cents: int = 5) -> str:
            await (env.advance(5) if name == "advance" else env.run_until_idle())
            return order

        env.replace(charge, fake)
        with pytest.raises(RunFailed, match=rf"RuntimeError: env\.{name}\(\) is for the test"):
            await env.run(checkout("o-1"))


async def test_what_cannot_fail_or_be_called_is_refused() -> None:
    async with testing.engine() as env:
        with pytest.raises(TypeError, match="error is an exception"):
            env.fail(charge, "down")  # type: ignore[arg-type]
        for numbers in (0, (), (1, -1)):
            with pytest.raises(ValueError, match="counted from 1"):
                env.fail(charge, OSError, on_attempt=numbers)
        with pytest.raises(TypeError, match="no action, query or mutation"):
            env.calls(checkout)
