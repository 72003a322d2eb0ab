"""What the parts of ``Engine`` ask of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from durable.journal.base import Journal
    from durable.run import Run
    from durable.runtime.runner import Runner


class Opened(ABC):
    """An engine, as the calls see it that need it open."""

    @abstractmethod
    def _opened(self, what: str) -> tuple[Runner, Journal]:
        """Return what works for the engine.

        Args:
            what: The call that asks.

        Raises:
            EngineClosedError: The engine is not open.
            NonDeterminismError: A body calls.
            RuntimeError: The engine works on another event loop.
        """

    @abstractmethod
    def get(self, run_id: str) -> Run[Any]:
        """Return a handle of a run. It does no I/O; the run may not exist."""
