"""Scheduled steps: later by a delay, at a time, after a pause; and a run that starts later.

$ python examples/scheduled.py
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import durable
from durable import Step

UNIT_S = 0.2
"""What stands for a day here."""


@durable.action
async def send(text: str) -> str:
    """Send a message."""
    print(f"  {text}")
    return text


@durable.workflow
async def reminders(step: Step, name: str) -> list[datetime]:
    """Remind somebody three times. The pauses survive restarts, and are not made longer by them."""
    times = [step.now()]
    # The first attempt of a step may wait; other steps go on meanwhile.
    later = asyncio.create_task(
        step.run(send(f"{name}, your trial ends soon"), run_after=2 * UNIT_S, name="remind")
    )
    await send(f"welcome, {name}")
    await step.sleep(UNIT_S)
    times.append(step.now())
    await send(f"{name}, here are some tips")
    await later
    times.append(step.now())
    await step.sleep_until(times[0] + timedelta(seconds=3 * UNIT_S))
    await send(f"{name}, your trial is over")
    return [*times, step.now()]


async def main() -> None:
    """Start a run for now and one for later, and see that nothing was early."""
    async with durable.Engine("sqlite://") as engine:
        now = await engine.start(reminders("Ada"))
        later = await engine.start(reminders("Grace"), run_after=timedelta(seconds=UNIT_S))
        for run in (now, later):
            times = await run.result()
            days = [(time - times[0]).total_seconds() / UNIT_S for time in times]
            print("reminders after", ", ".join(f"{day:.2f} days" for day in days))
            assert all(day >= due - 0.01 for due, day in zip((0, 1, 2, 3), days, strict=True))


if __name__ == "__main__":
    asyncio.run(main())
