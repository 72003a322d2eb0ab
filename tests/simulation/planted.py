"""Bugs that the simulation has to find: each is a change of durable's source, made in a copy of it.

A change has the lines that it replaces, so that one whose place has moved is noticed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]


class Edit(NamedTuple):
    """Lines of a file of durable's, and what stands there instead."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Bug:
    """A planted bug."""

    name: str
    edits: tuple[Edit, ...]


@dataclass(frozen=True)
class Found:
    """What came of looking for a bug: after how many seeds, and which invariant broke."""

    bug: Bug
    seeds: int | None
    broken: str


def read_bugs() -> list[Bug]:
    """Return the bugs that ``planted.txt`` describes."""
    bugs: list[Bug] = []
    for text in _split(Path(__file__).with_name("planted.txt").read_text(), "=== "):
        name, _, rest = text.partition("\n")
        edits = tuple(map(_read_edit, _split(rest.rstrip("\n") + "\n", "--- ")))
        bugs.append(Bug(name, edits))
    return bugs


def _split(text: str, mark: str) -> list[str]:
    """Return what follows each mark at the beginning of a line."""
    return ("\n" + text).split("\n" + mark)[1:]


def _read_edit(text: str) -> Edit:
    file, _, rest = text.partition("\n")
    old, _, new = f"\n{rest.rstrip()}\n".partition("\n+++\n")
    return Edit(file, old.lstrip("\n") + "\n", new)


BUGS: Final = read_bugs()


def plant(bug: Bug, directory: Path) -> None:
    """Copy the source, with the bug.

    Raises:
        ValueError: The source has moved: the bug's text is not there, or not once.
    """
    shutil.copytree(ROOT / "durable", directory / "durable")
    for edit in bug.edits:
        path = directory / "durable" / edit.file
        source = path.read_text()
        if source.count(edit.old) != 1:
            msg = f"{bug.name}: this is not in {edit.file}, or not once: {edit.old!r}"
            raise ValueError(msg)
        path.write_text(source.replace(edit.old, edit.new))


def hunt(bug: Bug, seeds: int) -> Found:
    """Look for a bug, by so many seeds at most."""
    with tempfile.TemporaryDirectory() as directory:
        plant(bug, Path(directory))
        paths = os.pathsep.join([directory, str(ROOT / "tests")])
        command = [sys.executable, "-m", "simulation", "--until-found", "--seeds", str(seeds)]
        found = subprocess.run(
            command,
            cwd=directory,
            env=os.environ | {"PYTHONPATH": paths},
            capture_output=True,
            text=True,
            check=False,
        )
    if found.returncode not in (0, 1):
        raise RuntimeError(found.stderr)
    seed, broken = json.loads(found.stdout.splitlines()[-1])
    return Found(bug, None if seed is None else seed + 1, broken)


def hunt_all(seeds: int, jobs: int) -> Iterator[Found]:
    """Look for all of them."""
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda bug: hunt(bug, seeds), BUGS)
