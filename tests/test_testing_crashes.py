"""Crashes before and after every commit: what is right is let pass, what is not is named."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from itertools import count
from typing import Any

import pytest
from waiting import until

import durable
from durable import Engine, OutcomeUnknown, Step, Transaction, testing
from durable.journal.base import Change
from durable.journal.sqlite import SqliteJournal
from durable.testing import Environment

pytestmark = pytest.mark.slow

world: list[str] = []
numbers = count()


@durable.action
async def charge(order: str) -> str:
    world.append(f"charge {order}")
    return f"receipt of {order}"


@durable.action(retry=False)
async def charge_once(order: str) -> str:
    return f"receipt of {order}"


@durable.action
def pack(item: int) -> int:
    return item


@durable.mutation
async def book(tx: Transaction, order: str) -> int:
    await tx.execute("INSERT INTO booking (what) VALUES (?)", order)
    return int(await tx.fetch_value("SELECT count(*) FROM booking"))


@durable.workflow
async def packing(step: Step, items: int) -> list[int]:
    return await asyncio.gather(*(pack(item) for item in range(items)))


@durable.workflow
async def order(step: Step, order: str) -> str:
    receipt = await charge(order)
    packed = await packing(2)
    try:
        answer: str = await step.wait_event("approval", timeout=timedelta(days=2))
    except TimeoutError:
        answer = "nobody"
    except asyncio.CancelledError:
        await book("canceled")
        raise
    booked = await book(order)
    await step.sleep(timedelta(days=1))
    return f"{receipt}, {packed}, {answer}, {booked}"


@durable.workflow
async def asking(step: Step) -> str:
    """Has the same commits whenever it is run: nothing in it is at the same time."""
    return str(await step.wait_event("approval"))


async def make_table(env: Environment) -> None:
    world.clear()
    async with env.engine.transaction() as tx:
        await tx.execute("CREATE TABLE booking (what TEXT, at TEXT DEFAULT CURRENT_TIMESTAMP)")


async def approve(env: Environment, run_id: str) -> None:
    await env.run_until_idle()
    await env.send_event(run_id, "approval", "yes")


async def cancel(env: Environment, run_id: str) -> None:
    await env.run_until_idle()
    assert await env.cancel(run_id)


async def approve_late(env: Environment, run_id: str) -> None:
    await env.advance(timedelta(days=1))
    await env.send_event(run_id, "approval", "at last")


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        (None, "completed: 'receipt of o-1, [0, 1], nobody, 1'"),
        (approve, "completed: 'receipt of o-1, [0, 1], yes, 1'"),
        (approve_late, "completed: 'receipt of o-1, [0, 1], at last, 1'"),
        (cancel, "canceled"),
    ],
)
async def test_a_right_workflow_comes_to_the_same_whatever_crashes(
    script: Callable[[Environment, str], Awaitable[None]] | None, outcome: str
) -> None:
    async def check(env: Environment) -> None:
        assert set(world) == {"charge o-1"}
        async with env.engine.transaction() as tx:  # No crash is meant for that.
            assert await tx.fetch_value("SELECT count(*) FROM booking") == 1

    crashes = await testing.crash_everywhere(
        order("o-1"), script=script, setup=make_table, check=check, ignore=["booking.at"]
    )
    assert str(crashes.outcome) == outcome
    assert crashes.commits >= 6
    assert crashes.crashes >= 2 * crashes.commits - 1


async def test_an_environment_s_fakes_and_options_are_used() -> None:
    async with testing.engine(max_parallelism=1) as env:
        env.replace(charge, "a gift")
        env.fail(pack, OSError)
        run = await env.crash_everywhere(packing(1))
        assert str(run.outcome).startswith("failed: OSError")
        crashes = await env.crash_everywhere(order("o-2"), setup=make_table, may_raise=())
        assert "OSError" in str(crashes.outcome)
        assert world == []
        assert env.calls(charge) == []


async def test_a_restart_may_make_recorded_steps_again() -> None:
    async def restart(env: Environment, run_id: str) -> None:
        await env.result(run_id)
        await env.ask(restart_once)

    async def restart_once(engine: Engine) -> None:
        if (await engine.status("run")).generation == 0:
            await engine.restart("run", from_step=0)

    crashes = await testing.crash_everywhere(packing(2), script=restart)
    assert str(crashes.outcome) == "completed: [0, 1]"


# --- what is wrong is found ----------------------------------------------------------------------


@durable.workflow
async def depends_on_chance(step: Step) -> float:
    await charge("a")
    drawn = random.random()  # noqa: S311  # durable: allow
    await charge("b")
    return drawn


async def test_a_result_that_differs_is_named_with_its_commit() -> None:
    with pytest.raises(AssertionError) as caught:
        await testing.crash_everywhere(depends_on_chance())
    text = str(caught.value)
    assert "a replay of its journal differs" in text or "changes what it comes to" in text


@durable.workflow
async def counts_lives(step: Step) -> int:
    await charge("a")
    number = next(numbers)
    return number - number + (1 if number in LATER else 0)


LATER = range(2, 10_000)


async def test_a_result_that_a_crash_changes_is_named_with_its_commit() -> None:
    """The body's first two looks at the world, live and replayed, are alike; the next are not."""
    with pytest.raises(AssertionError) as caught:
        await testing.crash_everywhere(counts_lives())
    text = str(caught.value)
    assert text.startswith("a crash before commit 1 (run 'run': starts")
    assert "issues step 0 'test_testing_crashes:charge'" in text
    assert "without it: completed: 0" in text
    assert "with it:    completed: 1" in text


