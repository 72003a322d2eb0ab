"""Files that are no journal, cannot be written, or are somebody else's: nothing in them is lost."""

import asyncio
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import anyio
import anyio.to_thread
import pytest
from waiting import until_state, until_step
from world import echo, echoing

import durable
from durable import (
    Engine,
    ErrorInfo,
    JournalCorruptError,
    JournalError,
    JournalUnavailableError,
    JournalVersionError,
    Run,
    RunFailed,
    RunState,
    Step,
    StepState,
)
from durable.journal.base import Claim
from durable.journal.sqlite import SqliteJournal
from durable.runtime import writer

ROOT = Path(__file__).parent.parent
NOBODY = 65534


@durable.workflow
async def failing(_step: Step) -> None:
    raise LookupError


def in_file(path: Path, *statements: str) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        db.execute(statement)
    db.close()


async def _open(url: Path) -> None:
    async with Engine(url):
        pass


def opening_fails(path: Path, error: type[JournalError], message: str) -> None:
    """Open an engine twice: it must fail in the same way, and change no byte of the file."""
    before = path.read_bytes() if path.is_file() else None
    for _ in range(2):
        with pytest.raises(error, match=message) as info:
            asyncio.run(_open(path))
        assert str(path) in str(info.value)
    if before is not None:
        assert path.read_bytes() == before
    assert not path.with_name(path.name + "-wal").exists()


# --- no journal ----------------------------------------------------------------------------------


def test_a_directory_is_no_journal(tmp_path: Path) -> None:
    opening_fails(
        tmp_path, JournalUnavailableError, r"is a directory; a journal is a file, such as"
    )


def test_a_journal_needs_a_directory(tmp_path: Path) -> None:
    with pytest.raises(JournalUnavailableError, match=r"/none of the journal a\.db does not exist"):
        asyncio.run(_open(tmp_path / "none" / "a.db"))
    (tmp_path / "file").touch()
    with pytest.raises(JournalUnavailableError, match=r"/file of the journal a\.db does not exist"):
        asyncio.run(_open(tmp_path / "file" / "a.db"))


async def test_a_file_name_that_is_too_long_is_told() -> None:
    with pytest.raises(JournalUnavailableError, match="too long"):
        await _open(Path("a" * 300 + ".db"))


