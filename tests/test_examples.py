"""What the README shows and the examples do, as a new user would run it."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from interpreters import ROOT, environment, run_python

ONBOARDING = ROOT / "examples" / "onboarding.py"
LEDGER = ROOT / "examples" / "ledger.py"

pytestmark = pytest.mark.slow


def _onboarding(state: Path, csv: Path) -> list[str]:
    return [str(ONBOARDING), str(csv), "--state", str(state), "--day", "0.4"]


def _finish_onboarding(state: Path, csv: Path) -> None:
    done = run_python(*_onboarding(state, csv), paths=[ROOT])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CHECK PASSED" in done.stdout
    assert re.search(r"mails in the outbox +60\b", done.stdout), done.stdout


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    """The first sign-ups of the shipped file."""
    lines = (ROOT / "examples" / "data" / "signups.csv").read_text("utf-8").splitlines()
    path = tmp_path / "signups.csv"
    path.write_text("\n".join(lines[:31]) + "\n", "utf-8")
    return path


def test_onboarding_finishes_and_proves_it(tmp_path: Path, csv: Path) -> None:
    _finish_onboarding(tmp_path / "state", csv)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_onboarding_killed_over_and_over_finishes_and_proves_it(tmp_path: Path, csv: Path) -> None:
    """Killed each time at another point: when so many sends have been logged."""
    state = tmp_path / "state"
    for sends in (5, 20, 31, 45):
        child = subprocess.Popen(
            [sys.executable, *_onboarding(state, csv)],
            env=environment([ROOT]),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        log = state / "sends.jsonl"
        while child.poll() is None and not (
            log.exists() and len(log.read_bytes().splitlines()) >= sends
        ):
            os.sched_yield()
        child.send_signal(signal.SIGKILL)
        child.communicate()
    _finish_onboarding(state, csv)


def test_onboarding_says_what_is_wrong_with_its_input(tmp_path: Path) -> None:
    done = run_python(*_onboarding(tmp_path / "state", tmp_path / "missing.csv"), paths=[ROOT])
    assert done.returncode == 2
    assert "missing.csv" in done.stderr
    assert "Traceback" not in done.stderr


def _ledger(journal: Path) -> subprocess.CompletedProcess[str]:
    return run_python("-X", "dev", LEDGER, journal, paths=[ROOT])


def test_the_ledger_comes_out_right_however_often_it_is_started(tmp_path: Path) -> None:
    journal = tmp_path / "ledger.db"
    shown: set[str] = set()
    for _ in range(2):
        done = _ledger(journal)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "CHECK PASSED" in done.stdout
        assert "Warning" not in done.stderr
        shown.add(done.stdout)
    assert len(shown) == 1


def _bookings_count(journal: Path) -> int:
    try:
        with closing(sqlite3.connect(f"{journal.as_uri()}?mode=ro", uri=True)) as db:
            count: int
            (count,) = db.execute("SELECT count(*) FROM booking").fetchone()
            return count
    except sqlite3.OperationalError:
        return 0  # There is no file yet, or no table in it.


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_the_ledger_killed_over_and_over_comes_out_right(tmp_path: Path) -> None:
    """Killed each time at another point: when so many bookings are made."""
    journal = tmp_path / "ledger.db"
    for bookings in (1, 60, 140, 220):
        with subprocess.Popen(
            [sys.executable, str(LEDGER), str(journal)],
            env=environment([ROOT]),
            stdout=subprocess.DEVNULL,
        ) as child:
            while child.poll() is None and _bookings_count(journal) < bookings:
                os.sched_yield()
            child.kill()
        assert child.returncode == -signal.SIGKILL, "it was killed too late to show anything"
    done = _ledger(journal)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CHECK PASSED" in done.stdout


def test_the_readme_s_first_workflow_runs(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    program = next(block for block in blocks if "asyncio.run(" in block)
    script = tmp_path / "first.py"
    script.write_text(program, "utf-8")
    for _ in range(2):  # the second time it joins the run that has ended
        done = run_python(script, cwd=tmp_path, paths=[ROOT])
        assert done.returncode == 0, done.stderr
        assert "receipt for o-1: 500 cents" in done.stdout


def test_the_readme_shows_the_onboarding_workflow_as_it_is() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    (shown,) = re.findall(
        r"```python\n(@durable.workflow\(name=\"onboarding\"\).*?)```", readme, re.DOTALL
    )
    source = ONBOARDING.read_text("utf-8").replace("name=WORKFLOW", 'name="onboarding"')
    assert shown in source
