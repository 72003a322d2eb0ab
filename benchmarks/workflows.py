"""The workflows that are measured, importable by every process under the same names."""

import asyncio
from time import perf_counter
from typing import Final, final

from durable import Run, Step, Transaction, action, mutation, workflow

DAY_S: Final = 86_400


async def until_waiting(run: Run[int], number: int) -> None:
    """Return when the run waits for its step of that number."""
    while [step.number for step in (await run.status()).running] != [number]:  # noqa: ASYNC110  commits have no event here
        await asyncio.sleep(0)


@final
class Gate:
    """Holds up the runs that a process must not finish before it is killed; open at first."""

    def __init__(self) -> None:
        """Begin open."""
        self._missing: int | None = None
        self._crowded = asyncio.Event()

    def close(self, *, expected: int) -> None:
        """Hold up whoever comes from now on; ``expected`` of them make a crowd."""
        self._missing = expected

    async def pass_through(self) -> None:
        """Return at once when the gate is open, else never."""
        if self._missing is None:
            return
        self._missing -= 1
        if self._missing == 0:
            self._crowded.set()
        await asyncio.Event().wait()

    async def wait_until_crowded(self) -> None:
        """Wait until all who are expected are held up."""
        await self._crowded.wait()


gate: Final = Gate()


@action
async def increment(value: int) -> int:
    """Do next to nothing, so that what is measured is the engine."""
    return value + 1


@action
async def pass_gate(value: int) -> int:
    """Stay at the gate while it is closed."""
    await gate.pass_through()
    return value


@workflow
async def sequence(step: Step, steps: int) -> int:  # noqa: ARG001 - a body's first parameter
    """Take the steps one after another."""
    value = 0
    for _ in range(steps):
        value = await increment(value)
    return value


@workflow
async def fan_out(step: Step, steps: int) -> int:  # noqa: ARG001 - a body's first parameter
    """Take the steps all at once."""
    return sum(await asyncio.gather(*(increment(0) for _ in range(steps))))


@workflow
async def guarded_sequence(step: Step, steps: int) -> int:  # noqa: ARG001 - as above
    """Take the steps one after another, and a last one through the gate."""
    value = 0
    for _ in range(steps):
        value = await increment(value)
    return await pass_gate(value)


@workflow
async def sequence_and_sleep(step: Step, steps: int) -> int:
    """Take the steps one after another, and then sleep for long."""
    value = 0
    for _ in range(steps):
        value = await increment(value)
    await step.sleep(DAY_S)
    return value


@workflow
async def sleep_a_day(step: Step) -> None:
    """Sleep longer than any benchmark runs."""
    await step.sleep(DAY_S)


RECEIVED: Final[list[float]] = []
"""When the body of ``receive`` went on, by the process's own clock."""


@workflow
async def receive(step: Step, events: int) -> int:
    """Wait for events one after another, and note when each is there."""
    for _ in range(events):
        await step.wait_event("number")
        RECEIVED.append(perf_counter())  # durable: allow
    return events


@mutation
async def add(tx: Transaction, amount: int) -> None:
    """Write one row."""
    await tx.execute("INSERT INTO total (amount) VALUES (?)", amount)


@workflow
async def add_up(step: Step, mutations: int) -> None:  # noqa: ARG001 - as above
    """Write rows one after another."""
    for amount in range(mutations):
        await add(amount)


@workflow
async def child(step: Step, value: int) -> int:  # noqa: ARG001 - as above
    """Take one step."""
    return await increment(value)


@workflow
async def family(step: Step, children: int) -> int:  # noqa: ARG001 - as above
    """Call children all at once."""
    return sum(await asyncio.gather(*(child(0) for _ in range(children))))