@pytest.mark.parametrize("content", [b"these are my notes\n" * 500, b"SQLite format 3\0" * 500])
def test_another_kind_of_file_is_no_journal(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    opening_fails(path, JournalCorruptError, "damaged, or not a journal .* Check the path, or")


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_the_database_of_another_application_is_no_journal(mode: str, path: Path) -> None:
    in_file(path, f"PRAGMA journal_mode = {mode}", "CREATE TABLE t (x)", "PRAGMA user_version = 7")
    opening_fails(path, JournalCorruptError, "user_version 7 .* Give the journal a file of its own")


def test_tables_of_the_same_name_are_no_journal(path: Path) -> None:
    in_file(path, "CREATE TABLE durable_run (x)", "INSERT INTO durable_run VALUES (1)")
    opening_fails(path, JournalCorruptError, "durable tables are not those of a journal")


def test_an_empty_file_becomes_a_journal(path: Path) -> None:
    path.touch()
    asyncio.run(_open(path))
    in_file(path, "SELECT run_id FROM durable_run")


# --- journals, but ----------------------------------------------------------------------------


@pytest.fixture
def journal(path: Path) -> Path:
    """A journal with one run that has completed and one that has failed."""

    async def fill() -> None:
        async with Engine(path) as engine:
            assert await engine.run(echoing("kept"), id="done") == "kept"
            with pytest.raises(RunFailed):
                await engine.run(failing(), id="failed")

    asyncio.run(fill())
    return path


async def _read(path: Path) -> str:
    async with Engine(path, drain_timeout=0) as engine:
        assert (await engine.status("failed")).state is RunState.FAILED
        result: str = await engine.get("done").result(timeout=5)
        return result


def test_a_newer_schema_is_left_to_the_newer_code(journal: Path) -> None:
    in_file(journal, "PRAGMA user_version = 2")
    opening_fails(
        journal, JournalVersionError, "version 2; this durable knows 1. Install the newer"
    )
    in_file(journal, "PRAGMA user_version = 1")
    assert asyncio.run(_read(journal)) == "kept"


def test_a_journal_without_one_of_its_tables_is_damaged(journal: Path) -> None:
    in_file(journal, "ALTER TABLE durable_step RENAME TO elsewhere")
    opening_fails(journal, JournalCorruptError, "no such table: durable_step")
    in_file(journal, "ALTER TABLE elsewhere RENAME TO durable_step")
    assert asyncio.run(_read(journal)) == "kept"


@pytest.mark.parametrize("left", [100, 4096, 0.5, 0.9])
def test_a_truncated_journal_is_damaged(left: float, journal: Path) -> None:
    content = journal.read_bytes()
    pages = len(content) // 4096
    size = int(left) if left > 1 else int(pages * left) * 4096
    journal.write_bytes(content[:size])
    opening_fails(journal, JournalCorruptError, "damaged, or not a journal")


@pytest.mark.slow
def test_wherever_a_page_is_overwritten_no_wrong_value_comes_out(journal: Path) -> None:
    content = journal.read_bytes()
    outcomes = set()
    for at in range(0, len(content), 4096):
        journal.write_bytes(content[:at] + b"\xa5" * 4096 + content[at + 4096 :])
        try:
            outcomes.add(asyncio.run(_read(journal)))
        except JournalCorruptError:
            outcomes.add("damaged")
    assert outcomes <= {"kept", "damaged"}
    assert "damaged" in outcomes


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE durable_run SET state = 'bogus' WHERE run_id = 'done'",
        "UPDATE durable_run SET name = CAST(x'ff' AS TEXT) WHERE run_id = 'done'",
        "UPDATE durable_run SET result = '\"ke' WHERE run_id = 'done'",
        "UPDATE durable_run SET args = 'x' WHERE run_id = 'done'",
        "UPDATE durable_run SET created_at_ms = 1 << 62 WHERE run_id = 'done'",
    ],
)
async def test_a_damaged_row_is_named_and_the_others_are_served(damage: str, journal: Path) -> None:
    await anyio.to_thread.run_sync(in_file, journal, damage)
    async with Engine(journal) as engine:
        with pytest.raises(JournalCorruptError, match=r"done.* from a backup"):
            await engine.status("done")
        with pytest.raises(JournalCorruptError, match="done"):
            await engine.list_runs()
        assert (await engine.status("failed")).state is RunState.FAILED
        assert await engine.run(echoing("new")) == "new"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("state = 'bogus'", "damaged row in the journal, the steps of run 'r'.* from a backup"),
        ("key = CAST(x'ff' AS TEXT)", "damaged row in the journal, the steps of run 'r'"),
        ("result = '\"ke'", "recorded result of step 0 'world:echo'"),
        ("state = 'failed'", "recorded outcome of step 0 .* is damaged.* from a backup"),
        (
            "args = '{}'",
            "the journal has step 0 .*; the code now issues .* with code that fits",
        ),
        ("state = 'canceled'", "recorded outcome of step 0 .* is damaged.* it is canceled"),
    ],
)
async def test_a_run_with_a_damaged_step_is_stuck_and_the_others_go_on(
    damage: str, message: str, path: Path
) -> None:
    async with Engine(path) as engine:
        run = await engine.start(resting([86_400]), id="r")
        await until_step(run, "sleep", StepState.RUNNING)
    statement = f"UPDATE durable_step SET {damage} WHERE number = 0"  # noqa: S608
    await anyio.to_thread.run_sync(in_file, path, statement, "UPDATE durable_run SET wake_at_ms=0")
    async with Engine(path) as engine:
        error = await error_of_the_stuck(engine.get("r"))
        assert re.search(message, error.message)
        assert await engine.run(echoing("new")) == "new"


async def test_a_run_with_steps_that_was_never_started_is_stuck_and_the_others_go_on(
    path: Path,
) -> None:
    """Taken for a new one, it would issue its first step again, and fail every commit."""
    async with Engine(path) as engine:
        run = await engine.start(resting([86_400]), id="r")
        await until_step(run, "sleep", StepState.RUNNING)
    statement = "UPDATE durable_run SET started_at_ms = NULL, wake_at_ms = 0"
    await anyio.to_thread.run_sync(in_file, path, statement)
    async with Engine(path) as engine:
        error = await error_of_the_stuck(engine.get("r"))
        assert re.search("damaged row .* run 'r': it has steps, but no time", error.message)
        assert await engine.run(echoing("new")) == "new"


@pytest.mark.parametrize("naps", [[86_400], [86_400, 20], [20, 86_400]])
async def test_a_run_with_a_timer_without_a_due_time_is_stuck_and_the_others_go_on(
    naps: list[float], path: Path
) -> None:
    async with Engine(path) as engine:
        run = await engine.start(resting(naps), id="r")
        await until_step(run, "sleep", StepState.RUNNING)
    damage = "UPDATE durable_step SET due_at_ms = NULL WHERE kind = 'sleep' AND number = 1"
    await anyio.to_thread.run_sync(in_file, path, damage, "UPDATE durable_run SET wake_at_ms=0")
    async with Engine(path) as engine:
        error = await error_of_the_stuck(engine.get("r"))
        expected = r"step 1 'sleep' .* is damaged: it has no due time\. Restore .* from a backup"
        assert re.search(expected, error.message)
        assert await engine.run(echoing("new")) == "new"
        assert (await engine.status("r")).state is RunState.STUCK


