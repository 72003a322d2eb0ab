"""``Engine``: durable execution inside an async application.

Rules:

- ``async with`` is the whole life: open the journal, take up what is due, work, drain, close.
- The engine is a guest: no signal handler, no loop policy, no logging configuration, no executor.
- What callers give is checked before anything is written.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar, final

from durable import registry
from durable.call import Call
from durable.catalog import BoundWorkflow, Catalog, outcome_of
from durable.checks import (
    check_count,
    check_drain_timeout,
    check_flag,
    check_id,
    check_policy,
    check_retention,
    check_timeout,
    check_verify_replay,
)
from durable.controlling import Controlling
from durable.core.errors import EngineClosedError, NoEngineError
from durable.core.records import StepKind
from durable.core.retry import Retry, seconds
from durable.current import (
    add_open,
    check_asyncio,
    find_current,
    own_engine,
    refuse_in_body,
    remove_open,
    running_loop,
)
from durable.issue import MAX_PAYLOAD, Defaults
from durable.journal.url import parse_url
from durable.journal.whole import to_its_end
from durable.observing import Observing
from durable.run import Run
from durable.runtime.clock import SystemClock
from durable.runtime.instrumentation import EngineLog
from durable.runtime.settings import MAX_INTERRUPTIONS, TRANSACTION_S_MAX, Settings
from durable.sending import Sending
from durable.starting import new_run
from durable.status import EngineStatistics, run_not_found
from durable.transaction import Transaction, scope_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from datetime import datetime, timedelta
    from pathlib import Path
    from types import TracebackType

    from durable.core.records import RunRecord
    from durable.definitions import Definition
    from durable.journal.base import Journal
    from durable.runtime.clock import Clock
    from durable.runtime.runner import Runner

T = TypeVar("T")

DEFAULT_URL = "sqlite:///durable.db"


@final
class Engine(Observing, Controlling, Sending):
    """Runs workflows in this process, journaled in a database file.

    Args:
        url: The journal: ``sqlite:///relative.db``, ``sqlite:////absolute.db``, ``sqlite://`` (in
            memory), or a ``pathlib.Path``; by default ``sqlite:///durable.db``.
        max_parallelism: How many actions run at once, by default 25; 0 pauses new ones.
        retry: The policy in force where none is given; by default ``Retry()``.
        retry_actions_by_default: Whether actions are retried that do not say; by default not.
        drain_timeout: How long closing waits for running actions, in seconds, by default 10.
        max_payload: The largest arguments or result, in bytes of JSON; by default 8 MiB.
        max_interruptions: How often the process may die during one step before the step fails, by
            default 100 times.
        worker: Whether it works on runs, which it does while no other engine has the journal: until
            then it is a standby. Otherwise it is a client: every call works, and what it starts or
            asks for is done by the engine that works, now or when there is one.
        retention: How long a run is kept after its end, in seconds or as a ``timedelta``; by
            default for ever. Older ones are removed at the opening, and then once a minute.
        verify_replay: Whether each body is executed again, over what is recorded of it, after each
            of its turns, and its run is ``stuck`` when it does something else. For development: it
            takes time that grows with the square of a run's steps, and what a body prints, it
            prints each time. By default what ``DURABLE_VERIFY_REPLAY`` says, which is 1 or 0.
        strict: Whether bodies are watched while their code runs, for development and tests: what
            goes past their event loop (files, sockets, processes, threads; clocks and randomness
            other than the step's) raises ``NonDeterminismError`` there, as the same through
            asyncio always does. By default not. Its audit hook stays in the process for good, and
            does nothing for other code.

    Raises:
        TypeError, ValueError: A setting is not valid. Nothing was opened.
    """

    def __init__(
        self,
        url: str | Path = DEFAULT_URL,
        *,
        max_parallelism: int = 25,
        retry: Retry = Retry(),  # noqa: B008  frozen
        retry_actions_by_default: bool = False,
        drain_timeout: float | timedelta = 10.0,
        max_payload: int = MAX_PAYLOAD,
        max_interruptions: int = MAX_INTERRUPTIONS,
        worker: bool = True,
        retention: float | timedelta | None = None,
        verify_replay: bool | None = None,
        strict: bool = False,
    ) -> None:
        self._path = parse_url(url)
        self._is_worker = check_flag(worker, "worker=")
        if self._path is None and not worker:
            msg = "a journal in memory has no other process: give Engine(worker=False) a file"
            raise ValueError(msg)
        self._max_parallelism = check_count(max_parallelism, "max_parallelism")
        self._drain_timeout_s = check_drain_timeout(drain_timeout)
        self._max_payload = check_count(max_payload, "max_payload")
        self._settings = Settings(
            max_interruptions=check_count(max_interruptions, "max_interruptions"),
            retention_ms=check_retention(retention),
            verify_replay=check_verify_replay(verify_replay),
            is_strict=check_flag(strict, "strict="),
        )
        self._catalog = Catalog(
            Defaults(
                check_policy(retry, "Engine(retry=)"),
                check_flag(retry_actions_by_default, "retry_actions_by_default"),
                self._max_payload,
            )
        )
        self._clock: Clock = SystemClock()
        self._wrap_journal: Callable[[Journal], Journal] | None = None
        self._journal: Journal | None = None
        self._runner: Runner | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._serving: asyncio.Task[None] | None = None
        self._stop: asyncio.Event | None = None
        self._stop_listening = _nothing

    def __repr__(self) -> str:
        state = "closed" if self._runner is None else "open"
        return f"<Engine {self._path or 'in memory'} {state}>"

    @property
    def path(self) -> Path | None:
        """The journal's file, absolute; ``None`` when it is in memory."""
        return None if self._path is None else self._path.absolute()

    @classmethod
    def from_env(cls) -> Engine:
        """Return an engine of the journal that ``DURABLE_URL`` names."""
        return cls(os.environ.get("DURABLE_URL") or DEFAULT_URL)

    @classmethod
    def current(cls) -> Engine:
        """Return the engine that runs the calling action; elsewhere, the one that was opened last
        on the running event loop, and is still open.

        A sync action, which runs in a thread, gets its engine too. All calls but ``get`` have to
        run on the engine's event loop all the same: ``anyio.from_thread.run(engine.start, call)``.

        Raises:
            NoEngineError: There is none; in a thread that is not an action's, there never is.
        """
        engine = find_current("Engine.current()")
        if engine is None:
            msg = "no engine is open on this event loop; open one with `async with Engine(url):`"
            raise NoEngineError(msg)
        return engine

    def is_open_on(self, loop: asyncio.AbstractEventLoop | None) -> bool:
        """Whether it is open, and works on that event loop; without one, it is a thread's."""
        return self._runner is not None and loop in (None, self._loop)

    # --- life ------------------------------------------------------------------------------------

    async def __aenter__(self) -> Engine:
        """Open the journal, take up what is due, and begin to work.

        If another engine works on the journal, in this process or another, this one is a standby:
        it serves all calls, and takes over when the other is closed or dies.

        Raises:
            JournalLockedError: Another process writes to the journal, and does not come to an end.
            JournalVersionError: It was written by a newer durable.
            JournalCorruptError: It is damaged, or not a journal.
            JournalUnavailableError: The file cannot be opened.
            RuntimeError: The engine is open already, or no event loop of asyncio runs.
        """
        refuse_in_body("an engine")
        check_asyncio()
        if self._journal is not None:
            msg = "this engine is open already; make another one, or leave its `async with` first"
            raise RuntimeError(msg)
        from durable.journal.sqlite import SqliteJournal  # noqa: PLC0415  late: 30 ms of sqlite3
        from durable.runtime.runner import Runner  # noqa: PLC0415  late: anyio

        journal: Journal = (
            SqliteJournal(self._path)
            if self._is_worker
            else SqliteJournal(self._path, is_worker=False)
        )
        if self._wrap_journal is not None:
            journal = self._wrap_journal(journal)
        self._journal = journal
        try:
            await to_its_end(journal.open())
            runner = Runner(
                journal,
                self._catalog,
                self._clock,
                self._settings,
                max_parallelism=self._max_parallelism,
                log=EngineLog(),
            )
            self._loop = asyncio.get_running_loop()
            ready, self._stop = asyncio.Event(), asyncio.Event()
            # A task of its own: no cancel scope of the engine is ever around the user's code.
            self._serving = asyncio.create_task(
                self._serve(runner, ready, self._stop), name="durable.engine"
            )
            self._runner = runner
            self._stop_listening = registry.listen(self._on_registered)
            await ready.wait()
        except BaseException:
            await to_its_end(self._close())
            raise
        add_open(self, self._loop)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Start no more steps, wait for those that run, and close the journal.

        What still runs after ``drain_timeout`` is interrupted, as by a crash: async actions are
        cancelled, sync ones finish unheard; their steps are run again at the next opening. Runs
        that wait are left as they are. Who waits for a result gets ``EngineClosedError``.

        Raises:
            JournalLockedError: Another owner had taken the journal over; nothing more was written.
            RuntimeError: An action of its own closes it, for which it would wait. It stays open.
        """
        if own_engine.get() is self:
            msg = "an action cannot close the engine that runs it: closing waits for the action"
            raise RuntimeError(msg)
        assert self._loop is not None
        remove_open(self, self._loop)
        await to_its_end(self._close())

    async def _serve(self, runner: Runner, ready: asyncio.Event, stop: asyncio.Event) -> None:
        # The context of this task is that of all attempts, and of their threads.
        own_engine.set(self)
        journal = self._journal
        assert journal is not None
        try:
            await runner.serve(ready, stop, self._drain_timeout_s)
        except asyncio.CancelledError:
            # The loop ends, as `asyncio.run` does it, and nobody has closed the engine. What the
            # journal's threads are at would find a loop that is gone.
            await to_its_end(journal.close())
            raise

    async def _close(self) -> None:
        journal, serving, stop = self._journal, self._serving, self._stop
        self._stop_listening()
        self._stop_listening = _nothing
        try:
            if serving is not None:
                assert stop is not None
                stop.set()
                await asyncio.wait((serving,))
                if not serving.cancelled():  # By the host: who closes is not cancelled by that.
                    serving.result()
        finally:
            self._runner = self._serving = self._stop = self._loop = None
            assert journal is not None
            await journal.close()
            self._journal = None

    def _on_registered(self, kind: str, name: str, version: int) -> None:
        loop, runner = self._loop, self._runner
        if kind == StepKind.WORKFLOW and loop is not None and runner is not None:
            # The import may happen in any thread.
            loop.call_soon_threadsafe(runner.aside.on_defined, name, version)

    def _opened(self, what: str) -> tuple[Runner, Journal]:
        loop = running_loop()
        if loop is not self._loop:
            refuse_in_body(what)
        if self._runner is None or self._journal is None:
            msg = f"{what} needs an open engine: use it inside `async with Engine(...)`"
            raise EngineClosedError(msg)
        if loop is not self._loop:
            self._check_loop(what)
        return self._runner, self._journal

    def _check_loop(self, what: str) -> None:
        if running_loop() is not self._loop:
            msg = (
                f"{what}: this engine was opened on another event loop; use it on that one, from a "
                "sync action by `anyio.from_thread.run`"
            )
            raise RuntimeError(msg)

    # --- runs ------------------------------------------------------------------------------------

    async def start(
        self,
        call: Call[T],
        *,
        id: str | None = None,  # noqa: A002
        on_complete: Definition[Any, Any] | None = None,
        context: object = None,
        run_after: float | timedelta | None = None,
        run_at: datetime | None = None,
        tx: Transaction | None = None,
    ) -> Run[T]:
        """Start a run of a workflow; return once that is committed.

        Args:
            call: The workflow's call.
            id: The run's id, and idempotency key: with the same workflow and arguments the run
                that has it is returned. By default a new id.
            on_complete: An action, a mutation or a workflow that takes one ``Completion``. It is
                owed from the transaction of the run's end, however that comes, and called until it
                succeeds, after waits of up to a minute: a mutation has its effect once, an action
                is called at least once. A workflow is started, once.
            context: What the ``Completion`` is to carry, and ``RunStatus`` shows.
            run_after: The delay before the body begins, in seconds.
            run_at: When the body begins: an aware datetime.
            tx: A transaction of this engine: the start is committed with it, or not at all. The
                run is returned before that.

        Raises:
            ArgumentError: An argument does not fit its annotation. Nothing was written.
            PayloadTooLarge: The arguments are over ``max_payload``. Nothing was written.
            TransactionError: ``tx`` is over, another engine's, or a query's; or none was given
                where one is open, whose end the start would wait for.
            RunConflictError: The id belongs to another workflow, or to other arguments.
            JournalUnavailableError: The storage failed: the outcome is unknown; ask again with
                the same id.
            EngineClosedError: The engine is closed, or was closed meanwhile.

        Cancellation:
            Never splits the start. A cancelled caller does not know its outcome.
        """
        runner, _ = self._opened("engine.start()")
        record, bound, due_ms = self._new_run(
            call, id, run_after, run_at, on_complete=on_complete, context=context
        )
        if tx is not None:
            await runner.starts.start_within(scope_of(tx), record, wake_at_ms=due_ms)
            return Run(self, record.run_id)
        await runner.starts.start(record, bound, wake_at_ms=due_ms, is_id_given=id is not None)
        return Run(self, record.run_id)

    async def run(
        self,
        call: Call[T],
        *,
        id: str | None = None,  # noqa: A002
        on_complete: Definition[Any, Any] | None = None,
        context: object = None,
        run_after: float | timedelta | None = None,
        run_at: datetime | None = None,
    ) -> T:
        """Start a run and wait for its result: ``start`` and ``Run.result`` in one.

        Raises:
            RunFailed: It failed; ``error`` says how, ``__cause__`` is the exception.
            ArgumentError, PayloadTooLarge, RunConflictError: As for ``start``.
            JournalUnavailableError, EngineClosedError: As for ``start``.

        Cancellation:
            Leaves the run alone, if it is started: it goes on. ``get(id)`` finds it again.
        """
        runner, _ = self._opened("engine.run()")
        record, bound, due_ms = self._new_run(
            call, id, run_after, run_at, on_complete=on_complete, context=context
        )
        if id is None:
            ended = await runner.starts.run(record, bound, wake_at_ms=due_ms)
            return _outcome(record.run_id, ended)  # type: ignore[no-any-return]
        runner.ends.expect(record.run_id)
        try:
            await runner.starts.start(record, bound, wake_at_ms=due_ms, is_id_given=True)
            ended = await runner.ends.wait(record.run_id)
        finally:
            runner.ends.forget(record.run_id)
        return _outcome(record.run_id, ended)  # type: ignore[no-any-return]

    @asynccontextmanager
    async def transaction(
        self,
        *,
        timeout: float | timedelta = TRANSACTION_S_MAX,  # noqa: ASYNC109  it rolls back
    ) -> AsyncGenerator[Transaction]:
        """Have a transaction of your own on the journal's database: ``async with ... as tx``.

        It is committed when the block ends, and rolled back when the block raises. Nothing else
        is committed meanwhile, of no run: do only what belongs together in it.

        Args:
            timeout: How long it may last, in seconds, by default 10. Then it is rolled back.

        Raises:
            TransactionError: It took longer, or a statement has ended it: it was rolled back. Or
                it was asked for inside of another one, whose end it would wait for.
            JournalUnavailableError: The storage failed: the outcome is unknown.
            EngineClosedError: The engine is closed, or was closed meanwhile.

        Cancellation:
            In the block, rolls back. While it is committed, a cancelled caller does not know the
            outcome.
        """
        runner, _ = self._opened("engine.transaction()")
        timeout_s = check_timeout(timeout)
        runner.check_open()
        async with runner.transactions.hold(timeout_s or TRANSACTION_S_MAX) as scope:
            yield Transaction(scope)

    def get(self, run_id: str) -> Run[Any]:
        """Return a handle of a run. It does no I/O; the run may not exist."""
        refuse_in_body("engine.get()")
        return Run(self, check_id(run_id))

    def _new_run(
        self,
        call: Call[Any],
        run_id: str | None,
        run_after: float | timedelta | None,
        run_at: datetime | None,
        *,
        on_complete: Definition[Any, Any] | None,
        context: object,
    ) -> tuple[RunRecord, BoundWorkflow, int | None]:
        now_ms, max_payload = self._clock.now_ms(), self._max_payload
        workflow, record, due_ms = new_run(
            call,
            run_id,
            run_after,
            run_at,
            on_complete=on_complete,
            context=context,
            now_ms=now_ms,
            max_payload=max_payload,
        )
        return record, self._catalog.bind(workflow), due_ms

    async def wait_for_result(self, run_id: str, timeout: float | timedelta | None) -> Any:  # noqa: ANN401, ASYNC109
        """Wait for a run's end and return its value: see ``Run.result``."""
        runner, _ = self._opened("run.result()")
        if timeout is None:
            record = await runner.ends.wait(run_id)
        else:
            timeout_s = seconds(timeout, "timeout")
            try:
                async with asyncio.timeout(timeout_s):
                    record = await runner.ends.wait(run_id)
            except TimeoutError:
                # The time bounds the waiting alone: without any, nobody would have looked yet.
                is_over, record = await runner.ends.look(run_id)
                if not is_over:
                    msg = (
                        f"run {run_id!r} did not end within {timeout_s:g} s. It is left alone; its "
                        "status says where it stands"
                    )
                    raise TimeoutError(msg) from None
        return _outcome(run_id, record)

    # --- settings --------------------------------------------------------------------------------

    def set_max_parallelism(self, n: int) -> None:
        """Change how many actions run at once; 0 pauses new ones.

        Raising it wakes waiting ones at once; lowering it ends none.

        Raises:
            ValueError: It is negative.
        """
        refuse_in_body("engine.set_max_parallelism()")
        count = check_count(n, "max_parallelism")
        if self._runner is not None:
            self._check_loop("engine.set_max_parallelism()")
            self._runner.pool.set_max_parallelism(count)
        self._max_parallelism = count

    def statistics(self) -> EngineStatistics:
        """Return what the engine is doing at this moment."""
        runner, _ = self._opened("engine.statistics()")
        return EngineStatistics(
            live_runs=runner.live_runs_count,
            running_actions=runner.pool.running_count,
            queued_actions=runner.pool.queued_count,
            commits=runner.writer.commits_count,
        )


def _nothing() -> None:
    pass


def _outcome(run_id: str, record: RunRecord | None) -> Any:  # noqa: ANN401
    if record is None:
        raise run_not_found(run_id)
    return outcome_of(record)