async def test_an_effect_that_is_not_to_happen_twice_is_found_by_the_check() -> None:
    def check(env: Environment) -> None:
        assert world == ["charge o-1"], f"charged {len(world)} times"

    with pytest.raises(AssertionError, match=r"(?s)a crash .* commit \d.*charged 2 times"):
        await testing.crash_everywhere(
            order("o-1"), setup=make_table, check=check, ignore=["booking.at"]
        )


async def test_a_step_at_most_once_may_fail_where_that_is_allowed() -> None:
    @durable.workflow(name="once")
    async def once(step: Step) -> str:
        return await charge_once("o-1")

    with pytest.raises(AssertionError, match=r"(?s)with it:    failed: durable.OutcomeUnknown"):
        await testing.crash_everywhere(once())
    crashes = await testing.crash_everywhere(once(), may_raise=OutcomeUnknown)
    assert str(crashes.outcome) == "completed: 'receipt of o-1'"


@durable.action
async def book_by_itself(what: str) -> None:
    async with Engine.current().transaction() as tx:
        await tx.execute("INSERT INTO booking (what) VALUES (?)", what)


@durable.workflow
async def booking_by_an_action(step: Step) -> None:
    await book_by_itself("o-1")


async def test_rows_that_a_crash_doubles_are_shown() -> None:
    with pytest.raises(AssertionError) as caught:
        await testing.crash_everywhere(
            booking_by_an_action(), setup=make_table, ignore=["booking.at"]
        )
    text = str(caught.value)
    assert "table booking, without it: [\"{'what': 'o-1'}\"]" in text
    assert "table booking, with it:    [\"{'what': 'o-1'}\", \"{'what': 'o-1'}\"]" in text
    await testing.crash_everywhere(booking_by_an_action(), setup=make_table, ignore=["booking"])


@durable.workflow
async def charging_twice(step: Step) -> None:
    await charge("a")
    await charge("b")


async def test_a_journal_that_forgets_what_it_has_acknowledged_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commit, open_journal = SqliteJournal.commit, SqliteJournal.open
    opened = count(1)
    lives = [0]

    async def counts(self: SqliteJournal) -> None:
        lives[0] = next(opened)
        await open_journal(self)

    async def forgets(self: SqliteJournal, changes: Sequence[Change]) -> dict[str, Any]:
        completed = any(step.state == "completed" for each in changes for step in each.updated)
        if completed and lives[0] % 2 == 0:  # It crashes; the first does not.
            changes = []
        return await commit(self, changes)

    monkeypatch.setattr(SqliteJournal, "commit", forgets)
    monkeypatch.setattr(SqliteJournal, "open", counts)
    with pytest.raises(AssertionError, match="began again whose outcome was recorded"):
        await testing.crash_everywhere(charging_twice())


async def test_a_run_that_does_not_end_after_a_crash_is_named() -> None:
    async def ask_in_vain(env: Environment, run_id: str) -> None:
        await env.run_until_idle()
        await env.engine.get(run_id).result()

    @durable.workflow(name="waits for ever")
    async def waits(step: Step) -> None:
        await step.wait_event("never")

    with pytest.raises(testing.StalledError, match="'never'"):
        await testing.crash_everywhere(waits(), script=ask_in_vain)


