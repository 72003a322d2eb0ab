"""A test's time: it passes while all is idle, to what is due next, in one environment alone."""

from __future__ import annotations

import asyncio
import inspect
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio.from_thread
import pytest

import durable
from durable import Engine, EngineClosedError, Retry, RunFailed, RunState, Step, testing
from durable.testing import EngineOptions, StalledError

DAY = timedelta(days=1)
THE_YEAR = datetime(2025, 1, 1, tzinfo=UTC)
REAL_S_MAX = 2.0
"""Far more than any of these tests takes, and far less than the time that passes in them."""


@durable.action
async def remind(number: int) -> int:
    return number


@durable.workflow
async def reminders(step: Step) -> list[datetime]:
    times = [step.now()]
    for number in range(30):
        await step.sleep(DAY)
        await remind(number)
        times.append(step.now())
    return times


@durable.workflow
async def waits_for_approval(step: Step, timeout_s: float | None = None) -> str:
    try:
        answer: str = await step.wait_event("approval", timeout=timeout_s)
    except TimeoutError:
        return "nobody answered"
    return answer


@durable.action(retry=Retry(max_attempts=4, initial_backoff=10, base=3))
async def flaky(fails: int) -> int:
    number = durable.attempt().number
    if number <= fails:
        msg = "not yet"
        raise ConnectionError(msg)
    return number


@durable.workflow
async def retries(step: Step, fails: int) -> int:
    return await flaky(fails)


@durable.workflow
async def later(step: Step) -> datetime:
    await step.run(remind(1), run_after=3600)
    return step.now()


@durable.workflow(timeout=60)
async def bounded(step: Step) -> None:
    await step.sleep(3600)


@durable.workflow
async def sleeps(step: Step, seconds: float) -> datetime:
    await asyncio.sleep(seconds)
    return step.now()


@durable.workflow
async def goes_on_for_ever(step: Step) -> None:
    while True:
        await step.sleep(timedelta(days=300))


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, path: Path) -> str | Path:
    return path if request.param == "file" else "sqlite://"


@pytest.mark.both_loops
async def test_thirty_days_with_reminders_take_no_time(url: str | Path) -> None:
    async with testing.engine(url) as env:
        began_s = time.perf_counter()
        times = await env.run(reminders())
        assert time.perf_counter() - began_s < REAL_S_MAX
        assert times == [THE_YEAR + number * DAY for number in range(31)]
        assert env.now == THE_YEAR + 30 * DAY
        assert len(env.calls(remind)) == 30


async def test_a_plain_result_lets_time_pass_too() -> None:
    async with testing.engine() as env:
        run = await env.engine.start(sleeps(86_400))
        assert await run.result() == THE_YEAR + DAY
        assert await env.engine.run(sleeps(86_400)) == THE_YEAR + 2 * DAY
        assert await durable.run(sleeps(86_400)) == THE_YEAR + 3 * DAY


async def test_time_stands_still_while_nobody_waits_for_an_end() -> None:
    async with testing.engine() as env:
        run = await env.start(waits_for_approval(60))
        await env.run_until_idle()
        await asyncio.to_thread(time.sleep, 0.01)
        assert env.now == THE_YEAR
        await env.engine.send_event(run.id, "approval", "yes")
        assert await run.result() == "yes"
        assert env.now == THE_YEAR


async def test_a_wait_times_out_when_nothing_is_sent() -> None:
    async with testing.engine() as env:
        assert await env.run(waits_for_approval(86_400)) == "nobody answered"
        assert env.now == THE_YEAR + DAY


async def test_an_advance_stops_at_each_time_that_something_is_due_at() -> None:
    async with testing.engine(auto=False) as env:
        run = await env.start(reminders())
        await env.advance(10 * DAY)
        assert env.now == THE_YEAR + 10 * DAY
        assert [call.began_at for call in env.calls(remind)] == [
            THE_YEAR + number * DAY for number in range(1, 11)
        ]
        await env.advance(20 * DAY)
        assert len(await run.result()) == 31


async def test_an_advance_that_is_not_awaited_has_passed_when_all_is_idle() -> None:
    async with testing.engine(auto=False) as env:
        await env.start(reminders())
        env.advance(3600)
        env.advance(2 * 86_400)
        await env.run_until_idle()
        assert env.now == THE_YEAR + 2 * DAY
        assert len(env.calls(remind)) == 2


