"""``Environment``: an engine of a test's own, with its time, its fakes and its crashes.

Rules:

- Everything is the environment's: its engine, its clock, what stands in for steps. Nothing global
  is changed, and two environments know nothing of each other.
- The engine is the real one. Only its journal is watched, its clock is the test's, a back-off is as
  long as the policy says, without jitter, and a run that waits stays in memory: where years pass in
  milliseconds, leaving it would read the whole history again at each wait.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypedDict, TypeVar, final, overload

from msgspec.structs import replace as changed

from durable.catalog import Catalog
from durable.core.errors import EngineClosedError, EventAlreadySentError
from durable.core.retry import Retry
from durable.engine import Engine
from durable.events import Event, EventId
from durable.run import Run
from durable.runtime.attempt import CURRENT_ATTEMPT
from durable.runtime.ids import new_run_id
from durable.runtime.settings import PARK_AFTER_MS
from durable.sending import store_event
from durable.status import to_datetime
from durable.testing.clock import START_MS, VirtualClock
from durable.testing.driver import HORIZON_MS, Driver
from durable.testing.fakes import Steps
from durable.testing.faking import Faking, delay_ms_of
from durable.testing.journals import Traffic

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Iterable
    from pathlib import Path
    from types import TracebackType

    from durable.call import Call
    from durable.core.records import EventRecord
    from durable.testing.crashes import Crashes
    from durable.testing.journals import CrashPoint
    from durable.testing.playing import Check, Script, Setup
    from durable.testing.shuffling import Shuffled

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")


class EngineOptions(TypedDict, total=False):
    """The options of ``Engine``."""

    max_parallelism: int
    retry: Retry
    retry_actions_by_default: bool
    drain_timeout: float | timedelta
    max_payload: int
    max_interruptions: int
    worker: bool
    retention: float | timedelta | None
    strict: bool
    verify_replay: bool | None


@final
class Environment(Faking):
    """An engine of a test's own. Made by ``durable.testing.engine``, and used by ``async with``.

    Attributes:
        engine: The engine.
    """

    def __init__(
        self,
        url: str | Path,
        options: EngineOptions,
        *,
        start: datetime | None,
        auto: bool,
    ) -> None:
        self._url = url
        self._options = options
        self._start_ms = START_MS if start is None else _to_ms(start)
        self._clock = VirtualClock(self._start_ms)
        self._traffic = Traffic()
        self.engine = engine = Engine(url, **(EngineOptions(drain_timeout=0) | options))
        self._driver = Driver(engine, self._clock, self._traffic, is_auto=auto)
        self._steps = Steps(self._clock, self._driver.alarms, self._traffic)
        self._driver.attach(self._steps, partial(self._revive))
        self._driving: asyncio.Task[None] | None = None
        self._lives_count = 0
        self._revived = asyncio.Event()
        self._prepare(engine)

    def _prepare(self, engine: Engine) -> None:
        self._clock.install(engine)
        engine._settings = changed(engine._settings, draw=_no_jitter, park_after_ms=2 * HORIZON_MS)
        engine._wrap_journal = self._traffic.wrap
        defaults = engine._catalog.defaults
        engine._catalog = Catalog(
            defaults._replace(wrap=self._steps.wrap, body_of=self._steps.body_of)
        )

    def __repr__(self) -> str:
        return f"<Environment {self.now.isoformat()} {self.engine!r}>"

    async def __aenter__(self) -> Environment:
        """Open the engine. Raises what opening an engine raises."""
        await self.engine.__aenter__()
        self._driver.watch()
        self._driving = asyncio.create_task(self._driver.serve(), name="durable.testing")
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the engine. What runs is cut off, unless ``drain_timeout`` says otherwise."""
        driving, self._driving = self._driving, None
        if driving is not None:
            driving.cancel()
            await asyncio.wait({driving})
        self._driver.close()
        self._traffic.is_over.set()
        if self.engine.is_open_on(asyncio.get_running_loop()):
            await self.engine.__aexit__(exc_type, exc, traceback)
        if driving is not None and not driving.cancelled():
            driving.result()

    # --- time ------------------------------------------------------------------------------------

    @property
    def now(self) -> datetime:
        """The test's time: aware, in UTC."""
        return to_datetime(self._clock.now_ms())

    def advance(self, delay: float | timedelta) -> Awaitable[None]:
        """Let so much time pass, seconds or a ``timedelta``: ``await env.advance(60)``.

        Time stops at each moment that something is due at, until all is done that follows from it.
        Not awaited, it has passed when ``run_until_idle`` returns.

        Raises:
            ValueError: It is negative.
            RuntimeError: A step's function, or its fake, asks for it, which itself holds the time.
        """
        self._check_open("env.advance()")
        return self._driver.advance(delay_ms_of(delay))

    async def run_until_idle(self) -> None:
        """Return when all that can be done at this time is done. No time passes by it.

        Then each run that is not over waits: for a time, for an event, or for a slot.

        Raises:
            RuntimeError: A step's function, or its fake, asks for it, which itself is at work.
        """
        self._check_open("env.run_until_idle()")
        await self._driver.wait_until_idle()

    # --- runs ------------------------------------------------------------------------------------

    async def start(self, call: Call[T], *, id: str | None = None) -> Run[T]:  # noqa: A002
        """Start a run: ``Engine.start``, done again after a crash."""
        if id is None and self._traffic.is_mortal:
            id = new_run_id(self._clock.now_ms())  # noqa: A001  the same, when it is done again
        return await self.ask(lambda engine: engine.start(call, id=id))

    async def run(self, call: Call[T], *, id: str | None = None) -> T:  # noqa: A002
        """Start a run and return its result. While all is idle, time passes by itself.

        Raises:
            StalledError: The run does not end, and nothing is due: it says what is waited for.
                With ``auto=False`` the wait goes on instead.
            RunFailed, RunCanceled: As for ``Run.result``.
        """
        run = await self.start(call, id=id)
        return await self.result(run)

    @overload
    async def result(self, run: Run[T]) -> T: ...
    @overload
    async def result(self, run: str) -> Any: ...  # noqa: ANN401
    async def result(self, run: Run[Any] | str) -> Any:
        """Wait for the end of a run, or of the run of that id, and return its value, as ``run``."""
        run_id = run if isinstance(run, str) else run.id
        return await self.ask(lambda engine: engine.get(run_id).result())

    async def ask(self, do: Callable[[Engine], Awaitable[T]]) -> T:
        """Do something with the engine: ``await env.ask(lambda engine: engine.status(run_id))``.

        When a simulated crash comes while it is being done, it is done again, as a program does
        that is started again. So it has to be something that may be done twice.
        """
        while True:
            lives_count = self._lives_count
            try:
                return await do(self.engine)
            except EngineClosedError:
                if not self._traffic.is_mortal or self._driving is None:
                    raise
                await self._wait_for_life(lives_count)

    @overload
    async def send_event(self, run_id: str, event: Event[T], value: T) -> EventId: ...
    @overload
    async def send_event(self, run_id: str, event: Event[None]) -> EventId: ...
    @overload
    async def send_event(
        self, run_id: str, event: Event[Any], *, error: str | Exception
    ) -> EventId: ...
    @overload
    async def send_event(
        self,
        run_id: str,
        event: str,
        value: Any = None,  # noqa: ANN401
        *,
        error: str | Exception | None = None,
    ) -> EventId: ...
    async def send_event(
        self,
        run_id: str,
        event: str | Event[Any],
        value: Any = None,
        *,
        error: str | Exception | None = None,
    ) -> EventId:
        """Send an event: ``Engine.send_event``, and once, whatever crash comes meanwhile."""
        record = self.engine._new_event(run_id, event, value, error, self._clock.now_ms())
        return await self.ask(partial(_send_once, record))

    async def cancel(self, run_id: str, *, interrupt: bool = False) -> bool:
        """Cancel a run: ``Engine.cancel``, done again after a crash."""
        return await self.ask(lambda engine: engine.cancel(run_id, interrupt=interrupt))

    # --- crashes, and orders of completion -------------------------------------------------------

    async def crash_everywhere(
        self,
        call: Call[Any],
        *,
        script: Script | None = None,
        setup: Setup | None = None,
        check: Check | None = None,
        may_raise: type[Exception] | tuple[type[Exception], ...] = (),
        ignore: Iterable[str] = (),
    ) -> Crashes:
        """Run a workflow, and again with a crash before and after every commit that it makes.

        Each time it is run on a journal of its own, with this environment's options and fakes. See
        ``durable.testing.crash_everywhere``.
        """
        from durable.testing.crashes import crash_everywhere  # noqa: PLC0415  it is made of these

        return await crash_everywhere(
            call,
            script=script,
            setup=setup,
            check=check,
            may_raise=may_raise,
            ignore=ignore,
            env=self,
        )

    async def shuffle(
        self,
        call: Call[Any],
        *,
        seeds: int | Iterable[int] = 20,
        script: Script | None = None,
        setup: Setup | None = None,
        check: Check | None = None,
    ) -> Shuffled:
        """Run a workflow with its parallel actions completing in other orders, one for each seed.

        Each time it is run on a journal of its own, with this environment's options and fakes. See
        ``durable.testing.shuffle``.
        """
        from durable.testing.shuffling import shuffle  # noqa: PLC0415  it is made of these

        return await shuffle(call, seeds=seeds, script=script, setup=setup, check=check, env=self)

    # --- lives -----------------------------------------------------------------------------------

    def arm(self, crash: CrashPoint | None) -> None:
        """Let the engine die at that commit, counted from here."""
        self._traffic.arm(crash)

    def shuffle_by(self, draw: random.Random) -> None:
        """Let actions complete in an order that is drawn."""
        self._steps.shuffler = draw

    @property
    def begun_again(self) -> list[str]:
        """The steps whose function has begun though their outcome was recorded."""
        return self._steps.begun_again

    def twin(self, url: str | Path) -> Environment:
        """Return another one with the same options, time and fakes, on a journal of its own."""
        start = to_datetime(self._start_ms)
        twin = Environment(url, self._options, start=start, auto=self._driver.is_auto)
        twin._steps.take_over(self._steps)
        # What is played there is to be read again from the journal, too, as in production.
        twin.engine._settings = changed(twin.engine._settings, park_after_ms=PARK_AFTER_MS)
        return twin

    def _check_open(self, what: str) -> None:
        if self._driving is None:
            msg = (
                f"{what} needs an open environment: use it inside `async with "
                "durable.testing.engine(...) as env`, or in an async test that has the fixture"
            )
            raise EngineClosedError(msg)
        if CURRENT_ATTEMPT.get(None) in self._steps.under_way:
            msg = (
                f"{what} is for the test, not for the function of a step or its fake: that is at "
                "work, so no time passes until it ends. To have it take time, use env.delay()"
            )
            raise RuntimeError(msg)

    async def _revive(self) -> None:
        """Let the engine die, and open it again: the driver calls this when a crash has come."""
        await self.engine.__aexit__(None, None, None)
        self._traffic.end_life()
        await self.engine.__aenter__()
        self._driver.watch()
        self._lives_count += 1
        revived, self._revived = self._revived, asyncio.Event()
        revived.set()

    async def _wait_for_life(self, lives_count: int) -> None:
        while self._lives_count == lives_count:
            await self._revived.wait()


async def _send_once(record: EventRecord, engine: Engine) -> EventId:
    runner, journal = engine._opened("env.send_event()")
    if await journal.load_event(record.event_id) is not None:
        return EventId(record.event_id)
    try:
        return await store_event(runner, record)
    except EventAlreadySentError:
        return EventId(record.event_id)


def _no_jitter() -> float:
    """Draw what leaves a wait as it is."""
    return 0.5


def _to_ms(start: datetime) -> int:
    if start.tzinfo is None:
        msg = f"start= is an aware datetime, such as datetime(2025, 1, 1, tzinfo=UTC), not {start}"
        raise ValueError(msg)
    return round(start.timestamp() * 1000)
