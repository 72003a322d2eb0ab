"""``Engine``: durable execution inside an async application.

Rules:

- ``async with`` is the whole life: open the journal, take up what is due, work, drain, close.
- The engine is a guest: no signal handler, no loop policy, no logging configuration, no executor.
- What callers give is checked before anything is written.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import AsyncIterator
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, final

from durable import registry
from durable.call import Call
from durable.catalog import BoundWorkflow, Catalog, outcome_of
from durable.checks import (
    check_count,
    check_cursor,
    check_delay,
    check_id,
    check_limit,
    check_name,
    check_order,
    check_state,
    make_cursor,
)
from durable.core.errors import (
    EngineClosedError,
    NoEngineError,
    NotInWorkflowError,
    RunNotFoundError,
)
from durable.core.loop import WorkflowLoop
from durable.core.records import RunRecord, RunState, StepKind
from durable.core.retry import Retry, seconds
from durable.definitions import Workflow
from durable.issue import Defaults
from durable.journal.base import RunQuery, StepQuery
from durable.journal.url import parse_url
from durable.journal.whole import to_its_end
from durable.run import Run
from durable.runtime.clock import SystemClock
from durable.runtime.instrumentation import EngineLog
from durable.runtime.settings import Settings
from durable.status import EngineStatistics, Page, RunStatus, StepInfo, run_status, step_info

if TYPE_CHECKING:
    from datetime import datetime, timedelta
    from types import TracebackType

    from durable.journal.base import Journal
    from durable.runtime.clock import Clock
    from durable.runtime.runner import Runner

T = TypeVar("T")

DEFAULT_URL = "sqlite:///durable.db"
_open_engines: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, list[Engine]] = (
    weakref.WeakKeyDictionary()
)
_own_engine: ContextVar[Engine | None] = ContextVar("durable_engine", default=None)
"""The engine that runs the calling action."""


@final
class Engine:
    """Runs workflows in this process, journaled in a database file.

    Args:
        url: The journal: ``sqlite:///relative.db``, ``sqlite:////absolute.db``, ``sqlite://`` (in
            memory), or a ``pathlib.Path``.
        max_parallelism: How many actions run at once; 0 pauses new ones.
        retry: The policy in force where none is given.
        retry_actions_by_default: Whether actions are retried that do not say.
        drain_timeout: How long closing waits for running actions, in seconds.
        max_payload: The largest arguments or result, in bytes of JSON.
        max_interruptions: How often the process may die during one step before the step fails.

    Raises:
        TypeError, ValueError: A setting is none. Nothing was opened.
    """

    def __init__(
        self,
        url: str | Path = DEFAULT_URL,
        *,
        max_parallelism: int = 25,
        retry: Retry = Retry(),  # noqa: B008  frozen
        retry_actions_by_default: bool = False,
        drain_timeout: float | timedelta = 10.0,
        max_payload: int = 8 * 1024 * 1024,
        max_interruptions: int = 100,
    ) -> None:
        self._path = parse_url(url)
        self._max_parallelism = check_count(max_parallelism, "max_parallelism")
        if not isinstance(retry, Retry):
            msg = f"Engine(retry=) is a durable.Retry, not {retry!r}"
            raise TypeError(msg)
        self._drain_timeout_s = seconds(drain_timeout, "drain_timeout")
        if self._drain_timeout_s < 0:
            msg = f"drain_timeout is not negative, but it is {drain_timeout!r}"
            raise ValueError(msg)
        if not isinstance(retry_actions_by_default, bool):
            msg = f"retry_actions_by_default is True or False, not {retry_actions_by_default!r}"
            raise TypeError(msg)
        self._settings = Settings(
            max_interruptions=check_count(max_interruptions, "max_interruptions"),
            max_payload=check_count(max_payload, "max_payload"),
        )
        self._catalog = Catalog(
            Defaults(retry, retry_actions_by_default, self._settings.max_payload)
        )
        self._clock: Clock = SystemClock()
        self._journal: Journal | None = None
        self._runner: Runner | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._serving: asyncio.Task[None] | None = None
        self._stop: asyncio.Event | None = None
        self._stop_listening = _nothing

    def __repr__(self) -> str:
        state = "closed" if self._runner is None else "open"
        return f"<Engine {self._path or 'in memory'} {state}>"

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
        engine = cls.find_current()
        if engine is None:
            msg = "no engine is open on this event loop; open one with `async with Engine(url):`"
            raise NoEngineError(msg)
        return engine

    @classmethod
    def find_current(cls, what: str = "Engine.current()") -> Engine | None:
        """Return what ``current`` does, or ``None``; ``what`` is the call that asks."""
        _refuse_in_body(what)
        loop = _running_loop()
        own = _own_engine.get()
        if own is not None and own._is_open_on(loop):  # noqa: SLF001  it is of this class
            return own
        engines = None if loop is None else _open_engines.get(loop)
        return engines[-1] if engines else None

    def _is_open_on(self, loop: asyncio.AbstractEventLoop | None) -> bool:
        """Whether it is open, and works on that event loop; without one, it is a thread's."""
        return self._runner is not None and loop in (None, self._loop)

    # --- life ------------------------------------------------------------------------------------

    async def __aenter__(self) -> Engine:
        """Open the journal, take up what is due, and begin to work.

        Raises:
            JournalLockedError: Another process owns the journal; the message has its id.
            JournalVersionError: It was written by a newer durable.
            JournalCorruptError: It is damaged, or not a journal.
            JournalUnavailableError: The file cannot be opened.
            RuntimeError: The engine is open already.
        """
        _refuse_in_body("an engine")
        if self._journal is not None:
            msg = "this engine is open already; make another one, or leave its `async with` first"
            raise RuntimeError(msg)
        from durable.journal.sqlite import SqliteJournal  # noqa: PLC0415  late: 30 ms of sqlite3
        from durable.runtime.runner import Runner  # noqa: PLC0415  late: anyio

        self._journal = journal = SqliteJournal(self._path)
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
        _open_engines.setdefault(self._loop, []).append(self)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Start no more steps, wait for those that run, and close the journal."""
        assert self._loop is not None
        _open_engines[self._loop].remove(self)
        await to_its_end(self._close())

    async def _serve(self, runner: Runner, ready: asyncio.Event, stop: asyncio.Event) -> None:
        # The context of this task is that of all attempts, and of their threads.
        _own_engine.set(self)
        await runner.serve(ready, stop, self._drain_timeout_s)

    async def _close(self) -> None:
        journal, serving, stop = self._journal, self._serving, self._stop
        self._stop_listening()
        self._stop_listening = _nothing
        try:
            if serving is not None:
                assert stop is not None
                stop.set()
                await serving
        finally:
            self._runner = self._serving = self._stop = self._loop = None
            assert journal is not None
            await journal.close()
            self._journal = None

    def _on_registered(self, kind: str, name: str, version: int) -> None:
        loop, runner = self._loop, self._runner
        if kind == StepKind.WORKFLOW and loop is not None and runner is not None:
            # The import may happen in any thread.
            loop.call_soon_threadsafe(runner.on_defined, name, version)

    def _opened(self, what: str) -> tuple[Runner, Journal]:
        _refuse_in_body(what)
        if self._runner is None or self._journal is None:
            msg = f"{what} needs an open engine: use it inside `async with Engine(...)`"
            raise EngineClosedError(msg)
        self._check_loop(what)
        return self._runner, self._journal

    def _check_loop(self, what: str) -> None:
        if _running_loop() is not self._loop:
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
        run_after: float | timedelta | None = None,
        run_at: datetime | None = None,
    ) -> Run[T]:
        """Start a run of a workflow; return once that is committed.

        Args:
            call: The workflow's call.
            id: The run's id, and idempotency key: with the same workflow and arguments the run
                that has it is returned. By default a new id.
            run_after: The delay before the body begins, in seconds.
            run_at: When the body begins: an aware datetime.

        Raises:
            ArgumentError: An argument does not fit its annotation. Nothing was written.
            PayloadTooLarge: The arguments are over ``max_payload``. Nothing was written.
            RunConflictError: The id belongs to another workflow, or to other arguments.
            JournalUnavailableError: The storage failed: the outcome is unknown; ask again with
                the same id.
            EngineClosedError: The engine is closed, or was closed meanwhile.

        Cancellation:
            Never splits the start. A cancelled caller does not know its outcome.
        """
        runner, _ = self._opened("engine.start()")
        record, bound, due_ms = self._new_run(call, id, run_after, run_at)
        await runner.start(record, bound, wake_at_ms=due_ms, is_id_given=id is not None)
        return Run(self, record.run_id)

    async def run(
        self,
        call: Call[T],
        *,
        id: str | None = None,  # noqa: A002
        run_after: float | timedelta | None = None,
        run_at: datetime | None = None,
    ) -> T:
        """Start a run and wait for its result: ``start`` and ``Run.result`` in one."""
        runner, _ = self._opened("engine.run()")
        record, bound, due_ms = self._new_run(call, id, run_after, run_at)
        runner.ends.expect(record.run_id)
        try:
            await runner.start(record, bound, wake_at_ms=due_ms, is_id_given=id is not None)
            ended = await runner.ends.wait(record.run_id)
        finally:
            runner.ends.forget(record.run_id)
        result: T = _outcome(record.run_id, ended)
        return result

    def get(self, run_id: str) -> Run[Any]:
        """Return a handle of a run. It does no I/O; the run may not exist."""
        _refuse_in_body("engine.get()")
        return Run(self, check_id(run_id))

    def _new_run(
        self,
        call: Call[Any],
        run_id: str | None,
        run_after: float | timedelta | None,
        run_at: datetime | None,
    ) -> tuple[RunRecord, BoundWorkflow, int | None]:
        workflow = _check_workflow(call)
        delay_s, due_ms = check_delay(run_after, run_at)
        now_ms = self._clock.now_ms()
        if delay_s is not None:
            due_ms = now_ms + round(delay_s * 1000)
        record = RunRecord(
            run_id=_new_id(now_ms) if run_id is None else check_id(run_id),
            name=workflow.name,
            version=workflow.version,
            args=workflow.parameters.encode(call.arguments, self._settings.max_payload),
            created_at_ms=now_ms,
        )
        is_delayed = due_ms is not None and due_ms > now_ms
        return record, self._catalog.bind(workflow), due_ms if is_delayed else None

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

    # --- observing -------------------------------------------------------------------------------

    async def status(self, run_id: str) -> RunStatus:
        """Return where a run stands, as committed.

        Raises:
            RunNotFoundError: There is no such run.
        """
        _, journal = self._opened("engine.status()")
        found = await journal.load_status(check_id(run_id))
        if found is None:
            raise _not_found(run_id)
        return run_status(*found)

    async def list_runs(
        self,
        *,
        name: str | None = None,
        state: RunState | str | None = None,
        parent: str | None = None,
        order: Literal["asc", "desc"] = "asc",
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[RunStatus]:
        """Return a page of runs, in the order of their start.

        Args:
            name: Only runs of the workflow of that name.
            state: Only runs in that state.
            parent: Only children of that run.
            order: ``asc`` for the oldest first, ``desc`` for the newest.
            limit: How many at most, up to 1,000.
            cursor: Where the last page ended. Pages stay right while runs are added.

        Raises:
            ValueError: The order, limit, state or cursor is none.
        """
        _, journal = self._opened("engine.list_runs()")
        limit = check_limit(limit)
        query = RunQuery(
            name=check_name(name, "name="),
            state=check_state(state),
            parent_id=None if parent is None else check_id(parent),
            order=check_order(order),
            limit=limit + 1,
            after=check_cursor(cursor, order),
        )
        rows = await journal.list_runs(query)
        items = [run_status(record, steps) for _, record, steps in rows[:limit]]
        return Page(
            items=items,
            cursor=make_cursor(rows[limit - 1][0], order) if len(rows) > limit else None,
        )

    async def list_steps(
        self,
        run_id: str,
        *,
        order: Literal["asc", "desc"] = "asc",
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[StepInfo]:
        """Return a page of a run's steps, in the order of their issue.

        Args:
            run_id: The run.
            order: ``asc`` for the first step first, ``desc`` for the last.
            limit: How many at most, up to 1,000.
            cursor: Where the last page ended.

        Raises:
            RunNotFoundError: There is no such run.
            ValueError: The order, limit or cursor is none.
        """
        _, journal = self._opened("engine.list_steps()")
        limit = check_limit(limit)
        query = StepQuery(
            run_id=check_id(run_id),
            order=check_order(order),
            limit=limit + 1,
            after=check_cursor(cursor, order),
        )
        rows = await journal.list_steps(query)
        if rows is None:
            raise _not_found(run_id)
        items = [step_info(run_id, record) for record in rows[:limit]]
        return Page(
            items=items, cursor=make_cursor(items[-1].number, order) if len(rows) > limit else None
        )

    async def iter_runs(
        self,
        *,
        name: str | None = None,
        state: RunState | str | None = None,
        parent: str | None = None,
        order: Literal["asc", "desc"] = "asc",
    ) -> AsyncIterator[RunStatus]:
        """Iterate over the runs that ``list_runs`` would page through."""
        cursor: str | None = None
        while True:
            page = await self.list_runs(
                name=name, state=state, parent=parent, order=order, cursor=cursor
            )
            for status in page.items:
                yield status
            cursor = page.cursor
            if cursor is None:
                return

    async def iter_steps(
        self, run_id: str, *, order: Literal["asc", "desc"] = "asc"
    ) -> AsyncIterator[StepInfo]:
        """Iterate over a run's steps."""
        cursor: str | None = None
        while True:
            page = await self.list_steps(run_id, order=order, cursor=cursor)
            for step in page.items:
                yield step
            cursor = page.cursor
            if cursor is None:
                return

    # --- settings --------------------------------------------------------------------------------

    def set_max_parallelism(self, count: int) -> None:
        """Change how many actions run at once; 0 pauses new ones.

        Raising it wakes waiting ones at once; lowering it ends none.

        Raises:
            ValueError: It is negative.
        """
        _refuse_in_body("engine.set_max_parallelism()")
        count = check_count(count, "max_parallelism")
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


