"""What must hold when all is over: no fault is left, and each run was sent what it waits for."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from rows import RunRow

from simulation.rules import CALLBACK, StepRow

if TYPE_CHECKING:
    from simulation.driver import Driver

KINDS = {"completed": "success", "failed": "error", "canceled": "canceled"}


def check_end(driver: Driver) -> None:
    """Check it all."""
    oracle, rows = driver.oracle, driver.oracle.rows
    for run in rows.runs.values():
        steps = rows.steps_of(run.run_id)
        if not run.is_final:
            left = [step for step in steps if not step.is_final]
            oracle.fail(f"I12: it does not end: {run} {left}")
        elif run.state == "completed" and run.name.startswith("simulated"):
            _check_notes(driver, run, steps)
        elif run.name == CALLBACK:
            oracle.fail(f"I5: it is over, and still there: {run}")
    _check_told(driver)
    _check_entries(driver)
    _check_values(driver)
    _check_hosts(driver)


def _check_notes(driver: Driver, run: RunRow, steps: list[StepRow]) -> None:
    """What a body has seen is what is recorded, in the order that is recorded."""
    by_label = {step.label: step for step in steps if step.position is not None}
    latest = -1
    for note in json.loads(run.result or "[]"):
        label, _, what = note.partition("=")
        value, _, seconds = what.rpartition("@")
        step = by_label.get(label)
        if step is None or step.serial is None:
            continue
        seen = (value, round(float(seconds) * 1000))
        if seen != (json.loads(step.result or "null"), step.finished_at_ms):
            driver.oracle.fail(f"I4: the body has seen {note!r} of {step}")
        if (step.position or 0) <= latest:
            driver.oracle.fail(f"I4: the body has seen {note!r} out of order: {step}")
        latest = step.position or 0


def _check_told(driver: Driver) -> None:
    """Each end was told: by a mutation once, else at least once."""
    oracle = driver.oracle
    told = oracle.read_told()
    for run in oracle.rows.runs.values():
        if run.on_complete is None or not run.is_final or run.run_id in oracle.removals:
            continue
        ends = run.generation + 1
        name = str(json.loads(run.on_complete)["name"])
        times = [row.outcome for row in told if row.run_id == run.run_id]
        if name != "tell_by_action" and len(times) != ends:
            oracle.fail(f"I5: told {times}, of {ends} ends: {run}")
        elif times and ends == 1 and times[-1] != KINDS[run.state]:
            oracle.fail(f"I5: told {times}: {run}")
        if oracle.told[run.run_id] < ends:
            oracle.fail(f"I5: told {oracle.told[run.run_id]} times, of {ends} ends: {run}")


def _check_entries(driver: Driver) -> None:
    """What a mutation has written is there once for each time that its step was completed.

    Of what was removed, and started again under its id, nobody knows how often that was.
    """
    oracle = driver.oracle
    counts = Counter((entry.run_id, entry.key) for entry in oracle.rows.entries)
    for (run_id, key), count in counts.items():
        is_known = run_id in oracle.rows.runs and run_id not in oracle.removals
        if is_known and count > 1 + oracle.restarts[run_id]:
            oracle.fail(f"I11: {count} times there: {key} of {run_id}")


def _check_values(driver: Driver) -> None:
    """No value is seen by two waits."""
    events = driver.oracle.rows.events.values()
    waits = Counter((e.run_id, e.step_number) for e in events if e.step_number is not None)
    for wait, count in waits.items():
        if count > 1:
            driver.oracle.fail(f"I6: {count} events were consumed by {wait}")


def _check_hosts(driver: Driver) -> None:
    """Nobody is left waiting, and nothing is left in memory."""
    for host in driver.fleet.hosts:
        if host.process.frozen_until_s > driver.machine.now_s:
            continue
        if host.asked:
            asked = [what for what, _ in host.asked.values()]
            driver.oracle.fail(f"I12: {host.process} has not answered {asked}")
        runner: Any = host.engine._runner
        if host.is_open and runner is not None and runner.live_runs_count:
            driver.oracle.fail(f"I16: {runner.live_runs_count} runs are left in {host.process}")
