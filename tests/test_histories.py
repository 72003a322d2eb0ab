"""What is recorded of a run, as JSON: exported whole, and replayed without an engine."""

from __future__ import annotations

import asyncio
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from corpus import CORPUS, Case
from msgspec.structs import replace
from waiting import WAIT_S_MAX, until_open, until_state, until_step

import durable
from durable import Engine, NonDeterminismError, RunNotFoundError, RunState, Step, StepState
from durable.core.histories import RecordedRun, decode_history, encode_history
from durable.core.records import RunRecord, StepKind, StepRecord
from durable.core.versions import VERSION
from durable.journal.base import StepQuery
from durable.testing import DivergenceError, replay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from clock import ManualClock

HISTORIES = Path(__file__).parent / "histories"
EXAMPLES = Path(__file__).parent.parent / "examples"

begun: list[str] = []
texts: list[str] = []
more: list[str] = []
ends: list[Callable[[], object]] = []


@durable.action
async def note(text: str) -> str:
    begun.append(text)
    return text


@durable.workflow
async def flow(step: Step) -> object:
    """Wait for an event, between two steps."""
    for text in texts[:-1]:
        await note(text)
    value = await step.wait_event("go")
    await note(texts[-1])
    for text in more:
        await note(text)
    return ends[-1]() if ends else value


@durable.workflow
async def parent(_step: Step) -> list[object]:
    return list(await asyncio.gather(flow(), note("beside")))


@durable.workflow
async def in_time(step: Step, tags: set[str]) -> set[str]:
    await step.wait_event("go")
    return tags


@durable.workflow
async def sleeping(step: Step) -> str:
    first = await note(texts[0])
    await step.sleep(3600)
    return first


@durable.workflow
async def leaving(step: Step) -> None:
    task = asyncio.create_task(step.sleep(3600, name="left"))
    await step.wait_event("go")
    if more:
        await task


@pytest.fixture(autouse=True)
def _first_day() -> Iterator[None]:
    begun.clear()
    texts[:] = ["a", "b", "c"]
    yield
    texts.clear()
    more.clear()
    ends.clear()


async def history_of(engine: Engine, *, is_over: bool = True) -> str:
    run = await engine.start(flow(), id="r")
    if is_over:
        await run.send_event("go", {"n": 1})
        await run.result(WAIT_S_MAX)
    else:
        await until_open(run)
        await asyncio.sleep(0)
        while not [step async for step in run.steps() if step.kind == "event"]:
            pass
    begun.clear()
    return await engine.history("r")


async def test_a_history_is_json_that_a_reader_understands(engine: Engine) -> None:
    data = json.loads(await history_of(engine))
    assert list(data) == ["format", "begun_with", "run", "steps", "deliveries", "events"]
    assert data["run"]["name"] == "test_histories:flow"
    assert data["run"]["state"] == "completed"
    assert data["run"]["result"] == {"n": 1}
    assert [step["name"] for step in data["steps"]] == [
        "test_histories:note",
        "test_histories:note",
        "go",
        "test_histories:note",
    ]
    assert data["steps"][0]["args"] == {"text": "a"}
    assert data["deliveries"] == [0, 1, 2, 3]
    assert data["events"][0]["value"] == {"n": 1}
    assert data["events"][0]["step_number"] == 2
    assert set(data["begun_with"]) == {"python", "durable"}


async def test_it_has_the_ids_of_the_children_and_the_order_of_deliveries(engine: Engine) -> None:
    run = await engine.start(parent())
    await until_open(run)
    while not (child := [step.child_run_id async for step in run.steps() if step.child_run_id]):
        pass
    await engine.send_event(child[0] or "", "go", 1)
    await run.result(WAIT_S_MAX)
    data = json.loads(await engine.history(run.id))
    assert data["steps"][0]["child_run_id"] == child[0]
    assert data["deliveries"] == [1, 0]
    replay(data)


async def test_nothing_is_lost_on_the_way(engine: Engine) -> None:
    text = await history_of(engine)
    journal = engine._journal
    assert journal is not None
    recorded = decode_history(text)
    assert encode_history(recorded) == text
    assert recorded.steps == await journal.list_steps(StepQuery(run_id="r", limit=10))
    run = await journal.load_run("r")
    assert run is not None
    assert recorded.run == replace(run, begun_with=None, callback_id=None)