async def test_without_auto_time_passes_by_an_advance_alone() -> None:
    async with testing.engine(auto=False) as env:
        waiting = asyncio.create_task(env.run(sleeps(60)))
        await env.run_until_idle()
        assert not waiting.done()
        await env.advance(60)
        assert await waiting == THE_YEAR + timedelta(seconds=60)


async def test_back_off_is_what_the_policy_says() -> None:
    async with testing.engine() as env:
        assert await env.run(retries(3)) == 4
        assert env.now == THE_YEAR + timedelta(seconds=10 + 30 + 90)


async def test_delayed_steps_and_runs_begin_when_they_are_due() -> None:
    async with testing.engine() as env:
        assert await env.run(later()) == THE_YEAR + timedelta(hours=1)
        run = await env.engine.start(sleeps(0), run_after=DAY)
        assert await run.result() == THE_YEAR + timedelta(hours=25)
        run = await env.engine.start(sleeps(0), run_at=THE_YEAR + 9 * DAY)
        assert await run.result() == THE_YEAR + 9 * DAY


async def test_a_workflow_s_timeout_is_of_the_test_s_time() -> None:
    async with testing.engine() as env:
        with pytest.raises(RunFailed, match="RunTimeout"):
            await env.run(bounded())
        assert env.now == THE_YEAR + timedelta(minutes=1)


async def test_runs_are_removed_when_their_retention_is_over_and_time_passes_for_no_sweep() -> None:
    async with testing.engine(retention=DAY) as env:
        began_s = time.perf_counter()
        run = await env.start(sleeps(0))
        await run.result()
        await env.run(sleeps(100 * 86_400))
        await env.advance(120)
        assert time.perf_counter() - began_s < REAL_S_MAX
        with pytest.raises(durable.RunNotFoundError):
            await run.status()


async def test_two_environments_have_a_time_each() -> None:
    async with (
        testing.engine() as env,
        testing.engine(start=datetime(2030, 5, 1, tzinfo=UTC)) as other,
    ):
        first, second = await asyncio.gather(env.run(sleeps(60)), other.run(sleeps(7200)))
        assert first == THE_YEAR + timedelta(minutes=1)
        assert second == other.now == datetime(2030, 5, 1, 2, tzinfo=UTC)
        async with Engine("sqlite://") as engine:
            assert (await engine.run(sleeps(0))).year > 2025


async def test_a_sync_action_holds_the_time() -> None:
    async with testing.engine() as env:
        assert await env.run(in_thread()) == (THE_YEAR, "slow")


@durable.action
def slow() -> str:
    time.sleep(0.02)  # Really: the test's time would pass meanwhile, if nothing held it.
    return "slow"


@durable.workflow
async def in_thread(step: Step) -> tuple[datetime, str]:
    task = asyncio.create_task(slow())
    timer = asyncio.create_task(asyncio.sleep(3600))
    await asyncio.wait([task, timer], return_when=asyncio.FIRST_COMPLETED)
    timer.cancel()
    return step.now(), await task


# --- waits that nothing ends ---------------------------------------------------------------------


async def test_a_wait_that_nothing_can_end_fails_and_says_what_is_waited_for() -> None:
    async with testing.engine() as env:
        with pytest.raises(StalledError) as caught:
            await env.run(waits_for_approval(), id="r-1")
        text = str(caught.value)
        assert "run 'r-1'" in text
        assert "event 'approval' (step 0, running)" in text
        assert "nothing is due" in text
        run = env.engine.get("r-1")
        with pytest.raises(StalledError):
            await run.result()
        await env.send_event("r-1", "approval", "at last")
        assert await run.result() == "at last"


