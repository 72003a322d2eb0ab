"""Where no event loop of asyncio runs, such as under trio: said at once, by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import durable
from durable import Engine, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


@durable.workflow
async def going(step: Step) -> None:
    pass


async def open_engine(path: Path) -> None:
    async with Engine(path):
        pass


async def run_once(path: Path) -> None:
    await durable.run(going(), url=path)


async def run_by_default(_: Path) -> None:
    await durable.run(going())


async def await_call(_: Path) -> None:
    await going()


WAYS: list[Callable[[Path], Coroutine[Any, Any, None]]] = [
    open_engine,
    run_once,
    run_by_default,
    await_call,
]


@pytest.mark.parametrize("use", WAYS)
def test_asyncio_is_asked_for(use: Callable[[Path], Coroutine[Any, Any, None]], path: Path) -> None:
    """The coroutine is begun by hand, as another framework's loop does it."""
    expected = r"durable works on asyncio's event loop, and none runs here: use asyncio\.run\(\)"
    with pytest.raises(RuntimeError, match=expected):
        use(path).send(None)
    assert not path.exists()
