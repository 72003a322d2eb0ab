"""Which engine is meant where none is named."""

from __future__ import annotations

import asyncio
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING

from durable.core.loop import body_loop

if TYPE_CHECKING:
    from durable.engine import Engine

_open_engines: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, list[Engine]] = (
    weakref.WeakKeyDictionary()
)
own_engine: ContextVar[Engine | None] = ContextVar("durable_engine", default=None)
"""The engine that runs the calling action."""


def add_open(engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
    """Note that ``engine`` was opened on ``loop``."""
    _open_engines.setdefault(loop, []).append(engine)


def remove_open(engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
    """Note that it is being closed."""
    _open_engines[loop].remove(engine)


def find_current(what: str) -> Engine | None:
    """Return what ``Engine.current`` does, or ``None``; ``what`` is the call that asks."""
    refuse_in_body(what)
    loop = running_loop()
    own = own_engine.get()
    if own is not None and own.is_open_on(loop):
        return own
    engines = None if loop is None else _open_engines.get(loop)
    return engines[-1] if engines else None


def check_asyncio() -> None:
    """Raise ``RuntimeError`` where no event loop of asyncio runs."""
    if running_loop() is None:
        msg = (
            "durable works on asyncio's event loop, and none runs here: use asyncio.run() or "
            "anyio.run() with its asyncio backend, not trio"
        )
        raise RuntimeError(msg)


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in this thread."""
    return asyncio._get_running_loop()  # noqa: SLF001  the fastest way to know whose code it is


def refuse_in_body(what: str) -> None:
    """Raise ``NonDeterminismError`` when a workflow's body makes the call ``what``."""
    loop = body_loop()
    if loop is not None:
        loop.refuse(what, "call it in an action")
