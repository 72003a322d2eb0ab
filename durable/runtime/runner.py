"""The live runs of one engine: starting, claiming, parking, dropping them.

Rules:

- A run is live in one place. Who waits for its end waits here, across outages of the journal.
- After an outage everything live is dropped and read again; only attempts that run are kept.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol, final

import anyio
import anyio.lowlevel
from msgspec.structs import replace

from durable.core.errors import (
    EngineClosedError,
    JournalUnavailableError,
    NonDeterminismError,
    RunConflictError,
)
from durable.core.failures import encode_exception
from durable.core.records import RunRecord, RunState, StepState, advance_run
from durable.journal.base import Change, Parked
from durable.runtime.clock import Alarm, Alarms
from durable.runtime.live import LiveRun
from durable.runtime.pump import Pump
from durable.runtime.settings import PARK_AFTER_CROWDED_MS, Settings
from durable.runtime.waiting import Expected, Waiters
from durable.runtime.workpool import Workpool
from durable.runtime.writer import Writer

if TYPE_CHECKING:
    from durable.core.errors import JournalError
    from durable.journal.base import Claim, Journal
    from durable.runtime.clock import Clock
    from durable.runtime.instrumentation import EngineLog
    from durable.runtime.live import WorkflowSpec
    from durable.runtime.open_steps import Effects
    from durable.runtime.workpool import Job


class Catalog(Protocol):
    """Where the definitions are."""

    def find(self, name: str, version: int) -> WorkflowSpec | None:
        """Return the workflow of that name and version, if the code has it."""
        ...


@final
class Runner:
    """Works on the runs of one journal."""

    def __init__(
        self,
        journal: Journal,
        catalog: Catalog,
        clock: Clock,
        settings: Settings,
        *,
        max_parallelism: int,
        log: EngineLog,
    ) -> None:
        self.clock = clock
        self.settings = settings
        self.log = log
        self.alarms = Alarms(clock)
        self.pool = Workpool(self, max_parallelism)
        # Bound once: each step's change has them as its effects.
        self.launch = self.pool.launch
        self.withdraw = self.pool.withdraw
        self.writer = Writer(journal, self)
        self.pump = Pump(log, self._on_void_turn)
        self._journal = journal
        self._catalog = catalog
        self._live: dict[str, LiveRun] = {}
        self._claiming_count = 0
        self._starting: set[str] = set()
        self._start_waiters = Waiters()
        self._end_waiters = Waiters()
        self.expected = Expected()
        self._wake_alarm: Alarm | None = None
        self._undefined: dict[tuple[str, int], list[str]] = {}
        self._dropped_in_outage: dict[str, dict[int, int]] = {}
        self._outages_count = 0
        self._is_closing = False
        self._drain_scope: anyio.CancelScope | None = None
        self._crash: BaseException | None = None

    # --- life ------------------------------------------------------------------------------------

    async def serve(
        self, ready: asyncio.Event, stop: asyncio.Event, drain_timeout_s: float
    ) -> None:
        """Work until ``stop`` is set, then let what runs finish, for so long."""
        try:
            async with anyio.create_task_group() as group:
                self.pool.open(group)
                group.start_soon(self.writer.serve)
                self.writer.ask_claim()
                ready.set()
                await stop.wait()
                self._is_closing = True
                self.alarms.stop()
                self.pool.pause()
                with anyio.move_on_after(drain_timeout_s) as self._drain_scope:
                    await self._drain()
                self.writer.stop()
                group.cancel_scope.cancel()
        except BaseException as exc:
            self._crash = exc
            raise
        finally:
            self._is_closing = True
            ready.set()
            self._end()

    async def _drain(self) -> None:
        """Let running attempts end, and what they lead to be committed."""
        while True:
            await self.pool.wait_until_idle()
            self._stop_vain_drain()
            while not self.pump.is_idle:
                await anyio.lowlevel.checkpoint()
            await self.writer.wait_until_idle()
            if self.pool.is_idle and self.pump.is_idle:
                return

    def _stop_vain_drain(self) -> None:
        """Closing, do not wait for a journal that is out, unless there are outcomes for it."""
        scope = self._drain_scope
        if scope is not None and self.writer.outage is not None and self.pool.is_settled:
            scope.cancel()

    def _end(self) -> None:
        self.alarms.stop()
        for live in list(self._live.values()):
            live.drop()
        self._live.clear()
        self.pump.clear()
        self._starting.clear()
        self._start_waiters.fail_all(self._closed_error)
        self._end_waiters.fail_all(self._closed_error)

    def _closed_error(self) -> EngineClosedError:
        error = EngineClosedError("the engine was closed; open it again and ask with the same id")
        error.__cause__ = self._crash
        return error

    @property
    def live_runs_count(self) -> int:
        """How many runs are in memory."""
        return len(self._live)

    # --- starting --------------------------------------------------------------------------------

    async def start(
        self, record: RunRecord, spec: WorkflowSpec, *, wake_at_ms: int | None, is_id_given: bool
    ) -> None:
        """Commit a new run, and work on it, or let it sleep until ``wake_at_ms``.

        Raises:
            RunConflictError: The id belongs to a run with another workflow or arguments.
            JournalUnavailableError: The outcome is unknown.
            EngineClosedError: The engine is closing.
        """
        if is_id_given and await self._is_there(record):
            return
        self._check_open()
        self._starting.add(record.run_id)
        if wake_at_ms is None and self._room > 0:
            live = LiveRun(self, spec, record, [], is_start=True)
            self._live[record.run_id] = live
            self.schedule(live)
        else:
            due_ms = self.clock.now_ms() if wake_at_ms is None else wake_at_ms
            change = Change(run_id=record.run_id, run=record, is_start=True, parked=Parked(due_ms))
            self.writer.submit(change, self, [])
        # A cancelled caller stops waiting; the start goes on, its outcome is in the journal.
        taken_by = await self._wait_until_started(record.run_id)
        if taken_by is not None:
            _check_same(taken_by, record)

    async def _wait_until_started(self, run_id: str) -> RunRecord | None:
        """Return who has the id, once the start that is under way is committed."""
        acked = self._start_waiters.join(run_id)
        try:
            return await acked
        finally:
            self._start_waiters.leave(run_id, acked)

    async def _is_there(self, record: RunRecord) -> bool:
        while True:
            if record.run_id in self._starting:
                taken_by = await self._wait_until_started(record.run_id)
                if taken_by is not None:
                    _check_same(taken_by, record)
                    return True
                continue
            live = self._live.get(record.run_id)
            found = live.record if live else await self._journal.load_run(record.run_id)
            if record.run_id in self._starting:
                continue  # Somebody else's start came in between.
            if found is None:
                return False
            _check_same(found, record)
            return True

    def _check_open(self) -> None:
        if self._is_closing:
            raise self._closed_error()
        if self.writer.outage is not None:
            raise _unavailable(self.writer.outage)

    def on_start_committed(self, live: LiveRun, taken_by: RunRecord | None) -> None:
        if taken_by is not None:
            del self._live[live.record.run_id]
            self._claim_if_room()
        self._acknowledge(live.record.run_id, taken_by)

    def on_committed(self, change: Change, after: Effects, taken_by: RunRecord | None) -> None:  # noqa: ARG002
        """A run that is not in memory was started, or parked."""
        if change.is_start:
            self._acknowledge(change.run_id, taken_by)
        if taken_by is None and change.parked is not None and change.parked.wake_at_ms is not None:
            self._wake_at(change.parked.wake_at_ms)

    def _acknowledge(self, run_id: str, taken_by: RunRecord | None) -> None:
        self._starting.remove(run_id)
        self._start_waiters.tell(run_id, taken_by)

    # --- waiting for the end ---------------------------------------------------------------------

    async def wait_until_final(self, run_id: str) -> RunRecord | None:
        """Return the run's row once it is final; ``None`` when there is no such run."""
        while True:
            ended = self.expected.get(run_id)
            if ended is not None:
                return ended
            if self._is_closing:
                raise self._closed_error()
            waiter = self._end_waiters.join(run_id)
            try:
                if run_id not in self._live and run_id not in self._starting:
                    is_over, record = await self._look_in_journal(run_id)
                    if is_over:
                        return record
                record = await waiter
            finally:
                self._end_waiters.leave(run_id, waiter)
            if record is not None:
                return record

    async def look_for_end(self, run_id: str) -> tuple[bool, RunRecord | None]:
        """Return whether there is nothing to wait for now, and the run's row."""
        if self._is_closing or run_id in self._starting:
            return False, None
        return await self._look_in_journal(run_id)

    async def _look_in_journal(self, run_id: str) -> tuple[bool, RunRecord | None]:
        """Return whether there is nothing to wait for, and the run's row; wait out an outage."""
        while True:
            outages_count = self._outages_count
            try:
                record = await self._journal.load_run(run_id)
            except JournalUnavailableError:
                if self.writer.outage is not None:
                    return False, None  # The waiters are told to look when it is over.
                if self._outages_count == outages_count:
                    raise
            else:
                return record is None or record.state.is_final, record

    # --- bodies ----------------------------------------------------------------------------------

    def schedule(self, live: LiveRun) -> None:
        self.pump.schedule(live)

    def _on_void_turn(self, live: LiveRun) -> None:
        # The next owner replays the run.
        live.drop()
        self._live.pop(live.record.run_id, None)

    # --- pool ------------------------------------------------------------------------------------

    def on_slot(self, job: Job) -> None:
        self._live[job.attempt.run_id].on_slot(job)

    def on_outcome(self, job: Job) -> None:
        live = self._live.get(job.attempt.run_id)
        if live is not None:
            live.on_outcome(job)

    # --- leaving and coming back -----------------------------------------------------------------

    def park_after_ms(self) -> int:
        if len(self._live) >= self.settings.live_runs_max:
            return PARK_AFTER_CROWDED_MS
        return self.settings.park_after_ms

    def on_gone(self, live: LiveRun, wake_at_ms: int | None) -> None:
        record = live.record
        if self._live.get(record.run_id) is live:
            del self._live[record.run_id]
        if record.state.is_final:
            event = f"durable.run_{record.state}"
            self.log.info(event, run_id=record.run_id, workflow=record.name)
            self.expected.add(record)
            self._end_waiters.tell(record.run_id, record)
        if wake_at_ms is not None:
            self._wake_at(wake_at_ms)
        self._claim_if_room()

    def _claim_if_room(self) -> None:
        """Claim what waits in the journal for one of the runs in memory to leave."""
        if len(self._live) == self.settings.live_runs_max - 1:
            self.writer.ask_claim()

    def _wake_at(self, due_ms: int) -> None:
        """Claim what is due at that time, if nothing makes us look sooner."""
        alarm = self._wake_alarm
        if alarm is not None and not alarm.is_cancelled:
            if alarm.due_ms <= due_ms:
                return
            self.alarms.cancel(alarm)
        self._wake_alarm = self.alarms.set(due_ms, self._on_wake)

    def _on_wake(self) -> None:
        self._wake_alarm = None
        self.writer.ask_claim()

    @property
    def _room(self) -> int:
        """How many more runs there may be in memory; what a claim may bring has its room."""
        return self.settings.live_runs_max - len(self._live) - self._claiming_count

    def reserve_claim(self) -> int:
        self._claiming_count = 0  # There is one claim at a time.
        self._claiming_count = max(0, min(self._room, self.settings.claim_runs_max))
        return self._claiming_count

    def now_ms(self) -> int:
        return self.clock.now_ms()

    def on_claimed(self, claim: Claim) -> None:
        self._claiming_count = 0
        for record, error in claim.errors:
            self.log.error("durable.run_unreadable", reason=str(error))
            if record is not None:
                self._park_stuck(record, error)
        next_ms = claim.next_wake_at_ms
        is_more_due = next_ms is not None and next_ms <= self.clock.now_ms()
        if self._dropped_in_outage:
            self._end_orphans(claim, is_more_due=is_more_due)
        for record, steps in claim.runs:
            stale = self._live.pop(record.run_id, None)
            if stale is not None:
                stale.drop()
            spec = self._catalog.find(record.name, record.version)
            if spec is None:
                self._park_undefined(record)
                continue
            interrupted = self._dropped_in_outage.pop(record.run_id, None)
            live = LiveRun(self, spec, record, steps, interrupted=interrupted)
            self._live[record.run_id] = live
            self.schedule(live)
        if is_more_due and self._room > 0:
            self.writer.ask_claim()
        elif next_ms is not None:
            self._wake_at(next_ms)

    # --- code that is not there ------------------------------------------------------------------

    def _park_undefined(self, record: RunRecord) -> None:
        """Set a run aside whose workflow the code does not have: it waits, and says so."""
        version = f" version {record.version}" if record.version else ""
        error = NonDeterminismError(
            f"the code has no workflow {record.name!r}{version}, which run {record.run_id!r} "
            "belongs to. Import the module that defines it; the run then goes on."
        )
        self.log.error("durable.workflow_undefined", run_id=record.run_id, workflow=record.name)
        self._undefined.setdefault((record.name, record.version), []).append(record.run_id)
        self._park_stuck(record, error)

    def _park_stuck(self, record: RunRecord, error: BaseException) -> None:
        stuck = replace(
            record,
            state=advance_run(record.state, RunState.STUCK),
            error=encode_exception(error),
        )
        change = Change(run_id=record.run_id, run=stuck, parked=Parked(None))
        self.writer.submit(change, self, [])

    def on_defined(self, name: str, version: int) -> None:
        """The code has got a workflow: take up the runs that waited for it."""
        if self._is_closing or self.writer.outage is not None:
            return
        run_ids = self._undefined.pop((name, version), [])
        for run_id in run_ids:
            # Claimed once that is committed: a claim asked for now could be ahead of it.
            self.writer.submit(Change(run_id=run_id, parked=Parked(0)), self, [])

    # --- outages ---------------------------------------------------------------------------------

    def on_outage(self, error: JournalError) -> None:
        self.log.error("durable.journal_failed", reason=str(error))
        self._outages_count += 1
        self.pool.drop_unlaunched()
        self.pump.clear()
        for run_id, live in self._live.items():
            self._dropped_in_outage[run_id] = live.interrupted
            live.drop()
        self._live.clear()
        self._claiming_count = 0
        self._starting.clear()
        self._start_waiters.fail_all(lambda: _unavailable(error))
        self._stop_vain_drain()

    def on_restored(self) -> None:
        self.log.warning("durable.journal_restored")
        self._end_waiters.tell_all_to_look()

    def _end_orphans(self, claim: Claim, *, is_more_due: bool) -> None:
        """End the attempts that nobody waits for, if the commit that said so was the failed one."""
        known = {record.run_id for record, _ in claim.runs}
        wanted = {
            (record.run_id, step.number): step.attempts
            for record, steps in claim.runs
            for step in steps
            if step.state is StepState.RUNNING
        }
        if not is_more_due:  # The others are over, asleep, or were started anew.
            others = self._dropped_in_outage.keys() - known
            known |= others - self._live.keys()
            for run_id in others:
                del self._dropped_in_outage[run_id]
        self.pool.withdraw_unless(
            lambda job: job.attempt.run_id not in known or wanted.get(job.id) == job.attempt.number
        )


def _check_same(found: RunRecord, wanted: RunRecord) -> None:
    if (found.name, found.args) != (wanted.name, wanted.args):
        msg = (
            f"the id {wanted.run_id!r} belongs to a run of {found.name!r} with arguments "
            f"{found.args[:400]}; this start is of {wanted.name!r} with {wanted.args[:400]}. Use "
            "another id, or the same arguments."
        )
        raise RunConflictError(msg)


def _unavailable(error: JournalError) -> JournalUnavailableError:
    unavailable = JournalUnavailableError(str(error))
    unavailable.__cause__ = error
    return unavailable
