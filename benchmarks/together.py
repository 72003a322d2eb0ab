"""W8 and W10 to W12: events, mutations, children, watchers."""

from __future__ import annotations

import asyncio
from statistics import median, quantiles
from time import perf_counter
from typing import TYPE_CHECKING, Final

from benchmarks import processes
from benchmarks.bench import CALLERS, MS, call_concurrently, expect, timed
from benchmarks.report import Bar, Baseline, Result
from benchmarks.workflows import RECEIVED, add_up, family, receive, sequence, until_waiting
from durable import Engine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.bench import Bench

EVENTS: Final = 100
MUTATION_RUNS: Final = 2_000
MUTATIONS: Final = 3
ACTION_STEPS: Final = 5
CHILDREN: Final = 1_000
WATCHERS: Final = 1_000
WATCHED_STEPS: Final = 20


async def measure_events(bench: Bench) -> Sequence[Result]:
    """W8: from the sending of an event to the body that goes on, one after another."""
    medians_ms: list[float] = []
    async with bench.engine() as engine:
        await _send_all(engine, EVENTS)  # Warms up.
        for _ in bench.rounds("W8", full=11, quick=5):
            waits_s = await _send_all(engine, EVENTS)
            medians_ms.append(median(waits_s) * MS)
    return (Result(workload="W8", samples=medians_ms, unit="ms", bar=Bar("value", "<=", 1.5)),)


async def measure_events_of_others(bench: Bench) -> Sequence[Result]:
    """W8: from the sending of an event by another process; of a hundred the last but one."""
    slow_ms: list[float] = []
    with bench.journal() as journal:
        async with Engine(journal) as engine:
            for number in bench.rounds("W8.client", full=3, quick=1):
                RECEIVED.clear()
                run = await engine.start(receive(EVENTS), id=f"receiver-{number}")
                sent_at = await processes.ask("send", journal, number, EVENTS)
                expect(await run.result(), EVENTS, "the number of events")
                waits_s = [RECEIVED[n] - sent_at[str(n)] for n in range(EVENTS)]
                slow_ms.append(quantiles(waits_s, n=100)[98] * MS)
    bar = Bar("value", "<=", 120)
    return (Result(workload="W8.client", samples=slow_ms, unit="ms, p99", bar=bar),)


async def _send_all(engine: Engine, count: int) -> list[float]:
    RECEIVED.clear()
    run = await engine.start(receive(count))
    waits: list[float] = []
    for number in range(count):
        await until_waiting(run, number)
        began = perf_counter()
        await run.send_event("number", number)
        while len(RECEIVED) <= number:  # noqa: ASYNC110  the body notes when it goes on
            await asyncio.sleep(0)
        waits.append(RECEIVED[number] - began)
    expect(await run.result(), count, "the number of events")
    return waits


async def measure_mutations(bench: Bench) -> Sequence[Result]:
    """W10: 2,000 runs of 3 mutations, 200 in flight, beside as many runs of 5 actions."""
    steps_per_s: list[float] = []
    actions_per_s: list[float] = []

    async def run_mutations() -> None:
        await call_concurrently(MUTATION_RUNS, lambda _: engine.run(add_up(MUTATIONS)))

    async def run_actions() -> None:
        await call_concurrently(MUTATION_RUNS, lambda _: engine.run(sequence(ACTION_STEPS)))

    async with bench.engine(CALLERS) as engine:
        async with engine.transaction() as tx:
            await tx.execute("CREATE TABLE total (amount INTEGER)")
        await run_mutations()  # Warms up.
        for _ in bench.rounds("W10", full=5, quick=3):
            actions_per_s.append(MUTATION_RUNS * ACTION_STEPS / await timed(run_actions()))
            steps_per_s.append(MUTATION_RUNS * MUTATIONS / await timed(run_mutations()))
    return (
        Result(
            workload="W10",
            samples=steps_per_s,
            unit="steps/s",
            bar=Bar("ratio", ">=", 0.5),
            baseline=Baseline(actions_per_s, "actions/s"),
        ),
    )


async def measure_children(bench: Bench) -> Sequence[Result]:
    """W11: one run with 1,000 children."""
    run_s: list[float] = []
    async with bench.engine(CALLERS) as engine:
        await engine.run(family(CHILDREN))  # Warms up.
        for _ in bench.rounds("W11", full=7, quick=3):
            seconds = await timed(engine.run(family(CHILDREN)))
            run_s.append(seconds)
    return (Result(workload="W11", samples=run_s, unit="s", bar=Bar("value", "<=", 0.5)),)


async def measure_watchers(bench: Bench) -> Sequence[Result]:
    """W12: a run of 20 steps that 1,000 watch, over the same run without them."""
    watched_s: list[float] = []
    alone_s: list[float] = []
    async with bench.engine() as engine:
        for _ in bench.rounds("W12", full=7, quick=3):
            alone_s.append(await timed(engine.run(sequence(WATCHED_STEPS))))
            watched_s.append(await timed(_watch(engine)))
    return (
        Result(
            workload="W12",
            samples=watched_s,
            unit="s",
            bar=Bar("value", "<=", 1.0),
            baseline=Baseline(alone_s, "s alone"),
        ),
    )


async def _watch(engine: Engine) -> None:
    run = await engine.start(sequence(WATCHED_STEPS))

    async def watch() -> bool:
        return [status async for status in run.watch()][-1].state.is_final

    async with asyncio.TaskGroup() as tasks:
        watchers = [tasks.create_task(watch()) for _ in range(WATCHERS)]
    expect(all(watcher.result() for watcher in watchers), expected=True, what="the last status")
