"""``python -m durable check``: before a deploy, which runs under way would get stuck."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from clock import ManualClock
from interpreters import run_python
from waiting import WAIT_S_MAX, until_open, until_state, until_step

import durable
from durable import Engine, RunState, Step, StepState
from durable.cli import main
from durable.cli.progress import Progress
from durable.core import versions
from durable.journal.reader import JournalReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DAY_S = 86_400

texts: list[str] = []
begun: list[str] = []


@durable.action
async def note(text: str) -> str:
    begun.append(text)
    return text


@durable.workflow
async def sleeping(step: Step, number: int = 0) -> str:
    for text in texts[1:]:
        print(text)  # noqa: T201
    first = await note(texts[0])
    await step.sleep(DAY_S)
    return first + await note("end")


@durable.workflow
async def parent(_step: Step) -> str:
    return await sleeping()


@durable.workflow
async def restarted(_step: Step) -> None:
    for text in texts:
        await note(text)
    await note("end")


@durable.workflow
async def other(step: Step, amount: int) -> None:
    await step.sleep(amount)


@durable.workflow
async def spread(step: Step, number: int) -> None:
    await note(f"n{number}")
    await asyncio.gather(*(step.sleep(DAY_S + number) for _ in range(3)))


@pytest.fixture(autouse=True)
def _first_day() -> Iterator[None]:
    texts[:] = ["old"]
    begun.clear()
    yield
    texts.clear()


async def started(path: Path, *, count: int = 1) -> None:
    """Leave a journal with so many runs asleep, and one that is over."""
    clock, engine = ManualClock(), Engine(path)
    clock.install(engine)
    async with engine:
        for number in range(count):
            await engine.start(sleeping(number), id=f"r{number}")
        for number in range(count):
            await until_step(engine.get(f"r{number}"), "sleep", StepState.RUNNING)
        run = await engine.start(other(0), id="over")
        await run.result(WAIT_S_MAX)
    begun.clear()


def check(path: Path, *options: str, code: str = "test_check") -> int:
    return main(["check", "--journal", str(path), *options, code])


async def checked(path: Path, *options: str, code: str = "test_check") -> int:
    return await asyncio.to_thread(check, path, *options, code=code)


def files_of(path: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in path.parent.iterdir()}


# --- what is said --------------------------------------------------------------------------------


async def test_code_that_fits_is_said_to(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    await started(path, count=3)
    assert await checked(path) == 0
    said = capsys.readouterr()
    assert said.out == (
        f"All is well: with this code, none would get stuck of 3 unfinished runs of {path}.\n"
    )
    assert said.err == ""
    assert begun == []


async def test_runs_that_would_get_stuck_are_listed_with_the_diff_and_the_way_out(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that differ in the same way together."""
    await started(path, count=12)
    texts[0] = "new"
    assert await checked(path) == 1
    said = capsys.readouterr().out
    assert said.startswith(
        "test_check:sleeping: 12 runs: r0, r1, r2, r3, r4, r5, r6, r7, r8, r9 and 2 more\n"
        "  r0, for example:\n"
        "  the journal has step 0 'test_check:note'"
    )
    assert '    - 0  action  test_check:note  {"text":"old"}\n' in said
    assert '    + 0  action  test_check:note  {"text":"new"}\n' in said
    assert f"at {__file__}:" in said
    assert "12 would get stuck, of 12 unfinished runs" in said
    assert "step.patched()" in said
    assert "a new version" in said


# --- what differs in the same way ----------------------------------------------------------------


async def spread_out(path: Path) -> None:
    async with Engine(path) as engine:
        for number in range(4):
            run = await engine.start(spread(number), id=f"r{number}")
            await until_step(run, "sleep", StepState.RUNNING)


