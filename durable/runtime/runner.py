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

from durable.core.codec import one_line
from durable.core.errors import EngineClosedError
from durable.core.records import recorded_cancel
from durable.journal.base import Change, Parked
from durable.runtime.aside import Aside
from durable.runtime.children import Children
from durable.runtime.clock import Alarms, EarliestAlarm
from durable.runtime.control import Control
from durable.runtime.live import LiveRun
from durable.runtime.neighbours import Neighbours
from durable.runtime.orphans import Orphans
from durable.runtime.pump import Pump
from durable.runtime.retention import Retention
from durable.runtime.sends import Sends
from durable.runtime.settings import PARK_AFTER_CROWDED_MS, Settings
from durable.runtime.starts import Starts
from durable.runtime.strictness import strict_guard
from durable.runtime.transactions import Transactions, unavailable
from durable.runtime.waiting import Ends
from durable.runtime.watching import Watching
from durable.runtime.workpool import Workpool
from durable.runtime.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from anyio.abc import TaskGroup

    from durable.core.errors import JournalError
    from durable.core.execution import WorkflowSpec
    from durable.core.records import EventRecord, RunRecord, StepRecord
    from durable.core.versions import VersionTable
    from durable.journal.base import Claim, Journal
    from durable.runtime.clock import Clock
    from durable.runtime.instrumentation import EngineLog
    from durable.runtime.writer import Effects


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
        self.guard = strict_guard() if settings.is_strict else None
        self.alarms = Alarms(clock)
        self.pool = Workpool(max_parallelism)
        # Bound once: each step's change has them as its effects.
        self.launch = self.pool.launch
        self.withdraw = self.pool.withdraw
        self.drop = self.pool.drop
        self.watching = Watching(journal, self)
        self.writer = Writer(journal, self)
        self.pump = Pump(log, self._on_void_turn)
        self.transactions = Transactions(journal, self.writer, self.pool, self.pump)
        self.schedule = self.pump.schedule
        self._journal = journal
        self._catalog = catalog
        self._live: dict[str, LiveRun] = {}
        self._claiming_count = 0
        self.ends = Ends(journal, self)
        self.control = Control(journal, self)
        self.wake = EarliestAlarm(self.alarms, self.writer.ask_claim)
        self.neighbours = Neighbours(journal, self)
        self.starts = Starts(journal, self)
        self.wait_while_starting = self.starts.wait_while_starting
        self.children = Children(self)
        self.sends = Sends(journal, self)
        self.look_up_event = self.sends.look_up
        self.aside = Aside(self)
        self._orphans = Orphans(self.pool)
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
                self.sends.open(group)
                self.control.open(group)
                group.start_soon(self.writer.serve)
                group.start_soon(self.watching.serve)
                group.start_soon(self.neighbours.serve)
                self._keep_clean(group)
                self.writer.ask_claim()
                ready.set()
                await stop.wait()
                self._is_closing = True
                self.alarms.stop()
                self.pool.pause()
                self.transactions.pause()
                with anyio.move_on_after(drain_timeout_s) as self._drain_scope:
                    await self._drain()
                self.writer.stop()
                group.cancel_scope.cancel()
        except BaseException as exc:  # noqa: BLE001  it goes on, without the task group's wrapping
            self._crash = _sole_error(exc)
            if isinstance(self._crash, Exception):
                reason = one_line(self._crash)
                self.log.error("durable.engine_failed", reason=reason)  # noqa: TRY400  raised anyway
            # The loop has raised these already, out of the task that they came to.
            if not isinstance(self._crash, (KeyboardInterrupt, SystemExit)):
                raise self._crash from self._crash.__cause__
        finally:
            self._is_closing = True
            ready.set()
            self._end()

    def _keep_clean(self, group: TaskGroup) -> None:
        keep_ms = self.settings.retention_ms
        if keep_ms is not None:
            retention = Retention(self._journal, self.control, self.clock, self.alarms, keep_ms)
            group.start_soon(retention.serve)

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
        self.starts.fail_all(self._closed_error)
        self.ends.fail_all(self._closed_error)
        self.control.fail_all(self._closed_error)
        self.neighbours.stop()
        self.sends.fail_all(self._closed_error)
        self.transactions.fail_all(self._closed_error)
        self.watching.fail_all(self._closed_error)

    def _closed_error(self) -> EngineClosedError:
        how = "was closed"
        if isinstance(self._crash, asyncio.CancelledError):
            how = "was cancelled, with the tasks of its event loop"
        elif self._crash is not None:
            how = f"has failed ({one_line(self._crash)})"
        error = EngineClosedError(f"the engine {how}; open it again and ask with the same id")
        error.__cause__ = self._crash
        return error

    @property
    def live_runs_count(self) -> int:
        """How many runs are in memory."""
        return len(self._live)

    @property
    def versions(self) -> VersionTable:
        return self._journal.versions

    @property
    def is_owner(self) -> bool:
        """Whether the runs are worked on here, and not by another process or engine."""
        return self._journal.is_owner

    async def wait_for_others(self) -> None:
        await self.neighbours.wait()
        self.check_open()

    def check_open(self) -> None:
        self.check_working()
        if self.writer.outage is not None:
            raise unavailable(self.writer.outage)

    def begin(self, record: RunRecord, spec: WorkflowSpec) -> None:
        """Work on a new run, whose start is committed with its first turn."""
        live = LiveRun(self, spec, record, [], is_start=True)
        self._live[record.run_id] = live
        self.schedule(live)

    def on_start_committed(self, live: LiveRun, taken_by: RunRecord | None) -> None:
        if taken_by is not None:
            del self._live[live.record.run_id]
            self._claim_if_room()
            if live.is_wanted_again:
                self.park(taken_by.run_id, 0)
        self.starts.acknowledge(live.record.run_id, taken_by)

    def on_committed(self, change: Change, after: Effects, taken_by: RunRecord | None) -> None:  # noqa: ARG002
        """A run that is not in memory was parked, or asked for something."""
        if change.parked is not None and change.parked.wake_at_ms is not None:
            self.wake.set(change.parked.wake_at_ms)
        if change.is_wake:
            self.writer.ask_claim()

    # --- waiting for the end ---------------------------------------------------------------------

    @property
    def outage(self) -> JournalError | None:
        return self.writer.outage

    def check_working(self) -> None:
        if self._is_closing:
            raise self._closed_error()
        self.transactions.refuse_inside()

    def live(self, run_id: str) -> LiveRun | None:
        return self._live.get(run_id)

    def is_here(self, run_id: str) -> bool:
        return run_id in self._live or self.starts.is_under_way(run_id)

    # --- bodies ----------------------------------------------------------------------------------

    def _on_void_turn(self, live: LiveRun) -> None:
        # The next owner replays the run.
        live.drop()
        self._live.pop(live.record.run_id, None)

    # --- leaving and coming back -----------------------------------------------------------------

    def park_after_ms(self) -> int:
        if len(self._live) >= self.settings.live_runs_max:
            return PARK_AFTER_CROWDED_MS
        return self.settings.park_after_ms

    def on_gone(self, live: LiveRun, wake_at_ms: int | None) -> None:
        record = live.record
        if self._live.get(record.run_id) is live:
            del self._live[record.run_id]
        self.control.on_gone(record.run_id)
        self._tell_if_final(record)
        self.children.on_gone(record)
        if wake_at_ms is not None:
            self.wake.set(wake_at_ms)
        if live.is_wanted_again and not record.state.is_final:
            self.park(record.run_id, 0)  # What others asked of it is still to be heard.
        if live.is_wanted:
            self.writer.ask_claim()
        self._claim_if_room()

    def park(self, run_id: str, wake_at_ms: int | None, changed: RunRecord | None = None) -> None:
        change = Change(run_id=run_id, run=changed, parked=Parked(wake_at_ms))
        self.writer.submit(change, self, [])

    def on_canceled(self, live: LiveRun) -> None:
        self.control.on_canceled(live.record.run_id)

    def on_removed(self, run_id: str) -> None:
        live = self._live.pop(run_id, None)
        if live is not None:
            live.drop()
        self.control.on_gone(run_id)
        self.children.on_removed(run_id)
        self.ends.tell_to_look(run_id)
        self._claim_if_room()

    def on_over(self, record: RunRecord) -> None:
        live = self._live.pop(record.run_id, None)
        if live is not None:
            live.drop()
        self._tell_if_final(record)
        self.children.on_gone(record)

    def _tell_if_final(self, record: RunRecord) -> None:
        if record.state.is_final:
            event = f"durable.run_{record.state}"
            self.log.info(event, run_id=record.run_id, workflow=record.name)
            self.ends.tell(record)
            self.watching.on_final(record)

    def _claim_if_room(self) -> None:
        """Claim what waits in the journal for one of the runs in memory to leave."""
        if len(self._live) + self.children.promised_count == self.settings.live_runs_max - 1:
            self.writer.ask_claim()

    @property
    def room(self) -> int:
        """How many more runs there may be in memory; what a claim may bring has its room."""
        if not self.is_owner:
            return 0
        coming_count = self._claiming_count + self.children.promised_count
        return self.settings.live_runs_max - len(self._live) - coming_count

    def reserve_claim(self) -> int | None:
        if not self.is_owner:
            return None
        self._claiming_count = 0  # There is one claim at a time.
        self._claiming_count = max(0, min(self.room, self.settings.claim_runs_max))
        return self._claiming_count

    def now_ms(self) -> int:
        return self.clock.now_ms()

    def on_claimed(self, claim: Claim) -> None:
        self._claiming_count = 0
        for record, error in claim.errors:
            self.aside.set_unreadable(record, error)
        next_ms = claim.next_wake_at_ms
        is_more_due = next_ms is not None and next_ms <= self.clock.now_ms()
        self._orphans.withdraw_unwanted(claim, self._live, is_more_due=is_more_due)
        for record, steps in claim.runs:
            self._work_on(record, steps, claim)
        if not is_more_due:
            if next_ms is not None:
                self.wake.set(next_ms)
        elif self.room > 0:  # Else, when a run has left memory.
            self.writer.ask_claim()

    def _work_on(self, record: RunRecord, steps: list[StepRecord], claim: Claim) -> None:
        if record.state.is_final:  # In a damaged journal only: nothing is due of it.
            self.park(record.run_id, None)
            return
        if self.control.remove_if_asked(record.run_id, steps):
            return
        ended = claim.ended.get(record.run_id, ())
        events = claim.events.get(record.run_id, ())
        live = self._live.get(record.run_id)
        if live is not None and live.is_set_aside and recorded_cancel(steps) is not None:
            # What runs of it need not be waited for: it finishes, and its outcome is dropped.
            del self._live[record.run_id]
            live.drop()
            live = None
        if live is None:
            self.take_up(record, steps, ended, events)
        else:
            live.hear(steps, ended, events)

    def take_up(
        self,
        record: RunRecord,
        steps: list[StepRecord],
        ended: Collection[RunRecord] = (),
        events: Iterable[EventRecord] = (),
    ) -> None:
        """Work on a run that is claimed.

        Args:
            steps: All that the journal has of them.
            ended: Its children that are over, of those that it waits for.
            events: What was sent to it and not consumed, in the order of sending.
        """
        spec = self._catalog.find(record.name, record.version)
        if spec is None:
            self.aside.set_undefined(record, steps)
            return
        interrupted = self._orphans.take(record.run_id)
        live = LiveRun(
            self, spec, record, steps, interrupted=interrupted, ended=ended, events=events
        )
        self._live[record.run_id] = live
        self.children.on_live(live)
        self.control.on_claimed(live)
        self.schedule(live)

    @property
    def is_closing(self) -> bool:
        return self._is_closing

    def claim_at(self, due_ms: int) -> None:
        self.wake.set(due_ms)

    # --- outages ---------------------------------------------------------------------------------

    def on_outage(self, error: JournalError) -> None:
        self.log.error("durable.journal_failed", reason=str(error))
        self.ends.on_outage()
        self.pool.drop_unlaunched()
        self.pump.clear()
        for live in self._live.values():
            self._orphans.add(live)
            live.drop()
        self._live.clear()
        self.children.clear()
        self._claiming_count = 0
        self.starts.on_outage(error)
        self.control.fail_all(lambda: unavailable(error))
        self.sends.fail_all(lambda: unavailable(error))
        self.transactions.on_outage(error)
        self._stop_vain_drain()

    def on_restored(self) -> None:
        self.log.warning("durable.journal_restored")
        self.transactions.on_restored()
        self.ends.on_restored()
        self.watching.look_again()
        self.neighbours.look_again()


def _sole_error(exc: BaseException) -> BaseException:
    """Return what a task group wraps, when it is one error."""
    if not isinstance(exc, BaseExceptionGroup):
        return exc
    group: BaseExceptionGroup[BaseException] = exc  # pyright: ignore[reportUnknownVariableType]
    return _sole_error(group.exceptions[0]) if len(group.exceptions) == 1 else group
