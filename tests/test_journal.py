"""One contract, every store: what is written, and whose work it is."""

import asyncio
from pathlib import Path

import pytest
from journals import (
    NOW_MS,
    a_run,
    a_start,
    a_step,
    all_runs,
    claimed_ids,
    execute,
    opened,
    replace_owner,
    steps_of,
)

from durable import JournalUnavailableError, RunState, StepKind, StepState
from durable.core.records import RunRecord, StepRecord
from durable.journal.base import Change, OwnershipLostError, Parked


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, path: Path) -> Path | None:
    """Where the journal of a test is: in memory, or in a file."""
    return path if request.param == "file" else None


# --- writing -------------------------------------------------------------------------------------


async def test_every_column_is_read_back_as_it_was_written(store: Path | None) -> None:
    run = RunRecord(
        run_id="r \N{SNOWMAN}",
        name='a\n"b',
        version=3,
        state=RunState.FAILED,
        generation=2,
        parent_id="p",
        args='{"a":"\\u0000"}',
        result="1",
        error='{"type_name":"t","message":"m"}',
        context='"c"',
        created_at_ms=4,
        started_at_ms=5,
        finished_at_ms=2**53,
    )
    step = StepRecord(
        number=0,
        key="0.1:2",
        kind=StepKind.SLEEP,
        name="'; DROP TABLE durable_run; --",
        args='{"x":"\N{SNOWMAN}"}',
        state=StepState.COMPLETED,
        attempts=2,
        interruptions=3,
        position=4,
        due_at_ms=5,
        started_at_ms=6,
        finished_at_ms=7,
        result='["\\n"]',
        error="null",
        child_run_id="c",
        event_id="e",
    )
    least = a_step(1)
    async with opened(store) as journal:
        change = Change(run_id=run.run_id, run=run, is_start=True, issued=[step, least])
        assert await journal.commit([change]) == {}
        assert await journal.load_run(run.run_id) == run
        assert await steps_of(journal, run.run_id) == [step, least]


async def test_a_start_whose_id_is_taken_writes_nothing(store: Path | None) -> None:
    async with opened(store) as journal:
        await journal.commit([a_start("r", name="first")])
        taken = await journal.commit([a_start("r", a_step(0), name="second"), a_start("other")])
        assert taken == {"r": a_run("r", name="first")}
        assert await all_runs(journal) == [a_run("r", name="first"), a_run("other")]
        assert await steps_of(journal, "r") == []


async def test_what_a_batch_issues_and_updates_is_written_once(store: Path | None) -> None:
    """A fast step is begun, settled and delivered before its first commit: one row is enough."""
    running = a_step(0, state=StepState.RUNNING, attempts=1)
    done = a_step(0, state=StepState.COMPLETED, attempts=1, result="5")
    ended = a_run("r", state=RunState.COMPLETED, result="5", finished_at_ms=9)
    async with opened(store) as journal:
        await journal.commit(
            [
                a_start("r", a_step(0), state=RunState.PENDING),
                Change(run_id="r", run=a_run("r"), updated=[running]),
                Change(run_id="r", updated=[done], issued=[a_step(1)]),
                Change(run_id="r", run=ended, parked=Parked(None)),
            ]
        )
        assert await journal.load_run("r") == ended
        assert await steps_of(journal, "r") == [done, a_step(1)]
        await journal.reopen()
        assert await claimed_ids(journal) == []


async def test_the_latest_of_many_updates_is_what_stays(store: Path | None) -> None:
    async with opened(store) as journal:
        await journal.commit([a_start("r", a_step(0))])
        tries = [a_step(0, state=StepState.RUNNING, attempts=count) for count in (1, 2, 3)]
        await journal.commit([Change(run_id="r", updated=[step]) for step in tries])
        assert await steps_of(journal, "r") == [tries[-1]]


