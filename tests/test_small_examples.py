"""The examples that run by themselves: each ends well, in seconds, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from interpreters import ROOT, run_python

EXAMPLES = ROOT / "examples"
WITH_TESTS_OF_THEIR_OWN = {
    "aiohttp_app",
    "approval",
    "batch",
    "ledger",
    "nested",
    "onboarding",
    "starlette_app",
}

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "name",
    sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem not in WITH_TESTS_OF_THEIR_OWN),
)
def test_the_example_runs_by_itself(name: str, tmp_path: Path) -> None:
    done = run_python("-W", "error", EXAMPLES / f"{name}.py", cwd=tmp_path, paths=[ROOT])
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout, "it shows what it does"
    assert not done.stderr
    assert not list(tmp_path.iterdir()), "it needs no files of the user's"
