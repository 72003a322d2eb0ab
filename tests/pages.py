"""The pages of the documentation, as their readers take them: blocks, outputs, links, headings.

How a page's blocks are meant:

- A page that says "one program" of its ``python`` blocks is one, in order, with ``await`` at the
  top level. On other pages each block is a program of its own.
- A block that begins with ``# name.py`` is the file of that name. It is run as a script where it
  stands, unless a command of the page does so; one that is called ``test_*.py`` is given to pytest.
- A ``text`` block right after it is what a block prints; ``...`` stands for anything.
- In a ``console`` block commands of ``sqlite3``, and of ``python`` with a file of the page or with
  ``-m durable``, are run, and print what stands below them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

QUOTED = '@durable.workflow(name="onboarding")'
"""How the block begins that is quoted from an example, with which another test compares it."""

_BLOCK = re.compile(r"^```(?P<language>[a-z]+)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"# (\w+\.py)\n")
_PROGRAM = re.compile(r"\bone program\b")


@dataclass(frozen=True)
class Block:
    """A block of a page.

    Attributes:
        line: Where its text begins, from 1.
        output: What it prints, if the page says so.
        file: The name of the file that it is.
    """

    language: str
    text: str
    line: int
    output: str | None = None

    @property
    def file(self) -> str | None:
        found = _FILE.match(self.text) if self.language == "python" else None
        return None if found is None else found[1]


def read(page: Path) -> str:
    return page.read_text("utf-8")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def is_one_program(page: Path) -> bool:
    return _PROGRAM.search(" ".join(prose_of(page).split())) is not None


def prose_of(page: Path) -> str:
    """Return a page without its blocks."""
    return _BLOCK.sub("", read(page))


def blocks_of(page: Path) -> list[Block]:
    """Return a page's blocks that something can be done with."""
    text = read(page)
    found = list(_BLOCK.finditer(text))
    blocks: list[Block] = []
    for match, after in zip_longest(found, found[1:]):
        output = None
        if after is not None and after["language"] == "text":
            is_next = not text[match.end() : after.start()].strip()
            output = after["text"] if is_next else None
        if match["text"].startswith(QUOTED):
            continue
        line = text.count("\n", 0, match.start("text")) + 1
        blocks.append(Block(match["language"], match["text"], line, output))
    return blocks


def sessions_of(block: Block) -> list[tuple[str, str]]:
    """Return the commands of a console block, each with what it prints."""
    sessions: list[tuple[str, str]] = []
    for line in block.text.splitlines(keepends=True):
        if line.startswith("$ "):
            sessions.append((line[2:].strip(), ""))
        elif sessions:
            command, output = sessions[-1]
            sessions[-1] = (command, output + line)
    return sessions


def is_as_shown(shown: str, printed: str) -> bool:
    """Return whether that was printed; ``...`` in what is shown stands for anything."""
    parts = [re.escape(part) for part in shown.strip().split("...")]
    return re.fullmatch(".*".join(parts), printed.strip(), re.DOTALL) is not None


def links_of(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose_of(page))


def anchors_of(page: Path) -> set[str]:
    """Return what GitHub names a page's headings in links."""
    headings = re.findall(r"^#+ (.+)$", prose_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
