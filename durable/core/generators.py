"""The async generators of a body, which are closed in the same order on replay."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from collections.abc import Callable


@final
class BegunGenerators:
    """The async generators that a body has begun, in that order."""

    __slots__ = ("_by_address",)

    def __init__(self) -> None:
        self._by_address: dict[int, Callable[[], Any]] = {}

    def add(self, generator: Any) -> None:  # noqa: ANN401  AsyncGenerator of anything
        """Take note of one that begins."""
        # An ended one may have left its entry at the same address: this one was begun last.
        self._by_address.pop(id(generator), None)
        self._by_address[id(generator)] = weakref.ref(generator)

    def drop(self, generator: Any) -> bool:  # noqa: ANN401
        """Return whether one that nobody refers to any more is to be closed now, or else keep it.

        Part of a garbage cycle, it is collected at a moment that no replay repeats: it is kept, and
        closed when the body has ended, as it is when the collector does not run.
        """
        if gc.is_finalized(generator):
            self._by_address[id(generator)] = lambda: generator
            return False
        self._by_address.pop(id(generator), None)
        return True

    def existing(self) -> list[Any]:
        """Return those that still exist."""
        if not self._by_address:
            return []
        found = (ref() for ref in self._by_address.values())
        return [generator for generator in found if generator is not None]
