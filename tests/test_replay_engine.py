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
from durable.step import ActionStep

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
        while await self._is_anything_left():
            if self.moves_count == moves_max:
                return False
            self.moves_count += 1
            self._move()
        return True

    async def _is_anything_left(self) -> bool:
        """Wait until nothing but time can make a difference."""
        runner = self._engine._runner
        assert runner is not None
        async with asyncio.timeout(10):
            while True:
                await runner.writer.wait_until_idle()
                if not runner._ready and not runner.writer._is_claim_asked and runner.pool.is_idle:
                    return bool(self._dues())
                await asyncio.sleep(0)

    def _dues(self) -> list[int]:
        runner = self._engine._runner
        assert runner is not None
        return [alarm.due_ms for alarm in runner.alarms._heap if not alarm.is_cancelled]

    def _move(self) -> None:
        self._clock.advance(max(min(self._dues()) - self._clock.now_ms(), 0) / 1000)


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
        assert await pace.keep(300), (pace._dues(), clock.now_ms(), engine.statistics(), clock._waiting, engine._runner._live)
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
