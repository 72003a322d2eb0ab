"""``python -m durable replay``: one run's body executed again, where one can look at it."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import io
import re
import shutil
import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from clock import ManualClock
from interpreters import run_python
from waiting import WAIT_S_MAX, until_step

import durable
from durable import Engine, RunFailed, Step, StepState
from durable.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__)

texts: list[str] = []
begun: list[str] = []
prints: list[str] = []


@durable.action
async def note(text: str) -> str:
    begun.append(text)
    if text == "bad":
        msg = "so bad"
        raise ValueError(msg)
    return text


@durable.workflow
async def flow(step: Step, number: int) -> str:
    for text in prints:
        print(text, number)  # noqa: T201
    first = await note(texts[0])
    with contextlib.suppress(ValueError):
        await note("bad")
    both = await asyncio.gather(note("b"), note("c"))
    async with asyncio.timeout(100):
        await step.run(note("d"), name="named")
    await step.sleep(60)
    return first + both[0]


@durable.workflow
async def two(step: Step) -> None:
    """Waits in a task of its own, and in the body."""

    async def sleep(seconds: float) -> None:
        await step.sleep(seconds)

    first = await note("a")
    if "raise" in prints:
        raise KeyError(first)
    await asyncio.gather(sleep(60), sleep(70))


@durable.workflow
async def deadlocked(_step: Step) -> None:
    await note("a")
    await asyncio.Event().wait()


@durable.workflow
async def failing(_step: Step) -> None:
    await note("a")
    local = "what is here"
    raise LookupError(local)


@pytest.fixture(autouse=True)
def _no_blocking_calls() -> None:
    """The debugger reads files, and its user's answers, while a body runs."""


@pytest.fixture(autouse=True)
def _first_day() -> Iterator[None]:
    texts[:] = ["a"]
    begun.clear()
    yield
    for each in (texts, begun, prints):
        each.clear()


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal with a run that sleeps, one that has failed, one that is over, and a new one.

    Nothing here writes to it.
    """
    path = tmp_path_factory.mktemp("journal") / "journal.db"
    texts[:] = ["a"]

    async def write() -> None:
        clock, engine = ManualClock(), Engine(path)
        clock.install(engine)
        async with engine:
            done = await engine.start(flow(2), id="done")
            await until_step(done, "sleep", StepState.RUNNING)
            clock.advance(60)
            await done.result(WAIT_S_MAX)
            with pytest.raises(RunFailed):
                await engine.run(failing(), id="failed")
            with pytest.raises(RunFailed):
                await engine.run(deadlocked(), id="deadlocked")
            await until_step(await engine.start(flow(1), id="r"), "sleep", StepState.RUNNING)
            await until_step(await engine.start(two(), id="two"), "sleep", StepState.RUNNING)
        async with Engine(path, worker=False) as client:
            await client.start(flow(3), id="new")

    asyncio.run(write())
    return path


def replay(journal: Path, run_id: str, *options: str) -> int:
    return main(["replay", run_id, "--journal", str(journal), *options, "test_replay_command"])


def at(function: Any, text: str) -> str:  # noqa: ANN401  a workflow
    """Return what is shown of the line of a body that has the text."""
    lines, first = inspect.getsourcelines(function.fn)
    index = next(index for index, line in enumerate(lines) if text in line)
    return f"  at {HERE}:{first + index} in {function.fn.__qualname__}"


ACTION = "action test_replay_command:note"


def test_every_delivery_and_every_command_is_shown_with_its_line(
    journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prints.append("the body prints")
    assert replay(journal, "r") == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("Run r of test_replay_command:flow: running, begun with Python 3.")
    in_gather = at(flow, "asyncio.gather(")
    assert shown[1:] == [
        "begins",
        "the body prints 1",
        f"""  issues 0 {ACTION} {{"text":"a"}}{at(flow, "note(texts[0])")}""",
        """delivers 0 test_replay_command:note: "a\"""",
        f"""  issues 1 {ACTION} {{"text":"bad"}}{at(flow, 'note("bad")')}""",
        "delivers 1 test_replay_command:note: ValueError: so bad",
        f"""  issues 2 {ACTION} {{"text":"b"}}{in_gather}""",
        f"""  issues 3 {ACTION} {{"text":"c"}}{in_gather}""",
        """delivers 2 test_replay_command:note: "b\"""",
        """delivers 3 test_replay_command:note: "c\"""",
        f"""  issues 4 sleep timer {{}}{at(flow, "asyncio.timeout")}""",
        f"""  issues 5 action named {{"text":"d"}}{at(flow, "step.run")}""",
        """delivers 5 named: "d\"""",
        f"""  issues 6 sleep sleep {{"seconds":60.0}}{at(flow, "step.sleep")}""",
        "  withdraws 4 timer",
        f"""waits for 6 sleep sleep {{"seconds":60.0}}{at(flow, "step.sleep")}""",
    ]
    assert begun == []


