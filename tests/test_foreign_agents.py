"""A library that knows nothing of durable as a workflow's body: agents of pydantic-ai, as they are.

It makes tasks, races them, opens anyio's groups and scopes, keeps context variables, and notes the
time. Its tools await actions; its model answers by them, as in ``examples/pydantic_agent.py``.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from clock import ManualClock
from pydantic import BaseModel
from pydantic_ai import Agent, ModelRetry, RunContext, UnexpectedModelBehavior
from pydantic_ai.messages import (
    ModelMessage,
    ModelResponse,
    RetryPromptPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
)
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel
from waiting import until_open, until_parked

import durable
from durable import Engine, Event, OutcomeUnknown, RunCanceled, RunFailed, Step, testing
from durable.testing import Environment

if TYPE_CHECKING:
    from collections.abc import Awaitable

CITIES = ("Bergen", "Hamar", "Moss", "Oslo")
DAY_S = 86_400.0
APPROVED = Event("approved", bool)

Part = TextPart | ToolCallPart
Answers = Callable[[list[ModelMessage]], list[Part]]

begun: list[str] = []
answered: list[int] = []
meetings: list[asyncio.Event] = []


@pytest.fixture(autouse=True)
def _new_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "examples")
    begun.clear()
    answered.clear()
    meetings.clear()


@durable.action
async def weather(city: str) -> str:
    begun.append(city)
    return f"rain in {city}"


@durable.action
async def all_at_once(city: str) -> str:
    """Answer when as many as there are cities have been asked."""
    meetings.append(asyncio.Event())
    if len(meetings) == len(CITIES):
        for meeting in meetings:
            meeting.set()
    await meetings[0].wait()
    return city


@durable.action
async def count(city: str) -> int:
    if city.islower():
        raise ValueError(city)
    return len(city)


@durable.action(retry=False)
async def book(city: str) -> str:
    begun.append(city)
    return f"a seat to {city}"


# --- the tools choose what to do: a model for tests calls each of them once ----------------------

tested = Agent(TestModel(seed=1))


@tested.tool_plain
async def tell_weather(city: str) -> str:
    return await weather(city)


@tested.tool_plain
async def tell_all(cities: list[str]) -> list[str]:
    return await asyncio.gather(*(weather(city) for city in [*cities, "Oslo"]))


@tested.tool_plain
async def tell_twice(city: str) -> str:
    first = await weather(city)
    await asyncio.sleep(DAY_S)
    return f"{first}, then {await weather(city)}"


@durable.workflow
async def asking(step: Step, task: str) -> str:
    return (await tested.run(task)).output


@pytest.mark.slow
async def test_an_agent_recovers_from_every_crash_and_runs_no_tool_again() -> None:
    crashes = await testing.crash_everywhere(asking("What is it like outside?"))
    assert crashes.outcome.result == (
        '{"tell_weather":"rain in b","tell_all":["rain in b","rain in Oslo"],'
        '"tell_twice":"rain in b, then rain in b"}'
    )
    assert crashes.crashes >= 8


@pytest.mark.slow
async def test_its_tools_may_end_in_any_order() -> None:
    shuffled = await testing.shuffle(asking("What is it like outside?"), seeds=20)
    assert len({str(outcome) for outcome in shuffled.outcomes.values()}) == 1


@pytest.mark.both_loops
async def test_it_replays_after_each_turn() -> None:
    async with testing.engine(verify_replay=True) as env:
        assert "rain in Oslo" in await env.run(asking("What is it like outside?"))
        assert len(env.calls(weather)) == 5


# --- the model answers by a script, and by steps -------------------------------------------------


def results_in(messages: list[ModelMessage]) -> list[str]:
    """Return what the tools gave, and what was wrong with what they were given."""
    return [
        str(part.content)
        for message in messages
        for part in message.parts
        if isinstance(part, ToolReturnPart | RetryPromptPart)
    ]


def example() -> Any:  # noqa: ANN401  what mypy cannot follow
    return importlib.import_module("pydantic_agent")


def answer_by(env: Environment, answers: Answers) -> None:
    """Let the model's answers be made up by a function, in the action that asks for them."""

    async def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        answered.append(len(messages))
        return ModelResponse(answers(messages))

    async def ask(question: Any) -> Any:  # noqa: ANN401  the example's
        response = await FunctionModel(answer).request(
            question.messages, question.settings, question.parameters
        )
        return example().Answer(response=response)

    env.replace(example().ask_model, ask)


def durable_model(step: Step) -> Any:  # noqa: ANN401
    return example().DurableModel(step, TestModel())


scripted = Agent(deps_type=Step)


