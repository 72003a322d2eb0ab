"""The examples that run by themselves: each ends well, in seconds, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
WITH_TESTS_OF_THEIR_OWN = {
    "aiohttp_app",
    "approval",
    "batch",
    "ledger",
    "nested",
    "onboarding",
    "starlette_app",
}
SECONDS_MAX = 60

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "name",
    sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem not in WITH_TESTS_OF_THEIR_OWN),
)
def test_the_example_runs_by_itself(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout, "it shows what it does"
    assert not done.stderr
    assert not list(tmp_path.iterdir()), "it needs no files of the user's"
