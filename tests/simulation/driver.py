"""One seed: what is done and what goes wrong is decided first, then played, then judged.

When all is done the faults end, what runs wait for is sent to them, and then every run has to end.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import sqlite3
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Final, final

from durable.journal.schema import make_tables
from simulation import program, rules
from simulation.callers import Callers
from simulation.disk import Disk
from simulation.ending import check_end
from simulation.fleet import Ask, Fleet
from simulation.loop import Machine, stream
from simulation.maker import Maker
from simulation.oracle import Oracle
from simulation.program import EVENT_NAMES, Node

HORIZON_S: Final = 40.0
"""How long callers ask, and things fail."""
ROUND_S: Final = 60.0
"""How long runs are given to end, each time that they were sent what they wait for."""
ROUNDS_MAX: Final = 240
RUNS_MAX: Final = 4

LOOK_S: Final = 5.0
"""How often it is looked whether waits get what is there for them."""
SEEDS_PER_COLLECTION: Final = 8

FAULTS: Final = (
    "outage", "outage", "trickle", "trickle", "slow", "slow", "kill", "killing", "killing",
    "jump", "freeze", "rob", "close", "pause",
)  # fmt: skip
CLOSE_S: Final = (0.0, 0.0, 0.0005, 0.9975, 0.9975, 0.9975)
"""How long after a wait has begun something is sent to it: at once, or when its run leaves."""


@dataclass
class Outcome:
    """What came of a seed.

    Attributes:
        violations: What must not be, and was; the first one counts.
        digest: Of the trace: the same for the same seed and code.
        story: What was decided before anything ran.
        trace: What happened.
    """

    seed: int
    violations: list[str]
    digest: str
    story: str
    trace: list[str]
    commits: int

    @property
    def broken(self) -> str:
        """The invariant that broke first."""
        return self.violations[0].partition(":")[0] if self.violations else ""


@final
class Driver:
    """What happens in one seed, and when."""

    def __init__(self, seed: int, path: Path) -> None:
        name = str(seed)
        self.seed = seed
        self.random = stream(name, "driver")
        self.machine = Machine(name)
        self.disk = Disk(self.machine, path, name)
        self.oracle = Oracle(self.disk)
        self.fleet = Fleet(self.disk, self.oracle, name)
        self.callers = Callers(self.oracle, name)
        self.programs: dict[str, Node] = {}
        self.plan: list[tuple[float, str, Callable[[], None]]] = []
        self.slices_s = self.random.choice((-1.0, float("inf")))
        self.faults_count = self.random.choice((0, 1, 2, 3, 4, 6))
        self._asked_ids: set[str] = set()
        self.oracle.on_wait = self._send_closely
        maker = Maker(name)
        for number in range(self.random.randint(1, RUNS_MAX)):
            self.programs[f"run{number}"] = maker.make()
        self._make_plan()

    # --- the plan --------------------------------------------------------------------------------

    def _add(self, at_s: float, what: str, act: Callable[[], None]) -> None:
        self.plan.append((at_s, what, act))

    def _make_plan(self) -> None:
        draw, add = self.random, self._add
        add(0, "begin", self.fleet.begin)
        for run_id in self.programs:
            self._plan_run(run_id, draw.choice((0.0, draw.uniform(0, 10))))
        if draw.random() < 0.3:
            is_worker = draw.random() < 0.6
            add(draw.uniform(0, 15), "another", partial(self.fleet.begin, is_worker=is_worker))
        for _ in range(self.faults_count):
            fault = draw.choice(FAULTS)
            getattr(self, f"_plan_{fault}")(draw.expovariate(1 / 5))
        self.plan.sort(key=lambda planned: planned[0])

    def _plan_run(self, run_id: str, at_s: float) -> None:
        draw, callers = self.random, self.callers

        def ask(delay_s: float, what: str, asked: Ask) -> None:
            self._add(
                at_s + delay_s,
                f"{what} {run_id}",
                partial(self.fleet.ask, f"{what} {run_id}", asked),
            )

        if draw.random() < 0.1:
            ask(0, "start and undo", callers.start_and_undo(f"{run_id}u", self.programs[run_id]))
        ask(0, "start", callers.start(run_id, self.programs[run_id]))
        ask(draw.choice((0.01, 9.0)), "see the end of", callers.see_end(run_id))
        for _ in range(draw.randint(0, 5)):
            name = draw.choice(EVENT_NAMES)
            ask(draw.expovariate(1 / 5), f"send {name} to", callers.send(run_id, name))
        if draw.random() < 0.35:
            for _ in range(draw.choice((1, 1, 2))):
                cancel = callers.cancel(run_id, interrupt=draw.random() < 0.3)
                ask(draw.expovariate(1 / 3), "cancel", cancel)
        if draw.random() < 0.35:
            for _ in range(draw.choice((1, 1, 2))):
                ask(draw.uniform(1, 30), "restart", callers.restart(run_id))
        if draw.random() < 0.25:
            force = draw.random() < 0.5
            ask(draw.uniform(0, 30), "remove", callers.remove(run_id, force=force))
            ask(draw.uniform(0, 20), "remove a child of", callers.remove_child(run_id))
        if draw.random() < 0.3:
            ask(draw.uniform(0, 20), "look at", callers.look(run_id))

    def _send_closely(self, step: rules.StepRow) -> None:
        """A run has begun to wait: send to it at a time at which much can go wrong."""
        draw, now_s = self.random, self.machine.now_s
        if now_s < HORIZON_S and draw.random() < 0.3:
            delay_s = draw.choice(CLOSE_S)
            if step.due_at_ms is not None and draw.random() < 0.5:
                delay_s = max(step.due_at_ms / 1000 - self.machine.wall_ns() / 1e9, 0)
            delay_s += draw.choice((0, draw.uniform(0, 0.004), draw.uniform(0, 0.3)))
            what = f"send {step.name} to {step.run_id}"
            asked = self.callers.send(step.run_id, step.name)
            self.fleet.after(min(delay_s, HORIZON_S), partial(self.fleet.ask, what, asked))

    # --- faults ----------------------------------------------------------------------------------

    def _plan_rates(self, at_s: float, for_s: float, **rates: float) -> None:
        faults = self.disk.faults

        def set_rates() -> None:
            for name, rate in rates.items():
                setattr(faults, name, rate)

        self._add(at_s, f"faults {rates}", set_rates)
        self._add(at_s + for_s, "no faults", faults.stop)

    def _plan_outage(self, at_s: float) -> None:
        lost, kept, broken = (self.random.choice((0.0, 0.3)) for _ in range(3))
        for_s = self.random.uniform(0.05, 3)
        self._plan_rates(at_s, for_s, lost=lost, kept=kept, broken=broken)

    def _plan_trickle(self, at_s: float) -> None:
        self._plan_rates(at_s, 20, lost=0.03, kept=0.03, broken=0.005)

    def _plan_slow(self, at_s: float) -> None:
        self._add(at_s, "slow", partial(setattr, self.machine, "is_slow", True))  # noqa: FBT003
        for_s = self.random.uniform(1, 10)
        self._add(at_s + for_s, "fast", partial(setattr, self.machine, "is_slow", False))  # noqa: FBT003

    def _plan_kill(self, at_s: float) -> None:
        def kill() -> None:
            if self.fleet.owner is not None:
                self.fleet.owner.process.kill()

        self._add(at_s, "kill", kill)

    def _plan_killing(self, at_s: float) -> None:
        rate = self.random.choice((0.02, 0.1))
        self._plan_rates(at_s, 15, kill_before=rate, kill_after=rate)

    def _plan_jump(self, at_s: float) -> None:
        by_s = self.random.choice((-3600, -20, -1.5, 1.5, 20, 3600))

        def jump() -> None:
            self.machine.wall_ahead_ns += round(by_s * 1e9)

        self._add(at_s, f"the clock jumps by {by_s} s", jump)

    def _plan_freeze(self, at_s: float) -> None:
        for_s = self.random.choice((0.5, 5.0, 15.0))

        def freeze() -> None:
            if self.fleet.owner is not None:
                self.fleet.owner.process.frozen_until_s = self.machine.now_s + for_s

        self._add(at_s, f"freeze for {for_s} s", freeze)

    def _plan_rob(self, at_s: float) -> None:
        def rob() -> None:
            self.disk.steal()
            self.fleet.see_to_workers()

        if self.random.random() < 0.5:
            self._plan_freeze(at_s)
        self._add(at_s, "rob", rob)

    def _plan_close(self, at_s: float) -> None:
        def close() -> None:
            if self.fleet.owner is not None:
                self.fleet.owner.stop()

        self._add(at_s, "close", close)

    def _plan_pause(self, at_s: float) -> None:
        count = self.random.choice((0, 0, 1, 5))
        self._add(at_s, f"max_parallelism {count}", partial(self._set_parallelism, count))
        for_s = self.random.uniform(0.5, 8)
        back = self.fleet.parallelism
        self._add(at_s + for_s, f"max_parallelism {back}", partial(self._set_parallelism, back))

    def _set_parallelism(self, count: int) -> None:
        owner = self.fleet.owner
        if owner is not None:
            owner.parallelism_max = max(owner.parallelism_max, count)
            owner.process.wake(partial(owner.engine.set_max_parallelism, count))

    # --- playing ---------------------------------------------------------------------------------

    def play(self) -> None:
        """Let all of it happen, and come to its end."""
        for at_s, what, act in self.plan:
            self.machine.at(at_s, partial(self._do, what, act))
        self._look_at_waits(set())
        self.machine.run(lambda: False, HORIZON_S)
        self.disk.faults.stop()
        self.machine.is_slow = False
        for _ in range(ROUNDS_MAX):
            if self.machine.violations:
                return
            self._send_what_is_awaited()
            self._set_parallelism(self.fleet.parallelism)
            self.machine.run(self._is_over, self.machine.now_s + ROUND_S)
            if self._is_over():
                break
        self.machine.run(lambda: False, self.machine.now_s + 2)
        check_end(self)

    def _do(self, what: str, act: Callable[[], None]) -> None:
        self.machine.note("-", what)
        act()

    def _look_at_waits(self, before: set[tuple[tuple[str, int], str]]) -> None:
        """While nothing goes wrong and there is room, what is there for a wait is handed to it."""
        available = self.oracle.rows.available()
        is_calm = not self.faults_count or self.machine.now_s > HORIZON_S + LOOK_S
        if is_calm and not self.fleet.is_crowded:
            for wait, event in sorted(before & available):
                self.oracle.fail(f"I6: {event} is there, and {wait} does not get it")
        self.fleet.after(LOOK_S, partial(self._look_at_waits, available))

    def _is_over(self) -> bool:
        # What was asked of a frozen process, such as a restart, is still to come.
        is_answered = not any(host.asked for host in self.fleet.hosts)
        return is_answered and all(run.is_final for run in self.oracle.rows.runs.values())

    def _send_what_is_awaited(self) -> None:
        for step in list(self.oracle.rows.steps.values()):
            if step.kind == "event" and not step.is_final and step.event_id is None:
                what = f"send {step.name} to {step.run_id}"
                self.fleet.ask(what, self.callers.send(step.run_id, step.name))
        for event_id in self.oracle.made_ids:
            if event_id not in self._asked_ids:
                self._asked_ids.add(event_id)
                self.fleet.ask(f"send {event_id}", self.callers.send_id(event_id))

    def outcome(self) -> Outcome:
        """Return what came of it."""
        machine = self.machine
        return Outcome(
            seed=self.seed,
            violations=machine.violations,
            digest=hashlib.sha256("\n".join(machine.trace).encode()).hexdigest()[:16],
            story=self._story(),
            trace=machine.trace,
            commits=self.oracle.commits_count,
        )

    def _story(self) -> str:
        """Return what people need to understand what happened."""
        plan = "\n".join(f"{at_s:10.4f} {what}" for at_s, what, _ in self.plan)
        programs = "\n".join(f"{run_id}: {json.dumps(n)}" for run_id, n in self.programs.items())
        return f"{self.fleet} slices={self.slices_s}\n{programs}\n\nplanned:\n{plan}\n"


# --- from outside --------------------------------------------------------------------------------


@cache
def _blank() -> bytes:
    """Return a file with the tables of the journal, and the program's."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "blank.db")
        db = sqlite3.connect(path, isolation_level=None)
        make_tables(db)
        db.executescript(rules.TABLES)
        db.execute("PRAGMA journal_mode = WAL")
        db.close()
        return path.read_bytes()