async def test_a_batch_that_fails_writes_nothing(store: Path | None) -> None:
    async with opened(store) as journal:
        await journal.commit([a_start("r", a_step(0))])
        broken = Change(run_id="r", issued=[a_step(0)])
        with pytest.raises(JournalUnavailableError, match="may have been written or not"):
            await journal.commit([a_start("other"), broken])
        await journal.reopen()
        assert await all_runs(journal) == [a_run("r")]
        await journal.commit([a_start("other")])
        assert len(await all_runs(journal)) == 2


@pytest.mark.parametrize("count", [0, 1, 2, 1_000])
async def test_batches_of_every_size_are_written_whole(store: Path | None, count: int) -> None:
    ids = [f"r{number:04}" for number in range(count)]
    async with opened(store) as journal:
        await journal.commit([a_start(run_id, a_step(0)) for run_id in ids])
        done = a_step(0, state=StepState.COMPLETED, result="1")
        failed = [a_run(run_id, state=RunState.FAILED, error=run_id) for run_id in ids]
        await journal.commit(
            [
                Change(run_id=run.run_id, run=run, updated=[done], issued=[a_step(1)])
                for run in failed
            ]
        )
        assert await all_runs(journal) == failed
        for run_id in {*ids[:1], *ids[-1:]}:
            assert await steps_of(journal, run_id) == [done, a_step(1)]
        counted = await execute(journal, "SELECT state, count(*) FROM durable_step GROUP BY state")
        assert dict(counted) == ({"completed": count, "pending": count} if count else {})
        await journal.commit([Change(run_id=run_id, parked=Parked(7)) for run_id in ids])
        assert sorted(await claimed_ids(journal, 7, limit=1000)) == ids


# --- final is final ------------------------------------------------------------------------------


@pytest.mark.parametrize("final", [StepState.COMPLETED, StepState.FAILED, StepState.CANCELED])
@pytest.mark.parametrize("late", list(StepState))
async def test_an_outcome_of_a_step_is_written_once(
    store: Path | None, final: StepState, late: StepState
) -> None:
    outcome = a_step(0, state=final, result="1", position=0, finished_at_ms=5)
    async with opened(store) as journal:
        await journal.commit([a_start("r", a_step(0))])
        await journal.commit([Change(run_id="r", updated=[outcome])])
        late_step = a_step(0, state=late, result="2", position=1, finished_at_ms=6)
        await journal.commit([Change(run_id="r", updated=[late_step])])
        assert await steps_of(journal, "r") == [outcome]


@pytest.mark.parametrize("final", [StepState.COMPLETED, StepState.FAILED])
async def test_a_recorded_outcome_gets_its_position_once(
    store: Path | None, final: StepState
) -> None:
    outcome = a_step(0, state=final, result="1")
    async with opened(store) as journal:
        await journal.commit([a_start("r", outcome)])
        for position in (3, 4):
            delivered = a_step(0, state=final, result="1", position=position)
            await journal.commit([Change(run_id="r", updated=[delivered])])
        assert await steps_of(journal, "r") == [a_step(0, state=final, result="1", position=3)]


@pytest.mark.parametrize("final", [RunState.COMPLETED, RunState.FAILED, RunState.CANCELED])
@pytest.mark.parametrize("late", list(RunState))
async def test_the_end_of_a_run_is_written_once(
    store: Path | None, final: RunState, late: RunState
) -> None:
    ended = a_run("r", state=final, result="1", finished_at_ms=5)
    async with opened(store) as journal:
        await journal.commit([a_start("r")])
        await journal.commit([Change(run_id="r", run=ended)])
        late_run = a_run("r", state=late, result="2", finished_at_ms=6)
        await journal.commit([Change(run_id="r", run=late_run)])
        assert await journal.load_run("r") == ended


# --- whose work it is ----------------------------------------------------------------------------


