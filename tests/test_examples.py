"""What the README shows and the examples do, as a new user would run it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ONBOARDING = ROOT / "examples" / "onboarding.py"
LEDGER = ROOT / "examples" / "ledger.py"

pytestmark = pytest.mark.slow


def _command(state: Path, csv: Path) -> list[str]:
    return [sys.executable, str(ONBOARDING), str(csv), "--state", str(state), "--day", "0.4"]


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    """The first sign-ups of the shipped file."""
    lines = (ROOT / "examples" / "data" / "signups.csv").read_text("utf-8").splitlines()
    path = tmp_path / "signups.csv"
    path.write_text("\n".join(lines[:31]) + "\n", "utf-8")
    return path


def test_onboarding_finishes_and_proves_it(tmp_path: Path, csv: Path) -> None:
    done = subprocess.run(
        _command(tmp_path / "state", csv), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CHECK PASSED" in done.stdout
    assert re.search(r"mails in the outbox +60\b", done.stdout), done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_onboarding_killed_over_and_over_finishes_and_proves_it(tmp_path: Path, csv: Path) -> None:
    """Killed each time at another point: when so many sends have been logged."""
    state = tmp_path / "state"
    for sends in (5, 20, 31, 45):
        child = subprocess.Popen(
            _command(state, csv), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        log = state / "sends.jsonl"
        while child.poll() is None and not (
            log.exists() and len(log.read_bytes().splitlines()) >= sends
        ):
            os.sched_yield()
        child.send_signal(signal.SIGKILL)
        child.communicate()
    done = subprocess.run(
        _command(state, csv), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CHECK PASSED" in done.stdout
    assert re.search(r"mails in the outbox +60\b", done.stdout), done.stdout


def test_onboarding_says_what_is_wrong_with_its_input(tmp_path: Path) -> None:
    done = subprocess.run(
        _command(tmp_path / "state", tmp_path / "missing.csv"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "missing.csv" in done.stderr
    assert "Traceback" not in done.stderr


def _ledger(journal: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "dev", str(LEDGER), str(journal)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


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


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_the_ledger_killed_over_and_over_comes_out_right(tmp_path: Path) -> None:
    journal = tmp_path / "ledger.db"
    for moment_s in (0.4, 0.5, 0.6, 0.7):
        with subprocess.Popen(
            [sys.executable, str(LEDGER), str(journal)], stdout=subprocess.DEVNULL
        ) as child:
            time.sleep(moment_s)
            child.kill()
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
        done = subprocess.run(
            [sys.executable, str(script)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "receipt for o-1: 500 cents" in done.stdout


def test_the_readme_shows_the_onboarding_workflow_as_it_is() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    (shown,) = re.findall(
        r"```python\n(@durable.workflow\(name=\"onboarding\"\).*?)```", readme, re.DOTALL
    )
    source = ONBOARDING.read_text("utf-8").replace("name=WORKFLOW", 'name="onboarding"')
    assert shown in source
