"""The processes with engines, and who asks them: until there is an answer, as a user would.

What a caller was not told, because the process died or the storage failed, is asked again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, final

from msgspec.structs import replace

from durable import Engine, EngineClosedError, JournalError, JournalLockedError, TransactionError
from durable.current import remove_open
from durable.journal.base import OwnershipLostError
from durable.runtime.settings import LIVE_RUNS_MAX
from simulation.loop import stream

if TYPE_CHECKING:
    from simulation.disk import Disk
    from simulation.oracle import Oracle

ASK_AGAIN_S: Final = 0.4

Ask = Callable[[Engine], Awaitable[None]]


@final
class Host:
    """A process with an engine.

    Attributes:
        is_open: Whether its engine answers.
        asked: What is asked of it now.
        parallelism_max: The most actions that it was ever allowed to run at once.
    """

    def __init__(self, fleet: Fleet, name: str, engine: Engine, *, is_worker: bool) -> None:
        self.process = fleet.machine.start(name)
        self.engine = engine
        self.is_worker = is_worker
        self.is_open = False
        self.parallelism_max = fleet.parallelism
        self.asked: dict[int, tuple[str, Ask]] = {}
        self._fleet = fleet
        self._stop: asyncio.Event | None = None
        self.process.on_death.append(self._on_death)
        self.process.spawn(self._main(), name)

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        machine = self._fleet.machine
        try:
            async with self.engine:
                self.is_open = True
                serving: Any = self.engine._serving
                stopping = asyncio.create_task(self._stop.wait())
                await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()
                self.is_open = False
        except JournalLockedError as exc:
            # Who is robbed may take itself for the owner; who writes for long, holds up others.
            if isinstance(exc, OwnershipLostError) and not self._fleet.disk.was_robbed:
                machine.fail(f"I3: {exc}")
        except JournalError as exc:
            machine.note(self.process, f"cannot go on: {type(exc).__name__}")
        except BaseException as exc:
            if self.process.is_alive:
                machine.fail(f"I17: the engine has failed: {exc!r}")
            raise
        finally:
            self.is_open = False
        if self.process.is_alive:
            machine.note(self.process, "ends")
            self.process.end()

    def stop(self) -> None:
        """Have the engine closed, in good order."""
        if self._stop is not None and self.is_open:
            self.process.wake(self._stop.set)

    @property
    def is_owner(self) -> bool:
        """Whether it works on the runs."""
        journal: Any = self.engine._journal
        return journal is not None and bool(journal.is_owner)

    @property
    def epoch(self) -> int | None:
        """The fencing token that it writes with; a guest has none."""
        journal: Any = self.engine._journal
        epoch: int | None = None if journal is None else journal.epoch
        return epoch

    def now_ms(self) -> int:
        """Return its engine's time."""
        return self.engine._clock.now_ms()

    def _on_death(self) -> None:
        loop = self.engine._loop
        if self.is_open and loop is not None:
            remove_open(self.engine, loop)  # Else, it has done so itself, or was never there.
        self.engine._stop_listening()
        self.is_open = False
        self._fleet.on_death(self)


@final
class Fleet:
    """All processes, and what is asked of them.

    Attributes:
        parallelism: How many actions an engine runs at once.
    """

    def __init__(self, disk: Disk, oracle: Oracle, seed: str) -> None:
        self.disk = disk
        self.machine = disk.machine
        self.oracle = oracle
        self.hosts: list[Host] = []
        draw = stream(seed, "fleet")
        self.random = draw
        self.parallelism = draw.choice((1, 2, 2, 3, 25))
        self._drain_s = draw.choice((0, 0.5, 10))
        self._park_after_ms = draw.choice((0, 300, 3_000, 30_000))
        self._live_runs_max = draw.choice((1, 3, LIVE_RUNS_MAX, LIVE_RUNS_MAX))
        self._hosts_count = self._asks_count = 0

    def __str__(self) -> str:
        return (
            f"max_parallelism={self.parallelism} drain={self._drain_s} s "
            f"park_after={self._park_after_ms} ms live_runs_max={self._live_runs_max}"
        )

    @property
    def is_crowded(self) -> bool:
        """Whether runs may have to wait for room in memory."""
        return self._live_runs_max < LIVE_RUNS_MAX

    def _make_engine(self, *, is_worker: bool) -> Engine:
        engine = Engine(
            self.disk.path,
            max_parallelism=self.parallelism,
            drain_timeout=self._drain_s,
            worker=is_worker,
        )
        engine._settings = replace(
            engine._settings,
            park_after_ms=self._park_after_ms,
            live_runs_max=self._live_runs_max,
        )
        return engine

    # --- processes -------------------------------------------------------------------------------

    def begin(self, *, is_worker: bool = True) -> None:
        """Have one more process."""
        self._hosts_count += 1
        engine = self._make_engine(is_worker=is_worker)
        host = Host(self, f"p{self._hosts_count}", engine, is_worker=is_worker)
        self.machine.note(host.process, "begins" if is_worker else "begins, as a client")
        self.hosts.append(host)
        self.oracle.hosts[host.process] = host

    @property
    def owner(self) -> Host | None:
        """The process that works on the runs."""
        return next((host for host in self.hosts if host.is_open and host.is_owner), None)

    def on_death(self, host: Host) -> None:
        """A process has ended, or was killed: another begins, and asks what that had asked."""
        if host not in self.hosts:
            return
        self.hosts.remove(host)
        for what, ask in host.asked.values():
            self.after(self.random.random() * 3, partial(self.ask, what, ask))
        host.asked.clear()
        self.after(self.random.choice((0.05, 0.5, 4.0)), self.see_to_workers)

    def see_to_workers(self) -> None:
        """Have a process that can work on the runs."""
        if not any(host.is_worker and not host.process.is_robbed for host in self.hosts):
            self.begin()

    def after(self, delay_s: float, act: Callable[[], None]) -> None:
        """Do something later."""
        self.machine.at(self.machine.now_s + delay_s, act)

    # --- asking ----------------------------------------------------------------------------------

    def ask(self, what: str, ask: Ask) -> None:
        """Have a caller in some process ask for something, until it is answered."""
        able = [host for host in self.hosts if host.is_open]
        if not able:
            self.after(ASK_AGAIN_S, partial(self.ask, what, ask))
            return
        host = self.random.choice(able)
        self._asks_count += 1
        number = self._asks_count
        host.asked[number] = what, ask
        host.process.spawn(self._ask(host, number), what)

    async def _ask(self, host: Host, number: int) -> None:
        what, ask = host.asked[number]
        self.machine.note(host.process, f"? {what}")
        try:
            await ask(host.engine)
        except (JournalError, EngineClosedError, TransactionError) as exc:
            if host.process.is_alive:
                self.machine.note(host.process, f"! {what}: {type(exc).__name__}")
                self.after(ASK_AGAIN_S, partial(self.ask, what, ask))
        except Exception as exc:  # noqa: BLE001  that no caller is to get
            if host.process.is_alive:
                self.machine.fail(f"I17: {what} raised {exc!r}")
        else:
            self.machine.note(host.process, f"! {what}")
        host.asked.pop(number, None)
