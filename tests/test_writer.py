"""What the writer puts into one commit, and in which order."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest
from waiting import WAIT_S_MAX

from durable.journal.base import Change
from durable.runtime.writer import BATCH_WHOLE_MAX, Writer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from durable.core.records import RunRecord
    from durable.runtime.writer import Effects


class SlowJournal:
    """Commits one after another, each as soon as the test says so."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.begun = asyncio.Event()
        self.may_end = asyncio.Event()

    async def commit(self, changes: Sequence[Change]) -> dict[str, RunRecord]:
        self.batches.append([change.run_id for change in changes])
        self.begun.set()
        await self.may_end.wait()
        self.may_end.clear()
        return {}


class Acks:
    """Who submits, and is told in the end."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def on_committed(self, change: Change, _after: Effects, _by: RunRecord | None, /) -> None:
        self.told.append(change.run_id)


class Host:
    """What the writer tells whoever watches, which here is nobody."""

    class watching:  # noqa: N801
        @staticmethod
        def on_committed(_batch: object) -> None: ...


async def sizes(bursts: list[int]) -> list[int]:
    """Submit each burst while the commit before it is under way; return the batches' sizes."""
    journal, acks = SlowJournal(), Acks()
    writer = Writer(cast("Any", journal), cast("Any", Host))
    serving = asyncio.create_task(writer.serve())
    names: list[str] = []
    async with asyncio.timeout(WAIT_S_MAX):
        for count in bursts:
            for _ in range(count):
                names.append(f"r{len(names)}")
                writer.submit(Change(run_id=names[-1]), acks, [])
            await journal.begun.wait()
            journal.begun.clear()
            if len(journal.batches) < len(bursts):
                journal.may_end.set()
        while len(acks.told) < len(names):
            journal.may_end.set()
            await asyncio.sleep(0)
        writer.stop()
        await serving
    assert acks.told == names, "in the order of submission, and nothing lost"
    assert [name for batch in journal.batches for name in batch] == names
    return [len(batch) for batch in journal.batches]


async def test_what_waits_for_the_first_commit_is_one_batch() -> None:
    assert await sizes([1_000]) == [1_000]


async def test_few_changes_are_one_batch() -> None:
    assert (await sizes([1, BATCH_WHOLE_MAX]))[:2] == [1, BATCH_WHOLE_MAX]


@pytest.mark.parametrize(("first", "second"), [(20, 180), (1, 1_000), (100, 101)])
async def test_a_backlog_behind_a_smaller_batch_is_split_so_that_two_take_turns(
    first: int, second: int
) -> None:
    batches = await sizes([first, second])
    assert batches[0] == first
    assert batches[1] == (first + second + 1) // 2
    assert sum(batches) == first + second
