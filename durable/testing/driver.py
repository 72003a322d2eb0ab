"""Lets a test's time pass, when all that can be done is done.

Rules:

- The clock moves while nothing is at work: no body, no commit, no function of a step but one that
  itself waits for a run's end or watches it, and no task of the test's that could go on by itself.
  So nothing is ever late by the test's own slowness.
- It moves to the next time that something is due at, never past it, and on from there.
- It moves by itself only while the test waits for a run's end or watches it; else only as it is
  told.
- Nothing is waited for by the machine's clock: what is at work says when it has ended.
"""

from __future__ import annotations

import asyncio
import heapq
from typing import TYPE_CHECKING, Any, Final, final

from durable.core.records import RunState
from durable.runtime.clock import Alarms
from durable.testing.errors import StalledError
from durable.testing.waits import Waits

if TYPE_CHECKING:
    from collections.abc import Iterable
    from functools import partial

    from durable.engine import Engine
    from durable.runtime.runner import Runner
    from durable.status import RunStatus, StepInfo
    from durable.testing.clock import VirtualClock
    from durable.testing.fakes import Steps
    from durable.testing.journals import Traffic

QUIET_CYCLES: Final = 3
"""How many cycles of the event loop in a row have to find nothing at work: what a callback has set
off shows in the next."""

BUSY_CYCLES_MAX: Final = 1_000
"""How many cycles a task that is always at work, as one that polls is, may hold up the time."""

HORIZON_MS: Final = 10 * 365 * 86_400_000
"""How far time passes by itself: a workflow that goes on for ever does not end a test."""

SHOWN_RUNS_MAX: Final = 20