async def test_without_auto_a_test_may_wait_for_what_its_own_input_brings() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        await asyncio.to_thread(time.sleep, 0.02)  # Really: all else is idle meanwhile.
        writer.write(b"yes\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def ask(env: testing.Environment, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"well?\n")
        line = await reader.readline()
        writer.close()
        await writer.wait_closed()
        await env.send_event("r-1", "approval", line.decode().strip())

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, asyncio.timeout(20), testing.engine(auto=False) as env:
        run = await env.start(waits_for_approval(), id="r-1")
        port = server.sockets[0].getsockname()[1]
        text, _ = await asyncio.gather(run.result(), ask(env, port))
        assert text == "yes"


async def test_without_auto_a_wait_is_bounded_by_the_test_s_patience() -> None:
    async with asyncio.timeout(20), testing.engine(auto=False) as env:
        run = await env.start(waits_for_approval())
        with pytest.raises(TimeoutError, match="did not end within"):
            await run.result(timeout=0.02)


async def test_a_step_without_a_slot_is_named() -> None:
    async with testing.engine(max_parallelism=0) as env:
        with pytest.raises(StalledError, match=r"flaky' \(step 0, pending"):
            await env.run(retries(0))


async def test_a_run_that_goes_on_for_ever_ends_its_test() -> None:
    async with testing.engine() as env:
        with pytest.raises(StalledError, match="ten years"):
            await env.run(goes_on_for_ever())


async def test_one_who_sends_in_time_is_waited_for() -> None:
    """Time does not pass, and nothing fails, while a task of the test can still go on."""

    async def send_soon(env: testing.Environment) -> None:
        for _ in range(50):
            await asyncio.sleep(0)
        await env.send_event("r-1", "approval", "yes")

    async with testing.engine() as env:
        await env.start(waits_for_approval(60), id="r-1")
        answer, _ = await asyncio.gather(env.result("r-1"), send_soon(env))
        assert answer == "yes"
        assert env.now == THE_YEAR


async def test_a_task_that_polls_does_not_stop_time() -> None:
    async with testing.engine() as env:
        run = await env.start(sleeps(3600))

        async def poll() -> None:
            while (await run.status()).state is not RunState.COMPLETED:
                pass

        ended, _ = await asyncio.gather(run.result(), poll())
        assert ended == env.now == THE_YEAR + timedelta(hours=1)


async def test_time_passes_for_a_test_that_watches_a_run() -> None:
    async with testing.engine() as env:
        run = await env.start(sleeps(3600))
        states = [status.state async for status in run.watch()]
        assert states[-1] is RunState.COMPLETED
        assert env.now == THE_YEAR + timedelta(hours=1)


async def test_it_stands_still_while_the_test_does_something_with_what_it_has_seen() -> None:
    async with testing.engine() as env:
        run = await env.start(waits_for_approval(60), id="r-1")
        async for status in run.watch():
            if status.running:
                for _ in range(20):
                    await asyncio.sleep(0)
                assert env.now == THE_YEAR
                await env.send_event("r-1", "approval", "seen")
        assert await run.result() == "seen"
        assert env.now == THE_YEAR


async def test_an_action_that_watches_a_run_does_not_hold_the_time() -> None:
    async with testing.engine() as env:
        assert await env.run(watches_another()) == RunState.COMPLETED
        assert env.now == THE_YEAR + timedelta(hours=1)


@durable.action
async def watch_another() -> str:
    run = await Engine.current().start(sleeps(3600))
    return [status.state async for status in run.watch()][-1]


@durable.workflow
async def watches_another(_step: Step) -> str:
    return await watch_another()


async def test_a_watch_that_nothing_can_bring_on_fails_and_can_go_on() -> None:
    async with testing.engine() as env:
        run = await env.start(waits_for_approval(), id="r-1")
        watch = run.watch()
        with pytest.raises(StalledError, match="event 'approval'"):
            async for _ in watch:
                pass
        await env.send_event("r-1", "approval", "at last")
        assert [status.state async for status in watch][-1] is RunState.COMPLETED


async def test_without_auto_a_watch_waits_for_what_the_test_does() -> None:
    async with asyncio.timeout(20), testing.engine(auto=False) as env:
        run = await env.start(sleeps(3600))
        seen: list[str] = []

        async def watch() -> None:
            seen.extend([status.state async for status in run.watch()])

        async with asyncio.TaskGroup() as group:
            group.create_task(watch())
            await env.advance(3599)
            assert not seen
            await env.advance(1)
        assert seen[-1] == RunState.COMPLETED


async def test_a_result_s_own_timeout_is_real() -> None:
    async with testing.engine(auto=False) as env:
        run = await env.start(sleeps(3600))
        with pytest.raises(TimeoutError):
            await run.result(timeout=0.01)


# --- opening, closing, options -------------------------------------------------------------------


async def test_it_has_to_be_open() -> None:
    env = testing.engine()
    with pytest.raises(EngineClosedError, match="open environment"):
        env.advance(1)
    with pytest.raises(EngineClosedError):
        await env.run(sleeps(1))
    async with env:
        await env.run(sleeps(1))
    with pytest.raises(EngineClosedError, match="open environment"):
        await env.run_until_idle()


async def test_time_does_not_go_back() -> None:
    async with testing.engine() as env:
        with pytest.raises(ValueError, match="does not go back"):
            env.advance(-1)
        with pytest.raises(TypeError, match="seconds or a timedelta"):
            env.advance("1")  # type: ignore[arg-type]


def test_the_start_is_an_aware_datetime() -> None:
    with pytest.raises(ValueError, match="aware datetime"):
        testing.engine(start=datetime(2025, 1, 1))  # noqa: DTZ001  what is refused


def test_the_options_are_those_of_engine() -> None:
    options = set(inspect.signature(Engine).parameters) - {"url"}
    assert EngineOptions.__optional_keys__ == options


async def test_an_environment_s_journal_is_there_for_the_next_one(path: Path) -> None:
    async with testing.engine(path) as env:
        run = await env.start(sleeps(3600), id="r-1")
        await env.run_until_idle()
    async with testing.engine(path, start=THE_YEAR + DAY) as env:
        assert await env.result(run.id) == THE_YEAR + DAY


async def test_it_says_where_it_stands() -> None:
    assert repr(testing.engine()) == (
        "<Environment 2025-01-01T00:00:00+00:00 <Engine in memory closed>>"
    )


# --- actions that wait for runs ------------------------------------------------------------------


@durable.action
async def waits_for_a_run(seconds: float | None) -> object:
    if seconds is None:
        return await Engine.current().run(waits_for_approval(), id="inner")
    return await Engine.current().run(sleeps(seconds))


@durable.action
async def waits_in_tasks(seconds: float) -> int:
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(waits_a_moment(seconds))
    return 3


async def waits_a_moment(seconds: float) -> None:
    run = await Engine.current().start(sleeps(seconds), id=f"sleeps {seconds}")
    await asyncio.wait_for(run.result(), 60)


@durable.action
def waits_in_a_thread(seconds: float) -> object:
    return anyio.from_thread.run(Engine.current().run, sleeps(seconds))


@durable.workflow
async def awaits_an_action(step: Step, which: str) -> datetime:
    calls = {
        "a run": waits_for_a_run(3600),
        "tasks": waits_in_tasks(3600),
        "a thread": waits_in_a_thread(3600),
        "an event": waits_for_a_run(None),
    }
    await calls[which]
    return step.now()


@pytest.mark.parametrize("which", ["a run", "tasks", "a thread"])
async def test_an_action_that_waits_for_a_run_does_not_hold_the_time(which: str) -> None:
    async with asyncio.timeout(20), testing.engine() as env:
        assert await env.run(awaits_an_action(which)) == THE_YEAR + timedelta(hours=1)


async def test_an_action_s_wait_lets_no_time_pass_that_the_test_does_not_wait_for() -> None:
    async with asyncio.timeout(20), testing.engine() as env:
        run = await env.start(awaits_an_action("a run"))
        await env.run_until_idle()
        assert env.now == THE_YEAR
        await env.advance(1800)
        assert env.now == THE_YEAR + timedelta(minutes=30)
        assert await run.result() == THE_YEAR + timedelta(hours=1)


async def test_a_run_that_an_action_waits_for_in_vain_is_named_and_left_as_it_is() -> None:
    async with asyncio.timeout(20), testing.engine() as env:
        run = await env.start(awaits_an_action("an event"), id="outer")
        with pytest.raises(StalledError, match=r"(?s)end of run 'outer', .*'inner' .*'approval'"):
            await run.result()
        (call,) = env.calls(waits_for_a_run)
        assert not call.is_over
        await env.send_event("inner", "approval", "yes")
        assert await run.result() == THE_YEAR
        assert len(env.calls(waits_for_a_run)) == 1


# --- long waits ----------------------------------------------------------------------------------

begun: list[str] = []


@durable.workflow
async def waits_often(step: Step) -> None:
    begun.append("again")
    for _ in range(5):
        await step.sleep(DAY)


async def test_a_run_that_waits_long_stays_in_memory() -> None:
    begun.clear()
    async with testing.engine() as env:
        await env.run(waits_often())
    assert begun == ["again"]


async def test_what_is_shuffled_leaves_memory_as_in_production() -> None:
    begun.clear()
    await testing.shuffle(waits_often(), seeds=1)
    assert len(begun) > 5