def _running_loop() -> asyncio.AbstractEventLoop | None:
    return asyncio._get_running_loop()  # noqa: SLF001  the fastest way to know whose code it is


def _refuse_in_body(what: str) -> None:
    loop = _running_loop()
    if type(loop) is WorkflowLoop:
        loop.refuse(what, "call it in an action")


def _check_workflow(call: Call[Any]) -> Workflow[Any, Any]:
    if isinstance(call, Workflow):
        msg = f"start a call: {call.__name__}(...), with its arguments, not {call!r} itself"
        raise TypeError(msg)
    if not isinstance(call, Call):
        if asyncio.iscoroutine(call):
            call.close()
        msg = f"a run is started from a workflow's call, such as checkout('o-1'), not {call!r}"
        raise TypeError(msg)
    if not isinstance(call.definition, Workflow):
        msg = (
            f"{call!r} is a call of {call.definition.kind} {call.definition.name!r}, which is a "
            "step: call it in a workflow's body, and start that"
        )
        raise NotInWorkflowError(msg)
    return call.definition


def _new_id(now_ms: int) -> str:
    """Return an id that sorts by time, as UUIDv7 does: the journal's index grows at its end."""
    return f"{now_ms:012x}{os.urandom(10).hex()}"


def _outcome(run_id: str, record: RunRecord | None) -> Any:  # noqa: ANN401
    if record is None:
        raise _not_found(run_id)
    return outcome_of(record)


def _not_found(run_id: str) -> RunNotFoundError:
    msg = f"the journal has no run {run_id!r}: check the id, and which journal it was started in"
    return RunNotFoundError(msg)
