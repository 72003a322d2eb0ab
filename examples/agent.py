"""An agent: a model that calls tools, in a loop, with a person to approve what matters.

$ python examples/agent.py

The model is a stand-in: a small HTTP server on this machine that answers as a language model's
service does. Its calls, and the tools', are steps: after a crash none is made again whose answer is
in the journal. The tools of one answer run in parallel.
"""

from __future__ import annotations

import asyncio
import json
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import durable
from durable import Engine, Event, Retry, Step

APPROVED = Event("approved", bool)
Message = dict[str, Any]


# --- the stand-in --------------------------------------------------------------------------------


class FakeModel(BaseHTTPRequestHandler):
    """Answers by a script: look two things up, ask to book, sum up."""

    calls = 0

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        messages: list[Message] = json.loads(self.rfile.read(length))["messages"]
        type(self).calls += 1
        body = json.dumps(_answer(messages)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


def _answer(messages: list[Message]) -> Message:
    results = [message for message in messages if message["role"] == "tool"]
    if not results:
        return {
            "tools": [
                {"name": "weather", "input": {"city": "Oslo"}},
                {"name": "flights", "input": {"city": "Oslo"}},
            ]
        }
    if len(results) == 2:
        return {"tools": [{"name": "book", "input": {"flight": results[1]["content"]}}]}
    return {"text": f"Booked. Weather: {results[0]['content']}; {results[2]['content']}."}


# --- steps ---------------------------------------------------------------------------------------


@durable.action(retry=Retry(max_attempts=5, initial_backoff=0.1))
def ask_model(url: str, messages: list[Message]) -> Message:
    """Ask the model what to do next. A plain function: it runs in a worker thread."""
    request = urllib.request.Request(url, json.dumps({"messages": messages}).encode())  # noqa: S310
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310  it is our own
        answer: Message = json.load(response)
    return answer


@durable.action
async def weather(city: str) -> str:
    """Look the weather up."""
    await asyncio.sleep(0.05)
    return f"rain in {city}"


@durable.action
async def flights(city: str) -> str:
    """Look flights up."""
    await asyncio.sleep(0.05)
    return f"the 9:40 to {city}"


@durable.action(retry=False)
async def book(flight: str) -> str:
    """Book a flight: at most once."""
    return f"seat 12A on {flight}"


TOOLS: dict[str, durable.Action[Any, str]] = {"weather": weather, "flights": flights, "book": book}
TO_BE_APPROVED = {"book"}


# --- the agent -----------------------------------------------------------------------------------


async def _use(step: Step, tool: Message) -> Message:
    if tool["name"] in TO_BE_APPROVED and not await step.wait_event(APPROVED, timeout=3600):
        return {"role": "tool", "content": "the user said no"}
    return {"role": "tool", "content": await TOOLS[tool["name"]](**tool["input"])}


@durable.workflow
async def agent(step: Step, url: str, task: str) -> str:
    """Let the model work on a task until it has an answer."""
    messages: list[Message] = [{"role": "user", "content": task}]
    while True:
        answer = await ask_model(url, messages)
        if "text" in answer:
            return str(answer["text"])
        messages += await asyncio.gather(*(_use(step, tool) for tool in answer["tools"]))


async def main() -> None:
    """Run the agent, and approve what it asks for."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeModel)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    async with Engine("sqlite://") as engine:
        run = await engine.start(agent(url, "Get me to Oslo."))
        async for status in run.watch():
            waiting = [step.name for step in status.running]
            print(f"  {status.state}: {', '.join(waiting) or '-'}")
            if waiting == [APPROVED.name]:
                await run.send_event(APPROVED, True)  # noqa: FBT003  an event's value
        text = await run.result()
    server.shutdown()
    server.server_close()
    print(text)
    assert text == "Booked. Weather: rain in Oslo; seat 12A on the 9:40 to Oslo."
    assert FakeModel.calls == 3


if __name__ == "__main__":
    asyncio.run(main())
