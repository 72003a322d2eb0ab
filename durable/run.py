"""A handle of one run, and running one in a script."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, final, overload

from durable.current import check_asyncio, find_current, own_engine, refuse_in_body

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import timedelta
    from pathlib import Path

    from durable.call import Call
    from durable.definitions import Definition
    from durable.engine import Engine
    from durable.events import Event, EventId
    from durable.status import RunStatus, StepInfo
    from durable.transaction import Transaction

T = TypeVar("T")
V = TypeVar("V")


@final
class Run(Generic[T]):
    """A handle of one run. Making one does no I/O; the run may not exist.

    Attributes:
        id: The run's id.
    """

    __slots__ = ("_engine", "id")

    def __init__(self, engine: Engine, run_id: str) -> None:
        self._engine = engine
        self.id = run_id

    def __repr__(self) -> str:
        return f"<Run {self.id!r}>"

    async def result(self, timeout: float | timedelta | None = None) -> T:  # noqa: ASYNC109
        """Wait for the run's end and return its value.

        Args:
            timeout: In seconds; by default for ever. 0 looks once, and does not wait.

        Raises:
            RunFailed: It failed; ``error`` says how, ``__cause__`` is the exception.
            RunCanceled: It was cancelled.
            TimeoutError: It took longer. The run goes on.
            RunNotFoundError: There is no such run.
            EngineClosedError: The engine was closed meanwhile. The run goes on at the next start.

        Cancellation:
            Leaves the run alone.
        """
        value: T = await self._engine.wait_for_result(self.id, timeout)
        return value

    async def cancel(self, *, interrupt: bool = False) -> bool:
        """Cancel the run: see ``Engine.cancel``."""
        return await self._engine.cancel(self.id, interrupt=interrupt)

    @overload
    async def send_event(
        self, event: Event[V], value: V, *, tx: Transaction | None = None
    ) -> EventId: ...
    @overload
    async def send_event(self, event: Event[None], *, tx: Transaction | None = None) -> EventId: ...
    @overload
    async def send_event(
        self, event: Event[Any], *, error: str | Exception, tx: Transaction | None = None
    ) -> EventId: ...
    @overload
    async def send_event(
        self,
        event: str,
        value: Any = None,  # noqa: ANN401
        *,
        error: str | Exception | None = None,
        tx: Transaction | None = None,
    ) -> EventId: ...
    async def send_event(
        self,
        event: str | Event[Any],
        value: Any = None,
        *,
        error: str | Exception | None = None,
        tx: Transaction | None = None,
    ) -> EventId:
        """Send the run an event: see ``Engine.send_event``."""
        send: Any = self._engine.send_event  # One of its overloads.
        event_id: EventId = await send(self.id, event, value, error=error, tx=tx)
        return event_id

    async def restart(
        self, *, from_step: int | str | Definition[Any, Any] | None = None
    ) -> Run[Any]:
        """Have the run go on, if it is over: see ``Engine.restart``."""
        return await self._engine.restart(self.id, from_step=from_step)

    async def resume(self) -> bool:
        """Try the run again, if it is stuck: see ``Engine.resume``."""
        return await self._engine.resume(self.id)

    async def cleanup(self, *, force: bool = False) -> bool:
        """Remove the run from the journal: see ``Engine.cleanup``."""
        return await self._engine.cleanup(self.id, force=force)

    async def status(self) -> RunStatus:
        """Return where the run stands.

        Raises:
            RunNotFoundError: There is no such run.
        """
        return await self._engine.status(self.id)

    def watch(self) -> AsyncIterator[RunStatus]:
        """Iterate over what becomes of the run, to its end: see ``Engine.watch``."""
        return self._engine.watch(self.id)

    def steps(self, *, order: Literal["asc", "desc"] = "asc") -> AsyncIterator[StepInfo]:
        """Iterate over the run's steps, in order of issue: see ``Engine.iter_steps``."""
        return self._engine.iter_steps(self.id, order=order)


async def run(call: Call[T], *, id: str | None = None, url: str | Path | None = None) -> T:  # noqa: A002
    """Run a workflow and return its result: ``await durable.run(checkout("o-1", 500))``.

    It uses the engine that is open on this event loop, if there is one, else opens one, which calls
    at the same time share, and the last of them closes. After a crash the same call with the same
    ``id`` goes on where it was.

    Args:
        call: A workflow's call.
        id: The run's id, and idempotency key; by default a new one.
        url: The journal to open; by default ``DURABLE_URL``, else ``sqlite:///durable.db``.

    Raises:
        RunFailed: The run failed; ``error`` says how, ``__cause__`` is the exception.
        ArgumentError, PayloadTooLarge: An argument does not fit. Nothing was written.
        RunConflictError: The id belongs to another workflow, or to other arguments.
        JournalError: The journal cannot be opened, or failed: ask again with the same ``id``.
        EngineClosedError: The engine was closed meanwhile. The run goes on at the next opening.
        RuntimeError: No event loop of asyncio runs.

    Cancellation:
        Leaves the run alone, if it is started; with the engine that the call opened it is
        interrupted, and goes on when the journal is opened again.
    """
    from durable.engine import Engine  # noqa: PLC0415  engines are made of runs
    from durable.shared import find_shared, share  # noqa: PLC0415  the same

    refuse_in_body("durable.run()")
    check_asyncio()
    engine = find_current("durable.run()") if url is None else None
    if engine is not None:
        shared = find_shared(engine=engine)
    else:
        new = Engine.from_env() if url is None else Engine(url)
        shared = find_shared(path=new.path) or share(new, new.path)
        engine = shared.engine
    if shared is None or own_engine.get() is engine:
        return await engine.run(call, id=id)
    async with shared:
        return await engine.run(call, id=id)
