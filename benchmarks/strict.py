"""W13: what a strict engine's audit hook costs code that is no body."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from benchmarks.foreign import EVENTS
from benchmarks.processes import run_python
from benchmarks.report import Bar, Baseline, Result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.bench import Bench

CHUNKS: Final = 60
PAIRS: Final = 31
QUICK_PAIRS: Final = 15
NS: Final = 1_000
PERCENT: Final = 100

Figures = dict[str, dict[str, list[float]]]


async def measure_strict(bench: Bench) -> Sequence[Result]:
    """W13: the mix of a web service's request, and a single audit event."""
    bench.progress.show("W13")
    pairs = QUICK_PAIRS if bench.quick else PAIRS
    printed = await run_python("-m", "benchmarks.foreign", str(CHUNKS), str(pairs))
    figures = msgspec.json.decode(printed, type=Figures)
    mix, event = figures["mix"], figures["event"]
    return (
        Result(
            workload="W13.mix",
            # Each with the one beside it: a machine is now faster and now slower.
            samples=[
                (strict / without - 1) * PERCENT
                for strict, without in zip(mix["strict"], mix["without"], strict=True)
            ],
            unit="% more",
            bar=Bar("value", "<=", 1),
        ),
        Result(
            workload="W13.event",
            samples=_added_ns(event["strict"], event["without"]),
            unit="ns",
            bar=Bar("value", "<=", 500),
            baseline=Baseline(_added_ns(event["empty"], event["without"]), "ns, empty hook"),
        ),
    )


def _added_ns(with_hook_us: Sequence[float], without_us: Sequence[float]) -> Sequence[float]:
    pairs = zip(with_hook_us, without_us, strict=True)
    return [(with_hook - without) * NS / EVENTS for with_hook, without in pairs]