@contextmanager
def _quiet(seed: int) -> Iterator[None]:
    """Say nothing of what is simulated, nor of what dead processes leave behind."""
    before, hook, is_collecting = logging.root.manager.disable, sys.unraisablehook, gc.isenabled()
    logging.disable(logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
            # What is left is freed here, where nobody hears of it; seldom, if nobody else frees it.
            if is_collecting or seed % SEEDS_PER_COLLECTION == 0:
                gc.collect()
    finally:
        sys.unraisablehook = hook
        logging.disable(before)
        if is_collecting:
            gc.enable()


def kept_seeds() -> list[int]:
    """Return the seeds that have failed once."""
    lines = Path(__file__).with_name("seeds.txt").read_text().splitlines()
    return [int(text) for line in lines if (text := line.partition("#")[0].strip())]


def simulate(seed: int) -> Outcome:
    """Play one seed."""
    memory = Path("/dev/shm")  # noqa: S108  in memory, where there is such a place
    root = memory if memory.is_dir() else None
    with tempfile.TemporaryDirectory(dir=root) as directory, _quiet(seed):
        path = Path(directory, "journal.db")
        path.write_bytes(_blank())
        driver = Driver(seed, path)
        program.stage.witness = driver.oracle
        try:
            with driver.disk.mounted(slices=driver.slices_s):
                try:
                    driver.play()
                finally:
                    driver.machine.close()
        finally:
            driver.oracle.close()
        outcome = driver.outcome()
        del driver
    return outcome
