"""Completion callbacks: something that is owed when a run has ended, however it has.

$ python examples/callback.py
"""

from __future__ import annotations

import asyncio

import durable
from durable import Canceled, Completion, Engine, Failure, Step, Success, Transaction


@durable.action
async def check(number: int) -> int:
    """Fail for 13."""
    if number == 13:
        raise ValueError("unlucky")
    return number * 2


@durable.workflow
async def job(step: Step, number: int) -> int:
    """Double a number, after a pause that may be long."""
    await step.sleep(60 if number == 99 else 0)
    return await check(number)


@durable.mutation
async def record(tx: Transaction, completion: Completion) -> None:
    """Record the outcome: exactly once, though the process may die at any moment."""
    match completion.outcome:
        case Success(value=value):
            text = f"done: {value}"
        case Failure(error=error):
            text = f"failed: {error.message}"
        case Canceled():
            text = "cancelled"
    await tx.execute(
        "INSERT INTO outcome (customer, text) VALUES (?, ?)", completion.context["customer"], text
    )


async def main() -> None:
    """Run three jobs that end in three ways; wait until their outcomes are recorded."""
    async with Engine("sqlite://") as engine:
        async with engine.transaction() as tx:
            await tx.execute("CREATE TABLE outcome (customer TEXT, text TEXT)")
        for number, customer in ((4, "Ada"), (13, "Grace"), (99, "Edsger")):
            run = await engine.start(
                job(number), on_complete=record, context={"customer": customer}
            )
            if number == 99:
                await run.cancel()
        outcomes: list[str] = []
        while len(outcomes) < 3:  # polled, as nothing else waits here
            await asyncio.sleep(0.01)
            async with engine.transaction() as tx:
                rows = await tx.fetch_all("SELECT customer, text FROM outcome ORDER BY customer")
            outcomes = [f"{row['customer']} {row['text']}" for row in rows]
    print("\n".join(outcomes))
    assert outcomes == ["Ada done: 8", "Edsger cancelled", "Grace failed: unlucky"]


if __name__ == "__main__":
    asyncio.run(main())