def test_arguments_are_kept_as_the_text_that_replay_compares() -> None:
    """Keys in the order that numbers have, floats as they were written."""
    text = '{"value":{"2":1e5,"10":1.0,"é":"\\u0000 "}}'
    run = RunRecord(run_id="r", name="flow", created_at_ms=1)
    step = StepRecord(number=0, key="0:0", kind=StepKind.ACTION, name="act", args=text)
    again = decode_history(encode_history(RecordedRun(run, [step])))
    assert (again.run, again.steps) == (run, [step])


async def test_a_run_that_is_not_there_has_no_history(engine: Engine) -> None:
    with pytest.raises(RunNotFoundError, match="'nope'"):
        await engine.history("nope")


async def test_a_client_exports_what_the_owner_writes(path: Path) -> None:
    async with Engine(path) as engine, Engine(path, worker=False) as client:
        text = await history_of(engine)
        assert await client.history("r") == text


# --- replay --------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_over", [True, False])
@pytest.mark.parametrize("form", ["text", "bytes", "object", "file"])
async def test_the_code_that_wrote_a_history_replays_it_and_executes_nothing(
    engine: Engine, form: str, tmp_path: Path, *, is_over: bool
) -> None:
    text = await history_of(engine, is_over=is_over)
    file = tmp_path / "history.json"

    def in_a_test_that_is_sync() -> None:
        file.write_text(text, "utf-8")
        replay(
            {"text": text, "bytes": text.encode(), "object": json.loads(text), "file": file}[form]
        )

    await asyncio.to_thread(in_a_test_that_is_sync)
    assert begun == []


@pytest.mark.parametrize("error", [DivergenceError, NonDeterminismError, AssertionError])
async def test_changed_code_fails_the_test_with_the_diff(
    engine: Engine, error: type[BaseException]
) -> None:
    text = await history_of(engine)
    texts[1] = "X"
    with pytest.raises(error) as caught:
        replay(text)
    message = str(caught.value)
    assert message.startswith("the journal has step 1 'test_histories:note'")
    assert "step.patched()" in message.splitlines()[0]
    assert '  - 1  action  test_histories:note  {"text":"b"}' in message
    assert '  + 1  action  test_histories:note  {"text":"X"}' in message
    assert f"{__file__}:" in message


@pytest.mark.parametrize("is_over", [True, False])
async def test_a_step_less_fails_it(engine: Engine, *, is_over: bool) -> None:
    text = await history_of(engine, is_over=is_over)
    del texts[1]
    with pytest.raises(DivergenceError):
        replay(text)


async def test_a_step_more_at_the_end_fails_it(engine: Engine) -> None:
    """A run that is over has nothing after its last step."""
    text = await history_of(engine)
    more.append("d")
    with pytest.raises(DivergenceError, match="the code now issues step 'test_histories:note'"):
        replay(text)


def raising() -> object:
    msg = "no"
    raise LookupError(msg)


async def test_a_run_that_is_over_has_to_end_as_it_did(engine: Engine) -> None:
    text = await history_of(engine)
    ends[:] = [lambda: {"n": 2}]
    with pytest.raises(DivergenceError, match=r'returned {"n":1}; the code now returns {"n":2}'):
        replay(text)
    ends[:] = [raising]
    with pytest.raises(DivergenceError, match="the code now raises LookupError"):
        replay(text)


async def test_of_an_exception_the_class_counts(engine: Engine) -> None:
    """Its text may have an address or a line in it."""
    ends[:] = [raising]
    run = await engine.start(flow(), id="r")
    await run.send_event("go")
    status = await until_state(run, RunState.FAILED)
    assert status.error is not None
    text = await engine.history("r")
    replay(text)
    replay(text.replace('"no"', '"another"'))
    ends[:] = [lambda: 1]
    with pytest.raises(DivergenceError, match="raised LookupError; the code now returns 1"):
        replay(text)


async def test_a_canceled_run_replays_to_its_cancel(engine: Engine) -> None:
    run = await engine.start(flow(), id="r")
    await history_of(engine, is_over=False)
    await engine.cancel("r")
    await until_state(run, RunState.CANCELED)
    replay(await engine.history("r"))


