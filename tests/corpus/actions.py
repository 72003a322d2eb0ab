"""The steps of the corpus: pure and instantaneous, so that only the order of completion varies."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass

import durable


class CorpusError(Exception):
    """An error of the corpus's own, which reaches a body as itself: this module names it."""


ERRORS: dict[str, type[Exception]] = {
    "corpus": CorpusError,
    "index": IndexError,
    "key": KeyError,
    "lookup": LookupError,
    "timeout": TimeoutError,
    "value": ValueError,
}

TREE = {"root": ["left", "right"], "left": ["a", "b"], "right": ["c"]}


@dataclass(frozen=True)
class Page:
    """One page of a listing; ``cursor`` is None on the last."""

    items: tuple[int, ...]
    cursor: int | None


@durable.action(name="corpus.echo")
async def echo(value: str) -> str:
    """Give ``value`` back."""
    return value


@durable.action(name="corpus.double")
async def double(n: int) -> int:
    """Give twice ``n``."""
    return 2 * n


@durable.action(name="corpus.join")
async def join(parts: list[str]) -> str:
    """Give the parts as one word."""
    return "+".join(parts)


@durable.action(name="corpus.boom")
async def boom(kind: str) -> str:
    """Raise the error that ``kind`` names."""
    raise ERRORS[kind](kind)


@durable.action(name="corpus.picky")
async def picky(n: int) -> int:
    """Refuse odd numbers."""
    if n % 2:
        raise ValueError(n)
    return n


@durable.action(name="corpus.children")
async def children(node: str) -> list[str]:
    """Give the nodes under ``node`` of a small fixed tree."""
    return TREE.get(node, [])


@durable.action(name="corpus.page")
async def page(cursor: int) -> Page:
    """Give the page at ``cursor`` of a listing of three."""
    return Page(items=(cursor, cursor * 10), cursor=cursor + 1 if cursor < 3 else None)


@durable.action(name="corpus.collatz")
async def collatz(n: int) -> int:
    """Give the successor of ``n`` in its Collatz sequence."""
    return 3 * n + 1 if n % 2 else n // 2


async def traced(trace: list[str], work: Awaitable[str]) -> str:
    """Await ``work`` and note its value, so that the trace shows what completed when."""
    value = await work
    trace.append(value)
    return value


async def guarded(trace: list[str], label: str) -> str:
    """Wait for a step; when cancelled, clean up with a step of its own."""
    try:
        return await traced(trace, echo(label))
    except asyncio.CancelledError:
        await traced(trace, echo(f"undo {label}"))
        raise