async def test_damage_that_nobody_thought_of_is_told_too(path: Path) -> None:
    async with Engine(path) as engine:
        run = await engine.start(resting([86_400]), id="r")
        await until_step(run, "sleep", StepState.RUNNING)
    damage = "UPDATE durable_step SET state = 'failed', position = 1 WHERE kind = 'sleep'"
    await anyio.to_thread.run_sync(in_file, path, damage, "UPDATE durable_run SET wake_at_ms=0")
    async with Engine(path) as engine:
        error = await error_of_the_stuck(engine.get("r"))
        assert "in the journal are damaged, or this is a bug of durable: please" in error.message
        assert await engine.run(echoing("new")) == "new"


async def error_of_the_stuck(run: Run[object]) -> ErrorInfo:
    error = (await until_state(run, RunState.STUCK)).error
    assert error is not None
    return error


@durable.workflow
async def resting(step: Step, naps: list[float]) -> None:
    await echo("kept")
    await asyncio.gather(*(step.sleep(nap) for nap in naps))


async def test_a_journal_that_opens_and_fails_again_is_left_alone_longer_and_longer(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One damaged page lets a file be opened and fails each claim: that must not be hammered."""
    delays: list[float] = []
    failures_left = 7
    served = asyncio.Event()
    claim = SqliteJournal.claim

    async def fail(journal: SqliteJournal, now_ms: int, limit: int) -> Claim:
        nonlocal failures_left
        if failures_left:
            failures_left -= 1
            raise JournalCorruptError("damaged page")
        served.set()
        return await claim(journal, now_ms, limit)

    def no_delay(delay_s: float) -> anyio.CancelScope:
        delays.append(delay_s)
        return anyio.move_on_after(0)

    monkeypatch.setattr(SqliteJournal, "claim", fail)
    monkeypatch.setattr(writer, "anyio", SimpleNamespace(move_on_after=no_delay))
    async with Engine(path) as engine:
        await asyncio.wait_for(served.wait(), 5)
        assert delays == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
        assert await engine.run(echoing("a")) == "a"
        served.clear()
        failures_left = 1
        assert engine._runner is not None
        engine._runner.writer.ask_claim()
        await asyncio.wait_for(served.wait(), 5)
        assert delays[7:] == [0.05]


# --- no right to write ---------------------------------------------------------------------------

# The library is imported before the rights are given up, with all that it imports late.
UNPRIVILEGED = """
import asyncio, os, sys
import durable, durable.journal.sqlite, durable.runtime.runner, structlog, anyio._backends._asyncio
from pathlib import Path
if os.getuid() == 0:
    os.setgid({nobody})
    os.setuid({nobody})
async def main():
    async with durable.Engine(Path(sys.argv[1])):
        pass
try:
    asyncio.run(main())
except durable.DurableError as exc:
    print(type(exc).__name__, exc)
"""


def _open_without_rights(path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED.format(nobody=NOBODY), path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that others can get to, which pytest's own is not."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory
    directory.chmod(0o755)
    shutil.rmtree(directory)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="permissions are POSIX's")
def test_a_directory_without_the_right_to_write_is_told(open_directory: Path) -> None:
    path = open_directory / "runs.db"
    open_directory.chmod(0o555)
    told = _open_without_rights(path)
    assert told.startswith("JournalUnavailableError cannot make the lock file")
    assert str(open_directory) in told
    assert list(open_directory.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="permissions are POSIX's")
@pytest.mark.parametrize("mode", [0o444, 0o000])
def test_a_file_without_the_right_to_write_is_told(
    mode: int, open_directory: Path, journal: Path
) -> None:
    path = open_directory / "runs.db"
    shutil.copy(journal, path)
    before = path.read_bytes()
    path.chmod(mode)
    lock = open_directory / "runs.db.lock"
    lock.touch()
    lock.chmod(0o666)
    open_directory.chmod(0o777)
    told = _open_without_rights(path)
    assert told.startswith(f"JournalUnavailableError cannot open the journal {path}")
    assert "who may write to it" in told
    path.chmod(0o644)
    assert path.read_bytes() == before
    assert asyncio.run(_read(path)) == "kept"
