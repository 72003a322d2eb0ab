"""What the documentation shows is so: its programs run and print that, its links lead somewhere."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import page_player
import pages
import pytest

import durable

INSIDE = {
    "durable": durable,
    "engine": durable.Engine,
    "Engine": durable.Engine,
    "run": durable.Run,
    "step": durable.Step,
}
"""What names in the text stand for, so that what they are said to have can be looked up."""

each_page = pytest.mark.parametrize("page", pages.PAGES, ids=pages.name_of)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in pages.PAGES if any(b.language == "python" for b in pages.blocks_of(page))],
    ids=pages.name_of,
)
def test_what_a_page_shows_is_what_happens(page: Path, tmp_path: Path) -> None:
    paths = [str(pages.ROOT), str(Path(page_player.__file__).parent)]
    done = subprocess.run(
        [sys.executable, "-W", "error", page_player.__file__, str(page)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@each_page
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in pages.links_of(page):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        path = page.parent / target if target else page
        assert path.exists(), link
        if anchor:
            assert anchor in pages.anchors_of(path), link


@each_page
def test_files_that_commands_name_exist(page: Path) -> None:
    for block in pages.blocks_of(page):
        if block.language == "console":
            for name in re.findall(r"\b(?:examples|benchmarks|docs|tests)/[\w./]+", block.text):
                assert (pages.ROOT / name).exists(), name


def _said_of(page: Path) -> set[tuple[str, str]]:
    """Return what a page says that our objects have: ``engine.start`` and the like."""
    said = re.findall(r"\b(durable|[eE]ngine|run|step)\.([a-z]\w*)", pages.read(page))
    return set(said) - {("durable", "db")}