async def test_a_run_that_was_canceled_before_its_body_began_replays(path: Path) -> None:
    async with Engine(path, worker=False) as client:
        await client.start(flow(), id="r")
        await client.cancel("r")
    async with Engine(path) as engine:
        await until_state(engine.get("r"), RunState.CANCELED)
        replay(await engine.history("r"))


async def test_a_run_that_was_canceled_while_it_was_stuck_replays_to_where_it_stood(
    path: Path, clock: ManualClock
) -> None:
    """Its body was never told, and did not end."""
    first = Engine(path)
    clock.install(first)
    async with first:
        run = await first.start(sleeping(), id="r")
        await until_step(run, "sleep", StepState.RUNNING)
    texts[0] = "X"
    async with Engine(path) as engine:
        run = engine.get("r")
        await until_state(run, RunState.STUCK)
        await run.cancel()
        text = await engine.history("r")
    assert json.loads(text)["run"]["state"] == "canceled"
    texts[0] = "a"
    replay(text)
    texts[0] = "X"
    with pytest.raises(DivergenceError):
        replay(text)


async def test_a_body_that_now_waits_where_it_ended_fails_it(engine: Engine) -> None:
    """For an outcome that was recorded, and that nobody waited for any more."""
    run = await engine.start(leaving(), id="r")
    await run.send_event("go")
    await run.result(WAIT_S_MAX)
    data = json.loads(await engine.history("r"))
    replay(data)
    (left,) = [step for step in data["steps"] if step["name"] == "left"]
    left.update(state="completed", result=None)
    replay(data)
    more.append("waits")
    with pytest.raises(DivergenceError, match="the body ended here, where the code now goes on"):
        replay(data)


async def test_a_restarted_run_replays(engine: Engine) -> None:
    await history_of(engine)
    await engine.restart("r", from_step=1)
    run = engine.get("r")
    await run.result(WAIT_S_MAX)
    replay(await engine.history("r"))


async def test_sets_have_no_order_that_counts(engine: Engine) -> None:
    run = await engine.start(in_time({"a", "b", "c"}), id="r")
    await run.send_event("go")
    await run.result(WAIT_S_MAX)
    data = json.loads(await engine.history("r"))
    data["run"]["result"].reverse()
    replay(data)


async def test_a_workflow_that_is_gone_fails_it(
    engine: Engine, forget: Callable[[Any], None]
) -> None:
    text = await history_of(engine)
    forget(flow)
    with pytest.raises(DivergenceError, match="Import the module that defines it"):
        replay(text)


async def test_the_versions_are_named(engine: Engine) -> None:
    data = json.loads(await history_of(engine))
    texts[0] = "X"
    data["begun_with"] = {"python": "3.11.0", "durable": "0.0.1"}
    with pytest.raises(DivergenceError, match=r"begun with Python 3\.11\.0, durable 0\.0\.1; now"):
        replay(data)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format":2}', "\udcff", b"\xff"])
def test_what_is_no_history_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError, match="no history as engine"):
        replay(text)


async def test_a_history_without_a_step_that_was_delivered_is_damaged(engine: Engine) -> None:
    data = json.loads(await history_of(engine))
    data["deliveries"].append(99)
    with pytest.raises(ValueError, match="it has a delivery of a step"):
        replay(data)


@pytest.mark.slow
async def test_every_shape_of_body_replays_to_its_end(engine: Engine, clock: ManualClock) -> None:
    """The corpus of bodies: each with its history, however it ends."""

    async def run_of(case: Case) -> str:
        run = await engine.start(case.workflow(*case.args))
        async with asyncio.timeout(WAIT_S_MAX):
            while not (await run.status()).state.is_final:
                clock.advance(1)
                await asyncio.sleep(0)
        return await engine.history(run.id)

    for case in CORPUS:
        if case.id not in {"gather_wide", "long_sequence", "loops_in_parallel"}:
            replay(await run_of(case))


# --- the regression corpus -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "file",
    sorted(HISTORIES.rglob("*.json")),
    ids=lambda file: file.relative_to(HISTORIES).with_suffix("").as_posix(),
)
def test_what_the_examples_have_done_in_each_release_replays(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    importlib.import_module(file.parent.name)
    replay(file)


def test_there_are_histories_of_every_release() -> None:
    assert VERSION in {path.name for path in HISTORIES.iterdir()}
