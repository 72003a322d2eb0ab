"""A client that is killed in the middle of what it writes: all of that is there, or nothing."""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest
from bank import INSERT, adding, opened, texts
from crashes.child import crash_at, die_if
from killing import JOURNAL, KILLED, Process, say_opened
from nursery import fork
from test_events_races import events_of
from waiting import WAIT_S_MAX, until_open

import durable
from durable import Engine, RunNotFoundError, Step
from durable.journal.sqlite import SqliteJournal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from durable.journal.base import Change
    from durable.journal.connections import Writing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="kills by signal"),
]

INSIDE: Final = ("begun", "written", "started", "sent")
"""The places in a transaction, in order."""

OUTSIDE: Final = ("start", "send")
"""The calls that are made without one."""

BEFORE, AFTER = "before the commit", "after the commit"


@durable.workflow
async def waiting(step: Step) -> Any:  # noqa: ANN401
    return await step.wait_event("it")


# --- the client ----------------------------------------------------------------------------------


async def live(what: str, place: str) -> None:
    """Write as a client, until the kill."""
    async with Engine(JOURNAL, worker=False) as client:
        say_opened()
        if what == "transaction":
            await _write_within(client, place)
            return
        crash_at(0, after=place == AFTER)
        if what == "start":
            await client.start(adding("by the run"), id="new")
        else:
            await client.send_event("waiting", "it", "sent")


async def _write_within(client: Engine, place: str) -> None:
    commit_writing = SqliteJournal.commit_writing

    async def commit_or_die(
        journal: SqliteJournal, writing: Writing, changes: Sequence[Change]
    ) -> None:
        die_if(place == BEFORE)
        await commit_writing(journal, writing, changes)
        die_if(place == AFTER)

    SqliteJournal.commit_writing = commit_or_die  # type: ignore[assignment, method-assign]
    async with client.transaction() as tx:
        acts: list[Callable[[], Awaitable[object]]] = [
            lambda: tx.fetch_value("SELECT count(*) FROM entry"),
            lambda: tx.execute(INSERT, "by the client"),
            lambda: client.start(adding("by the run"), id="new", tx=tx),
            lambda: client.send_event("waiting", "it", "sent", tx=tx),
        ]
        for name, act in zip(INSIDE, acts, strict=True):
            await act()
            die_if(name == place)


def _kill(directory: Path, what: str, place: str) -> None:
    """Let a client write there, and be killed at that place."""
    with Process(f"{__name__}:live", what, place, directory=directory, begin=fork) as client:
        assert client.wait() == KILLED


# --- what it leaves ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "place"),
    [
        *(("transaction", place) for place in (*INSIDE, BEFORE, AFTER)),
        *((what, place) for what in OUTSIDE for place in (BEFORE, AFTER)),
    ],
)
async def test_what_a_killed_client_wrote_is_there_as_a_whole_or_not_at_all(
    path: Path, what: str, place: str
) -> None:
    """Whichever, the owner and other clients go on."""
    is_kept = place == AFTER
    is_sent = is_kept and what != "start"
    is_started = is_kept and what != "send"
    by_client = ["by the client"] if is_kept and what == "transaction" else []
    async with opened(path) as owner, asyncio.timeout(2 * WAIT_S_MAX):
        waits = await owner.start(waiting(), id="waiting")
        await until_open(waits)
        await asyncio.to_thread(partial(_kill, path.parent, what, place))
        async with Engine(path, worker=False) as client:
            run = await client.start(adding("by another"), id="another")
            await run.result()
        if is_started:
            await owner.get("new").result()
        else:
            with pytest.raises(RunNotFoundError):
                await owner.status("new")
        by_runs = {"by another", "by the run"} if is_started else {"by another"}
        assert (await texts(owner))[: len(by_client)] == by_client
        assert {*await texts(owner)} == {*by_client, *by_runs}
        if not is_sent:
            assert await events_of(owner, "waiting") == []
            await waits.send_event("it", "sent")
        assert await waits.result() == "sent"
        assert await events_of(owner, "waiting") == [('"sent"', 0)]
