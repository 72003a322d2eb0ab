"""The corpus in the engine: on both loops, and over crashes, it is what the bare bodies do."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from clock import START_MS, ManualClock
from corpus import CORPUS, Case
from msgspec.structs import replace
from replay_driver import EngineOrder, Player, describe_error, dice, expect_equal, run_live

import durable
from durable import Engine, RunFailed
from durable.core.execution import Raised, Returned
from durable.core.records import StepKind, StepState
from durable.issue import ActionStep

if TYPE_CHECKING:
    from pathlib import Path

    from durable.core.records import RunRecord, StepRecord

LIVES_MAX = 50
"""More than the lives that a journal has here."""


class Pace:
    """Moves an engine's clock from one due time to the next, whenever nothing else is under way."""

    def __init__(self, clock: ManualClock, engine: Engine) -> None:
        self._clock = clock
        self._engine = engine
        self.moves_count = 0

    async def keep(self, moves_max: int | None = None) -> bool:
        """Return whether all runs have ended; ``False`` when the clock was moved so often."""
        async with asyncio.timeout(30):
            while (due_ms := await self._next_due_ms()) is not None:
                if self.moves_count == moves_max:
                    return False
                self.moves_count += 1
                self._clock.advance((due_ms - self._clock.now_ms()) / 1000)
        return True

    async def _next_due_ms(self) -> int | None:
        """Wait until nothing but time can make a difference; return when it will."""
        runner = self._engine._runner
        assert runner is not None
        while True:
            await asyncio.sleep(0)
            await runner.writer.wait_until_idle()
            dues = [alarm.due_ms for alarm in runner.alarms._heap if not alarm.is_cancelled]
            is_idle = runner.pool.is_idle and not runner._ready and not runner.writer._is_claim_asked
            if is_idle and all(due_ms > self._clock.now_ms() for due_ms in dues):
                return min(dues, default=None)


def text_of(record: RunRecord) -> str:
    """Return a run's outcome as the journal has it."""
    return f"{record.state} {record.result} {record.error}"


async def journal_of(engine: Engine, run_id: str) -> tuple[RunRecord, list[StepRecord]]:
    journal: Any = engine._journal
    record = await journal.load_run(run_id)
    from durable.journal.base import StepQuery

    steps = await journal.list_steps(StepQuery(run_id=run_id, limit=10_000, order="asc"))
    return record, steps


@pytest.mark.both_loops
async def test_x() -> None:
    clock = ManualClock()
    engine = Engine("sqlite://")
    clock.install(engine)
    async with engine:
        for case in CORPUS:
            await engine.start(case.workflow(*case.args), id=case.id)
        pace = Pace(clock, engine)
        assert await pace.keep()
        bad = 0
        for case in CORPUS:
            record, steps = await journal_of(engine, case.id)
            bare = run_live(case.workflow(*case.args), EngineOrder(), run_id=case.id)
            assert record.state.is_final, case.id
            order = [s.key for s in sorted((s for s in steps if s.position is not None), key=lambda s: s.position)]
            bare_order = [t.delivered.key for t in bare.turns if t.delivered]
            if order != bare_order:
                bad += 1
                print(case.id, order, bare_order)
        assert not bad
