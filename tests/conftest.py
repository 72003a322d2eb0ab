"""What all tests share."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import sys
import tempfile
from typing import TYPE_CHECKING, Any, Final

import bank
import changing
import pytest
import structlog  # noqa: F401  it is imported late, and asks for the working directory
from bare_loop import Host, new_loop
from blockbuster import blockbuster_ctx
from clock import ManualClock
from faults import Disk
from world import new_world

from durable import Engine, registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from durable.core.loop import WorkflowLoop

    Forget = Callable[[Any], None]
    LoopFactory = Callable[[], asyncio.AbstractEventLoop]

MEMORY: Final = "/dev/shm"  # noqa: S108  each has a directory of its own in it
MEMORY_FREE_BYTES_MIN: Final = 2 * 1024**3
"""Far more than all tests write."""


def pytest_configure() -> None:
    """Have journals in memory, where there is a directory for that, unless ``TMPDIR`` names one.

    Waiting for a disk shows nothing here: it is processes that the tests crash, and what those have
    written is there, whether it was synced or not.
    """
    if "TMPDIR" in os.environ or not os.access(MEMORY, os.W_OK):
        return
    if shutil.disk_usage(MEMORY).free >= MEMORY_FREE_BYTES_MIN:
        os.environ["TMPDIR"] = tempfile.tempdir = MEMORY


@pytest.fixture(autouse=True, scope="module")
def _cheap_collections() -> None:
    """Have the garbage collector look only at what a module's tests make: some call it often."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_blocking_calls() -> Iterator[None]:
    """Fail a test whose event loop is blocked by a call of ours, SQLite's included."""
    with blockbuster_ctx():
        yield


@pytest.fixture(autouse=True)
def _fresh_world() -> None:
    new_world()
    bank.new_world()
    changing.new_day()


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, path: Path) -> Path | str:
    """Where the journal of a test is: in a file, and in memory."""
    return path if request.param == "file" else "sqlite://"


@pytest.fixture
def clock() -> ManualClock:
    """Time that the test holds, for the engines that it gives it to."""
    return ManualClock()


@pytest.fixture
async def engine(clock: ManualClock) -> AsyncIterator[Engine]:
    """An engine whose journal is in memory, and whose time the test holds."""
    engine = Engine("sqlite://")
    clock.install(engine)
    async with engine:
        yield engine


@pytest.fixture
def only_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let engines know of each other's writing by noticing it, and not by looking now and then."""
    monkeypatch.setattr("durable.journal.lookout.TELL_S_MAX", 3600)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """The storage under the journals that the test opens."""
    disk = Disk()
    disk.install(monkeypatch)
    return disk


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch) -> Forget:
    """Take a definition out of the code, as if its module was not imported."""

    def forget(definition: Any) -> None:  # noqa: ANN401  a workflow, or what it calls
        key = (str(definition.kind), definition.name, definition.version)
        monkeypatch.delitem(registry._definitions, key)

    return forget


@pytest.fixture
def host() -> Host:
    """An execution, as far as a body's loop needs one."""
    return Host()


@pytest.fixture
def loop(host: Host) -> Iterator[WorkflowLoop]:
    """A body's loop."""
    loop = new_loop(host)
    yield loop
    loop.close()


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