async def grouped(path: Path, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    assert await checked(path, "--json") == 1
    return [each["runs"] for each in json.loads(capsys.readouterr().out)["stuck"]]


async def test_a_parameter_that_is_new_is_one_finding_whatever_the_arguments_are(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def with_currency(step: Step, number: int, currency: str) -> None: ...

    await spread_out(path)
    monkeypatch.setattr(spread, "fn", with_currency)
    assert await grouped(path, capsys) == [["r0", "r1", "r2", "r3"]]


async def test_of_an_exception_the_class_counts_and_not_its_text(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def raising(_step: Step, number: int) -> None:
        raise (LookupError if number == 3 else ValueError)(f"of order {number}")

    await spread_out(path)
    monkeypatch.setattr(spread, "fn", raising)
    assert await grouped(path, capsys) == [["r0", "r1", "r2"], ["r3"]]


async def test_the_same_exception_at_another_step_is_another_finding(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def raising(_step: Step, number: int) -> None:
        if number < 2:
            await note(f"n{number}")
        raise ValueError(number)

    await spread_out(path)
    monkeypatch.setattr(spread, "fn", raising)
    assert await grouped(path, capsys) == [["r0", "r1"], ["r2", "r3"]]


async def test_a_step_that_is_not_issued_is_another_finding_than_another_step(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def less(step: Step, number: int) -> None:
        await note(f"n{number}")
        await asyncio.gather(*(step.sleep(DAY_S + number) for _ in range(1 + number % 2)))

    await spread_out(path)
    monkeypatch.setattr(spread, "fn", less)
    assert await grouped(path, capsys) == [["r0", "r2"], ["r1", "r3"]]


async def test_a_result_that_does_not_fit_is_one_finding_whatever_the_step_s_arguments_are(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change() -> None:
        with closing(sqlite3.connect(path)) as db:
            db.execute("UPDATE durable_step SET result = '17' WHERE result IS NOT NULL")
            db.commit()

    await spread_out(path)
    await asyncio.to_thread(change)
    assert await grouped(path, capsys) == [["r0", "r1", "r2", "r3"]]


async def test_arguments_that_do_not_fit_are_one_finding(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change() -> None:
        with closing(sqlite3.connect(path)) as db:
            db.execute("UPDATE durable_run SET args = replace(args, 'number', 'n')")
            db.commit()

    await spread_out(path)
    await asyncio.to_thread(change)
    assert await grouped(path, capsys) == [["r0", "r1", "r2", "r3"]]


# --- what else is said ---------------------------------------------------------------------------


async def test_the_versions_that_a_run_was_begun_with_are_named(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "VERSION", "0.0.9")
    await started(path)
    monkeypatch.undo()
    texts[0] = "new"
    await checked(path)
    assert "durable 0.0.9; now it is" in capsys.readouterr().out


async def test_definitions_that_are_missing_are_named(
    path: Path, capsys: pytest.CaptureFixture[str], forget: Callable[[Any], None]
) -> None:
    await started(path, count=2)
    forget(sleeping)
    assert await checked(path) == 1
    said = capsys.readouterr().out
    assert "no workflow test_check:sleeping: 2 runs under way" in said


async def test_programs_get_an_object(
    path: Path, capsys: pytest.CaptureFixture[str], forget: Callable[[Any], None]
) -> None:
    await started(path, count=2)
    async with Engine(path) as engine:
        await engine.start(other(DAY_S))
    forget(other)
    texts[0] = "new"
    assert await checked(path, "--json") == 1
    said = json.loads(capsys.readouterr().out)
    assert said["journal"] == str(path)
    assert (said["unfinished"], said["checked"]) == (3, 3)
    (finding,) = said["stuck"]
    assert finding["runs"] == ["r0", "r1"]
    assert finding["workflow"] == "test_check:sleeping"
    assert "+ 0  action" in finding["diff"]
    assert said["missing"] == [{"workflow": "test_check:other", "version": 0, "count": 1}]
    assert said["unreadable"] == []


@pytest.mark.parametrize(("sample", "checked_count"), [("2", 2), ("5", 5), ("9", 5)])
async def test_a_sample_bounds_how_many_are_checked(
    path: Path, capsys: pytest.CaptureFixture[str], sample: str, checked_count: int
) -> None:
    await started(path, count=5)
    assert await checked(path, "--json", "--sample", sample) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["unfinished"], said["checked"]) == (5, checked_count)


async def test_runs_that_have_not_begun_need_arguments_that_fit(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Engine(path, worker=False) as client:
        await client.start(sleeping(1))
        await client.start(parent())
    assert await checked(path) == 0

    async def without_a_parameter(step: Step) -> str:
        return ""

    monkeypatch.setattr(sleeping, "fn", without_a_parameter)
    assert await checked(path) == 1
    assert "Give new parameters a default" in capsys.readouterr().out


async def test_runs_that_end_in_any_case_are_no_findings(path: Path) -> None:
    """What is asked to end, an engine ends, whatever the code is."""
    await started(path)
    async with Engine(path, worker=False) as client:
        await client.cancel("r0")
    texts[0] = "new"
    assert await checked(path) == 0


async def test_it_is_the_code_at_hand_that_counts_not_whether_a_run_is_stuck(path: Path) -> None:
    await started(path)
    texts[0] = "new"
    async with Engine(path) as engine:
        await until_state(engine.get("r0"), RunState.STUCK)
    assert await checked(path) == 1
    texts[0] = "old"
    assert await checked(path) == 0


async def test_of_a_restarted_run_what_is_kept_counts(path: Path) -> None:
    """From the step on that it is restarted from, the code may be another."""
    async with Engine(path) as engine:
        run = await engine.start(restarted(), id="r")
        await run.result(WAIT_S_MAX)
    async with Engine(path, worker=False) as client:
        await client.restart("r", from_step=1)
    assert await checked(path) == 0
    texts[1:] = ["another"]
    assert await checked(path) == 0
    texts[0] = "new"
    assert await checked(path) == 1


async def test_what_bodies_print_is_not_shown(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await started(path)
    texts.append("the body prints")
    assert await checked(path, "--json") == 0
    assert "the body prints" not in capsys.readouterr().out


async def test_a_parent_and_its_child_are_both_checked(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Engine(path) as engine:
        await until_open(await engine.start(parent(), id="p"))
        async with asyncio.timeout(WAIT_S_MAX):
            while len([run async for run in engine.iter_runs(state="running")]) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0)
    texts[0] = "new"
    await checked(path, "--json")
    said = json.loads(capsys.readouterr().out)
    assert (said["checked"], len(said["stuck"])) == (2, 1)


# --- the journal is left alone -------------------------------------------------------------------


async def test_an_engine_may_work_on_it_meanwhile(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is committed is seen, and the owner goes on."""
    async with Engine(path) as engine:
        run = await engine.start(sleeping(), id="r")
        await until_open(run)
        assert await checked(path) == 0
        assert "1 unfinished run" in capsys.readouterr().out
        await engine.start(sleeping(), id="again")
        assert await checked(path) == 0
        assert "2 unfinished runs" in capsys.readouterr().out


async def test_a_journal_that_nobody_has_open_is_left_as_it_is(path: Path) -> None:
    await started(path)
    before = await asyncio.to_thread(files_of, path)
    assert await checked(path) == 0
    assert await asyncio.to_thread(files_of, path) == before
    assert f"{path.name}-wal" not in before


async def test_a_link_to_a_journal_is_read_with_what_is_beside_the_journal(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And odd names are names."""
    link = tmp_path / "links" / "a #1?mode=x%20.db"
    async with Engine(path) as engine:
        await until_open(await engine.start(sleeping()))
        await asyncio.to_thread(link.parent.mkdir)
        await asyncio.to_thread(link.symlink_to, path)
        assert await checked(link) == 0
        assert "1 unfinished run of" in capsys.readouterr().out
    assert await checked(link) == 0
    assert await asyncio.to_thread(lambda: list(link.parent.iterdir())) == [link]


async def test_a_file_s_name_is_no_part_of_an_address(tmp_path: Path) -> None:
    odd = tmp_path / "a #1?mode=rwc%20.db"
    await started(odd)
    assert await checked(odd) == 0
    names = await asyncio.to_thread(lambda: sorted(each.name for each in tmp_path.iterdir()))
    assert all(name.startswith(odd.name) and not name.endswith("-wal") for name in names), names


@pytest.mark.parametrize("has_index", [True, False])
async def test_what_a_dead_owner_has_left_is_read_with_its_log(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *, has_index: bool
) -> None:
    """And so is a copy, which has no index of the log."""
    dead = tmp_path / "dead" / "journal.db"
    await asyncio.to_thread(dead.parent.mkdir)
    async with Engine(path) as engine:
        await until_open(await engine.start(sleeping()))
        for ending in ("", "-wal", "-shm") if has_index else ("", "-wal"):
            await asyncio.to_thread(shutil.copyfile, f"{path}{ending}", f"{dead}{ending}")
    before = await asyncio.to_thread(files_of, dead)
    assert await checked(dead) == 0
    assert "1 unfinished run" in capsys.readouterr().out
    after = await asyncio.to_thread(files_of, dead)
    assert after.keys() == before.keys()
    # In the index SQLite notes up to where somebody reads.
    assert [after[name] for name in after if not name.endswith("-shm")] == [
        before[name] for name in before if not name.endswith("-shm")
    ]


def test_an_engine_that_is_opened_meanwhile_is_noticed(path: Path) -> None:
    """What is read as it is must not be read so any more, once somebody writes to it."""

    async def start_one() -> None:
        async with Engine(path) as engine:
            await engine.start(sleeping(), id="new")

    asyncio.run(started(path))
    with JournalReader(path) as reader:
        assert list(reader.iter_unfinished()) == ["r0"]
        asyncio.run(start_one())
        assert "new" in list(reader.iter_unfinished())


def test_what_was_read_while_somebody_wrote_is_read_again(path: Path) -> None:
    """A page of the file may have been old, and another new."""
    read: list[int] = []

    async def start_one() -> None:
        async with Engine(path) as engine:
            await engine.start(sleeping(), id="new")

    def read_and_be_late(db: sqlite3.Connection) -> int:
        (count,) = db.execute("SELECT count(*) FROM durable_run").fetchone()
        read.append(count)
        if len(read) == 1:
            asyncio.run(start_one())
        return int(count)

    asyncio.run(started(path))
    with JournalReader(path) as reader:
        assert reader._read(read_and_be_late) == 3
    assert read == [2, 3]


# --- what cannot be done -------------------------------------------------------------------------


def make_other(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE t (x)")


def make_newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")


def make_text(path: Path) -> None:
    path.write_text("no database " * 100)


def make_nothing(_path: Path) -> None:
    pass


def make_directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (make_nothing, "there is no such file"),
        (make_directory, "there is no such file"),
        (make_text, "is damaged, or not a journal"),
        (make_other, "has no journal in it"),
        (make_newer, "has schema version 99"),
    ],
)
def test_what_is_no_journal_is_refused_and_left_as_it_is(
    path: Path,
    make: Callable[[Path], None],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(path)
    before = sorted(path.parent.iterdir())
    assert check(path) == 2
    told = capsys.readouterr()
    assert told.err.startswith("python -m durable check: ")
    assert said in told.err
    assert told.out == ""
    assert sorted(path.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--journal", "x.db", "no_such_module"], "cannot import 'no_such_module'"),
        (["--journal", "x.db", "test_check:nothing"], "'test_check' has no 'nothing'"),
        (["--journal", "x.db", "app.py"], "name the module as an import does"),
        (["--journal", "sqlite://", "test_check"], "in memory"),
        (["--journal", "postgres://x", "test_check"], "names no journal"),
        (["test_check"], "which journal?"),
    ],
)
def test_bad_usage_says_what_is_wrong(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DURABLE_URL", raising=False)
    assert main(["check", *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("journal", "code", "said"),
    [
        ("sqlite://", "test_check", "in memory"),
        ("no-such-file.db", "test_check", "there is no such file"),
        ("x.db", "no_such_module", "cannot import 'no_such_module'"),
    ],
)
def test_programs_get_an_object_when_nothing_could_be_checked_too(
    journal: str, code: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--json", "--journal", journal, code]) == 2
    told = capsys.readouterr()
    error = json.loads(told.out)
    assert list(error) == ["error"]
    assert said in error["error"]
    assert told.err == f"python -m durable check: {error['error']}\n"


class NotAnException(BaseException):
    pass


@pytest.fixture
def importing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Return the name of a module that does that when it is imported."""

    def importing(text: str) -> str:
        (tmp_path / "raises_at_import.py").write_text(text)
        return "raises_at_import"

    monkeypatch.syspath_prepend(tmp_path)
    yield importing
    sys.modules.pop("raises_at_import", None)


@pytest.mark.parametrize(
    ("text", "raised"),
    [
        ("import sys; sys.exit()", "SystemExit. "),
        ("import sys; sys.exit(0)", "SystemExit: 0. "),
        ("import sys; sys.exit('no settings')", "SystemExit: no settings. "),
        ("import test_check; raise test_check.NotAnException('x')", "NotAnException: x. "),
        ("raise ValueError('x')", "ValueError: x. "),
    ],
)
@pytest.mark.parametrize("command", [["check"], ["replay", "r0"]])
def test_what_a_module_raises_at_its_import_is_no_success(  # noqa: PLR0917
    path: Path,
    importing: Callable[[str], str],
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    text: str,
    raised: str,
) -> None:
    """A pipeline that looks at the status must not go on."""
    assert main([*command, "--journal", str(path), importing(text)]) == 2
    said = capsys.readouterr()
    assert f"cannot import 'raises_at_import': {raised}" in said.err
    assert said.out == ""


def test_ctrl_c_while_a_module_is_imported_is_ctrl_c(
    path: Path, importing: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(path, code=importing("raise KeyboardInterrupt")) == 130
    assert capsys.readouterr() == ("", "")


def test_ctrl_c_ends_it_quietly(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("durable.cli.check.JournalReader", interrupted)
    assert check(path) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "arguments", [[], ["check"], ["check", "--sample", "0", "x"], ["nonsense"]]
)
def test_argparse_refuses_the_rest(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


async def test_the_environment_may_name_the_journal(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await started(path)
    monkeypatch.setenv("DURABLE_URL", f"sqlite:///{path}")
    assert await asyncio.to_thread(main, ["check", "test_check:sleeping"]) == 0


async def test_a_damaged_run_is_named_and_the_others_are_checked(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await started(path, count=2)

    def damage() -> None:
        with closing(sqlite3.connect(path)) as db:
            db.execute("UPDATE durable_run SET state = 'odd' WHERE run_id = 'r0'")
            db.commit()

    await asyncio.to_thread(damage)
    assert await checked(path) == 2
    said = capsys.readouterr().out
    assert "'r0'" in said or '"r0"' in said
    assert "Not all is well with 1 unfinished run (of 2)" in said


def test_it_is_a_program(path: Path) -> None:
    asyncio.run(started(path))
    done = run_python("-m", "durable", "check", "--journal", path, "check_program")
    assert done.returncode == 2
    assert "cannot import 'check_program'" in done.stderr
    assert "Traceback" not in done.stderr


# --- the bar -------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_shown_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durable.cli.progress.REDRAW_S", 0.0)
    terminal = Terminal()
    assert list(Progress(2, "runs", terminal).over(["a", "b"])) == ["a", "b"]
    drawn = terminal.getvalue().split("\r")
    assert drawn[1] == f"[{'.' * 30}] 0 of 2 runs"
    assert drawn[2] == f"[{'#' * 15}{'.' * 15}] 1 of 2 runs"
    assert drawn[-1] == "\x1b[K"


def test_a_file_is_not() -> None:
    stream = io.StringIO()
    assert list(Progress(1, "runs", stream).over(["a"])) == ["a"]
    assert stream.getvalue() == ""