async def test_what_a_script_asks_of_the_engine_itself_says_what_to_do_in_a_crash() -> None:
    async def send(env: Environment, run_id: str) -> None:
        await env.run_until_idle()
        await env.engine.send_event(run_id, "approval", "yes")

    with pytest.raises(AssertionError, match=r"(?s)a crash .* commit .*EngineClosedError"):
        await testing.crash_everywhere(asking(), script=send)


async def test_a_canceled_sweep_leaves_no_engine_open() -> None:
    sweeping = asyncio.create_task(testing.crash_everywhere(order("o-1"), setup=make_table))
    await until(lambda: world)
    sweeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sweeping
    with pytest.raises(durable.NoEngineError):
        Engine.current()
    assert asyncio.all_tasks() == {asyncio.current_task()}


# --- orders of completion ------------------------------------------------------------------------


@durable.workflow
async def race(step: Step) -> list[int]:
    done: list[int] = []
    for result in asyncio.as_completed([pack(number) for number in range(4)]):
        done.append(await result)  # noqa: PERF401  a comprehension would do as well
    return done


async def test_parallel_actions_complete_in_other_orders() -> None:
    shuffled = await testing.shuffle(race(), seeds=20)
    orders = {tuple(outcome.result) for outcome in shuffled.outcomes.values()}
    assert len(orders) > 10
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    again = await testing.shuffle(race(), seeds=[7])
    assert again.outcomes[7] == shuffled.outcomes[7]


async def test_scripts_children_and_cancels_are_shuffled_too() -> None:
    async with testing.engine() as env:
        shuffled = await env.shuffle(order("o-1"), seeds=5, script=approve, setup=make_table)
        assert {str(outcome) for outcome in shuffled.outcomes.values()} == {
            "completed: 'receipt of o-1, [0, 1], yes, 1'"
        }
        shuffled = await env.shuffle(order("o-1"), seeds=3, script=cancel, setup=make_table)
        assert {str(outcome) for outcome in shuffled.outcomes.values()} == {"canceled"}


@durable.workflow
async def takes_the_first_as_given(step: Step) -> int:
    tasks = [asyncio.create_task(pack(number)) for number in range(3)]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    if tasks[0] not in done:
        await step.wait_event("never")
    return 0


async def test_an_order_that_hangs_is_named_by_its_seed() -> None:
    with pytest.raises(AssertionError, match=r"(?s)with seed \d+, .*StalledError.*'never'"):
        await testing.shuffle(takes_the_first_as_given(), seeds=20)


@durable.workflow
async def depends_on_chance_in_a_race(step: Step) -> list[int]:
    results = await asyncio.gather(pack(1), pack(2))
    return [*results, next(numbers)]


async def test_a_replay_that_comes_to_something_else_is_found() -> None:
    with pytest.raises(AssertionError, match=r"(?s)with seed 0, .*a replay of its journal differs"):
        await testing.shuffle(depends_on_chance_in_a_race(), seeds=3)


async def test_a_run_that_fails_is_replayed_too() -> None:
    @durable.workflow(name="fails in a race")
    async def fails(step: Step) -> None:
        await asyncio.gather(pack(1), pack(2))
        msg = "mine"
        raise LookupError(msg)

    shuffled = await testing.shuffle(fails(), seeds=2)
    assert str(shuffled.outcomes[0]) == "failed: LookupError: mine"


# --- what would test nothing ---------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [0, -3, [], ()])
async def test_no_seeds_are_refused(seeds: int | list[int]) -> None:
    with pytest.raises(ValueError, match="nothing would be tested"):
        await testing.shuffle(packing(1), seeds=seeds)


@pytest.mark.parametrize("ignore", ["booking", ["booking", 1]])
async def test_what_is_ignored_is_a_list_of_texts(ignore: list[str]) -> None:
    with pytest.raises(TypeError, match="a list of names"):
        await testing.crash_everywhere(packing(1), ignore=ignore)


@pytest.mark.parametrize("name", ["", "a.b.c", "booking.", ".at"])
async def test_what_is_ignored_has_the_form_of_a_table_or_a_column(name: str) -> None:
    with pytest.raises(ValueError, match="names tables"):
        await testing.crash_everywhere(packing(1), ignore=["booking", name])
