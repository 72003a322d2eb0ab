"""The list of modules in the design is that of the files. Who may import whom is linted."""

import re
from itertools import takewhile
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODULE = re.compile(r"\w+\.(py|sql)")


def listed(design: str) -> set[str]:
    """Return the paths in the tree that begins with ``durable/``: names come before words."""
    tree = design.split("```\ndurable/\n", 1)[1].split("```", 1)[0]
    folder, paths = "", set[str]()
    for words in map(str.split, tree.splitlines()):
        if words[0].endswith("/"):
            folder = words[0]
        paths |= {folder + name for name in takewhile(MODULE.fullmatch, words)}
    return paths


def test_the_design_lists_every_module() -> None:
    package = ROOT / "durable"
    files = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*")
        if MODULE.fullmatch(path.name)
    }
    assert listed((ROOT / "docs/design.md").read_text("utf-8")) == files
