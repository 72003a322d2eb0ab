"""What is reported: one result for each bar, as a row of a table or as an object a line."""

from __future__ import annotations

import json
import operator
import sys
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Final, Literal, final

if TYPE_CHECKING:
    from collections.abc import Sequence

Relation = Literal["<=", ">="]

HOLDS: Final = {"<=": operator.le, ">=": operator.ge}
# Below a thousand, three digits say all that such a measurement knows.
GROUPED_FROM: Final = 1_000
COLUMNS: Final = (
    ("workload", 12),
    ("median", 20),
    ("min .. max", 20),
    ("the machine gives", 22),
    ("ratio", 8),
    ("bar", 18),
    ("", 4),
)


@final
@dataclass(frozen=True, slots=True)
class Bar:
    """The limit that the median, or its ratio to the baseline, has to keep."""

    of: Literal["value", "ratio"]
    relation: Relation
    limit: float

    def __str__(self) -> str:
        """Read as a condition."""
        return f"{self.of} {self.relation} {_number(self.limit)}"


@final
@dataclass(frozen=True, slots=True)
class Baseline:
    """What the machine gave in the same rounds."""

    samples: Sequence[float]
    unit: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The samples of one figure, one a round, and the bar that it is held to.

    Attributes:
        workload: The workload's name, with the figure's after a dot where it has several.
        baseline: ``None`` for what no machine can be asked, as a number of commits.
    """

    workload: str
    samples: Sequence[float]
    unit: str
    bar: Bar
    baseline: Baseline | None = None

    @property
    def value(self) -> float:
        """The median of the rounds."""
        return median(self.samples)

    @property
    def ratio(self) -> float | None:
        """The median over the baseline's median."""
        return None if self.baseline is None else self.value / median(self.baseline.samples)

    @property
    def ok(self) -> bool:
        """Whether the bar holds."""
        judged = self.value if self.bar.of == "value" else self.ratio
        assert judged is not None, f"{self.workload} has a bar on the ratio and no baseline"
        return bool(HOLDS[self.bar.relation](judged, self.bar.limit))


def as_json(result: Result) -> str:
    """Give the result as one line of JSON."""
    return json.dumps(
        {
            "workload": result.workload,
            "value": result.value,
            "unit": result.unit,
            "baseline": None if result.baseline is None else median(result.baseline.samples),
            "ratio": result.ratio,
            "bar": result.bar.limit,
            "ok": result.ok,
        }
    )


def as_row(result: Result) -> str:
    """Give the result as a row under ``header()``."""
    baseline = result.baseline
    given = "" if baseline is None else f"{_number(median(baseline.samples))} {baseline.unit}"
    return _align(
        result.workload,
        f"{_number(result.value)} {result.unit}",
        f"{_number(min(result.samples))} .. {_number(max(result.samples))}",
        given,
        "" if result.ratio is None else _number(result.ratio),
        str(result.bar),
        "ok" if result.ok else "MISS",
    )


def header() -> str:
    """Give the names of the table's columns."""
    return _align(*(name for name, _ in COLUMNS))


@final
class Progress:
    """One line on standard error that says what is being measured; only on a terminal."""

    def __init__(self) -> None:
        """Look once whether somebody watches."""
        self._watched = sys.stderr.isatty()

    def show(self, text: str) -> None:
        """Replace the line."""
        if self._watched:
            # Erases the line, so that a shorter text leaves nothing of a longer one behind.
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()

    def clear(self) -> None:
        """Leave the line empty for what is printed next."""
        self.show("")


def _align(*cells: str) -> str:
    padded = (cell.ljust(width) for cell, (_, width) in zip(cells, COLUMNS, strict=True))
    return "  ".join(padded).rstrip()


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= GROUPED_FROM else f"{value:.3g}"
