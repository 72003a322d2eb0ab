"""Runs and their children: what must hold of them, and who is in the journal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from waiting import until

from durable import Engine, RunState, StepKind, StepState

if TYPE_CHECKING:
    from durable import RunStatus, StepInfo

WORKFLOW = StepKind.WORKFLOW


async def children_of(engine: Engine, run_id: str) -> list[RunStatus]:
    return [status async for status in engine.iter_runs(parent=run_id)]


async def steps_of(engine: Engine, run_id: str) -> list[StepInfo]:
    return [step async for step in engine.iter_steps(run_id)]


async def the_child(engine: Engine, run_id: str) -> RunStatus:
    (child,) = await children_of(engine, run_id)
    return child


async def check_families(engine: Engine) -> None:
    """Check that each child belongs to one step, that each has the other's outcome, and that all
    are over and none is in memory."""
    runs = {status.id: status async for status in engine.iter_runs()}
    claimed: list[str] = []
    for run in runs.values():
        assert run.state in (RunState.COMPLETED, RunState.FAILED, RunState.CANCELED), run
        for step in await steps_of(engine, run.id):
            if step.kind is WORKFLOW:
                assert step.child_run_id is not None
                claimed.append(step.child_run_id)
                _check_step(step, runs[step.child_run_id], run)
            else:
                assert step.child_run_id is None
    assert len(claimed) == len(set(claimed))
    assert sorted(claimed) == sorted(run.id for run in runs.values() if run.parent_id is not None)
    await check_nothing_is_left(engine)


def _check_step(step: StepInfo, child: RunStatus, parent: RunStatus) -> None:
    assert child.parent_id == parent.id
    assert step.finished_at is not None
    assert child.args == step.args
    if step.state is StepState.COMPLETED:
        assert child.state is RunState.COMPLETED
        assert step.result == child.result
    elif step.state is StepState.FAILED:
        assert step.error is not None
        if child.state is RunState.CANCELED:
            assert step.error.type_name == "durable.RunCanceled"
        else:
            assert child.state is RunState.FAILED
            assert step.error.type_name == "durable.RunFailed"
            assert child.error is not None
            assert child.error.message in step.error.message
    else:
        assert step.state is StepState.CANCELED


async def check_nothing_is_left(engine: Engine) -> None:
    """Check that nobody works on anything, waits for anybody, or is kept in memory."""
    runner: Any = engine._runner
    await until(lambda: runner.pool.is_settled and runner.live_runs_count == 0)
    await until(lambda: runner.pool.running_count == 0)
    assert runner.children._here == runner.children._promised == {}
    control = runner.control
    assert not control._acks
    assert control._told._by_run == control._gone._by_run == {}
    assert control._submitted == {}
    assert control._removing == set()
    assert runner.ends._waiters._by_run == {}


async def journal_rows(engine: Engine, sql: str) -> list[Any]:
    """Read the tables of an engine's journal behind its back."""
    journal: Any = engine._journal
    journal = getattr(journal, "inner", journal)
    rows: list[Any] = await journal._call(
        journal._writer, lambda db: db.execute(f"SELECT json_array({sql}").fetchall()
    )
    return [json.loads(row) for (row,) in rows]
