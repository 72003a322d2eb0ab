"""Approval: a workflow asks somebody, waits for days if need be, and goes on without an answer.

Three expense claims: one is approved at once, one is sent back, and nobody answers the third.

$ python examples/approval.py
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import durable
from durable import Engine, Event, EventError, EventId, Step

ANSWER_WITHIN_S = 0.5  # In a true office: timedelta(days=3).


@dataclass
class Decision:
    """What the one who was asked has decided."""

    approved: bool
    by: str


decision = Event("decision", Decision)

mailbox: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
"""The boss's: of each mail the employee and the link to answer by."""


@durable.action
async def ask_the_boss(run_id: str, employee: str, euros: int) -> EventId:
    """Send a mail with a link in it. The link is of this question alone, and works once."""
    event_id = await Engine.current().create_event(run_id, decision)
    print(f"  mail to the boss: {employee} claims {euros} euros, /decide/{event_id}")
    await mailbox.put((employee, str(event_id)))
    return event_id


@durable.action
async def pay(employee: str, euros: int) -> str:
    """Pay an expense claim."""
    return f"{employee} was paid {euros} euros"


@durable.workflow
async def expenses(step: Step, employee: str, euros: int) -> str:
    """Have an expense claim decided: by the boss, or, after a while, by its amount."""
    await ask_the_boss(step.run_id, employee, euros)
    try:
        answer = await step.wait_event(decision, timeout=ANSWER_WITHIN_S)
    except TimeoutError:
        answer = Decision(approved=euros < 100, by="nobody: the time was up")
    except EventError as exc:
        return f"{employee} was asked: {exc}"
    if not answer.approved:
        return f"{employee} was refused {euros} euros by {answer.by}"
    return f"{await pay(employee, euros)}, approved by {answer.by}"


async def boss(engine: Engine) -> None:
    """Read the mails, and do what a web service does when a link is opened."""
    while True:
        employee, link = await mailbox.get()
        event_id = EventId.parse(link)
        if employee == "Ann":
            await engine.send_event_id(event_id, Decision(approved=True, by="the boss"))
        elif employee == "Ben":
            await engine.send_event_id(event_id, error="please add the receipts")


async def main() -> None:
    """Have three expense claims decided."""
    async with Engine("sqlite://") as engine, asyncio.TaskGroup() as group:
        at_work = group.create_task(boss(engine))
        claims = [("Ann", 250), ("Ben", 80), ("Cem", 40)]
        runs = [await engine.start(expenses(*claim)) for claim in claims]
        results = [await run.result() for run in runs]
        print("\n".join(results))
        async for step in runs[-1].steps():
            print(f"  {step.name:24} {step.kind:8} {step.state:10} event: {step.event_id or '-'}")
        at_work.cancel()
    assert results == [
        "Ann was paid 250 euros, approved by the boss",
        "Ben was asked: please add the receipts",
        "Cem was paid 40 euros, approved by nobody: the time was up",
    ]


if __name__ == "__main__":
    asyncio.run(main())