@scripted.tool_plain(name="all_at_once")
async def _all_at_once(city: str) -> str:
    return await all_at_once(city)


@scripted.tool(name="book", timeout=2 * DAY_S)
async def _book(context: RunContext[Step], city: str) -> str:
    if not await context.deps.wait_event(APPROVED):
        raise ModelRetry("not there")
    return await book(city)


@scripted.tool_plain(name="count")
async def _count(city: str) -> int:
    return await count(city)


@scripted.tool_plain
def plain(city: str) -> str:
    """What pydantic-ai runs in a thread."""
    return city


@durable.workflow
async def scripted_run(step: Step, task: str) -> str:
    result = await scripted.run(task, deps=step, model=durable_model(step))
    return result.output


def ask_all(messages: list[ModelMessage]) -> list[Part]:
    results = results_in(messages)
    if not results:
        return [ToolCallPart("all_at_once", {"city": city}) for city in CITIES]
    return [TextPart(", ".join(results))]


@pytest.mark.both_loops
async def test_the_tools_of_one_answer_run_at_the_same_time() -> None:
    """Each of them waits for the others; their results have the order in which it asked."""
    async with testing.engine(verify_replay=True) as env:
        answer_by(env, ask_all)
        assert await env.run(scripted_run("go")) == ", ".join(CITIES)
        assert answered == [1, 3]


def book_one(messages: list[ModelMessage]) -> list[Part]:
    results = results_in(messages)
    if results and "not there" not in results[-1]:
        return [TextPart(f"{len(results)}: {results[-1]}")]
    return [ToolCallPart("book", {"city": CITIES[len(results)]})]


async def refuse_then_approve(env: Environment, run_id: str) -> None:
    for answer in (False, True):
        await env.run_until_idle()
        await env.advance(DAY_S)
        await env.send_event(run_id, APPROVED, answer)


@pytest.mark.slow
async def test_no_answer_of_the_model_is_asked_for_again_nor_a_tool_run() -> None:
    """With a person in between, whom a tool waits for, and who declines at first."""
    env = testing.engine()
    answer_by(env, book_one)
    crashes = await env.crash_everywhere(
        scripted_run("go"), script=refuse_then_approve, may_raise=OutcomeUnknown
    )
    result = crashes.outcome.result
    assert isinstance(result, str)
    assert result.endswith("a seat to Hamar")
    assert crashes.crashes >= 16


async def test_an_agent_that_waits_for_a_person_takes_no_memory(path: Path) -> None:
    """And it comes back to where it was, in another process too: here, with another engine."""
    clock = ManualClock()
    module = example()
    engine = Engine(path)
    clock.install(engine)
    async with engine:
        run = await engine.start(module.travel("Get me to Oslo."), id="run")
        while [step.name for step in (await run.status()).running] != [module.APPROVED.name]:
            await until_open(run)
        await until_parked(engine, clock)
    engine = Engine(path)
    clock.install(engine)
    async with engine:
        run = engine.get("run")
        await run.send_event(module.APPROVED, True)  # noqa: FBT003  an event's value
        assert await run.result() == "Booked seat 12A on the 9:40 to Oslo. Weather: rain in Oslo."
        names = [step.name.rpartition(":")[2] async for step in run.steps()]
    assert names.count("ask_model") == 3
    assert names.count("book_seat") == 1


async def test_the_time_out_of_a_tool_is_a_durable_timer() -> None:
    def answers(messages: list[ModelMessage]) -> list[Part]:
        results = results_in(messages)
        return [TextPart(results[-1])] if results else book_one(messages)

    async with testing.engine(verify_replay=True) as env:
        answer_by(env, answers)
        began = env.now
        assert "imed out" in await env.run(scripted_run("go"))
        assert (env.now - began).total_seconds() == 2 * DAY_S


@pytest.mark.parametrize(
    ("given", "error"),
    [
        pytest.param({"city": "oslo"}, ValueError, id="of the tool"),
        pytest.param({"town": "Oslo"}, UnexpectedModelBehavior, id="of the agent, which gives up"),
    ],
)
async def test_an_agent_that_fails_ends_the_run_with_its_error(
    given: dict[str, str], error: type[Exception]
) -> None:
    """An action's own, or one of pydantic-ai's, which the workflow's module names."""
    async with testing.engine(verify_replay=True) as env:
        answer_by(env, lambda _: [ToolCallPart("count", given)])
        with pytest.raises(RunFailed) as failed:
            await env.run(scripted_run("go"))
    assert isinstance(failed.value.__cause__, error)