async def test_a_run_is_claimed_when_it_is_due_and_once(store: Path | None) -> None:
    async with opened(store) as journal:
        await journal.commit(
            [
                a_start("mine", a_step(0)),
                a_start("waits", parked=Parked(None)),
                a_start("sleeps", a_step(1), a_step(0), parked=Parked(100)),
                a_start("later", parked=Parked(200)),
            ]
        )
        claim = await journal.claim(99, 10)
        assert (claim.runs, claim.next_wake_at_ms, claim.errors) == ([], 100, [])
        claim = await journal.claim(100, 10)
        assert claim.runs == [(a_run("sleeps"), [a_step(0), a_step(1)])]
        assert claim.next_wake_at_ms == 200
        assert await claimed_ids(journal, 100) == []
        claim = await journal.claim(10_000, 10)
        assert [run.run_id for run, _ in claim.runs] == ["later"]
        assert claim.next_wake_at_ms is None


async def test_claims_are_bounded_and_the_longest_due_comes_first(store: Path | None) -> None:
    async with opened(store) as journal:
        wakes = {"c": 30, "a": 10, "d": 30, "b": 20}
        starts = [a_start(run_id, parked=Parked(wake)) for run_id, wake in wakes.items()]
        await journal.commit(starts)
        claim = await journal.claim(100, 3)
        assert sorted(run.run_id for run, _ in claim.runs) == ["a", "b", "c"]
        assert claim.next_wake_at_ms == 30
        assert await claimed_ids(journal, 100, 3) == ["d"]


async def test_a_run_can_be_parked_and_claimed_again(store: Path | None) -> None:
    async with opened(store) as journal:
        await journal.commit([a_start("r")])
        for wake_at_ms in (5, 3):
            await journal.commit([Change(run_id="r", parked=Parked(wake_at_ms))])
            assert await claimed_ids(journal, wake_at_ms - 1) == []
            assert await claimed_ids(journal, wake_at_ms) == ["r"]


async def test_a_new_owner_gets_what_the_last_one_worked_on(store: Path | None) -> None:
    async with opened(store) as journal:
        await journal.commit(
            [
                a_start("worked on", a_step(0)),
                a_start("waits", parked=Parked(None)),
                a_start("sleeps", parked=Parked(NOW_MS + 1)),
                a_start("stuck", state=RunState.STUCK, parked=Parked(None)),
                a_start("over", state=RunState.FAILED, finished_at_ms=1, parked=Parked(None)),
            ]
        )
        assert await claimed_ids(journal) == []
        await journal.reopen()
        claim = await journal.claim(0, 10)
        assert sorted(run.run_id for run, _ in claim.runs) == ["stuck", "worked on"]
        assert claim.next_wake_at_ms == NOW_MS + 1


async def test_a_replaced_owner_writes_nothing_and_claims_nothing(store: Path | None) -> None:
    async with opened(store) as journal:
        await journal.commit([a_start("r"), a_start("due", parked=Parked(0))])
        await replace_owner(journal)
        ended = a_run("r", state=RunState.COMPLETED, finished_at_ms=1)
        with pytest.raises(OwnershipLostError, match="another owner"):
            await journal.commit([Change(run_id="r", run=ended), a_start("new")])
        with pytest.raises(OwnershipLostError):
            await journal.claim(NOW_MS, 10)
        assert await all_runs(journal) == [a_run("r"), a_run("due")]
        with pytest.raises(OwnershipLostError, match="another owner"):
            await journal.reopen()


async def test_a_cancelled_commit_is_whole_all_the_same(store: Path | None) -> None:
    async with opened(store) as journal:
        starts = [a_start(f"r{number}", a_step(0)) for number in range(200)]
        commit = asyncio.ensure_future(journal.commit(starts))
        await asyncio.sleep(0)
        commit.cancel()
        with pytest.raises(asyncio.CancelledError):
            await commit
        await journal.commit([a_start("after")])
        assert len(await all_runs(journal)) in (1, 201)
        assert await journal.load_run("after") is not None
