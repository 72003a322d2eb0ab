"""A body that does not replay is found on its first run, by the turn that it went wrong in."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
import uuid
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from clock import ManualClock
from corpus import CORPUS, Case
from waiting import WAIT_S_MAX, until, until_open, until_parked, until_state

import durable
from durable import Engine, RunCanceled, RunState, Step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Body = Callable[[Step], Coroutine[Any, Any, object]]

FOUND = "verify_replay has executed the body again after this turn, and it did something else: "

bodies: list[Body] = []
begun: list[object] = []
counter = itertools.count()


@durable.action
async def note(value: object) -> object:
    begun.append(value)
    return value


@durable.workflow
async def flow(step: Step) -> object:
    return await bodies[-1](step)


@durable.workflow
async def child(_step: Step, text: str) -> object:
    return await note(text)


@pytest.fixture(autouse=True)
def _new_day() -> Iterator[None]:
    yield
    bodies.clear()
    begun.clear()


@pytest.fixture
async def verifying(clock: ManualClock) -> Any:  # noqa: ANN401  an iterator of engines
    engine = Engine("sqlite://", verify_replay=True)
    clock.install(engine)
    async with engine:
        yield engine


async def stuck(engine: Engine, body: Body) -> str:
    """Run a body that gets stuck; return what is said of it."""
    bodies[:] = [body]
    status = await until_state(await engine.start(flow()), RunState.STUCK)
    assert status.error is not None
    assert status.error.type_name == "durable.NonDeterminismError"
    return status.error.message


# --- what is found -------------------------------------------------------------------------------


async def reads_the_time(_step: Step) -> None:
    await note(time.perf_counter_ns())


async def draws_a_number(_step: Step) -> None:
    await note(random.random())  # noqa: S311


async def makes_an_id(_step: Step) -> None:
    await note(str(uuid.uuid4()))


async def counts_globally(_step: Step) -> None:
    await note(next(counter))


async def tells_an_address(_step: Step) -> None:
    await note(repr(flow_of_its_own()))


def flow_of_its_own() -> object:
    begun.append(made := object())
    return made


async def branches(_step: Step) -> None:
    if next(counter) % 2:
        await note("odd")
    else:
        await asyncio.create_task(child("even"))


async def names_a_step_so(step: Step) -> None:
    await step.run(note("x"), name=f"step {next(counter)}")


async def forgets_a_step(_step: Step) -> None:
    if not next(counter) % 2:
        await note("once")
    await asyncio.sleep(60)


@pytest.mark.parametrize(
    "body",
    [
        reads_the_time,
        draws_a_number,
        makes_an_id,
        counts_globally,
        tells_an_address,
        branches,
        names_a_step_so,
        forgets_a_step,
    ],
)
async def test_what_is_not_the_same_each_time_is_found_in_the_first_turn(
    verifying: Engine, body: Body
) -> None:
    """With the diff, and before anything of it has begun."""
    global counter  # noqa: PLW0603
    counter = itertools.count()
    message = await stuck(verifying, body)
    assert message.startswith(FOUND)
    assert "\n  - " in message
    assert "\n  + " in message
    assert not [value for value in begun if type(value) is not object]


async def test_a_later_turn_is_found_too(verifying: Engine) -> None:
    async def body(_step: Step) -> None:
        await note("a")
        await note("b")
        await note(next(counter))

    message = await stuck(verifying, body)
    assert begun == ["a", "b"]
    assert '    1  action  test_verify_replay:note  {"value":"b"}' in message
    assert "  - 2  action" in message


async def test_the_turn_is_not_recorded_and_mended_code_goes_on(path: Path) -> None:
    """What led to the turn is: the steps before it do not run again."""

    async def body(_step: Step) -> object:
        return [await note("a"), await note(next(counter))]

    async def mended(_step: Step) -> object:
        return [await note("a"), await note("b")]

    async with Engine(path, verify_replay=True) as engine:
        await stuck(engine, body)
        assert [step.name async for step in engine.iter_steps((await _only(engine)).id)] == [
            "test_verify_replay:note"
        ]
    bodies[:] = [mended]
    async with Engine(path, verify_replay=True) as engine:
        assert await engine.get((await _only(engine)).id).result(WAIT_S_MAX) == ["a", "b"]
    assert begun == ["a", "b"]


async def _only(engine: Engine) -> Any:  # noqa: ANN401
    (run,) = (await engine.list_runs()).items
    return run


async def test_another_result_is_found(verifying: Engine) -> None:
    async def body(_step: Step) -> object:
        await note("a")
        return {"n": next(counter)}

    message = await stuck(verifying, body)
    assert "the journal says that the body returned {" in message


async def test_another_exception_is_found(verifying: Engine) -> None:
    async def body(_step: Step) -> object:
        raise (KeyError, ValueError)[next(counter) % 2]

    assert "raised" in await stuck(verifying, body)


async def test_a_body_that_ends_only_once_is_found(verifying: Engine) -> None:
    async def body(_step: Step) -> None:
        await note("a")
        if next(counter) % 2:
            await note("b")

    message = await stuck(verifying, body)
    assert message.startswith(FOUND)


# --- what is left alone --------------------------------------------------------------------------


async def test_what_replays_is_not_disturbed(verifying: Engine, clock: ManualClock) -> None:
    """Steps run once, and everything that Step gives is the same again."""

    async def body(step: Step) -> object:
        first = await note([str(step.uuid4()), step.random.random(), step.now().isoformat()])
        try:
            async with asyncio.timeout(1):
                await step.wait_event("never")
        except TimeoutError:
            pass
        value = await step.wait_event("go")
        both = await asyncio.gather(child("c"), note(str(step.uuid4())))
        return [first, value, both, step.patched("x")]

    bodies[:] = [body]
    run = await verifying.start(flow())
    await until_open(run)
    await run.send_event("go", 7)
    async with asyncio.timeout(WAIT_S_MAX):
        while not (await run.status()).state.is_final:
            clock.advance(1)
            await asyncio.sleep(0)
    result: Any = await run.result()
    assert result[1:] == [7, ["c", begun[2 if begun[1] == "c" else 1]], True]
    assert len(begun) == 3


async def test_a_body_that_cleans_up_after_a_cancel(verifying: Engine) -> None:
    async def body(step: Step) -> None:
        try:
            await step.sleep(3600)
        finally:
            await note("cleaned")

    bodies[:] = [body]
    run = await verifying.start(flow())
    await until_open(run)
    await run.cancel()
    with pytest.raises(RunCanceled):
        await run.result(WAIT_S_MAX)
    assert begun == ["cleaned"]


async def test_a_run_that_comes_back_is_verified_over_all_that_is_recorded(path: Path) -> None:
    async def body(step: Step) -> object:
        value = await note("a")
        await step.sleep(3600)
        return [value, await note("b")]

    bodies[:] = [body]
    clock = ManualClock()
    for number in range(2):
        engine = Engine(path, verify_replay=True)
        clock.install(engine)
        async with engine:
            if number == 0:
                await engine.start(flow(), id="r")
                await until_parked(engine)
                continue
            clock.advance(3600)
            assert await engine.get("r").result(WAIT_S_MAX) == ["a", "b"]


@pytest.mark.parametrize("from_step", [0, 1, 2])
async def test_a_restarted_run(verifying: Engine, from_step: int) -> None:
    async def body(_step: Step) -> object:
        first = await asyncio.gather(note("a"), note("b"))
        return [*first, await note("c")]

    bodies[:] = [body]
    run = await verifying.start(flow(), id="r")
    await run.result(WAIT_S_MAX)
    again = await verifying.restart("r", from_step=from_step)
    assert await again.result(WAIT_S_MAX) == ["a", "b", "c"]


async def test_what_a_restart_issues_anew_is_verified_with_the_rest(verifying: Engine) -> None:
    """Commands that the replay has issued, of which nothing is recorded until it is over."""

    async def branch() -> list[object]:
        await note("b")
        return list(await asyncio.gather(note("c"), note("d")))

    async def body(_step: Step) -> object:
        return await asyncio.gather(branch(), note("a"))

    bodies[:] = [body]
    run = await verifying.start(flow(), id="r")
    await run.result(WAIT_S_MAX)
    again = await verifying.restart("r", from_step=2)
    assert await again.result(WAIT_S_MAX) == [["c", "d"], "a"]
    assert begun == ["b", "a", "c", "d", "c", "d"]


async def test_an_on_complete_and_a_time_out(verifying: Engine, clock: ManualClock) -> None:
    """What durable's own bodies do replays as well."""
    told: list[str] = []

    @durable.action(name="test_verify_replay:tell")
    async def tell(completion: durable.Completion) -> None:
        told.append(completion.outcome.kind)

    @durable.workflow(name="test_verify_replay:bounded", timeout=5)
    async def bounded(step: Step) -> None:
        await step.sleep(3600)

    run = await verifying.start(bounded(), on_complete=tell)
    await until_open(run)
    clock.advance(5)
    await until_state(run, RunState.FAILED)
    await until(lambda: told)
    assert told == ["error"]


