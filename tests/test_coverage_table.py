"""The table of what is shown by which tests is about tests that are there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent
TABLE = (TESTS / "COVERAGE.md").read_text("utf-8")
ROWS = [
    line.strip("| ").split(" | ")
    for line in TABLE.splitlines()
    if line.startswith("| ") and not line.endswith("| shown by |")
]
TEST = re.compile(r"`(\w+\.py)::(test_\w+)(?:\[(\w+)\])?`")


@cache
def functions_in(file: Path) -> frozenset[str]:
    """Return the names of what a module defines."""
    return frozenset(
        node.name
        for node in ast.parse(file.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def test_each_behaviour_is_shown_by_tests_that_exist() -> None:
    corpus = frozenset[str]().union(*map(functions_in, (TESTS / "corpus").glob("*.py")))
    for *what, tests in ROWS:
        assert TEST.sub("", tests).strip(", ") == "", what
        assert TEST.search(tests), what
        for file, test, case in TEST.findall(tests):
            assert (TESTS / file).is_file(), file
            assert test in functions_in(TESTS / file), f"{file}::{test}"
            assert not case or case in corpus, case


def test_each_way_in_which_engines_break_has_a_row() -> None:
    numbers = [int(row[0]) for row in ROWS if row[0].isdecimal()]
    assert numbers == list(range(1, 41))