@final
class Driver:
    """The one who moves a test's clock.

    Attributes:
        alarms: What of the kit itself waits for the test's time.
        is_auto: Whether time passes by itself while the test waits for a run, and a wait that
            nothing ends fails.
    """

    def __init__(
        self, engine: Engine, clock: VirtualClock, traffic: Traffic, *, is_auto: bool
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._traffic = traffic
        self._started_at_ms = clock.now_ms()
        self._advances: list[tuple[int, int, asyncio.Future[None]]] = []
        self._advances_count = 0
        self._idle_waiters: list[asyncio.Future[None]] = []
        self.alarms = Alarms(clock)
        self.is_auto = is_auto
        self._waits = Waits(traffic.changed.set)
        self._steps: Steps | None = None
        self._revive: partial[Any] | None = None

    def attach(self, steps: Steps, revive: partial[Any]) -> None:
        """Drive these steps, and call ``revive`` when a crash has come."""
        self._steps = steps
        self._revive = revive

    def watch(self) -> None:
        """Hear of those who wait for what becomes of runs, now that the engine is open."""
        runner = self._runner
        assert runner is not None
        runner.ends.on_waiting = runner.watching.on_waiting = self._waits.join

    @property
    def _runner(self) -> Runner | None:
        return self._engine._runner

    # --- what is asked ---------------------------------------------------------------------------

    def advance(self, delay_ms: int) -> asyncio.Future[None]:
        """Have so much time pass; return what is done when it has."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._advances_count += 1
        due_ms = self._clock.now_ms() + delay_ms
        heapq.heappush(self._advances, (due_ms, self._advances_count, done))
        self._traffic.changed.set()
        return done

    async def wait_until_idle(self) -> None:
        """Return when there is nothing to do at this time, and all advances are done."""
        idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idle_waiters.append(idle)
        self._traffic.changed.set()
        await idle

    def close(self) -> None:
        """End what waits for it."""
        for waiter in self._waiters():
            waiter.cancel()
        self.alarms.stop()

    # --- the loop --------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Let time pass as it is wanted, for ever."""
        try:
            while True:
                while self._is_wanted():
                    await self._settle()
                    if not await self._act():
                        break
                # Nothing of what is waited for here has come meanwhile: nothing was awaited.
                self._traffic.changed.clear()
                await self._traffic.changed.wait()
        except Exception as exc:
            self._fail(exc)
            raise

    def _fail(self, exc: Exception) -> None:
        """Nobody is to wait for a time that does not pass any more."""
        for waiter in self._waiters():
            if not waiter.done():
                waiter.set_exception(exc)
        if self._runner is not None:
            self._runner.ends.fail_all(lambda: exc)

    def _waiters(self) -> list[asyncio.Future[None]]:
        return [*self._idle_waiters, *(done for _, _, done in self._advances)]

    def _is_wanted(self) -> bool:
        if self._traffic.has_crashed or self._advances or self._idle_waiters:
            return True
        return bool(self._waited_for())

    def _waited_for(self) -> dict[asyncio.Future[Any], str]:
        """Return the waits of the test, each with the run that it is for."""
        return {} if self._steps is None else self._waits.of_test(self._steps)

    async def _settle(self) -> None:
        """Return when nothing is at work, or a crash has come."""
        quiet = busy = 0
        while quiet < QUIET_CYCLES and not self._traffic.has_crashed:
            await self._wait_for_what_is_outside()
            await asyncio.sleep(0)
            if self._is_at_work():
                quiet = 0
            elif busy < BUSY_CYCLES_MAX and self._is_test_at_work():
                quiet, busy = 0, busy + 1
            else:
                quiet += 1

    def _is_test_at_work(self) -> bool:
        """Whether somebody looks at the engine, or a task can go on by itself."""
        return bool(self._traffic.reads.count) or _is_any_task_ready()

    async def _wait_for_what_is_outside(self) -> None:
        """Wait for a function of a step, or a call of the journal, to end, if there are any."""
        functions = self._functions()
        traffic = self._traffic
        if not (functions or traffic.writes.count or traffic.reads.count):
            return
        self._traffic.changed.clear()
        changed = asyncio.ensure_future(self._traffic.changed.wait())
        try:
            await asyncio.wait({changed, *functions}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            changed.cancel()

    def _functions(self) -> frozenset[asyncio.Task[Any]]:
        runner = self._runner
        if runner is None or self._steps is None:
            return frozenset()
        functions = runner.pool.tasks - self._steps.asleep
        waiting = self._waits.attempts()
        if not waiting:
            return functions
        jobs = runner.pool._begun.values()
        return functions - {job.task for job in jobs if job.attempt in waiting}

    def _is_at_work(self) -> bool:
        runner = self._runner
        if runner is None:
            return False
        due_ms = self._next_due_ms()
        return bool(
            self._traffic.writes.count
            or self._functions()
            or not runner.pump.is_idle
            or not runner.writer.is_idle
            or runner.pool.is_launching
            or (due_ms is not None and due_ms <= self._clock.now_ms())
        )

    def _next_due_ms(self) -> int | None:
        runner = self._runner
        dues = [self.alarms.next_due_ms(), None if runner is None else runner.alarms.next_due_ms()]
        return min((due for due in dues if due is not None), default=None)

    # --- when all is idle ------------------------------------------------------------------------

    async def _act(self) -> bool:
        """Let the next thing happen; return whether there was one."""
        if self._traffic.has_crashed:
            assert self._revive is not None
            await self._revive()
            return True
        if self._steps is not None and self._steps.complete_any():
            return True
        if self._advances:
            self._go_on()
            return True
        if self._idle_waiters:
            waiters, self._idle_waiters = self._idle_waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)
            return True
        return await self._pass_time()

    def _go_on(self) -> None:
        """Let time pass to what is due next, or to the end of the first advance."""
        target_ms, _, done = self._advances[0]
        due_ms, now_ms = self._next_due_ms(), self._clock.now_ms()
        if due_ms is not None and due_ms <= target_ms:
            self._clock.move_to(due_ms)
        elif now_ms < target_ms:
            self._clock.move_to(target_ms)
        else:
            heapq.heappop(self._advances)
            if not done.done():
                done.set_result(None)

    async def _pass_time(self) -> bool:
        runner = self._runner
        if runner is None:
            return False
        waited = self._waited_for()
        if not waited or not self.is_auto:  # Without auto, others may bring about what is to come.
            return False
        due_ms = self._next_due_ms()
        if due_ms is None:
            why = "nothing is due, and nobody is at work"
        elif due_ms - self._started_at_ms > HORIZON_MS:
            why = "ten years of the test's time have passed"
        else:
            self._clock.move_to(due_ms)
            return True
        text = await self._describe(dict.fromkeys(waited.values()), why)
        if self._is_at_work():  # Somebody has done something meanwhile.
            return True
        for waiter in waited:
            if not waiter.done():
                waiter.set_exception(StalledError(text))
                waiter.exception()  # Its task may be gone: nobody has to retrieve it.
        return True

    # --- what is wrong ---------------------------------------------------------------------------

    async def _describe(self, run_ids: Iterable[str], why: str) -> str:
        waited = ", ".join(map(repr, run_ids))
        lines = [f"the test waits for the end of run {waited}, which does not come: {why}."]
        count = 0
        async for status in self._engine.iter_runs():
            if not status.state.is_final:
                count += 1
                if count <= SHOWN_RUNS_MAX:
                    lines.append(f"  {_describe_run(status)}")
        if count > SHOWN_RUNS_MAX:
            lines.append(f"  and {count - SHOWN_RUNS_MAX} more")
        if not count:
            lines.append("  No run is open: is the id right?")
        lines.append("Send what they wait for before you wait for their end, or cancel them.")
        return "\n".join(lines)


def _describe_run(status: RunStatus) -> str:
    which = f"run {status.id!r} of {status.name}"
    if status.state is RunState.STUCK and status.error is not None:
        return f"{which} is stuck: {status.error.message}"
    waits = ", ".join(map(_describe_step, status.running))
    return f"{which} is {status.state}, and waits for {waits or 'nothing'}"


def _describe_step(step: StepInfo) -> str:
    text = f"{step.kind} {step.name!r} (step {step.number}, {step.state}"
    if step.error is not None:
        text += f", after {step.error.type_name}: {step.error.message}"
    return f"{text})"


def _is_any_task_ready() -> bool:
    """Whether a task of this event loop can go on by itself."""
    own = asyncio.current_task()
    for task in asyncio.all_tasks():
        waits_for = getattr(task, "_fut_waiter", None)
        if task is not own and (waits_for is None or waits_for.done()):
            return True
    return False
