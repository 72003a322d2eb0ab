"""The versions that a run was begun with are recorded, and named when it does not replay."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from clock import ManualClock
from corpus.actions import echo
from waiting import WAIT_S_MAX, until_open, until_state, until_step

import durable
from durable import Engine, RunState, Step, StepState
from durable.core import versions
from durable.core.versions import VERSION, Versions, VersionTable, present_versions

if TYPE_CHECKING:
    from collections.abc import Iterator

PYTHON = ".".join(map(str, sys.version_info[:3]))
OLD = "0.0.9"
MISMATCH = (
    f"The run was begun with Python {PYTHON}, durable {OLD}; "
    f"now it is Python {PYTHON}, durable {VERSION}."
)

texts: list[str] = []


@durable.workflow
async def sleeping(step: Step) -> str:
    text = await echo(texts[-1])
    await step.sleep(60)
    return text


@durable.workflow
async def parent(_step: Step) -> str:
    return await sleeping()


@pytest.fixture(autouse=True)
def _first_day() -> Iterator[None]:
    texts[:] = ["old"]
    yield
    texts.clear()


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Be the old version, until it is undone."""
    monkeypatch.setattr(versions, "VERSION", OLD)
    return monkeypatch


async def rows_of(path: Path, sql: str) -> list[tuple[str, ...]]:
    """Return what a journal has, as another connection sees it."""

    def read() -> list[tuple[str, ...]]:
        with contextlib.closing(sqlite3.connect(path)) as db:
            return db.execute(sql).fetchall()

    return await asyncio.to_thread(read)


async def begun_with(path: Path) -> dict[str, str]:
    """Return what each workflow's run was begun with."""
    found = await rows_of(
        path, "SELECT name, durable FROM durable_run JOIN durable_versions ON id = begun_with"
    )
    return {name.rpartition(":")[2]: version for name, version in found}


async def test_a_mismatch_is_named_when_a_run_is_stuck(
    path: Path, old: pytest.MonkeyPatch, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(path)
    clock.install(engine)
    async with engine:
        await until_open(await engine.start(sleeping(), id="r"))
    old.undo()
    texts.append("new")
    async with Engine(path) as engine:
        status = await until_state(engine.get("r"), RunState.STUCK)
    assert status.error is not None
    assert status.error.message.endswith(f"\n\n{MISMATCH}")
    assert MISMATCH in caplog.text


async def test_without_a_mismatch_no_versions_are_named(path: Path, clock: ManualClock) -> None:
    engine = Engine(path)
    clock.install(engine)
    async with engine:
        await until_open(await engine.start(sleeping(), id="r"))
    texts.append("new")
    async with Engine(path) as engine:
        status = await until_state(engine.get("r"), RunState.STUCK)
    assert status.error is not None
    assert "begun with" not in status.error.message


async def test_a_run_keeps_what_it_was_begun_with_until_it_begins_again(
    path: Path, old: pytest.MonkeyPatch, clock: ManualClock
) -> None:
    for engine in (Engine(path), Engine(path)):
        clock.install(engine)
        async with engine:
            run = await engine.start(sleeping(), id="r")
            await until_step(run, "sleep", StepState.RUNNING)
            if len(texts) == 1:
                texts.append("old")
                old.undo()
                continue
            clock.advance(60)
            assert await run.result(WAIT_S_MAX) == "old"
            assert await begun_with(path) == {"sleeping": OLD}
            await engine.restart("r", from_step=0)
            await until_step(run, "sleep", StepState.RUNNING)
            clock.advance(60)
            await run.result(WAIT_S_MAX)
            assert await begun_with(path) == {"sleeping": VERSION}


async def test_it_is_who_begins_a_run_that_counts_not_who_starts_it(
    path: Path, old: pytest.MonkeyPatch, clock: ManualClock
) -> None:
    """A client's run, and a child, are begun by the engine that works."""
    async with Engine(path, worker=False) as client:
        await client.start(parent(), id="r")
    assert await begun_with(path) == {}
    old.undo()
    engine = Engine(path)
    clock.install(engine)
    async with engine:
        await until_open(engine.get("r"))
        while "sleeping" not in await begun_with(path):
            await engine.status("r")
    assert await begun_with(path) == {"parent": VERSION, "sleeping": VERSION}


async def test_there_is_a_row_for_each_set_of_versions_and_no_more(
    path: Path, old: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        async with Engine(path) as engine:
            await engine.start(sleeping())
    old.undo()
    async with Engine(path) as engine:
        await engine.start(sleeping())
    rows = await rows_of(path, "SELECT durable FROM durable_versions ORDER BY id")
    assert rows == [(OLD,), (VERSION,)]


def test_what_is_not_known_is_not_explained() -> None:
    table = VersionTable(1, {1: present_versions(), 2: Versions("3.11.0", OLD)})
    assert table.explain(None) == table.explain(1) == table.explain(7) == ""
    assert "Python 3.11.0, durable 0.0.9; now it is" in table.explain(2)


def test_the_version_has_one_place() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))
    assert project["tool"]["hatch"]["version"]["path"] == "durable/core/versions.py"
    assert project["project"]["dynamic"] == ["version"]
