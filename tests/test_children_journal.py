"""What the journal does for children: whom it wakes, what it reads for them, what it removes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from families import the_child
from faults import crashing
from journals import (
    NOW_MS,
    a_run,
    a_start,
    a_step,
    all_runs,
    claimed_ids,
    execute,
    execute_outside,
    opened,
    steps_of,
)
from msgspec.structs import replace
from waiting import WAIT_S_MAX, until, until_state

import durable
from durable import Engine, JournalCorruptError, RunState, Step, StepKind, StepState
from durable.core.records import RunRecord, cancel_record
from durable.journal.base import Change, ChildChanges, Parked

if TYPE_CHECKING:
    from pathlib import Path

    from durable.core.records import StepRecord
    from durable.journal.sqlite import SqliteJournal

PARKED = Parked(None)
LATER = Parked(NOW_MS * 10)


def a_child_step(number: int, child_id: str, **fields: Any) -> StepRecord:  # noqa: ANN401  of any column
    return a_step(
        number,
        **({"kind": StepKind.WORKFLOW, "child_run_id": child_id, "state": "running"} | fields),
    )


def a_child(run_id: str, parent_id: str = "p", **fields: Any) -> RunRecord:  # noqa: ANN401  of any column
    return a_run(run_id, parent_id=parent_id, **fields)


def an_end(run_id: str, **fields: Any) -> Change:  # noqa: ANN401  of any column
    record = a_child(run_id, **({"state": RunState.COMPLETED} | fields))
    return Change(run_id=run_id, run=record, parked=PARKED)


async def start_family(
    journal: SqliteJournal,
    parked: Parked | None = PARKED,
    **fields: Any,  # noqa: ANN401  of any column
) -> None:
    """Write a run ``p`` that waits for its child ``c``, which this owner works on."""
    change = a_start("p", a_child_step(0, "c"), parked=parked, **fields)
    change.children = ChildChanges(
        started=[(a_child("c", state=RunState.PENDING, started_at_ms=None), None)]
    )
    await journal.commit([change])


async def due(journal: SqliteJournal) -> list[str]:
    return await claimed_ids(journal)


async def test_a_child_is_there_with_its_parents_step_or_not_at_all(path: Path) -> None:
    async with opened(path) as journal:
        await start_family(journal)
        assert [run.run_id for run in await all_runs(journal)] == ["p", "c"]
        change = a_start("p", a_child_step(0, "d"))
        change.children = ChildChanges(started=[(a_child("d"), None)])
        assert (await journal.commit([change])).keys() == {"p"}, "the id is taken"
        assert [run.run_id for run in await all_runs(journal)] == ["p", "c"]
        assert len(await steps_of(journal, "p") or ()) == 1


async def test_a_child_that_this_owner_works_on_is_not_due_and_another_is(path: Path) -> None:
    async with opened(path) as journal:
        change = a_start("p", a_child_step(0, "c"), a_child_step(1, "d"), parked=PARKED)
        change.children = ChildChanges(
            started=[(a_child("c"), None), (a_child("d"), Parked(NOW_MS))]
        )
        await journal.commit([change])
        assert await due(journal) == ["d"]


@pytest.mark.parametrize(
    ("parked", "state", "is_woken"),
    [
        (PARKED, RunState.RUNNING, True),
        (LATER, RunState.RUNNING, True),
        (None, RunState.RUNNING, False),
        (PARKED, RunState.STUCK, False),
        (PARKED, RunState.CANCELED, False),
        (PARKED, RunState.CANCELING, True),
    ],
)
async def test_the_end_of_a_child_wakes_a_parent_that_waits_and_is_not_worked_on(
    path: Path, parked: Parked | None, state: RunState, is_woken: bool
) -> None:
    async with opened(path) as journal:
        await start_family(journal, parked, state=state)
        await journal.commit([an_end("c")])
        assert await due(journal) == (["p"] if is_woken else [])


@pytest.mark.parametrize("state", [StepState.CANCELED, StepState.FAILED])
async def test_a_parent_that_does_not_wait_any_more_is_not_woken(
    path: Path, state: StepState
) -> None:
    async with opened(path) as journal:
        await start_family(journal)
        step = a_child_step(0, "c", state=state, finished_at_ms=3)
        await journal.commit([Change(run_id="p", updated=[step]), an_end("c")])
        assert await due(journal) == []


async def test_a_parent_that_leaves_in_the_same_commit_is_woken(path: Path) -> None:
    async with opened(path) as journal:
        await start_family(journal, None)
        await journal.commit([an_end("c"), Change(run_id="p", parked=LATER)])
        assert await due(journal) == ["p"]


async def test_an_end_that_is_said_again_wakes_a_parent_that_left_since(path: Path) -> None:
    async with opened(path) as journal:
        await start_family(journal, None)
        await journal.commit([an_end("c")])
        await journal.commit([Change(run_id="p", parked=LATER)])
        assert await due(journal) == []
        await journal.commit([an_end("c", result='"other"')])
        assert await due(journal) == ["p"]
        child = await journal.load_run("c")
        assert child is not None
        assert child.result is None, "an outcome is written once"


async def test_a_claim_brings_the_ends_of_the_children_that_are_waited_for(path: Path) -> None:
    async with opened(path) as journal:
        done = {"state": StepState.COMPLETED, "finished_at_ms": 2}
        await journal.commit(
            [
                a_start(
                    "p",
                    a_child_step(0, "over"),
                    a_child_step(1, "heard", **done),
                    a_child_step(2, "open"),
                    a_child_step(3, "unborn", state=StepState.PENDING),
                    parked=Parked(0),
                ),
                a_start("q", a_child_step(0, "also"), parked=Parked(0)),
            ]
        )
        records = [a_child(each, state=RunState.COMPLETED) for each in ("over", "heard")]
        records += [a_child("open"), a_child("also", "q", state=RunState.FAILED)]
        starts: list[tuple[RunRecord, Parked | None]] = [(record, PARKED) for record in records]
        await journal.commit([Change(run_id="p", children=ChildChanges(started=starts))])
        claim = await journal.claim(NOW_MS, 100)
        assert {
            parent: [child.run_id for child in ended] for parent, ended in claim.ended.items()
        } == {
            "p": ["over"],
            "q": ["also"],
        }
        assert claim.errors == []


async def test_a_parent_whose_child_is_gone_or_damaged_is_an_error_that_names_it(
    path: Path,
) -> None:
    async with opened(path) as journal:
        for parent_id in "pqr":
            step = a_child_step(0, f"child of {parent_id}")
            change = a_start(parent_id, step, parked=Parked(0))
            child = a_child(f"child of {parent_id}", parent_id, state=RunState.COMPLETED)
            change.children = ChildChanges(started=[(child, PARKED)])
            await journal.commit([change])
        await execute(journal, "DELETE FROM durable_run WHERE run_id = 'child of p'")
        await execute(journal, "UPDATE durable_run SET state = 'odd' WHERE run_id = 'child of q'")
        claim = await journal.claim(NOW_MS, 100)
        assert [run.run_id for run, _ in claim.runs] == ["r"]
        errors = {run.run_id: error for run, error in claim.errors if run is not None}
        assert errors.keys() == {"p", "q"}
        assert all(isinstance(error, JournalCorruptError) for error in errors.values())
        assert "'child of p'" in str(errors["p"])
        assert "child of q" in str(errors["q"])


@pytest.mark.parametrize("parked", [None, PARKED, LATER])
async def test_a_child_that_is_asked_to_end_is_due_unless_it_is_worked_on(
    path: Path, parked: Parked | None
) -> None:
    asked = cancel_record(5, interrupt=True)
    async with opened(path) as journal:
        await journal.commit([a_start("c", parked=parked, parent_id="p")])
        change = Change(run_id="p", children=ChildChanges(canceled=[("c", asked)]))
        await journal.commit([change])
        await journal.commit([change])
        assert await due(journal) == ([] if parked is None else ["c"])
        (row,) = await execute(journal, "SELECT number, position, args FROM durable_step")
        assert row == (-1, None, '{"interrupt":true}')


async def test_what_a_run_wrote_of_its_cancel_itself_stands(path: Path) -> None:
    """Its body was told already, at that position."""
    told = cancel_record(5, interrupt=False)
    told = replace(told, position=3)
    asked = Change(
        run_id="p", children=ChildChanges(canceled=[("c", cancel_record(6, interrupt=True))])
    )
    async with opened(path) as journal:
        await journal.commit([a_start("c", parent_id="p")])
        await journal.commit([asked, Change(run_id="c", asked=told), asked])
        assert await execute(journal, "SELECT position, args FROM durable_step") == [(3, "{}")]


async def test_what_is_over_is_not_asked_to_end(path: Path) -> None:
    async with opened(path) as journal:
        await journal.commit([a_start("c", parked=PARKED, state=RunState.COMPLETED)])
        asked = [("c", cancel_record(5, interrupt=False)), ("x", cancel_record(5, interrupt=False))]
        await journal.commit([Change(run_id="p", children=ChildChanges(canceled=asked))])
        assert await execute(journal, "SELECT * FROM durable_step") == []
        assert await due(journal) == []


async def test_a_run_that_has_not_begun_is_claimed_with_what_asks_it_to_end(path: Path) -> None:
    async with opened(path) as journal:
        await journal.commit(
            [a_start("c", parked=LATER, state=RunState.PENDING, started_at_ms=None)]
        )
        asked = cancel_record(5, interrupt=False)
        await journal.commit([Change(run_id="p", children=ChildChanges(canceled=[("c", asked)]))])
        claim = await journal.claim(NOW_MS, 100)
        assert [steps for _, steps in claim.runs] == [[asked]]


async def test_a_tree_is_read_with_all_that_is_under_a_run(path: Path) -> None:
    async with opened(path) as journal:
        over = RunState.COMPLETED
        for run_id, parent_id, state in [
            ("a", None, over),
            ("b", "a", over),
            ("c", "b", RunState.RUNNING),
            ("d", "a", over),
            ("e", "x", over),
        ]:
            await journal.commit([a_start(run_id, parent_id=parent_id, state=state)])
        tree = await journal.load_tree("a")
        assert tree is not None
        assert (tree.run.run_id, tree.is_awaited) == ("a", False)
        assert tree.descendants == {"b": True, "c": False, "d": True}
        below = await journal.load_tree("c")
        assert below is not None
        assert (below.is_awaited, below.descendants) == (False, {})
        assert (await journal.load_tree("x")) is None
        await execute(journal, "UPDATE durable_run SET finished_at_ms = NULL WHERE run_id = 'b'")
        awaited = await journal.load_tree("c")
        assert awaited is not None
        assert awaited.is_awaited is True


async def test_a_removal_takes_what_begins_in_the_same_commit(path: Path) -> None:
    async with opened(path) as journal:
        await start_family(journal)
        grown = Change(
            run_id="c",
            issued=[a_child_step(0, "d")],
            children=ChildChanges(started=[(a_child("d", "c"), PARKED)]),
        )
        await journal.commit([grown, a_start("other"), Change(run_id="p", is_removal=True)])
        assert [run.run_id for run in await all_runs(journal)] == ["other"]
        assert await execute(journal, "SELECT * FROM durable_step") == []


# --- with an engine ------------------------------------------------------------------------------


@durable.action
async def hang() -> None:
    await asyncio.Event().wait()


@durable.workflow
async def child(_step: Step) -> None:
    await hang()


@durable.workflow
async def parent(_step: Step) -> None:
    await child()


async def test_a_parent_whose_child_is_missing_is_stuck_and_says_so(path: Path) -> None:
    async with crashing(path) as engine:
        await engine.start(parent(), id="it")
        await until(lambda: engine.statistics().running_actions)
        missing = await the_child(engine, "it")
    await asyncio.to_thread(
        execute_outside,
        path,
        f"DELETE FROM durable_run WHERE run_id = '{missing.id}'",  # noqa: S608
    )
    async with Engine(path) as engine:
        status = await until_state(engine.get("it"), RunState.STUCK)
        assert status.error is not None
        assert missing.id in status.error.message
        assert "Restore" in status.error.message
        assert await engine.cancel("it") is True
        with pytest.raises(durable.RunCanceled):
            await engine.get("it").result(timeout=WAIT_S_MAX)


@pytest.mark.parametrize("error", ["{}", "not JSON", '{"type_name":"durable.RunFailed"}'])
async def test_a_damaged_outcome_of_a_child_makes_its_parent_stuck(path: Path, error: str) -> None:
    """It is neither made up nor thrown into the body."""
    async with crashing(path) as engine:
        await engine.start(parent(), id="it")
        await until(lambda: engine.statistics().running_actions)
        damaged = await the_child(engine, "it")
    await asyncio.to_thread(
        execute_outside,
        path,
        f"UPDATE durable_run SET state = 'failed', finished_at_ms = 1, wake_at_ms = NULL, "  # noqa: S608
        f"epoch = NULL, error = '{error}' WHERE run_id = '{damaged.id}'",
    )
    async with Engine(path) as engine:
        status = await until_state(engine.get("it"), RunState.STUCK)
        assert status.error is not None
        assert status.error.type_name == "durable.JournalCorruptError"
        assert "damaged" in status.error.message
