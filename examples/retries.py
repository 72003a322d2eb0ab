"""Retries: a service that fails now and then, one that must not be asked twice, one that gives up.

$ python examples/retries.py
"""

from __future__ import annotations

import asyncio
from collections import Counter

import durable
from durable import NonRetryable, Retry, Step

calls: Counter[str] = Counter()


@durable.action(retry=Retry(max_attempts=5, initial_backoff=0.05))
async def fetch_price(item: str) -> int:
    """Ask a service that fails twice before it answers."""
    number = durable.attempt().number
    if number < 3:
        print(f"  attempt {number} to fetch the price of {item}: no answer")
        raise ConnectionError("no answer")
    print(f"  attempt {number} to fetch the price of {item}: 12")
    return 12


@durable.action(retry=False)
async def charge(cents: int) -> str:
    """Charge a card: at most once, whatever happens."""
    calls["charge"] += 1
    return f"charged {cents}"


@durable.action(retry=Retry(max_attempts=5, initial_backoff=0.05))
async def reserve(item: str) -> str:
    """Reserve what is sold out: trying again would not help."""
    calls["reserve"] += 1
    raise NonRetryable(f"{item} is sold out")


@durable.workflow
async def order(step: Step, item: str) -> list[str]:
    """Buy an item."""
    price = await fetch_price(item)
    done = [await charge(price * 100)]
    try:
        done.append(await reserve(item))
    except NonRetryable as exc:
        done.append(f"not reserved: {exc}")
    # A step may have a policy of its own.
    done.append(await step.run(charge(0), retry=Retry(max_attempts=2), name="receipt"))
    return done


async def main() -> None:
    """Run one order, and show what was tried."""
    async with durable.Engine("sqlite://") as engine:
        run = await engine.start(order("a lamp"))
        print(f"the order: {await run.result()}")
        async for step in run.steps():
            print(f"  {step.name:40} {step.state:10} attempts: {step.attempts}")
    assert calls == {"charge": 2, "reserve": 1}


if __name__ == "__main__":
    asyncio.run(main())
