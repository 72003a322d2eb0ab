"""The attempts that go on while the journal is out, and who waits for them afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from durable.core.records import StepState

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from durable.journal.base import Claim
    from durable.runtime.live import LiveRun
    from durable.runtime.workpool import Workpool


@final
class Orphans:
    """The runs that an outage has dropped from memory, until they are claimed again."""

    def __init__(self, pool: Workpool) -> None:
        self._pool = pool
        self._interrupted: dict[str, Mapping[int, int]] = {}

    def add(self, live: LiveRun) -> None:
        """An outage drops this run; attempts of it may go on."""
        self._interrupted[live.record.run_id] = live.interrupted

    def take(self, run_id: str) -> Mapping[int, int] | None:
        """Return what of a claimed run had been interrupted before, if it was here already."""
        return self._interrupted.pop(run_id, None)

    def withdraw_unwanted(
        self, claim: Claim, live_ids: Collection[str], *, is_more_due: bool
    ) -> None:
        """End the attempts that nobody waits for, if the commit that said so was the failed one."""
        if not self._interrupted:
            return
        known = {record.run_id for record, _ in claim.runs}
        wanted = {
            (record.run_id, step.number): step.attempts
            for record, steps in claim.runs
            for step in steps
            if step.state is StepState.RUNNING
        }
        if not is_more_due:  # The others are over, asleep, or were started anew.
            others = self._interrupted.keys() - known
            known |= others.difference(live_ids)
            for run_id in others:
                del self._interrupted[run_id]
        self._pool.withdraw_unless(
            lambda job: job.attempt.run_id not in known or wanted.get(job.id) == job.attempt.number
        )
