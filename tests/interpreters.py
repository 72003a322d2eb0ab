"""Python programs that tests run to their end, as users would: in an interpreter of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).parent
ROOT: Final = TESTS.parent

LIFE_S_MAX: Final = 60
"""Far longer than any program takes."""


def environment(paths: Iterable[Path] = (ROOT, TESTS), **more: str) -> dict[str, str]:
    """This process's, and where modules are imported from."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), **more}


def run_python(
    *arguments: str | Path,
    cwd: Path = ROOT,
    paths: Iterable[Path] = (ROOT, TESTS),
    stdin: str | None = None,
    seconds_max: float = LIFE_S_MAX,
    **more: str,
) -> subprocess.CompletedProcess[str]:
    """Run a program; return its status, and what it has printed.

    Args:
        paths: Where it imports modules from, beside what is installed.
        more: What its environment has that this process's has not.
    """
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=environment(paths, **more),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=seconds_max,
        check=False,
    )
