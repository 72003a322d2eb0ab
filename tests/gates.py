"""Actions that are held until their test lets them go on, whichever event loop that runs on."""

from __future__ import annotations

import asyncio

import pytest

import durable
from durable import Step


class Gate:
    """What one test holds its actions with.

    Attributes:
        begun: The numbers of the actions that have begun, in order.
        open: Until it is set, they wait.
    """

    def __init__(self) -> None:
        self.begun: asyncio.Queue[int] = asyncio.Queue()
        self.open = asyncio.Event()


gates: dict[str, Gate] = {}


@durable.action
async def pass_gate(name: str, number: int) -> int:
    gates[name].begun.put_nowait(number)
    await gates[name].open.wait()
    return number


@durable.workflow
async def passing(_step: Step, name: str, count: int) -> list[int]:
    return await asyncio.gather(*(pass_gate(name, number) for number in range(count)))


def a_gate(request: pytest.FixtureRequest) -> tuple[str, Gate]:
    gate = gates[request.node.name] = Gate()
    return request.node.name, gate
