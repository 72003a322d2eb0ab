"""One run of a workflow from its start to its end, with what a test does meanwhile."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from durable.core.errors import RunCanceled, RunFailed, RunNotFoundError
from durable.testing.replaying import check_replay

if TYPE_CHECKING:
    from durable.call import Call
    from durable.journal.tables import Tables
    from durable.testing.environment import Environment
    from durable.testing.journals import CrashPoint

    Script: TypeAlias = Callable[[Environment, str], Awaitable[object]]
    Setup: TypeAlias = Callable[[Environment], object]
    Check: TypeAlias = Callable[[Environment], object]

RUN_ID: Final = "run"
"""The id of a run that is played: always the same, so that what is made of it is, too."""


class Outcome(NamedTuple):
    """What came of a run.

    Attributes:
        state: Its final state, or ``removed``.
        result: What it returned, as plain JSON values.
        error: The type and the message of what it raised.
    """

    state: str
    result: Any
    error: tuple[str, str] | None

    def __str__(self) -> str:
        if self.error is not None:
            return f"{self.state}: {self.error[0]}: {self.error[1]}"
        return f"{self.state}: {self.result!r}" if self.state == "completed" else self.state


@dataclass(frozen=True)
class Play:
    """What is to be played.

    Attributes:
        script: What the test does once the run is started; time stands still meanwhile, unless the
            script lets it pass.
        setup: What it does before, on the new journal.
        check: What it looks at when the run is over.
    """

    call: Call[Any]
    script: Script | None
    setup: Setup | None
    check: Check | None

    def __str__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.call.arguments.items())
        return f"{self.call.definition.name}({shown})"

    async def run(self, env: Environment, crash: CrashPoint | None) -> tuple[Outcome, Tables]:
        """Play it in an environment that is not open yet; return what came of it.

        The tables of a journal in memory are not read.

        Raises:
            StalledError: The run does not end.
            AssertionError: A replay of its journal does not do the same.
            Exception: Whatever the script, ``setup`` or ``check`` raises.
        """
        async with env:
            if self.setup is not None:
                await _done(self.setup(env))
            await env.run_until_idle()
            env.arm(crash)
            await env.start(self.call, id=RUN_ID)
            if self.script is not None:
                await self.script(env, RUN_ID)
            outcome = await _outcome(env)
            await env.run_until_idle()
            await env.ask(lambda engine: check_replay(engine, RUN_ID))
            tables = await env.ask(_read_tables)
            env.arm(None)  # What a check asks for, is not the run's.
            if self.check is not None:
                await _done(self.check(env))
        return outcome, tables


async def _done(result: object) -> None:
    if inspect.isawaitable(result):
        await result


async def _outcome(env: Environment) -> Outcome:
    with contextlib.suppress(RunFailed, RunCanceled, RunNotFoundError):
        await env.result(RUN_ID)
    try:
        status = await env.ask(lambda engine: engine.status(RUN_ID))
    except RunNotFoundError:
        return Outcome("removed", None, None)
    error = None if status.error is None else (status.error.type_name, status.error.message)
    return Outcome(str(status.state), status.result, error)


async def _read_tables(engine: Any) -> Tables:  # noqa: ANN401  the environment's
    from durable.journal.tables import read_tables  # noqa: PLC0415  late: sqlite3

    _, journal = engine._opened("env.crash_everywhere()")
    if journal.is_one_connection:
        return {}
    async with journal.reading() as scope:
        return await read_tables(scope)
