"""An engine that lives as long as a Starlette or FastAPI application."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar, overload

from durable.contrib import check_engine

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractAsyncContextManager

    from durable.engine import Engine

AppT = TypeVar("AppT")
StateT = TypeVar("StateT")


@overload
def lifespan(engine: Engine) -> Callable[[Any], AbstractAsyncContextManager[None]]: ...
@overload
def lifespan(
    engine: Engine, inner: Callable[[AppT], AbstractAsyncContextManager[StateT]]
) -> Callable[[AppT], AbstractAsyncContextManager[StateT]]: ...
def lifespan(
    engine: Engine, inner: Callable[[Any], AbstractAsyncContextManager[Any]] | None = None
) -> Callable[[Any], AbstractAsyncContextManager[Any]]:
    """Return a lifespan in which the engine is open: ``Starlette(lifespan=lifespan(engine))``.

    The engine opens before the application begins to serve, and is closed, drained, after the last
    request has ended. Handlers get it by ``Engine.current()``.

    Args:
        engine: One that is not open.
        inner: The application's own lifespan. It begins when the engine is open, and ends while it
            still is; its state is passed on.

    Raises:
        TypeError: It is no engine.
        JournalError: When the application starts: the journal cannot be opened.
    """

    check_engine(engine)

    @asynccontextmanager
    async def opened(app: object) -> AsyncGenerator[Any]:
        async with engine:
            if inner is None:
                yield None
            else:
                async with inner(app) as state:
                    yield state

    return opened
