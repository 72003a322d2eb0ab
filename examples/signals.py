"""Passing signals: ids of events that a step hands out, for others to send.

$ python examples/signals.py
"""

from __future__ import annotations

import asyncio

import durable
from durable import Engine, Event, EventId, Step

SIGNED = Event("signed", str)
offices: dict[str, EventId] = {}
"""Stands for other services, which have been told where to send their answer."""


@durable.action
async def ask(run_id: str, office: str) -> EventId:
    """Ask an office for its signature, and tell it the id to answer to."""
    event_id = await Engine.current().create_event(run_id, SIGNED)
    offices[office] = event_id
    print(f"  asked {office}")
    return event_id


@durable.workflow
async def contract(step: Step, names: list[str]) -> list[str]:
    """Have a contract signed by all offices, whose answers come in any order."""
    asked = await asyncio.gather(*(ask(step.run_id, name) for name in names))
    answers: list[str] = await asyncio.gather(*(step.wait_event(each) for each in asked))
    return answers


async def main() -> None:
    """Start a contract, and answer for the offices, the last one first."""
    names = ["legal", "finance", "board"]
    async with Engine("sqlite://") as engine:
        run = await engine.start(contract(names))
        while len(offices) < len(names):  # noqa: ASYNC110  polled, as the offices are a stand-in
            await asyncio.sleep(0.01)
        for name in reversed(names):
            # An id is text, too, such as for the address of a webhook.
            await engine.send_event_id(EventId.parse(str(offices[name])), f"signed by {name}")
        answers = await run.result()
    print(answers)
    assert answers == [f"signed by {name}" for name in names]


if __name__ == "__main__":
    asyncio.run(main())
