"""What calls and operators give is known, where that cannot be used in a body: paths, sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from looked_at import App

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def app(tmp_path: Path) -> App:
    return App(tmp_path)


# --- paths ---------------------------------------------------------------------------------------

PATHS = "import os\nfrom pathlib import Path, PurePath\nBASE = Path('base')\n"


@pytest.mark.parametrize(
    "path",
    [
        "(Path('a') / 'b')",
        "(Path('a') / 'b' / str(xs) / 'd')",
        "((Path('a') / 'b') / 'c')",
        "('a' / Path('b'))",
        "(BASE / 'b')",
        "(BASE / str(xs))",
        "('a' / BASE)",
        "(step.run_id / BASE)",
        "Path('a').joinpath('b')",
        "Path('a').joinpath('b', 'c').with_suffix('.x')",
        "(BASE.parent / 'b').with_name('c')",
        "Path('a').parent.parent",
        "(Path('a') / xs[0]).parent.joinpath('c')",
        "(Path('a') / (PurePath('b') / 'c'))",
        "(\n        Path('a')\n        / 'b'\n    )",
    ],
)
def test_a_path_that_is_made_of_another_is_known(app: App, path: str) -> None:
    for method in ("read_text", "open", "exists"):
        found = app.body(f"return {path}.{method}()", top=PATHS)
        assert [each.split(":")[0] for each in found] == [f"Path.{method}()"]


def test_a_path_that_has_a_name_is_known(app: App) -> None:
    lines = ["here = Path('a') / 'b'", "there = here.joinpath('c')", "there.read_bytes()"]
    assert app.body(*lines, top=PATHS) == ["Path.read_bytes():3"]
    lines = ["here = BASE / 'b'", "def inner(): return here.open()", "return inner()"]
    assert app.body(*lines, top=PATHS) == ["Path.open():2"]


@pytest.mark.parametrize(
    "line",
    [
        "return str(Path('a') / 'b')",
        "return (Path('a') / 'b').name, Path('a').parent.suffix",
        "return (PurePath('a') / 'b').joinpath('c').name",
        "return Path('a').joinpath('b').as_posix().replace('a', 'b')",
        "return (len(Path('a').parts) / 2).as_integer_ratio()",
        "return (xs[0] / 2).stat()",
        "return (Path('a').name + 'b').open()",
        "return (step.load(Path('a')) / 2).open()",
        "return (step.load(Path('a')) / (1 / 2)).exists()",
        "path = Path('a')\n    path = step.other\n    path.open()",
        "return [part.upper() for part in (Path('a') / 'b').parts]",
        "return Path('a').relative_to('b').stem.replace('x', 'y')",
    ],
)
def test_what_is_no_path_and_what_does_nothing_with_files_is_no_finding(
    app: App, line: str
) -> None:
    assert app.body(line, top=PATHS) == []


# --- sets ----------------------------------------------------------------------------------------

SETS = """
import itertools
COLOURS = {'red', 'green'}
FROZEN = frozenset(COLOURS)
NAMES = ['red', 'green']
EMPTY = set()
SEPARATOR = ', '
"""


@pytest.mark.parametrize(
    "line",
    [
        "for x in set(xs).union([1]): pass",
        "for x in set(xs).intersection(step.run_id): pass",
        "for x in set().union(*xs): pass",
        "for x in set().union(xs): pass",
        "for x in set.union(set(xs), {1}): pass",
        "for x in {'a', *xs}.difference(xs).copy(): pass",
        "for x in {str(x) for x in xs}.union(xs): pass",
        "for x in (set(xs) | {1}).symmetric_difference(xs): pass",
        "for x in (set(xs)) - {1}: pass",
        "for x in ((set(xs) - {1}) | {2}): pass",
        "for x in EMPTY | set(xs): pass",
        "return list(set(xs).union(xs))",
        "return [x for x in set(xs).union(xs)]",
        "await asyncio.gather(*set(xs).union(xs))",
        "await asyncio.gather(step.sleep(1), *{step.sleep(2), step.sleep(3)})",
        "return [0, *{'a', step.run_id}]",
        "return (*{'a', step.run_id},)",
        "first, second = {'a', step.run_id}",
        "first, *rest = set(xs)",
        "for x in COLOURS: pass",
        "for x in FROZEN: pass",
        "return [x for x in COLOURS]",
        "return SEPARATOR.join(COLOURS)",
        "return SEPARATOR.join(COLOURS | {'blue'})",
        "for x in COLOURS.union(xs): pass",
        "return dict.fromkeys(set(xs))",
        "return list(zip(xs, set(xs)))",
        "return list(zip(set(xs), xs))",
        "return [x for x in itertools.chain(set(xs), xs)]",
        "return list(itertools.islice(COLOURS, 1))",
        # A dict is in the order that it is filled in, as a list is.
        "return {x: 1 for x in set(xs)}",
        "return {x: len(x) for x in COLOURS}",
        "for x in {x: 1 for x in set(xs)}: pass",
        "return list({x: 1 for x in COLOURS})",
        # Numbers in the same order, but in another one where they were filled in differently.
        "for x in {8, 0}: pass",
    ],
)
def test_the_order_of_a_set_is_found(app: App, line: str) -> None:
    assert app.body(line, top=SETS) == ["the order of a set:1"]


@pytest.mark.parametrize(
    "lines",
    [
        ["known = set(xs)", "for x in known: pass"],
        ["known = {step.run_id, 'a'}", "return ','.join(known)"],
        ["known = set(xs) - set(step.run_id)", "return list(known)"],
        ["known = {str(x) for x in xs}", "return [x for x in known]"],
        ["known = set(xs)", "more = known.union([1])", "return next(iter(more))"],
        ["known = set()", "return list(known.union(xs))"],
        ["known = frozenset(xs)", "def inner(): return list(known)", "return inner()"],
    ],
)
def test_the_order_of_a_set_that_has_a_name_is_found(app: App, lines: list[str]) -> None:
    assert [each.split(":")[0] for each in app.body(*lines)] == ["the order of a set"]


@pytest.mark.parametrize(
    "line",
    [
        "return sorted(set(xs)), len(set(xs)), min(set(xs)), max(COLOURS), any(set(xs))",
        "return sum({1, 2, *xs}), sum(x for x in set(xs)), sum(set(xs) | {1})",
        "return 1 in set(xs), 'red' in COLOURS, 'x' not in COLOURS | {'y'}",
        "return set(xs), frozenset(xs), {x for x in xs}, {1, *xs}, COLOURS | {'blue'}",
        "return set(xs) <= {1, 2}, set(xs).issubset(xs), COLOURS == FROZEN",
        "return {x for x in set(xs)}, set(x for x in COLOURS)",
        "return sorted(x for x in COLOURS), sorted(COLOURS, key=len)",
        "return sorted([*COLOURS]), sorted(list(COLOURS)), set([*COLOURS])",
        "return sorted({x: 1 for x in COLOURS}), len({x: 1 for x in COLOURS})",
        "return set(xs).union(x for x in COLOURS), set().union(*COLOURS)",
        "return max(*COLOURS), max('', *COLOURS)",
        "for x in sorted(set(xs).union([1])): pass",
        "for x in sorted(COLOURS): pass",
        "for x in xs if COLOURS else NAMES: pass",
        "return list(xs if set(xs) else NAMES)",
        "return list(xs if COLOURS else NAMES)",
        "for x in NAMES: pass",
        "for x in EMPTY: pass",
        "for x in {1} & set(xs): pass",
        "for x in xs - 1: pass",
        "return len(set(xs)) - 1, [x for x in range(len(COLOURS) | 1)]",
        "return list(range(len(COLOURS)))",
        "return [x for x in xs if x in COLOURS]",
        "return {x: x in COLOURS for x in xs}",
        "return list(x in COLOURS for x in xs), list(map(COLOURS.issuperset, [xs]))",
        "return dict(zip(xs, NAMES)), dict.fromkeys(xs), {**dict.fromkeys(NAMES)}",
        "seen = set()\n    for x in xs:\n        if x not in seen: seen.add(x)",
        "seen = set()\n    seen.update(xs)\n    seen.discard(1)\n    return len(seen)",
        "known = set(xs)\n    return [x for x in xs if x not in known]",
        "known = set(xs)\n    known = sorted(known)\n    for x in known: pass",
        "known = set(xs)\n    for x in sorted(known): pass",
        "known = {1: 'a', 2: 'b'}\n    for x in known: pass",
        "known = set(xs)\n    return known.pop() if len(known) == 1 else None",
        "known = set(xs)\n    (only,) = known\n    return only",
        "[only] = set(xs)",
        "return {(k, v) for k, v in xs.items()}",
        "return {k: {a + b for a, b in v.items()} for k, v in xs.items()}",
        "known = {k for k, v in xs.items()}\n    return [k for k, v in xs.items() if k in known]",
        "return {(a, b) for x in xs for a, b in x}, [a for a, b in xs if {a for c, a in b}]",
        "return {x: {y for y, _ in z} for x, z in xs}",
        "first, second = [{x for x in xs}, {y for y in xs}]",
        "first, second = NAMES",
        "return frozenset({'a', 'b'}), [*NAMES, *xs]",
        "tasks = {asyncio.create_task(step.sleep(1)) for x in xs}\n    await asyncio.wait(tasks)",
        # Tasks hash by the order of their making: so do sets of them iterate.
        "tasks = {asyncio.create_task(step.sleep(1)) for x in xs}\n    for t in tasks: t.cancel()",
        "some = [asyncio.ensure_future(xs)]\n    left = set(some)\n    for t in left: t.cancel()",
    ],
)
def test_what_does_not_depend_on_the_order_is_no_finding(app: App, line: str) -> None:
    assert app.body(line, top=SETS) == []