async def test_a_tool_that_is_called_wrongly_is_called_again() -> None:
    """The model is told what was wrong, by pydantic-ai."""

    def answers(messages: list[ModelMessage]) -> list[Part]:
        results = results_in(messages)
        if len(results) == 2:
            return [TextPart(results[1])]
        return [ToolCallPart("count", {"city": "Oslo"} if results else {"town": "Oslo"})]

    async with testing.engine(verify_replay=True) as env:
        answer_by(env, answers)
        assert await env.run(scripted_run("go")) == "4"


async def test_a_cancelled_agent_books_nothing() -> None:
    async with testing.engine(verify_replay=True) as env:
        answer_by(env, book_one)
        run = await env.start(scripted_run("go"))
        await env.run_until_idle()
        assert await env.cancel(run.id)
        with pytest.raises(RunCanceled):
            await env.result(run)
    assert begun == []


class Trip(BaseModel):
    city: str
    nights: int


planner = Agent(deps_type=Step, output_type=Trip)


@durable.workflow
async def planning(step: Step, cities: list[str]) -> list[Trip]:
    """Several agents at once, each with a result that has a type."""
    model = durable_model(step)
    plans: list[Awaitable[Any]] = [planner.run(city, deps=step, model=model) for city in cities]
    return [result.output for result in await asyncio.gather(*plans)]


def plan(messages: list[ModelMessage]) -> list[Part]:
    city = str(messages[0].parts[0].content)  # type: ignore[union-attr]  # the user's
    return [ToolCallPart("final_result", {"city": city, "nights": len(city)})]


@pytest.mark.slow
async def test_agents_run_at_the_same_time_and_their_results_have_types() -> None:
    env = testing.engine()
    answer_by(env, plan)
    shuffled = await env.shuffle(planning(list(CITIES)), seeds=10)
    trips = [{"city": city, "nights": len(city)} for city in CITIES]
    for outcome in shuffled.outcomes.values():
        assert outcome.state == "completed"
        assert [Trip.model_validate(trip).model_dump() for trip in as_list(outcome.result)] == trips
    crashes = await env.crash_everywhere(planning(list(CITIES)))
    assert crashes.outcome.state == "completed"


def as_list(value: object) -> list[Any]:
    assert isinstance(value, list)
    return value


identified = Agent(TestModel())


@identified.tool
async def tell_whose(context: RunContext[object]) -> str:
    return await weather(str(context.run_id))


@durable.workflow
async def identifying(step: Step, *, is_given: bool) -> str:
    run_id = str(step.uuid4()) if is_given else None
    return (await identified.run("go", run_id=run_id)).output


async def test_its_ids_are_arguments_of_steps_if_they_are_the_steps_own() -> None:
    """Those that it draws are others on replay: that is found out at once, in development."""
    async with testing.engine(verify_replay=True) as env:
        assert "rain in " in await env.run(identifying(is_given=True))
        run = await env.start(identifying(is_given=False))
        await env.run_until_idle()
        status = await run.status()
    assert status.state == "stuck"
    assert status.error is not None
    assert "test_foreign_agents:weather" in status.error.message


# --- what it cannot do ---------------------------------------------------------------------------


@durable.action
def in_a_thread(city: str, days: int = 1) -> str:
    """Tell the weather of some days."""
    return f"{days} days of rain in {city}"


@durable.workflow
async def tell_weather_durably(_step: Step, city: str) -> str:
    """Tell the weather, as a run of its own."""
    return await weather(city)


@durable.workflow
async def with_definitions_as_tools(_step: Step) -> str:
    agent = Agent(TestModel(), tools=[weather, in_a_thread, tell_weather_durably])
    return (await agent.run("Where does it rain?")).output


async def test_actions_and_workflows_are_tools_as_they_are() -> None:
    async with testing.engine(verify_replay=True) as env:
        output = await env.run(with_definitions_as_tools(), id="agent")
        assert output == (
            '{"weather":"rain in a","in_a_thread":"1 days of rain in a",'
            '"tell_weather_durably":"rain in a"}'
        )
        steps = [step async for step in env.engine.iter_steps("agent")]
    assert [(step.kind, step.args) for step in steps] == [
        ("action", {"city": "a"}),
        ("action", {"city": "a", "days": 1}),
        ("workflow", {"city": "a"}),
    ]


async def test_a_tool_that_is_a_plain_function_is_refused_with_a_word() -> None:
    """pydantic-ai would run it in a thread."""
    async with testing.engine() as env:
        answer_by(env, lambda _: [ToolCallPart("plain", {"city": "Oslo"})])
        with pytest.raises(RunFailed, match=r"thread.*action"):
            await env.run(scripted_run("go"))
