"""``python -m tests.simulation``: plays seeds, or looks for the planted bugs."""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).parents[1]
if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))

from simulation.driver import Outcome, kept_seeds, simulate  # noqa: E402
from simulation.planted import hunt_all  # noqa: E402

CHUNK: Final = 20
LINES_SHOWN: Final = 60
"""How much is shown of what led to a failure; ``--seed`` shows all."""
FAILED_SHOWN: Final = 20
"""How many seeds are named that failed."""


def main() -> int:
    options = _parse()
    gc.freeze()
    gc.disable()  # A seed collects its own garbage.
    if options.planted:
        return _show_planted(options.seeds, options.jobs)
    if options.seed is not None:
        outcome = simulate(options.seed)
        print(outcome.story, *outcome.trace, _describe(outcome), sep="\n")  # noqa: T201
        return bool(outcome.violations)
    if options.until_found:
        return _find_first(range(options.start, options.start + options.seeds))
    seeds = [*kept_seeds(), *range(options.start, options.start + options.seeds)]
    return _play_all(seeds, options.jobs)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2_000, help="how many are played")
    parser.add_argument("--from", dest="start", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="play this one, and show what happens")
    parser.add_argument("--planted", action="store_true", help="look for the planted bugs")
    parser.add_argument("--until-found", action="store_true", help="print the first that fails")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


def _describe(outcome: Outcome) -> str:
    what = "; ".join(outcome.violations) or "nothing is wrong"
    return f"seed {outcome.seed}, {outcome.commits} commits, trace {outcome.digest}: {what}"


def _play_all(seeds: list[int], jobs: int) -> int:
    began_s, count, commits = time.monotonic(), 0, 0
    failed: list[Outcome] = []
    for outcome in _play(seeds, jobs):
        count += 1
        commits += outcome.commits
        if outcome.violations:
            failed.append(outcome)
            latest = outcome.trace[-LINES_SHOWN:]
            print(outcome.story, *latest, _describe(outcome), "", sep="\n", flush=True)  # noqa: T201
        if sys.stderr.isatty() and not count % CHUNK:
            print(f"\r{count} of {len(seeds)}", end="", file=sys.stderr)  # noqa: T201
    took_s = time.monotonic() - began_s
    print(f"{count} seeds, {commits} commits, {took_s:.0f} s: {len(failed)} failed")  # noqa: T201
    if failed:
        again = ", ".join(str(outcome.seed) for outcome in failed[:FAILED_SHOWN])
        print(f"again: --seed N, of {again}. Keep them in tests/simulation/seeds.txt.")  # noqa: T201
    return bool(failed)


def _play(seeds: list[int], jobs: int) -> Iterator[Outcome]:
    if jobs == 1:
        yield from map(simulate, seeds)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(simulate, seeds, chunksize=CHUNK)


def _find_first(seeds: range) -> int:
    for outcome in map(simulate, seeds):
        if outcome.violations:
            print(json.dumps([outcome.seed, outcome.broken]))  # noqa: T201
            return 1
    print(json.dumps([None, ""]))  # noqa: T201
    return 0


def _show_planted(seeds: int, jobs: int) -> int:
    missed = 0
    print(f"{'planted bug':60} {'seeds':>6}  broken")  # noqa: T201
    for found in hunt_all(seeds, jobs):
        missed += found.seeds is None
        print(f"{found.bug.name:60} {found.seeds or 'missed':>6}  {found.broken}", flush=True)  # noqa: T201
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
