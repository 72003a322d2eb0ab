"""``Call``: a definition and its arguments.

It does nothing by itself: who awaits it decides. It is immutable, and each await of it in a body is
a step of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast, final

from durable.core.errors import NotInWorkflowError
from durable.core.loop import WorkflowLoop, body_loop
from durable.core.records import StepKind

if TYPE_CHECKING:
    from durable.definitions import Action, Definition

WORKFLOW = StepKind.WORKFLOW
ACTION = StepKind.ACTION

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


@final
class Call(Coroutine[Any, Any, R_co]):
    """A definition and its arguments; what it leads to is decided by who awaits it.

    In a workflow's body it is a step. Given to ``engine.start`` it is a new run. Elsewhere an
    action's call runs the function directly, a workflow's call is ``durable.run(call)``, and a
    query's or a mutation's raises ``NotInWorkflowError``.
    """

    __slots__ = ("_drives", "_number", "arguments", "definition")
    definition: Definition[Any, R_co]
    arguments: dict[str, Any]
    _number: int
    _drives: dict[asyncio.Task[Any] | None, Coroutine[Any, Any, R_co]]

    def __init__(self, definition: Definition[Any, R_co], arguments: dict[str, Any]) -> None:
        _set_definition(self, definition)
        _set_arguments(self, arguments)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        msg = f"a Call is immutable; make another one to change {name!r}"
        raise AttributeError(msg)

    def __delattr__(self, name: str) -> NoReturn:
        self.__setattr__(name, None)

    def __hash__(self) -> int:
        try:
            return self._number
        except AttributeError:
            # In a body, the same on replay: so is the order in which sets of calls are iterated.
            loop = body_loop()
            number = object.__hash__(self) if loop is None else loop.next_number()
            object.__setattr__(self, "_number", number)
            return number

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"<Call {self.definition.name}({shown})>"

    def __await__(self) -> Generator[Any, None, R_co]:
        started: Generator[Any, None, R_co] = self._start().__await__()
        return started

    def _start(self) -> Any:  # noqa: ANN401  something to await
        loop = asyncio._get_running_loop()  # noqa: SLF001  as body_loop() does, inline
        if type(loop) is WorkflowLoop:
            return loop.host.issue_call(self)
        definition = self.definition
        if definition.kind is WORKFLOW:
            from durable.run import run  # noqa: PLC0415  runs are made of calls

            return run(self)
        return _call_directly(definition, self.arguments)

    # --- a coroutine, for whatever drives one: each task that does has a drive of its own --------

    def send(self, value: Any, /) -> Any:  # noqa: ANN401
        return self._drive(lambda drive: drive.send(value))

    def throw(self, *exc: Any) -> Any:  # noqa: ANN401
        return self._drive(lambda drive: drive.throw(*exc))

    def close(self) -> None:
        drive = self._begun_drives().pop(_task(), None)
        if drive is not None:
            drive.close()

    def _drive(self, act: Callable[[Coroutine[Any, Any, R_co]], Any]) -> Any:  # noqa: ANN401
        drives = self._begun_drives()
        task = _task()
        drive = drives.get(task)
        if drive is None:
            drive = drives[task] = _await(self)
        try:
            return act(drive)
        except BaseException:  # It has ended, be it by StopIteration.
            del drives[task]
            raise

    def _begun_drives(self) -> dict[asyncio.Task[Any] | None, Coroutine[Any, Any, R_co]]:
        try:
            return self._drives
        except AttributeError:
            object.__setattr__(self, "_drives", {})
            return self._drives


# Past __setattr__, and at the least cost: each step is a call.
_set_definition: Any = Call.__dict__["definition"].__set__
_set_arguments: Any = Call.__dict__["arguments"].__set__


async def _await(call: Call[R]) -> R:
    return await call


def _task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


async def _call_directly(definition: Definition[Any, R], arguments: dict[str, Any]) -> R:
    """Run an action's function outside of any workflow: nothing is journaled."""
    if definition.kind is not ACTION:
        msg = (
            f"{definition.kind} {definition.name!r} is awaited in a workflow's body, where it is a "
            "step. Elsewhere, call its function in a transaction: `async with engine.transaction() "
            f"as tx: await {definition.__name__}.fn(tx, ...)`"
        )
        raise NotInWorkflowError(msg)
    # The class is defined in terms of this module.
    action = cast("Action[Any, R]", definition)
    args, kwargs = action.parameters.as_call(arguments)
    if action.is_async:
        return await action.fn(*args, **kwargs)  # type: ignore[no-any-return]
    import anyio.to_thread  # noqa: PLC0415  late, as everything heavy

    return await anyio.to_thread.run_sync(partial(action.fn, *args, **kwargs))
