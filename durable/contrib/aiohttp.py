"""An engine that lives as long as an aiohttp application."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aiohttp import web

from durable.contrib import check_engine
from durable.engine import Engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ENGINE: Final = web.AppKey("durable.engine", Engine)
"""Where handlers find the engine: ``request.app[ENGINE]``; or by ``Engine.current()``."""


def setup(app: web.Application, engine: Engine) -> None:
    """Let the engine be open while the application is.

    It opens before the application begins to serve, and is closed, drained, after the last request
    has ended.

    Args:
        app: One that is not started.
        engine: One that is not open.

    Raises:
        TypeError: It is no engine.
        JournalError: When the application starts: the journal cannot be opened.
    """

    check_engine(engine)

    async def opened(_app: web.Application) -> AsyncIterator[None]:
        async with engine:
            yield

    app[ENGINE] = engine
    app.cleanup_ctx.append(opened)