@pytest.mark.parametrize(
    ("run_id", "last"),
    [
        ("done", "returns 'ab'"),
        ("failed", f"ends with LookupError: what is here,{at(failing, 'raise')[1:]}"),
        ("new", "It has not begun: there is nothing to replay."),
    ],
)
def test_how_it_ends_is_shown(
    journal: Path, run_id: str, last: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(journal, run_id) == 0
    assert capsys.readouterr().out.splitlines()[-1] == last


def test_a_divergence_shows_the_diff(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts[0] = "new"
    assert replay(journal, "r") == 1
    shown = capsys.readouterr().out
    assert f"""  issues {ACTION} {{"text":"new"}}{at(flow, "note(texts[0])")}""" in shown
    assert "It would get stuck: the journal has step 0 'test_replay_command:note'" in shown
    assert """  + 0  action  test_replay_command:note  {"text":"new"}""" in shown


def test_it_stops_before_a_step_is_delivered(
    journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(journal, "r", "--to-step", "3") == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[-3:] == [
        """delivers 2 test_replay_command:note: "b\"""",
        "stopped before step 3 is delivered",
        f"""waits for 3 {ACTION} {{"text":"c"}}{at(flow, "asyncio.gather(")}""",
    ]


def test_a_step_that_was_never_delivered_is_not_stopped_at(
    journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(journal, "r", "--to-step", "6") == 0
    assert "waits for 6" in capsys.readouterr().out.splitlines()[-1]


# --- the debugger --------------------------------------------------------------------------------


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Say that to the debugger."""

    def say(text: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))

    return say


def test_the_debugger_opens_in_the_bodys_frame_and_goes_on_in_it(
    journal: Path, capsys: pytest.CaptureFixture[str], say: Callable[[str], None]
) -> None:
    """Over the deliveries in between, to its next line."""
    say("p number\nnext\np both\ncontinue\n")
    assert replay(journal, "r", "--to-step", "2", "--pdb") == 0
    shown = capsys.readouterr().out
    stopped, _, went_on = shown.partition("stopped before step 2 is delivered\n")
    assert "delivers 1" in stopped
    assert "> " + at(flow, "gather")[5:].replace(":", "(", 1).replace(" in ", ")") in went_on
    assert "(Pdb) 1\n" in went_on
    assert "(Pdb) ['b', 'c']\n" in went_on
    assert went_on.splitlines()[-1].startswith("waits for 6")
    assert sys.gettrace() is None or "coverage" in repr(sys.gettrace())


def test_stepping_goes_through_what_is_not_the_users(
    journal: Path, capsys: pytest.CaptureFixture[str], say: Callable[[str], None]
) -> None:
    say("step\nstep\nstep\nquit\n")
    assert replay(journal, "r", "--to-step", "0", "--pdb") == 0
    stops = [line for line in capsys.readouterr().out.splitlines() if re.search("> [/<]", line)]
    assert len(stops) == 4
    assert all(str(HERE) in line for line in stops)


def test_a_breakpoint_that_is_set_there_is_come_to(
    journal: Path, capsys: pytest.CaptureFixture[str], say: Callable[[str], None]
) -> None:
    lines, first = inspect.getsourcelines(flow.fn)
    line = first + next(i for i, text in enumerate(lines) if "step.sleep" in text)
    say(f"break {HERE}:{line}\ncontinue\np both\nclear 1\ncontinue\n")
    assert replay(journal, "r", "--to-step", "0", "--pdb") == 0
    shown = capsys.readouterr().out
    assert "delivers 5" in shown.partition("(Pdb) ['b', 'c']")[0]


@pytest.mark.parametrize("command", ["quit", "exit", "EOF"])
def test_leaving_the_debugger_is_not_seen_by_the_body(
    journal: Path, capsys: pytest.CaptureFixture[str], say: Callable[[str], None], command: str
) -> None:
    say(f"next\n{command}\n")
    assert replay(journal, "r", "--to-step", "1", "--pdb") == 0
    assert "stuck" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("run_id", "text", "status", "expected"),
    [
        ("r", "a", 0, "(Pdb) 'a'"),
        ("failed", "a", 0, "(Pdb) 'what is here'"),
        ("r", "new", 1, "(Pdb) 1"),
    ],
)
def test_without_a_step_it_opens_where_the_replay_ends(  # noqa: PLR0917
    journal: Path,
    capsys: pytest.CaptureFixture[str],
    say: Callable[[str], None],
    run_id: str,
    text: str,
    status: int,
    expected: str,
) -> None:
    texts[0] = text
    name = {"(Pdb) 'a'": "first", "(Pdb) 1": "number"}.get(expected, "local")
    say(f"p {name}\nquit\n")
    assert replay(journal, run_id, "--pdb") == status
    assert expected in capsys.readouterr().out


def test_it_opens_where_the_body_raises_while_the_journal_goes_on(
    journal: Path, capsys: pytest.CaptureFixture[str], say: Callable[[str], None]
) -> None:
    prints.append("raise")
    say("p first\nquit\n")
    assert replay(journal, "two", "--pdb") == 1
    shown = capsys.readouterr().out
    assert "the body now ends with KeyError: 'a', where the journal goes on" in shown
    assert "(Pdb) 'a'\n" in shown.partition("It would get stuck")[2]


@pytest.mark.parametrize(("number", "seconds"), [("1", "60"), ("2", "70")])
def test_it_opens_in_the_frame_that_waits_for_a_step_that_was_never_delivered(
    journal: Path,
    capsys: pytest.CaptureFixture[str],
    say: Callable[[str], None],
    number: str,
    seconds: str,
) -> None:
    say("p seconds\nquit\n")
    assert replay(journal, "two", "--to-step", number, "--pdb") == 0
    shown = capsys.readouterr().out
    assert f"(Pdb) {seconds}\n" in shown.partition("waits for 2")[2]


def test_it_opens_where_the_replay_ends_before_the_step(
    journal: Path, capsys: pytest.CaptureFixture[str], say: Callable[[str], None]
) -> None:
    texts[0] = "new"
    say("p number\nquit\n")
    assert replay(journal, "r", "--to-step", "3", "--pdb") == 1
    assert "(Pdb) 1\n" in capsys.readouterr().out.partition("It would get stuck")[2]


def test_what_was_opened_before_the_step_is_not_opened_again(
    journal: Path, capsys: pytest.CaptureFixture[str], say: Callable[[str], None]
) -> None:
    prints.append("raise")
    say("continue\n")
    assert replay(journal, "two", "--to-step", "0", "--pdb") == 1
    assert capsys.readouterr().out.count("(Pdb)") == 1


def test_where_no_line_of_the_body_has_raised_there_is_nothing_to_open(
    journal: Path, capsys: pytest.CaptureFixture[str], say: Callable[[str], None]
) -> None:
    say("quit\n")
    assert replay(journal, "deadlocked", "--pdb") == 0
    shown = capsys.readouterr().out
    assert "ends with DeadlockError" in shown
    assert "(Pdb)" not in shown


# --- what cannot be done -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["nope"], "has no run 'nope'"),
        (["r", "--to-step", "99"], "run 'r' has no step 99: its steps are 0 to 6"),
        (["new", "--to-step", "0"], "run 'new' has no step 0: it has no step"),
    ],
)
def test_what_is_not_there_is_said(
    journal: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(journal, *options) == 2
    told = capsys.readouterr()
    assert told.err.startswith("python -m durable replay: ")
    assert said in told.err
    assert told.out == ""


def test_a_damaged_error_is_said_to_be_one(
    journal: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(journal, path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE durable_step SET error = 'odd' WHERE error IS NOT NULL")
    assert replay(path, "r") == 1
    shown = capsys.readouterr().out
    assert "delivers 1 test_replay_command:note: what is damaged in the journal" in shown
    assert "is damaged: it is failed, with the error 'odd'" in shown


def test_a_workflow_that_is_not_there_is_named(
    journal: Path, forget: Callable[[Any], None], capsys: pytest.CaptureFixture[str]
) -> None:
    forget(flow)
    assert replay(journal, "r") == 2
    said = capsys.readouterr().err
    assert "no workflow 'test_replay_command:flow' version 0, which run 'r' is of" in said


def test_a_journal_that_is_not_there_is_said(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(path, "r") == 2
    assert "there is no such file" in capsys.readouterr().err
    assert not path.exists()


def test_the_journal_is_left_as_it_is(journal: Path) -> None:
    before = {each.name: each.read_bytes() for each in journal.parent.iterdir()}
    assert replay(journal, "r") == 0
    assert {each.name: each.read_bytes() for each in journal.parent.iterdir()} == before


def test_it_is_a_program(journal: Path) -> None:
    """Its own breakpoints work, and its status is the process's."""
    command = ["-m", "durable", "replay", "r", "--journal", str(journal)]
    options = ["--to-step", "0", "--pdb", "replayed_program"]
    done = run_python(*command, *options, stdin="p number\nc\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert "(Pdb) 1\n" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("waits for 6")
