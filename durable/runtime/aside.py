"""Runs that were claimed and cannot be worked on: they are set aside, and say why.

Rules:

- A run whose workflow the code does not have is stuck. It is due again once the code has it.
- So is one whose steps cannot be read, until somebody mends them.
- One without code that was asked to end is over: nobody can be told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, final

from durable.core.transitions import make_stuck
from durable.runtime.reporting import report_undefined

if TYPE_CHECKING:
    from durable.core.errors import JournalError
    from durable.core.records import RunRecord, StepRecord
    from durable.runtime.children import Children
    from durable.runtime.control import Control
    from durable.runtime.instrumentation import EngineLog


class AsideHost(Protocol):
    """What setting runs aside asks of the runner."""

    children: Children
    control: Control
    log: EngineLog

    @property
    def is_closing(self) -> bool:
        """Whether nothing begins any more."""
        ...

    @property
    def outage(self) -> JournalError | None:
        """Why the journal is out, if it is."""
        ...

    def park(self, run_id: str, wake_at_ms: int | None, changed: RunRecord | None = None) -> None:
        """Give back a run that is not in memory, until then; with its row changed, if it is."""
        ...


@final
class Aside:
    """The runs that were set aside, of those that the code may get a workflow for."""

    def __init__(self, host: AsideHost) -> None:
        self._host = host
        self._undefined: dict[tuple[str, int], list[str]] = {}

    def set_undefined(self, record: RunRecord, steps: list[StepRecord]) -> None:
        """Set a claimed run aside whose workflow the code does not have.

        Args:
            record: The run.
            steps: All that the journal has of them.
        """
        if self._host.control.end_if_asked(record, steps):
            return
        error = report_undefined(self._host.log, record)
        self._undefined.setdefault((record.name, record.version), []).append(record.run_id)
        self._host.park(record.run_id, None, make_stuck(record, error))
        self._host.children.on_gone(record)

    def set_unreadable(self, record: RunRecord | None, error: JournalError) -> None:
        """Set a claimed run aside that cannot be read: ``None``, if not even its row can be."""
        self._host.log.error("durable.run_unreadable", reason=str(error))
        if record is not None:
            changed = None if record.state.is_final else make_stuck(record, error)
            self._host.park(record.run_id, None, changed)

    def on_defined(self, name: str, version: int) -> None:
        """The code has got a workflow: take up the runs that waited for it."""
        if self._host.is_closing or self._host.outage is not None:
            return
        for run_id in self._undefined.pop((name, version), []):
            # Claimed once that is committed: a claim asked for now could be ahead of it.
            self._host.park(run_id, 0)
