"""The corpus in the engine: on both loops, and over crashes, it is what the bare bodies do."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from clock import START_MS, ManualClock
from corpus import CORPUS, Case
from player import EngineOrder, dice, expect_equal
from replay_driver import final_steps, outcome_texts, reenact, run_live, step_texts

import durable
from durable import Engine
from durable.core.records import StepKind
from durable.issue import ActionStep
from durable.journal.base import StepQuery

if TYPE_CHECKING:
    from pathlib import Path

    from durable.core.records import RunRecord, StepRecord
    from durable.runtime.runner import Runner

LIVES_MAX = 40
"""More than any of these journals has."""

Begun = Counter[tuple[str, str]]


class Pace:
    """Moves an engine's clock from one due time to the next, whenever nothing else is under way."""

    def __init__(self, clock: ManualClock, engine: Engine) -> None:
        self._clock = clock
        self._runner = runner_of(engine)

    async def keep(self, moves_max: int) -> bool:
        """Return whether nothing is left to do; ``False`` after so many moves."""
        async with asyncio.timeout(30):
            while (due_ms := await self._next_due_ms()) is not None:
                if moves_max == 0:
                    return False
                moves_max -= 1
                self._clock.advance((due_ms - self._clock.now_ms()) / 1000)
        return True

    async def _next_due_ms(self) -> int | None:
        """Wait until nothing but time can make a difference; return when it will."""
        runner = self._runner
        while True:
            await asyncio.sleep(0)
            await runner.writer.wait_until_idle()
            dues = [alarm.due_ms for alarm in runner.alarms._heap if not alarm.is_cancelled]
            is_still = runner.pump.is_idle and not runner.writer.is_claim_asked
            is_waiting = all(due_ms > self._clock.now_ms() for due_ms in dues)
            if is_still and is_waiting and runner.pool.is_idle:
                return min(dues, default=None)


def runner_of(engine: Engine) -> Runner:
    assert engine._runner is not None
    return engine._runner


async def recorded(engine: Engine, case: Case) -> tuple[RunRecord, list[StepRecord]]:
    """Return a run and its steps, as the journal has them."""
    journal = engine._journal
    assert journal is not None
    run = await journal.load_run(case.id)
    steps = await journal.list_steps(StepQuery(run_id=case.id, order="asc", limit=10_000))
    assert run is not None
    assert steps is not None
    return run, steps


async def start_all(engine: Engine, cases: tuple[Case, ...]) -> None:
    for case in cases:
        await engine.start(case.workflow(*case.args), id=case.id)


@pytest.mark.slow
@pytest.mark.both_loops
async def test_runs_in_an_engine_are_what_the_bare_bodies_are() -> None:
    """The same steps, outcomes, order of deliveries and end, on asyncio as on uvloop."""
    clock = ManualClock()
    engine = Engine("sqlite://")
    clock.install(engine)
    async with engine:
        await start_all(engine, CORPUS)
        assert await Pace(clock, engine).keep(moves_max=1_000)
        for case in CORPUS:
            run, steps = await recorded(engine, case)
            bare = run_live(case.workflow(*case.args), EngineOrder(), run_id=case.id)
            expect_equal(step_texts(steps), step_texts(final_steps(bare)), case.id)
            expect_equal(outcome_texts(run), bare.outcome_texts(), case.id)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> Begun:
    """How often the function of each step began, by run and key."""
    counts: Begun = Counter()
    call = ActionStep.call

    def counting_call(self: ActionStep, args: str) -> Any:  # noqa: ANN401
        attempt = durable.attempt()
        counts[attempt.run_id, attempt.step_key] += 1
        return call(self, args)

    monkeypatch.setattr(ActionStep, "call", counting_call)
    return counts


async def live_once(
    path: Path, clock: ManualClock, cases: tuple[Case, ...], begun: Begun, seed: int
) -> bool:
    """Let an engine live for a while; return whether it has nothing left to do.

    It is closed with steps and commits under way. What it runs is checked against what was settled
    when it came to life.
    """
    rng = dice(seed)
    engine = Engine(path, max_parallelism=0, drain_timeout=0)
    clock.install(engine)
    async with engine:
        if seed == 0:
            await start_all(engine, cases)
        before = Counter(begun)
        settled = [
            (case.id, step.key)
            for case in cases
            for step in (await recorded(engine, case))[1]
            if step.state.is_final
        ]
        engine.set_max_parallelism(rng.choice((1, 25)))
        is_over = rng.random() < 0.5 and await Pace(clock, engine).keep(rng.randrange(3))
        clock.advance(0.5)
        for _ in range(rng.randrange(100)):
            await asyncio.sleep(0)
    expect_equal([step for step in settled if begun[step] > before[step]], [], "steps run again")
    return is_over


@pytest.mark.slow
@pytest.mark.both_loops
@pytest.mark.parametrize("part", range(2))
# Python says so of a coroutine that a body has made, and not awaited yet, when it is dropped.
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
async def test_journals_of_many_lives_replay_exactly(path: Path, begun: Begun, part: int) -> None:
    """A bare body that is delivered what the journal says issues its steps and ends as it says."""
    cases = CORPUS[part::2]
    clock = ManualClock()
    lives_count = 0
    while not await live_once(path, clock, cases, begun, seed=lives_count):
        lives_count += 1
        assert lives_count < LIVES_MAX
    assert lives_count > 2
    async with Engine(path) as engine:
        for case in cases:
            run, steps = await recorded(engine, case)
            assert run.started_at_ms == START_MS
            bare = reenact(case.workflow(*case.args), run, steps)
            expect_equal(step_texts(final_steps(bare)), step_texts(steps), case.id)
            expect_equal(bare.outcome_texts(), outcome_texts(run), case.id)
            for step in steps:
                if step.kind is StepKind.ACTION:
                    assert begun[case.id, step.key] <= step.attempts + step.interruptions
                    assert begun[case.id, step.key] >= 1 or step.position is None
