"""A pydantic-ai agent as a workflow, as it is: each answer of the model and each tool is a step.

$ pip install pydantic-ai-slim && python examples/pydantic_agent.py

The agent runs in the workflow's body. Its tools await actions, in parallel when the model asks for
several at once; its model asks by an action; a tool may wait for a person for days, by an event.
After a crash the agent comes to where it was, and nothing is asked or done again whose outcome is
in the journal. The model is a stand-in here: put `infer_model("anthropic:...")` in its place.
"""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import BaseModel
from pydantic_ai import Agent, RunContext
from pydantic_ai.messages import (
    ModelMessage,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
)
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings

import durable
from durable import Engine, Event, Retry, Step

APPROVED = Event("approved", bool)


# --- the model: a stand-in -----------------------------------------------------------------------


async def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
    """Answer by a script: look two things up, book, sum up."""
    results = [
        str(part.content)
        for message in messages
        for part in message.parts
        if isinstance(part, ToolReturnPart)
    ]
    if not results:
        calls = [ToolCallPart("weather", {"city": "Oslo"}), ToolCallPart("flights", {"to": "Oslo"})]
        return ModelResponse(calls)
    if len(results) == 2:
        return ModelResponse([ToolCallPart("book", {"flight": results[1]})])
    return ModelResponse([TextPart(f"Booked {results[2]}. Weather: {results[0]}.")])


MODEL: Model = FunctionModel(answer)


# --- the model's answers as steps: these lines serve any agent -----------------------------------


class Question(BaseModel):
    """What a model is asked."""

    messages: list[ModelMessage]
    settings: dict[str, Any] | None
    parameters: ModelRequestParameters


class Answer(BaseModel):
    """What it answers."""

    response: ModelResponse


@durable.action(retry=Retry(max_attempts=5), timeout=300)
async def ask_model(question: Question) -> Answer:
    """Ask the model: an action, so it may use the network, and is tried again when that fails."""
    settings: Any = question.settings
    return Answer(response=await MODEL.request(question.messages, settings, question.parameters))


class DurableModel(WrapperModel):
    """A model whose answers are steps of a run."""

    def __init__(self, step: Step, wrapped: Model) -> None:
        super().__init__(wrapped)
        self._step = step

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Ask by a step, or give what it is recorded to have answered."""
        settings = None if model_settings is None else dict(model_settings)
        question = Question(
            messages=messages, settings=settings, parameters=model_request_parameters
        )
        # Each message has the time at which it was made, which is another on replay.
        answer = await self._step.run(ask_model(question), unstable_args=True)
        return answer.response


# --- what the tools do ---------------------------------------------------------------------------


@durable.action
async def look_up_weather(city: str) -> str:
    """Look the weather up."""
    return f"rain in {city}"


@durable.action
async def look_up_flights(to: str) -> str:
    """Look flights up."""
    return f"the 9:40 to {to}"


@durable.action(retry=False)
async def book_seat(flight: str) -> str:
    """Book a seat: at most once."""
    return f"seat 12A on {flight}"


# --- the agent -----------------------------------------------------------------------------------

agent = Agent(MODEL, deps_type=Step, instructions="You get people where they want to go.")


@agent.tool_plain
async def weather(city: str) -> str:
    """Tell the weather in a city."""
    return await look_up_weather(city)


@agent.tool_plain
async def flights(to: str) -> str:
    """Tell when the next flight to a city leaves."""
    return await look_up_flights(to)


@agent.tool
async def book(context: RunContext[Step], flight: str) -> str:
    """Book a seat, if the user agrees."""
    if not await context.deps.wait_event(APPROVED, timeout=24 * 3600):
        return "nothing: the user said no"
    return await book_seat(flight)


@durable.workflow
async def travel(step: Step, task: str) -> str:
    """Let the agent work on a task until it has an answer."""
    result = await agent.run(task, deps=step, model=DurableModel(step, MODEL))
    return result.output


async def main() -> None:
    """Run the agent, and approve what it asks for."""
    async with Engine("sqlite://") as engine:
        run = await engine.start(travel("Get me to Oslo."))
        async for status in run.watch():
            waiting = [step.name for step in status.running]
            print(f"  {status.state}: {', '.join(waiting) or '-'}")
            if waiting == [APPROVED.name]:
                await run.send_event(APPROVED, True)  # noqa: FBT003  an event's value
        text = await run.result()
    print(text)
    assert text == "Booked seat 12A on the 9:40 to Oslo. Weather: rain in Oslo."


if __name__ == "__main__":
    asyncio.run(main())