async def test_a_body_logs_once(verifying: Engine) -> None:
    async def body(step: Step) -> None:
        step.log.info("begun")
        await note("a")
        step.log.info("done")

    bodies[:] = [body]
    try:
        with structlog.testing.capture_logs() as logs:
            await verifying.run(flow())
    finally:
        structlog.reset_defaults()
    assert [entry["event"] for entry in logs] == ["begun", "done"]


@pytest.mark.slow
# Python says so of a coroutine that a body has made, and not awaited yet, when it is dropped.
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
async def test_every_shape_of_body_is_left_alone(verifying: Engine, clock: ManualClock) -> None:
    async def end_of(case: Case) -> RunState:
        run = await verifying.start(case.workflow(*case.args))
        async with asyncio.timeout(WAIT_S_MAX):
            while True:
                status = await run.status()
                if status.state.is_final or status.state is RunState.STUCK:
                    return status.state
                clock.advance(1)
                await asyncio.sleep(0)

    for case in CORPUS:
        if case.id not in {"gather_wide", "long_sequence", "loops_in_parallel"}:
            expected = RunState.COMPLETED if case.raises is None else RunState.FAILED
            assert await end_of(case) is expected, case.id


# --- the setting ---------------------------------------------------------------------------------


async def test_without_it_nothing_is_executed_again(engine: Engine) -> None:
    bodies[:] = [reads_the_time]
    await engine.run(flow())


@pytest.mark.parametrize(
    ("text", "setting", "expected"),
    [
        ("1", None, True),
        ("true", None, True),
        ("YES", None, True),
        ("0", None, False),
        ("", None, False),
        (None, None, False),
        ("1", False, False),
        ("0", True, True),
    ],
)
def test_the_environment_decides_where_the_engine_does_not(
    monkeypatch: pytest.MonkeyPatch, text: str | None, setting: bool | None, expected: bool
) -> None:
    monkeypatch.delenv("DURABLE_VERIFY_REPLAY", raising=False)
    if text is not None:
        monkeypatch.setenv("DURABLE_VERIFY_REPLAY", text)
    assert Engine("sqlite://", verify_replay=setting)._settings.verify_replay is expected


def test_an_odd_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="verify_replay="):
        Engine("sqlite://", verify_replay=1)  # type: ignore[arg-type]
    monkeypatch.setenv("DURABLE_VERIFY_REPLAY", "perhaps")
    with pytest.raises(ValueError, match="DURABLE_VERIFY_REPLAY is 1 or 0, not 'perhaps'"):
        Engine("sqlite://")
