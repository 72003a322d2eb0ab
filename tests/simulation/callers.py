"""What callers ask of engines, and what they may be told."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from typing import TYPE_CHECKING, Any, final

from durable import (
    Engine,
    EventAlreadySentError,
    EventId,
    EventNotFoundError,
    RunCanceled,
    RunFailed,
    RunFinishedError,
    RunNotFinishedError,
    RunNotFoundError,
    StepNotFoundError,
)
from simulation import program
from simulation.loop import stream

if TYPE_CHECKING:
    from simulation.fleet import Ask
    from simulation.oracle import Oracle
    from simulation.program import Node


class UndoneError(Exception):
    """The caller wants its transaction rolled back."""


@final
class Callers:
    """Makes what is asked: each is a coroutine function of an engine, which may be asked again.

    Attributes:
        awaited: How many callers wait for the end of each run.
        sent_ids: The events that were sent by their ids, or are to be.
    """

    def __init__(self, oracle: Oracle, seed: str) -> None:
        self.oracle = oracle
        self.awaited: Counter[str] = Counter()
        self._values_count = 0
        self.random = stream(seed, "callers")

    def _new_value(self) -> str:
        self._values_count += 1
        return f"v{self._values_count}"

    def start(self, run_id: str, node: Node) -> Ask:
        draw = self.random
        told = draw.choice((None, "mutation", "action", "workflow"))
        workflow: Any = program.bounded if draw.random() < 0.15 else program.program
        delay = draw.choice((None, None, None, 2.0, 8.0))
        in_tx = draw.random() < 0.15
        args = json.dumps({"node": node}, separators=(",", ":"))
        options: dict[str, Any] = {
            "id": run_id,
            "run_after": delay,
            "on_complete": None if told is None else getattr(program, f"tell_by_{told}"),
            "context": draw.choice((0, 0, 1, 2)) if told in ("mutation", "action") else 0,
        }

        async def start(engine: Engine) -> None:
            if in_tx:
                async with engine.transaction() as tx:
                    await engine.start(workflow(node), tx=tx, **options)
            else:
                await engine.start(workflow(node), **options)
            self.oracle.started(run_id, args)

        return start

    def start_and_undo(self, run_id: str, node: Node) -> Ask:
        """Start a run in a transaction that is rolled back."""

        async def start(engine: Engine) -> None:
            call: Any = program.program(node)
            with contextlib.suppress(UndoneError):
                async with engine.transaction() as tx:
                    await engine.start(call, id=run_id, tx=tx)
                    raise UndoneError
            if run_id in self.oracle.rows.runs:
                self.oracle.fail(f"I11: {run_id} was rolled back, and is there")

        return start

    def send(self, run_id: str, name: str) -> Ask:
        in_tx = self.random.random() < 0.15

        async def send(engine: Engine) -> None:
            value, was_open = self._new_value(), self._is_open(run_id)
            try:
                if in_tx:
                    async with engine.transaction() as tx:
                        event_id = await engine.send_event(run_id, name, value, tx=tx)
                else:
                    event_id = await engine.send_event(run_id, name, value)
            except (RunNotFoundError, RunFinishedError) as exc:
                self._check_gone(run_id, exc, was_open=was_open)
            else:
                self.oracle.sent(run_id, event_id.id, value)

        return send

    def send_id(self, event_id: str) -> Ask:
        async def send(engine: Engine) -> None:
            with contextlib.suppress(EventAlreadySentError, EventNotFoundError, RunFinishedError):
                await engine.send_event_id(EventId.parse(event_id), self._new_value())

        return send

    def cancel(self, run_id: str, *, interrupt: bool) -> Ask:
        async def cancel(engine: Engine) -> None:
            was_open = self._is_open(run_id)
            try:
                is_done = await engine.cancel(run_id, interrupt=interrupt)
            except RunNotFoundError as exc:
                self._check_gone(run_id, exc, was_open=was_open)
                return
            if is_done:
                journal: Any = engine._journal
                self.oracle.canceled(run_id, is_owner=journal is not None and journal.is_owner)
            elif self._is_open(run_id) and not self.oracle.restarts[run_id]:
                self.oracle.fail(f"I8: cancel says that {run_id} is over, and it is not")

        return cancel

    def restart(self, run_id: str) -> Ask:
        place = self.random.choice((None, 0, self.random.random(), self.random.random()))

        async def restart(engine: Engine) -> None:
            from_step: Any = place
            if isinstance(place, float):
                steps = self.oracle.rows.steps_of(run_id)
                from_step = int(place * sum(step.number >= 0 for step in steps))
            self.oracle.restarts[run_id] += 1
            self.oracle.restart_from[run_id] = from_step
            with contextlib.suppress(RunNotFoundError, RunNotFinishedError, StepNotFoundError):
                await engine.restart(run_id, from_step=from_step)
                self.oracle.restarted(run_id)

        return restart

    def remove(self, run_id: str, *, force: bool) -> Ask:
        async def remove(engine: Engine) -> None:
            self.oracle.removals.add(run_id)
            if await engine.cleanup(run_id, force=force) and run_id in self.oracle.rows.runs:
                self.oracle.fail(f"I1: {run_id} was removed, and is there")

        return remove

    def remove_child(self, run_id: str) -> Ask:
        """Have the first child removed, which is refused while its parent may need it."""

        async def remove(engine: Engine) -> None:
            runs = self.oracle.rows.runs
            child_ids = [run.run_id for run in runs.values() if run.parent_id == run_id]
            if child_ids:
                self.oracle.child_removals.add(child_ids[0])
                await engine.cleanup(child_ids[0], force=True)

        return remove

    def see_end(self, run_id: str) -> Ask:
        async def see(engine: Engine) -> None:
            outcome: Any
            self.awaited[run_id] += 1
            try:
                outcome = await engine.get(run_id).result()
            except RunFailed as exc:
                outcome = ("failed", exc.error.type_name, exc.error.message)
            except RunCanceled:
                outcome = "canceled"
            except RunNotFoundError:
                outcome = None
            finally:
                self.awaited[run_id] -= 1
            if outcome is not None:
                self.oracle.saw_end(run_id, outcome)

        return see

    def look(self, run_id: str) -> Ask:
        async def look(engine: Engine) -> None:
            was_open = self._is_open(run_id)
            try:
                status = await engine.status(run_id)
            except RunNotFoundError as exc:
                self._check_gone(run_id, exc, was_open=was_open)
                return
            if status.state.is_final and status.running:
                self.oracle.fail(f"I11: half a turn was shown: {status}")

        return look

    def _is_open(self, run_id: str) -> bool:
        run = self.oracle.rows.runs.get(run_id)
        return run is not None and not run.is_final

    def _check_gone(self, run_id: str, exc: Exception, *, was_open: bool) -> None:
        is_known = run_id in self.oracle.removals or self.oracle.restarts[run_id]
        if was_open and self._is_open(run_id) and not is_known:
            self.oracle.fail(f"I1: {run_id} is there, and somebody was told {exc!r}")
