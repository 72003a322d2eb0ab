"""What all tests share."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import pytest
import structlog  # noqa: F401  it is imported late, and asks for the working directory
from blockbuster import blockbuster_ctx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    LoopFactory = Callable[[], asyncio.AbstractEventLoop]


@pytest.fixture(autouse=True)
def _no_blocking_calls() -> Iterator[None]:
    """Fail a test whose event loop is blocked by a call of ours, SQLite's included."""
    with blockbuster_ctx():
        yield


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the journal of a test is."""
    return tmp_path / "journal.db"


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, LoopFactory]:
    """Run on asyncio's own loop, and what is marked ``both_loops`` on uvloop too."""
    factories: dict[str, LoopFactory] = {"asyncio": asyncio.new_event_loop}
    if item.get_closest_marker("both_loops") is not None and sys.platform != "win32":
        import uvloop  # noqa: PLC0415

        factories["uvloop"] = uvloop.new_event_loop
    return factories
