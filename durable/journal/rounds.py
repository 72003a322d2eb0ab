"""A round: one statement each of several parts of a transaction, done in one call.

A statement takes some microseconds; to wake up the connection's thread for it, and then the event
loop, takes ten times as long.

Rules:

- Each part asks for one statement, at most. They are done in the order of the parts.
- They cannot be undone one by one. When one fails, the transaction is to be rolled back, and its
  parts are to be done again, each by itself.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, cast, final

from durable.journal.scopes import Scope

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Generator

    import aiosqlite

    from durable.journal.guard import Guard

ROUND_S_MAX = 0.05
"""A round does no more statements once it has taken so long."""


@final
class Part:
    """The only statement of one part: what its scope has in place of a connection.

    Awaiting it yields it to whoever runs the coroutine, who goes on with that when it is made.

    Attributes:
        is_over: Whether its turn is over: it was made, or there is none.
        is_made: Whether it was made.
        is_void: Whether more was asked for than a round can do.
    """

    __slots__ = ("_result", "_work", "is_made", "is_over", "is_void")

    def __init__(self) -> None:
        self._work: Callable[[sqlite3.Connection, Guard], Any] | None = None
        self._result: Any = None
        self.is_over = self.is_made = self.is_void = False

    def __await__(self) -> Generator[Any, None, Any]:
        return cast("Generator[Any, None, Any]", self)

    def __iter__(self) -> Part:
        return self

    def __next__(self) -> Part:
        if self.is_over and not self.is_void:
            raise StopIteration(self._result)
        return self

    # --- for its scope ---------------------------------------------------------------------------

    @property
    def connection(self) -> aiosqlite.Connection:
        """There is none: what is done on it would not be seen.

        Raises:
            CancelledError: Who asks for it is to be called again, by itself.
        """
        self.is_void = True
        raise asyncio.CancelledError

    @property
    def is_closed(self) -> bool:
        return False

    def run(self, work: Callable[[sqlite3.Connection, Guard], Any]) -> Part:
        """Have ``work`` done with that of the other parts."""
        if self._work is None:
            self._work = work
        else:
            self.is_void = True
        return self

    def post(self, work: Callable[[sqlite3.Connection, Guard], object]) -> object:
        self.is_void = True
        return work

    def interrupt(self) -> None:
        pass  # What runs is not its own alone.

    # --- for its round ---------------------------------------------------------------------------

    def do(self, db: sqlite3.Connection, guard: Guard) -> None:
        """Do it, on the connection's thread."""
        if self._work is not None:
            self.is_made = True
            self._result = self._work(db, guard)
        self.is_over = True


@final
class StatementRound:
    """The statements of one round.

    Attributes:
        parts: Whose they are, in their order.
    """

    def __init__(self, owner: object) -> None:
        self._owner = owner
        self._is_stopped = False
        self.parts: list[Part] = []

    def admit(self) -> tuple[Scope, Part]:
        """Open one more scope, and return what is known of its statement."""
        part = Part()
        self.parts.append(part)
        return Scope(part, self._owner, is_reading=False), part

    def do_all(self, db: sqlite3.Connection, guard: Guard) -> None:
        """Do the statements, on the connection's thread; only the first ones, if that takes long.

        Raises:
            Exception: What the first one has failed with that is not over.
        """
        until_s = time.perf_counter() + ROUND_S_MAX
        for part in self.parts:
            if self._is_stopped:
                return
            part.do(db, guard)
            if time.perf_counter() > until_s:
                return

    def stop(self) -> None:
        """Do no more of them."""
        self._is_stopped = True

    def over_count(self) -> int:
        """Return how many of them are over: the first ones."""
        open_ = (place for place, part in enumerate(self.parts) if not part.is_over)
        return next(open_, len(self.parts))
