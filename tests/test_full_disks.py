"""Disks that are really full: SQLite and the operating system say so, not the test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import outage_program as program
import pytest
from faults import Disk, FaultyJournal, once_available
from waiting import WAIT_S_MAX, until

from durable import Engine, JournalUnavailableError


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return program.new_disk(monkeypatch)


TEXT = "x" * 100_000


async def measured(engine: Engine, disk: Disk, run_id: str) -> int:
    return await once_available(disk, lambda: engine.run(program.measure_it(TEXT), id=run_id))


@pytest.mark.slow
async def test_a_full_database_acknowledges_nothing_and_is_worked_on_afterwards(
    path: Path, disk: Disk
) -> None:
    """SQLite's own SQLITE_FULL: the bound ends with the connection, so when it is opened again."""
    async with Engine(path) as engine:
        assert await measured(engine, disk, "first") == len(TEXT)
        run = await engine.start(program.wait_at_the_gate(1))
        await until(lambda: program.world.begun)
        for number in range(3):
            assert isinstance(engine._journal, FaultyJournal)
            writer = engine._journal.inner._writer
            assert writer is not None
            # As many pages as there are.
            await (await writer.execute("PRAGMA max_page_count = 1")).close()
            with pytest.raises(JournalUnavailableError, match="SQLITE_FULL"):
                await engine.start(program.measure_it(TEXT), id=f"big-{number}")
            assert await measured(engine, disk, f"big-{number}") == len(TEXT)
        program.world.may_go_on.set()
        assert await run.result(timeout=WAIT_S_MAX) == 2
    assert disk.calls["reopen"] == 3
    assert set(program.world.begun.values()) == {1}


async def fill_the_disk(path: Path, disk: Disk) -> None:
    """In a process of its own: forbid it to write further into files, then allow it again."""
    import resource  # noqa: PLC0415  not on Windows

    async with Engine(path) as engine:
        assert await measured(engine, disk, "small") == len(TEXT)
        written = max(file.stat().st_size for file in path.parent.iterdir())
        resource.setrlimit(resource.RLIMIT_FSIZE, (written, resource.RLIM_INFINITY))
        for _ in range(3):
            with pytest.raises(JournalUnavailableError):
                await engine.start(program.measure_it(TEXT), id="big")
        page = await once_available(disk, engine.list_runs)
        assert [run.id for run in page.items] == ["small"]
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        assert await measured(engine, disk, "big") == len(TEXT)


@pytest.mark.slow
def test_a_process_that_may_write_no_more_goes_on_when_it_may(path: Path) -> None:
    pytest.importorskip("resource")
    code = (
        "import asyncio, pathlib, sys, pytest, test_full_disks as t;"
        "disk = t.program.new_disk(pytest.MonkeyPatch());"
        "asyncio.run(t.fill_the_disk(pathlib.Path(sys.argv[1]), disk))"
    )
    places = os.pathsep.join(sys.path)
    child = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env=os.environ | {"PYTHONPATH": places},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert "durable.journal_failed" in child.stderr
