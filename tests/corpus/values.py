"""Values of many types through arguments and results, and what a Step gives by itself."""

import asyncio
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from typing import NamedTuple, TypedDict, cast
from uuid import UUID

import durable
from durable import Step

from .actions import double, echo, join
from .case import case


class Colour(Enum):
    """An enum whose values are not its names."""

    RED = "r"
    BLUE = "b"


class Level(IntEnum):
    """An enum of numbers, which key a dict below."""

    LOW = 1
    HIGH = 10


class Point(NamedTuple):
    """A tuple with names."""

    x: float
    y: float


ORIGIN = Point(0.5, -0.0)


class Label(TypedDict):
    """A dict with known keys."""

    text: str
    colour: Colour


@dataclass(frozen=True)
class Item:
    """The inner dataclass: exact numbers and an unordered set."""

    name: str
    price: Decimal
    tags: frozenset[str]


@dataclass
class Order:
    """The outer dataclass: one field of each type that JSON does not know."""

    id: UUID
    placed_at: datetime
    due: timedelta
    day: date
    raw: bytes
    items: list[Item]
    counts: dict[Level, tuple[int, ...]]
    colour: Colour = Colour.RED
    where: Point = ORIGIN
    label: Label | None = None
    notes: set[int] = field(default_factory=set[int])


ORDER = Order(
    id=UUID(int=7),
    placed_at=datetime(2024, 2, 29, 12, 30, 15, 250_000, tzinfo=UTC),
    due=timedelta(days=1, milliseconds=5),
    day=date(2024, 2, 29),
    raw=b"\x00\xff raw",
    items=[Item("pen", Decimal("1.10"), frozenset({"blue", "small"}))],
    counts={Level.LOW: (1, 2), Level.HIGH: ()},
    label={"text": "nul \x00, é, 🎈", "colour": Colour.BLUE},
    notes={1, 2, 3},
)


@durable.action(name="corpus.same_order")
async def same_order(order: Order) -> Order:
    """Give ``order`` back."""
    return order


@durable.action(name="corpus.total")
async def total(prices: list[Decimal], by_level: dict[int, str]) -> Decimal:
    """Add up the prices and the keys."""
    return sum(prices, Decimal(0)) + sum(by_level)


@durable.action(name="corpus.union")
async def union(value: int | str | None) -> int | str | None:
    """Give ``value`` back."""
    return value


@durable.action(name="corpus.nothing")
async def nothing() -> str | None:
    """Give None."""
    return None


@case(ORDER)
@durable.workflow(name="corpus.values_order")
async def values_order(_step: Step, order: Order) -> Order:
    """A nested dataclass through the workflow's arguments, steps and the result."""
    received = await same_order(order)
    assert received == order == ORDER
    assert isinstance(received.counts[Level.LOW], tuple)
    priced = await asyncio.gather(
        *(same_order(replace(received, colour=colour)) for colour in Colour)
    )
    return replace(received, items=[item for part in priced for item in part.items])


@case()
@durable.workflow(name="corpus.values_in_order")
async def values_in_order(_step: Step) -> dict[int, Colour]:
    """A dict with int keys, in the order in which the steps completed."""
    arrived: dict[int, Colour] = {}

    async def arrive(n: int) -> None:
        arrived[await double(n)] = Colour.RED if arrived else Colour.BLUE

    await asyncio.gather(*(arrive(n) for n in range(4)))
    return arrived


@case()
@durable.workflow(name="corpus.values_plain")
async def values_plain(_step: Step) -> tuple[Decimal, set[str], bytes, float, int, str | None]:
    """One value of each kind in a tuple, and arguments that are typed by their annotations."""
    exact = await total([Decimal("0.10"), Decimal("0.2")], {2: "two", 1: "one"})
    words = {await echo(v) for v in ("x", "y", "x")}
    return exact, words, b"\x00\xff", 0.1 + 0.2, 2**62, await nothing()


@case()
@durable.workflow(name="corpus.values_union")
async def values_union(_step: Step) -> list[int | str | None]:
    """A number, a text that looks like it, and None stay what they are."""
    given: list[int | str | None] = [1, "1", None, ""]
    return await asyncio.gather(*(union(value) for value in given))


@case()
@durable.workflow(name="corpus.values_mutated")
async def values_mutated(_step: Step) -> list[str]:
    """A step has the arguments it was issued with, whatever the body does to them later."""
    parts = ["a"]
    task = asyncio.create_task(join(parts))
    await asyncio.sleep(0)
    parts.append("b")
    first = await task
    parts.append(await echo("c"))
    return [first, await join(parts)]


@case()
@durable.workflow(name="corpus.values_refused")
async def values_refused(_step: Step) -> list[str]:
    """Wrong arguments are the caller's error: no step, and the branch goes on."""
    trace: list[str] = []

    async def branch(value: object) -> None:
        try:
            trace.append(await echo(cast("str", value)))
        except durable.ArgumentError:
            trace.append(await echo("refused"))

    await asyncio.gather(branch("fine"), branch(3), branch(["fine"]))
    return trace


@case()
@durable.workflow(name="corpus.values_now")
async def values_now(step: Step) -> list[datetime]:
    """The time is that of the latest completion, as an argument too."""
    times = [step.now()]
    for number in range(3):
        received = await same_order(replace(ORDER, placed_at=step.now()))
        times += [received.placed_at, step.now()]
        await asyncio.sleep(number)
    return [*times, step.now()]


@case()
@durable.workflow(name="corpus.values_identity")
async def values_identity(step: Step) -> dict[str, str]:
    """Who the run is, and identifiers it draws, which become arguments."""
    keys = [step.uuid4() for _ in range(3)]
    orders = await asyncio.gather(*(same_order(replace(ORDER, id=key)) for key in keys))
    assert [order.id for order in orders] == keys
    drawn = {str(order.id): await echo(str(step.random.random())) for order in orders}
    return {**drawn, "workflow": step.workflow, "run": await echo(step.run_id)}
