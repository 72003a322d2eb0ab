"""What must hold, checked after each commit, at each beginning of a function, at each answer.

It reads the file on a connection of its own, so it sees what is committed and nothing else. What it
says begins with the name of an invariant: I1 start, I2 once, I3 owner, I4 final, I5 on_complete, I6
events, I7 timers, I8 cancel, I9 pool, I10 children, I11 atomic, I12 live, I13 divergence, I17 any
exception.

Rules:

- A run that was restarted begins a new *generation*: what is said of one step holds for each.
- Of an owner that has lost its lock without knowing, functions may begin that were committed
  before. It must not write anything.
"""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol, final

from rows import RunRow

import durable
from simulation import rules
from simulation.rules import CALLBACK, StepRow

if TYPE_CHECKING:
    from durable import Completion
    from simulation.disk import Disk
    from simulation.loop import Process

HEARD_S_MAX = 1.0
"""How much later a cancel counts that another process than the owner has asked for."""


BEHIND_MS_MAX = 5_000
"""How much a process's time may be behind, because the machine's clock was set back a little."""


class Begun(NamedTuple):
    """An execution of a function."""

    run_id: str
    key: str
    number: int
    interruptions: int
    generation: int
    process: Process


class Canceled(NamedTuple):
    """A cancel that was acknowledged.

    Attributes:
        from_s: From when on it counts.
        is_owners: Whether the owner has acknowledged it.
    """

    generation: int
    from_s: float
    is_owners: bool


class Hosting(Protocol):
    """A process with an engine.

    Attributes:
        parallelism_max: The most actions that it was ever allowed to run at once.
    """

    parallelism_max: int

    @property
    def epoch(self) -> int | None:
        """The fencing token that it writes with; a guest has none."""
        ...

    def now_ms(self) -> int:
        """Return its engine's time."""
        ...


