"""Nested workflows: a trip books a flight, a hotel and a car, each in a workflow of its own.

What a workflow calls is a run of its own: it has its own steps, is found by its parent, fails by
itself, and is cancelled with its parent.

$ python examples/nested.py
"""

from __future__ import annotations

import asyncio

import durable
from durable import Engine, RunCanceled, RunFailed, Step

bookings: set[str] = set()


@durable.action
async def reserve(what: str) -> str:
    """Reserve something."""
    if what == "a car on the moon":
        raise LookupError("there is no road")
    bookings.add(what)
    return what


@durable.action
async def release(what: str) -> None:
    """Give it back."""
    bookings.discard(what)


@durable.action
async def approve(traveller: str) -> None:
    """Wait for somebody who is away."""
    await asyncio.sleep(0 if traveller == "Ada" else 3600)


@durable.workflow
async def book(_step: Step, traveller: str, what: str) -> str:
    """Book one thing, and give it back when nobody wants it any more."""
    booked = await reserve(what)
    try:
        await approve(traveller)
    except asyncio.CancelledError:
        await release(booked)
        raise
    return booked


@durable.workflow
async def transport(step: Step, traveller: str, place: str) -> list[str]:
    """Get there, and around. Without a car one walks."""
    flight = asyncio.create_task(book(traveller, f"a flight to {place}"))
    try:
        car = await step.run(book(traveller, f"a car on {place}"), name="car")
    except RunFailed as failed:
        car = f"a walk, because {failed.__cause__}"
    return [await flight, car]


@durable.workflow
async def trip(_step: Step, traveller: str, place: str) -> list[str]:
    """Book all that a trip needs, at the same time."""
    there, room = await asyncio.gather(
        transport(traveller, place), book(traveller, f"a room on {place}")
    )
    return [*there, room]


async def show(engine: Engine, run_id: str, indent: str = "  ") -> None:
    """Print a run, and under it its children."""
    status = await engine.status(run_id)
    print(f"{indent}{status.name.split(':')[1]} {list(status.args.values())}: {status.state}")
    async for child in engine.iter_runs(parent=run_id):
        await show(engine, child.id, indent + "  ")


async def until_booked(count: int) -> None:
    """Wait until so much is booked."""
    while len(bookings) != count:  # noqa: ASYNC110  what is booked has no event
        await asyncio.sleep(0.01)


async def main() -> None:
    """Book one trip, and cancel another: with it, all that is under it."""
    async with Engine("sqlite://") as engine:
        run = await engine.start(trip("Ada", "the moon"))
        booked = await run.result()
        print("booked:", ", ".join(booked))
        await show(engine, run.id)
        assert booked == [
            "a flight to the moon",
            "a walk, because there is no road",
            "a room on the moon",
        ]

        run = await engine.start(trip("Grace", "an island"))
        await until_booked(5)
        await run.cancel(interrupt=True)
        try:
            await run.result()
        except RunCanceled:
            print("cancelled:", run.id)
        await until_booked(2)
        await show(engine, run.id)
        assert bookings == {"a flight to the moon", "a room on the moon"}


if __name__ == "__main__":
    asyncio.run(main())
