"""The engines that ``durable.run`` opens: calls at the same time share one for each journal."""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, final

from durable.journal.whole import to_its_end

if TYPE_CHECKING:
    from pathlib import Path

    from durable.engine import Engine

_shared: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, list[SharedEngine]] = (
    weakref.WeakKeyDictionary()
)


@final
class SharedEngine:
    """An engine that is open as long as somebody is in its ``async with``.

    Not for its own actions: closing it waits for them, so that they must not wait for that.
    """

    def __init__(self, engine: Engine, path: Path | None) -> None:
        self.engine = engine
        self.path = path
        self._users_count = 0
        self._is_open = False
        self._changing = asyncio.Lock()

    async def __aenter__(self) -> None:
        """Open it, if nobody has. Raises what opening an engine raises."""
        self._users_count += 1
        try:
            async with self._changing:
                if not self._is_open:
                    await self.engine.__aenter__()
                    self._is_open = True
        except BaseException:
            await to_its_end(self._leave())
            raise

    async def __aexit__(self, *_: object) -> None:
        """Close it, if nobody else needs it."""
        await to_its_end(self._leave())

    async def _leave(self) -> None:
        self._users_count -= 1
        async with self._changing:
            if self._users_count:
                return
            try:
                if self._is_open:
                    self._is_open = False
                    await self.engine.__aexit__(None, None, None)
            finally:
                # Who came while it was being closed opens it again.
                engines = _engines()
                if not self._users_count and self in engines:
                    engines.remove(self)


def find_shared(*, engine: Engine | None = None, path: Path | None = None) -> SharedEngine | None:
    """Return the one of that engine, or of that file."""
    for shared in _engines():
        if shared.engine is engine or (path is not None and shared.path == path):
            return shared
    return None


def share(engine: Engine, path: Path | None) -> SharedEngine:
    """Have an engine shared that is not open yet; one in memory has no path to be found by."""
    shared = SharedEngine(engine, path)
    _engines().append(shared)
    return shared


def _engines() -> list[SharedEngine]:
    return _shared.setdefault(asyncio.get_running_loop(), [])