@final
class Oracle:
    """Knows what was answered and what functions did, and compares.

    Attributes:
        rows: What is committed.
        restarts: How often each run was to be restarted, be it done or not.
        restart_from: From which step each run was to be restarted the last time.
        removals: The runs that were to be removed, be it done or not.
        child_removals: Children that were to be removed, which is for when their parents are over.
        made_ids: The events by id that runs wait for, or may.
        told: How often each run's end was told.
        on_wait: Is called when a wait for an event of some name has begun.
    """

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.machine = disk.machine
        self.hosts: dict[Process, Hosting] = {}
        self.rows = rules.Rows()
        self.restarts: Counter[str] = Counter()
        self.restart_from: dict[str, int | None] = {}
        self.removals: set[str] = set()
        self.child_removals: set[str] = set()
        self.made_ids: list[str] = []
        self.commits_count = 0
        self._db = sqlite3.connect(disk.path, isolation_level=None)
        self._begun: list[Begun] = []
        self._returned: set[int] = set()
        self._running: defaultdict[Process, set[int]] = defaultdict(set)
        self._times: dict[Process, tuple[float, int, int]] = {}
        self._starts_due: dict[str, int] = {}
        self._dues: dict[tuple[str, str], int] = {}
        self._canceled: dict[str, Canceled] = {}
        self.told: Counter[str] = Counter()
        self._ends: dict[tuple[str, int], object] = {}
        self.on_wait: Callable[[StepRow], None] = lambda _: None
        disk.on_commit = self.on_commit

    def close(self) -> None:
        self._db.close()

    def read_told(self) -> list[rules.ToldRow]:
        """Return what was written of ends."""
        return [rules.ToldRow._make(row) for row in self._db.execute(rules.TOLD)]

    def fail(self, what: str) -> None:
        self.machine.fail(what)

    def _report(self, found: Iterator[str], row: object) -> None:
        for what in found:
            self.fail(f"{what}: {row}")

    # --- commits ---------------------------------------------------------------------------------

    def on_commit(self, process: Process) -> None:
        """Compare what is committed now with what was before."""
        before, after = self.rows, rules.read(self._db)
        self.rows = after
        self.commits_count += 1
        host = self.hosts[process]
        now_ms = host.now_ms()
        self._check_time(process, now_ms)
        changed: dict[str, None] = {}
        for run_id, run in after.runs.items():
            old = before.runs.get(run_id)
            if old != run:
                changed[run_id] = None
                self.machine.note(process, f"run {short(run_id)} {run.state} g{run.generation}")
                self._report(rules.check_run(old, run), run)
                self._check_start_time(old, run, now_ms)
                self._check_turning(old, run)
        for step_id, step in after.steps.items():
            was = before.steps.get(step_id)
            if was != step:
                changed[step.run_id] = None
                self._check_changed(
                    was, step, now_ms, is_restart=after.is_restart(before, step_id[0])
                )
        self._check_events(before, after)
        self._check_gone(before, after)
        for run_id in changed:
            if run_id in after.runs:
                self._report(rules.check_whole(after.runs[run_id], after), after.runs[run_id])
        if changed and self._is_replaced(host):
            self.fail(f"I3: {process} is not the owner any more, and writes")

    def _check_time(self, process: Process, now_ms: int) -> None:
        """A process's time never goes back, and does not stand still."""
        since_s, since_ms, latest_ms = self._times.get(process, (self.machine.now_s, now_ms, 0))
        self._times[process] = since_s, since_ms, now_ms
        behind_ms = (self.machine.now_s - since_s) * 1000 - (now_ms - since_ms)
        if now_ms < latest_ms or behind_ms > BEHIND_MS_MAX:
            self.fail(f"I7: time in {process} was {latest_ms} and is {now_ms}, {behind_ms} late")

    def _check_events(self, before: rules.Rows, after: rules.Rows) -> None:
        for event_id, event in after.events.items():
            if before.events.get(event_id) != event:
                what = "there" if event.step_number is None else f"consumed by {event.step_number}"
                self.machine.note("", f"  event {event.value} of {short(event.run_id)} {what}")
        for fault in (*rules.check_events(before, after), *rules.check_entries(before, after)):
            self.fail(fault)

    def _is_replaced(self, host: Hosting) -> bool:
        """Whether it takes itself for the owner, and another one is."""
        return host.epoch not in (None, self.rows.epoch)

    def _check_start_time(self, old: RunRow | None, run: RunRow, now_ms: int) -> None:
        if run.generation:
            return
        if old is None:
            self._starts_due[run.run_id] = run.wake_at_ms or 0
        due_ms = self._starts_due[run.run_id]
        if run.epoch is not None and now_ms >= due_ms:
            # From now on it may begin, whoever works on it, by whatever clock.
            due_ms = self._starts_due[run.run_id] = 0
        if run.started_at_ms is None:
            if run.wake_at_ms not in (None, 0, due_ms) and due_ms and not run.is_final:
                self.fail(f"I7: the start is now due at another time than {due_ms}: {run}")
        elif old is not None and old.started_at_ms is None and run.started_at_ms < due_ms:
            self.fail(f"I7: it has begun before {due_ms}: {run}")
        has_begun = old is None or old.started_at_ms is None
        if has_begun and (run.started_at_ms or 0) > now_ms:
            self.fail(f"I7: it is {now_ms}, and it has begun later: {run}")

    def _check_turning(self, old: RunRow | None, run: RunRow) -> None:
        """What is owed a run's end is there with it; a restart drops what is not to be kept."""
        has_ended = run.is_final and old is not None and not old.is_final
        if has_ended and run.callback_id not in (None, *self.rows.runs):
            self.fail(f"I5: what is owed its end is not there: {run}")
        if old is not None and run.generation != old.generation:
            from_number = self.restart_from.get(run.run_id)
            left = [step.number for step in self.rows.steps_of(run.run_id)]
            is_sure = from_number is not None and self.restarts[run.run_id] == 1
            if is_sure and max(left, default=-1) >= (from_number or 0):
                self.fail(f"I4: restarted from {from_number}, with {left} left: {run}")

    def _check_changed(
        self, was: StepRow | None, step: StepRow, now_ms: int, *, is_restart: bool
    ) -> None:
        what = f"{step.kind} {step.state} a{step.attempts} i{step.interruptions}"
        delivered = "" if step.position is None else f" @{step.position}"
        who = f"{short(step.run_id)}/{step.number}"
        self.machine.note("", f"  {who} {step.label} {what}{delivered}")
        if was is None and step.kind == "event" and step.event_id is None:
            self.on_wait(step)
        if was is not None and not is_restart:
            self._report(rules.check_step(was, step), step)
        self._report(rules.check_attempts(step), step)
        place = step.run_id, step.key
        if step.state == "pending" and step.due_at_ms is not None:
            self._dues[place] = step.due_at_ms
        elif (due_ms := self._dues.pop(place, 0)) > now_ms and step.state == "running":
            self.fail(f"I7: it is {now_ms}, and it was due at {due_ms}: {step}")
        if not step.is_final or (was is not None and was.is_final):
            return
        is_late = step.kind == "event" and "TimeoutError" in (step.error or "")
        is_rung = step.kind == "sleep" and step.state == "completed"
        if (is_rung or is_late) and now_ms < (step.due_at_ms or 0):
            self.fail(f"I7: it is {now_ms}, and over before it is due: {step}")
        if step.kind == "action" and step.serial is not None:
            self._check_result(step, step.serial)

    def _check_result(self, step: StepRow, serial: int) -> None:
        begun = self._begun[serial]
        wanted = (step.run_id, step.key, step.attempts, step.interruptions)
        generation = self.rows.runs[step.run_id].generation
        if begun[:5] != (*wanted, generation) or serial not in self._returned:
            self.fail(f"I4: the outcome is that of another attempt, {begun}: {step}")

    def _check_gone(self, before: rules.Rows, after: rules.Rows) -> None:
        asked = self.removals | self.child_removals
        for run_id in before.runs.keys() - after.runs.keys():
            run = before.runs[run_id]
            parent = after.runs.get(run.parent_id or "")
            # Whose child was to be removed while it was over, may be restarted before that is done.
            was_over = parent is not None and self.restarts[parent.run_id] and run_id in asked
            if parent is not None and not parent.is_final and not was_over:
                self.fail(f"I10: it is gone, and its parent is not over: {run}")
            elif run.name != CALLBACK and not asked & set(before.line_of(run_id)):
                self.fail(f"I1: it is gone: {run}")
        for event_id in before.events.keys() - after.events.keys():
            if before.events[event_id].run_id in after.runs:
                self.fail(f"I6: it is gone: {before.events[event_id]}")
        for step_id in before.steps.keys() - after.steps.keys():
            if step_id[0] in after.runs and not after.is_restart(before, step_id[0]):
                self.fail(f"I4: it is gone: {before.steps[step_id]}")

    # --- functions -------------------------------------------------------------------------------

    def begin(self, label: str, *, is_cleaning: bool) -> int:
        """A step's function begins, in the attempt that runs now; return its serial number."""
        process, attempt = self.machine.running, durable.attempt()
        assert process is not None
        serial = len(self._begun)
        run_id, key = attempt.run_id, attempt.step_key
        row = self._db.execute(rules.STEP_BY_KEY, (run_id, key)).fetchone()
        step = None if row is None else StepRow._make(row)
        run = self.rows.runs.get(run_id)
        generation = -1 if run is None else run.generation
        begun = Begun(run_id, key, attempt.number, attempt.interruptions, generation, process)
        host = self.hosts[process]
        if process.is_alive:
            self.machine.note(process, f"{label}#{serial} of {short(run_id)} begins")
        if process.is_alive and not self._is_replaced(host) and run_id not in self.removals:
            self._check_begun(begun, step)
            if not is_cleaning and step is not None and step.state == "running":
                self._check_not_canceled(begun, label)
        self._begun.append(begun)
        if step is not None and step.kind == "action":
            self._running[process].add(serial)
            if len(self._running[process]) > host.parallelism_max:
                self.fail(f"I9: {len(self._running[process])} functions run in {process}")
        return serial

    def _check_begun(self, begun: Begun, step: StepRow | None) -> None:
        # A thread may begin after its step was withdrawn.
        states = ("running", "canceled") if step and step.name == "work" else ("running",)
        if step is None or step.state not in states:
            self.fail(f"I2: a function begins, and its step is {step}: {begun}")
            return
        if (step.attempts, step.interruptions) != begun[2:4]:
            self.fail(f"I2: {begun}, but the journal has {step}")
        if step.kind == "action":
            same = [old for old in self._begun if old[:2] == begun[:2] and old[4] == begun[4]]
            if any(old[2:4] == begun[2:4] for old in same):
                self.fail(f"I2: it begins twice: {begun}")
            if same and step.label.endswith("x0"):
                self.fail(f"I2: at most once: {begun}")

    def _check_not_canceled(self, begun: Begun, label: str) -> None:
        run = self.rows.runs[begun.run_id]
        parent = self.rows.runs.get(run.parent_id or "")
        for each, is_owners in ((run, False), (parent, True)):
            canceled = None if each is None else self._canceled.get(each.run_id)
            if each is None or canceled is None or canceled.generation != each.generation:
                continue
            if self.machine.now_s >= canceled.from_s and canceled.is_owners >= is_owners:
                self.fail(f"I8: {label} begins after the cancel of {each.run_id}: {begun}")

    def end(self, serial: int, *, returned: bool) -> None:
        """A function has ended."""
        begun = self._begun[serial]
        if begun.process.is_alive:
            self.machine.note(begun.process, f"#{serial} ends")
            self._running[begun.process].discard(serial)
            if returned:
                self._returned.add(serial)

    def made(self, event_id: str) -> None:
        """A run waits for an event of that id, or will."""
        self.made_ids.append(event_id)

    def completed(self, completion: Completion) -> int:
        """A run's end is told; return how often that was done before."""
        run = self.rows.runs.get(completion.run_id)
        if run is not None and not run.is_final and not self.restarts[run.run_id]:
            self.fail(f"I5: an end is told that is none: {completion} {run}")
        self.told[completion.run_id] += 1
        return self.told[completion.run_id] - 1

    # --- answers ---------------------------------------------------------------------------------

    def started(self, run_id: str, args: object) -> None:
        """A start was acknowledged."""
        run = self.rows.runs.get(run_id)
        if run_id not in self.removals and (run is None or run.args != args):
            self.fail(f"I1: {run_id} was acknowledged, and the journal has {run}")

    def sent(self, run_id: str, event_id: str, value: str) -> None:
        """A send was acknowledged."""
        event = self.rows.events.get(event_id)
        is_there = event is not None and event.value == f'"{value}"'
        if not is_there and run_id in self.rows.runs:
            self.fail(f"I6: {value} was acknowledged, and the journal has {event}")

    def canceled(self, run_id: str, *, is_owner: bool) -> None:
        """A cancel was acknowledged with ``True``."""
        run = self.rows.runs.get(run_id)
        if run is None:
            return
        asked = self.rows.steps.get((run_id, -1))
        if run.state != "canceled" and asked is None:
            if not self.restarts[run_id]:
                self.fail(f"I8: a cancel was acknowledged, and is not there: {run}")
        elif not self.restarts[run_id]:
            from_s = self.machine.now_s + (0 if is_owner else HEARD_S_MAX)
            self._canceled.setdefault(run_id, Canceled(run.generation, from_s, is_owner))

    def restarted(self, run_id: str) -> None:
        """A restart was acknowledged."""
        run = self.rows.runs.get(run_id)
        if run is not None and run.generation == 0:
            self.fail(f"I1: a restart was acknowledged, and is not there: {run}")

    def saw_end(self, run_id: str, outcome: object) -> None:
        """Somebody was told how a run has ended."""
        run = self.rows.runs.get(run_id)
        if run is None or self.restarts[run_id]:
            return
        if not run.is_final:
            self.fail(f"I4: somebody saw the end {outcome!r} of {run}")
        elif self._ends.setdefault((run_id, run.generation), outcome) != outcome:
            self.fail(f"I4: one saw {outcome!r}, another {self._ends[run_id, run.generation]!r}")


def short(run_id: str) -> str:
    """Return an id as people read it."""
    return run_id if len(run_id) < 12 else run_id[-6:]
