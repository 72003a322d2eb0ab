"""What the journal keeps of events, and which runs they make due, in one transaction each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from journals import a_run, a_start, a_step, claimed_ids, execute, opened, steps_of

from durable import RunState, StepKind, StepState
from durable.core.records import EventRecord
from durable.journal.base import Change, Parked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from durable.journal.sqlite import SqliteJournal

LATER_MS = 9_000_000


@pytest.fixture(params=["file", "memory"])
async def journal(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SqliteJournal]:
    async with opened(tmp_path / "journal.db" if request.param == "file" else None) as journal:
        yield journal


def an_event(event_id: str, run_id: str = "r", **fields: Any) -> EventRecord:  # noqa: ANN401
    defaults: dict[str, Any] = {"name": "it", "sent_at_ms": 5, "value": f'"{event_id}"'}
    return EventRecord(event_id=event_id, run_id=run_id, **(defaults | fields))


def a_wait(number: int = 0, **fields: Any) -> Any:  # noqa: ANN401
    defaults: dict[str, Any] = {"kind": StepKind.EVENT, "name": "it", "state": StepState.RUNNING}
    return a_step(number, **(defaults | fields))


async def send(journal: SqliteJournal, *events: EventRecord) -> None:
    await journal.commit([Change(run_id=event.run_id, events=(event,)) for event in events])


async def kept(journal: SqliteJournal) -> list[tuple[str, int | None]]:
    sql = "SELECT event_id, step_number FROM durable_event ORDER BY seq"
    return [(event_id, number) for event_id, number in await execute(journal, sql)]


async def wake_at_ms(journal: SqliteJournal, run_id: str = "r") -> int | None:
    ((wake,),) = await execute(
        journal, "SELECT wake_at_ms FROM durable_run WHERE run_id = ?", run_id
    )
    return wake  # type: ignore[no-any-return]


async def test_events_are_claimed_with_their_run_in_the_order_of_sending(
    journal: SqliteJournal,
) -> None:
    await journal.commit([a_start("r", a_wait(), parked=Parked(0)), a_start("other")])
    await send(journal, an_event("c"), an_event("a"), an_event("x", "other"), an_event("b"))
    await send(journal, an_event("created", sent_at_ms=None, value=None))
    claim = await journal.claim(10, 10)
    assert {run_id: [e.event_id for e in events] for run_id, events in claim.events.items()} == {
        "r": ["c", "a", "b"]
    }
    assert claim.events["r"][0].value == '"c"'


async def test_an_event_of_no_run_or_of_one_that_is_over_is_not_kept(
    journal: SqliteJournal,
) -> None:
    await journal.commit([a_start("over", state=RunState.COMPLETED, parked=Parked(None))])
    await send(journal, an_event("a", "over"), an_event("b", "none"))
    assert await kept(journal) == []


async def test_a_send_in_the_commit_that_ends_its_run_is_kept(journal: SqliteJournal) -> None:
    """The owner takes for granted that what it sends to a run that goes on is kept."""
    await journal.commit([a_start("r")])
    end = Change(run_id="r", run=a_run("r", state=RunState.COMPLETED), parked=Parked(None))
    await journal.commit([end, Change(run_id="r", events=(an_event("a"),))])
    assert await kept(journal) == [("a", None)]
    assert await wake_at_ms(journal) is None


async def test_a_created_event_is_sent_once_and_then_has_its_place(journal: SqliteJournal) -> None:
    await journal.commit([a_start("r")])
    await send(journal, an_event("a", sent_at_ms=None, value=None), an_event("b"))
    await send(journal, an_event("a", value="1"))
    assert [event_id for event_id, _ in await kept(journal)] == ["b", "a"]
    await send(journal, an_event("a", value="2"))
    found = await journal.load_event("a")
    assert found is not None
    assert (found.value, found.run_id, found.name, found.sent_at_ms) == ("1", "r", "it", 5)
    assert await journal.load_event("none") is None


@pytest.mark.parametrize("order", ["send, park", "park, send", "together", "together, park last"])
async def test_whoever_is_first_a_run_that_waits_is_due(journal: SqliteJournal, order: str) -> None:
    await journal.commit([a_start("r", a_wait())])
    sending = Change(run_id="r", events=(an_event("a"),))
    parking = Change(run_id="r", parked=Parked(None))
    match order:
        case "send, park":
            await journal.commit([sending])
            assert await wake_at_ms(journal) is None  # Its owner is told.
            await journal.commit([parking])
        case "park, send":
            await journal.commit([parking])
            await journal.commit([sending])
        case "together":
            await journal.commit([parking, sending])
        case _:
            await journal.commit([sending, parking])
    assert await wake_at_ms(journal) == 0
    assert await claimed_ids(journal) == ["r"]


@pytest.mark.parametrize(
    ("wait", "is_due"),
    [
        (a_wait(), True),
        (a_wait(name="other"), False),
        (a_wait(state=StepState.COMPLETED), False),
        (a_wait(state=StepState.CANCELED), False),
        (a_wait(kind=StepKind.ACTION), False),
        (a_wait(name="event", event_id="a"), True),
        (a_wait(event_id="b"), False),
        (a_wait(due_at_ms=LATER_MS), True),
    ],
)
async def test_only_an_event_that_is_waited_for_makes_a_run_due(
    journal: SqliteJournal,
    wait: Any,  # noqa: ANN401
    is_due: bool,
) -> None:
    await journal.commit([a_start("r", wait)])
    await journal.commit([Change(run_id="r", parked=Parked(wait.due_at_ms))])
    await send(journal, an_event("a"))
    assert await wake_at_ms(journal) == (0 if is_due else wait.due_at_ms)


async def test_a_created_event_makes_nothing_due(journal: SqliteJournal) -> None:
    await journal.commit([a_start("r", a_wait())])
    await journal.commit([Change(run_id="r", parked=Parked(None))])
    await send(journal, an_event("a", sent_at_ms=None, value=None))
    assert await wake_at_ms(journal) is None


@pytest.mark.parametrize("state", [RunState.PENDING, RunState.STUCK])
async def test_a_run_that_is_delayed_or_stuck_is_not_woken(
    journal: SqliteJournal, state: RunState
) -> None:
    wake = LATER_MS if state is RunState.PENDING else None
    await journal.commit([a_start("r", a_wait(), state=state, parked=Parked(wake))])
    await send(journal, an_event("a"))
    assert await kept(journal) == [("a", None)]
    assert await wake_at_ms(journal) == wake


async def test_an_event_is_consumed_once_with_the_outcome_of_its_wait(
    journal: SqliteJournal,
) -> None:
    await journal.commit([a_start("r", a_wait(0), a_wait(1))])
    await send(journal, an_event("a"), an_event("b"))
    done = a_wait(0, state=StepState.COMPLETED, position=0, finished_at_ms=6, result='"a"')
    await journal.commit([Change(run_id="r", updated=[done], consumed=(("a", 0),))])
    assert await kept(journal) == [("a", 0), ("b", None)]
    steps = await steps_of(journal, "r")
    assert steps is not None
    assert [step.event_id for step in steps] == ["a", None]
    await journal.commit([Change(run_id="r", consumed=(("a", 1),))])
    assert (await kept(journal))[0] == ("a", 0)
    await journal.commit([Change(run_id="r", parked=Parked(0))])
    claim = await journal.claim(10, 10)
    assert [event.event_id for event in claim.events["r"]] == ["b"]


async def test_a_removed_run_s_events_are_removed(journal: SqliteJournal) -> None:
    await journal.commit([a_start("r"), a_start("other")])
    await send(journal, an_event("a"), an_event("b", "other"))
    removal = Change(run_id="r", is_removal=True)
    await journal.commit([Change(run_id="r", events=(an_event("c"),)), removal])
    assert await kept(journal) == [("b", None)]


async def test_a_start_whose_id_is_taken_does_not_keep_others_from_sending(
    journal: SqliteJournal,
) -> None:
    await journal.commit([a_start("r")])
    taken = await journal.commit([a_start("r"), Change(run_id="r2", events=())])
    assert list(taken) == ["r"]
    await journal.commit([a_start("other"), Change(run_id="r", events=(an_event("a"),))])
    assert await kept(journal) == [("a", None)]
