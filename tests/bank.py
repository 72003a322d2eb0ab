"""A table of accounts in the journal's database, and steps that read and write it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import durable
from durable import Engine, Step, Transaction

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

INSERT = "INSERT INTO entry (text) VALUES (?)"

Hook = "Callable[[Transaction], Awaitable[object]]"


async def create(engine: Engine) -> None:
    """Make the table, unless it is there."""
    async with engine.transaction() as tx:
        await tx.execute(
            "CREATE TABLE IF NOT EXISTS entry (id INTEGER PRIMARY KEY, text TEXT UNIQUE) STRICT"
        )


async def texts(engine: Engine) -> list[str]:
    """Return all entries, in order."""
    async with engine.transaction() as tx:
        return [row["text"] for row in await tx.fetch_all("SELECT text FROM entry ORDER BY id")]


@asynccontextmanager
async def opened(store: Path | str, **options: Any) -> AsyncGenerator[Engine]:  # noqa: ANN401
    """Open an engine whose database has the table."""
    async with Engine(store, **options) as engine:
        await create(engine)
        yield engine


class World:
    """What the functions have noted, and where they wait.

    Attributes:
        begun: What each call of a function was for.
        hook: What ``hooked`` does with its transaction.
    """

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.may_end = asyncio.Event()
        self.hook: Any = None


world = World()


def new_world() -> World:
    """Forget what was noted."""
    world.__init__()  # type: ignore[misc]
    return world


@durable.mutation
async def add(tx: Transaction, text: str) -> int:
    world.begun.append(text)
    await tx.execute("INSERT INTO entry (text) VALUES (?)", text)
    count: int = await tx.fetch_value("SELECT count(*) FROM entry")
    return count


@durable.mutation
async def add_and_fail(tx: Transaction, text: str) -> None:
    world.begun.append(text)
    await tx.execute("INSERT INTO entry (text) VALUES (?)", text)
    raise LookupError(text)


@durable.mutation
async def add_slowly(tx: Transaction, text: str) -> None:
    """Write, and then hold the transaction until it may end."""
    await tx.execute("INSERT INTO entry (text) VALUES (?)", text)
    world.begun.append(text)
    await world.may_end.wait()


@durable.mutation
async def hooked(tx: Transaction) -> Any:  # noqa: ANN401
    world.begun.append("hooked")
    return await world.hook(tx)


@durable.query
async def look(tx: Transaction) -> list[str]:
    world.begun.append("look")
    return [row[0] for row in await tx.fetch_all("SELECT text FROM entry ORDER BY id")]


@durable.query
async def asking(tx: Transaction) -> Any:  # noqa: ANN401
    world.begun.append("asking")
    return await world.hook(tx)


@durable.action
async def act(text: str) -> str:
    world.begun.append(text)
    return text


@durable.workflow
async def adding(step: Step, text: str) -> int:
    return await add(text)


@durable.workflow
async def hooking(step: Step) -> Any:  # noqa: ANN401
    return await hooked()


@durable.workflow
async def querying(step: Step) -> Any:  # noqa: ANN401
    return await asking()


@durable.workflow
async def all_kinds(step: Step) -> list[str]:
    """Use each kind of step, one failing, some at once."""
    await act("first")
    count = await add("a")
    try:
        await add_and_fail("lost")
    except LookupError as exc:
        await add(f"caught {exc.args[0]} after {count}")
    await asyncio.gather(add("b"), act("second"), look(), add("c"))
    await step.sleep(0.001)
    return await look()


ALL_KINDS = ["a", "caught lost after 1", "b", "c"]
