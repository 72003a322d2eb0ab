"""Workflows, actions and their calls.

Rules:

- A decorated function called gives a ``Call``. It does nothing by itself: who awaits it decides.
- A ``Call`` is immutable. Each await of it in a body is a step of its own.
- Which of step, action, workflow and engine decides about retries is said in one place:
  ``resolve_retry``.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    NoReturn,
    ParamSpec,
    TypeVar,
    final,
    overload,
)

from durable import registry
from durable.core.loop import WorkflowLoop
from durable.core.records import StepKind
from durable.core.retry import Retry, seconds
from durable.parameters import Parameters, callers_frame

if TYPE_CHECKING:
    from datetime import timedelta

    from durable.step import Step

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

VERSION_MAX = 2**31 - 1
"""The highest version of a workflow."""


class Definition(Generic[P, R]):
    """A decorated function.

    Attributes:
        fn: The function as it was written.
        name: What the journal knows it by.
        kind: What its calls are.
        version: For workflows; 0 for all else.
    """

    kind: StepKind
    injected_count = 0

    def __init__(self, fn: Callable[..., Any], name: str | None, version: int) -> None:
        if not callable(fn):
            msg = f"@{type(self).__name__.lower()} decorates a function, not {fn!r}"
            raise TypeError(msg)
        name = check_name(name, "name=")
        if name is None and not hasattr(fn, "__qualname__"):
            msg = f"{fn!r} has no name of its own: give it one, by @durable.{self.kind}(name=...)"
            raise TypeError(msg)
        self.fn = fn
        self.name = name or registry.default_name(fn)
        self.version = version
        self.parameters = Parameters(
            fn, self.name, injected=self.injected_count, frame=callers_frame()
        )
        self.__name__ = getattr(fn, "__name__", self.name)
        self.__qualname__ = getattr(fn, "__qualname__", self.name)
        self.__module__ = fn.__module__
        self.__doc__ = fn.__doc__
        self.__wrapped__ = fn

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Bind the arguments.

        Raises:
            TypeError: They do not fit the function's signature.
        """
        return Call(self, self.parameters.bind(args, kwargs))

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name!r}>"


@final
class Action(Definition[P, R]):
    """Side effects: a function that a step calls. Made by ``@durable.action``."""

    kind = StepKind.ACTION

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        name: str | None,
        retry: Retry | bool | None,
        timeout: float | timedelta | None,
        raises: tuple[type[Exception], ...],
    ) -> None:
        super().__init__(fn, name, 0)
        if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
            msg = f"action {self.name!r} is a generator, but a step has one result: return a list"
            raise TypeError(msg)
        self.retry = check_retry(retry)
        self.timeout_s = check_timeout(timeout)
        self.raises = _check_raises(raises)
        self.is_async = inspect.iscoroutinefunction(_callee(fn))
        registry.register(self)


@final
class Workflow(Definition[P, R]):
    """A plain coroutine whose steps are journaled. Made by ``@durable.workflow``."""

    kind = StepKind.WORKFLOW
    injected_count = 1

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        name: str | None,
        version: int,
        retry: Retry | bool | None,
        retry_actions_by_default: bool | None,
    ) -> None:
        if not inspect.iscoroutinefunction(fn):
            msg = (
                f"a workflow's body is a coroutine function (async def), which "
                f"{getattr(fn, '__qualname__', fn)!r} is not"
            )
            raise TypeError(msg)
        if isinstance(version, bool) or not isinstance(version, int):
            msg = f"workflow(version=) is a whole number, not {version!r}"
            raise TypeError(msg)
        if not 0 <= version <= VERSION_MAX:
            msg = f"workflow(version=) is from 0 to {VERSION_MAX}, not {version}"
            raise ValueError(msg)
        super().__init__(fn, name, version)
        self.retry = check_retry(retry)
        self.retry_actions_by_default = retry_actions_by_default
        registry.register(self)


@final
class Call(Coroutine[Any, Any, R_co]):
    """A definition and its arguments; what it leads to is decided by who awaits it.

    In a workflow's body it is a step. Given to ``engine.start`` it is a new run. Elsewhere an
    action's call runs the function directly, and a workflow's call is ``durable.run(call)``.
    """

    __slots__ = ("_drives", "_number", "arguments", "definition")
    definition: Definition[Any, R_co]
    arguments: dict[str, Any]
    _number: int | None
    _drives: dict[asyncio.Task[Any] | None, Coroutine[Any, Any, R_co]] | None

    def __init__(self, definition: Definition[Any, R_co], arguments: dict[str, Any]) -> None:
        loop = asyncio._get_running_loop()  # noqa: SLF001  the fastest way to know whose code it is
        number = loop.next_number() if type(loop) is WorkflowLoop else None
        set_slot = object.__setattr__
        set_slot(self, "definition", definition)
        set_slot(self, "arguments", arguments)
        set_slot(self, "_number", number)
        set_slot(self, "_drives", None)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        msg = f"a Call is immutable; make another one to change {name!r}"
        raise AttributeError(msg)

    def __delattr__(self, name: str) -> NoReturn:
        self.__setattr__(name, None)

    def __hash__(self) -> int:
        return object.__hash__(self) if self._number is None else self._number

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"<Call {self.definition.name}({shown})>"

    def __await__(self) -> Generator[Any, None, R_co]:
        started: Generator[Any, None, R_co] = self._start().__await__()
        return started

    def _start(self) -> Any:  # noqa: ANN401  something to await
        loop = asyncio._get_running_loop()  # noqa: SLF001
        if type(loop) is WorkflowLoop:
            from durable.step import issue_call  # noqa: PLC0415  steps are made of calls

            return issue_call(loop, self)
        definition = self.definition
        if isinstance(definition, Workflow):
            from durable.run import run  # noqa: PLC0415  runs are made of calls

            return run(self)
        return _call_directly(definition, self.arguments)

    # --- a coroutine, for whatever drives one: each task that does has a drive of its own --------

    def send(self, value: Any, /) -> Any:  # noqa: ANN401
        return self._drive(lambda drive: drive.send(value))

    def throw(self, *exc: Any) -> Any:  # noqa: ANN401
        return self._drive(lambda drive: drive.throw(*exc))

    def close(self) -> None:
        drive = (self._drives or {}).pop(_task(), None)
        if drive is not None:
            drive.close()

    def _drive(self, act: Callable[[Coroutine[Any, Any, R_co]], Any]) -> Any:  # noqa: ANN401
        drives = self._drives
        if drives is None:
            drives = {}
            object.__setattr__(self, "_drives", drives)
        task = _task()
        drive = drives.get(task)
        if drive is None:
            drive = drives[task] = _await(self)
        try:
            return act(drive)
        except BaseException:  # It has ended, be it by StopIteration.
            del drives[task]
            raise


async def _await(call: Call[R]) -> R:
    return await call


def _task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


async def _call_directly(definition: Definition[Any, R], arguments: dict[str, Any]) -> R:
    """Run an action's function outside of any workflow: nothing is journaled."""
    assert isinstance(definition, Action)
    args, kwargs = definition.parameters.as_call(arguments)
    if definition.is_async:
        return await definition.fn(*args, **kwargs)  # type: ignore[no-any-return]
    import anyio.to_thread  # noqa: PLC0415  late, as everything heavy

    return await anyio.to_thread.run_sync(partial(definition.fn, *args, **kwargs))


def _callee(fn: Callable[..., Any]) -> Any:  # noqa: ANN401
    """Return the function that decides whether calling ``fn`` gives a coroutine."""
    if isinstance(fn, partial):
        return _callee(fn.func)
    if inspect.isroutine(fn):
        return fn
    return type(fn).__call__


def check_name(name: str | None, what: str) -> str | None:
    """Return a name that a journal can hold, or ``None``; raise for any other.

    Raises:
        TypeError: It is no text, or empty.
        ValueError: It has no UTF-8 form.
    """
    if name is None:
        return None
    if not isinstance(name, str) or not name:
        msg = f"{what} is text, and not empty; it is {name!r}"
        raise TypeError(msg)
    try:
        name.encode()
    except UnicodeEncodeError:
        msg = f"{what} has a lone surrogate in it, which cannot be stored: {name!r}"
        raise ValueError(msg) from None
    return str(name)


def check_retry(retry: Retry | bool | None) -> Retry | bool | None:
    """Return ``retry``, or raise ``TypeError`` when it is none of what decides about retries."""
    if retry is None or isinstance(retry, bool | Retry):
        return retry
    msg = f"retry= is True, False or a durable.Retry, not {retry!r}"
    raise TypeError(msg)


def check_timeout(timeout: float | timedelta | None) -> float | None:
    """Return a time-out in seconds; raise ``ValueError`` unless it is positive."""
    if timeout is None:
        return None
    timeout_s = seconds(timeout, "timeout=")
    if timeout_s <= 0:
        msg = f"timeout= is more than 0 seconds, not {timeout!r}"
        raise ValueError(msg)
    return timeout_s


def _check_raises(raises: tuple[type[Exception], ...]) -> tuple[type[Exception], ...]:
    if isinstance(raises, type):
        raises = (raises,)
    if isinstance(raises, tuple | list) and all(
        isinstance(cls, type) and issubclass(cls, Exception) for cls in raises
    ):
        return tuple(raises)
    msg = f"raises= is a tuple of Exception classes, not {raises!r}"
    raise TypeError(msg)


@overload
def workflow(fn: Callable[Concatenate[Step, P], Coroutine[Any, Any, R]], /) -> Workflow[P, R]: ...
@overload
def workflow(
    *,
    name: str | None = None,
    version: int = 0,
    retry: Retry | bool | None = None,
    retry_actions_by_default: bool | None = None,
) -> Callable[[Callable[Concatenate[Step, P], Coroutine[Any, Any, R]]], Workflow[P, R]]: ...
def workflow(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    version: int = 0,
    retry: Retry | bool | None = None,
    retry_actions_by_default: bool | None = None,
) -> Any:
    """Make a workflow of a coroutine function whose first parameter is its ``Step``.

    Args:
        fn: The body.
        name: What the journal knows it by; by default ``module:qualname``.
        version: Runs stay with the version that they were begun with.
        retry: The policy for its actions, over the engine's. ``True`` and ``False`` say whether
            they are retried by default.
        retry_actions_by_default: Whether its actions are retried without being told, over the
            engine's.

    Raises:
        TypeError: It is no coroutine function, lacks the ``step`` parameter, or has an annotation
            without a JSON form.
        DuplicateDefinitionError: Another workflow has the name and version.
    """

    def decorate(body: Callable[..., Any]) -> Workflow[Any, Any]:
        return Workflow(
            body,
            name=name,
            version=version,
            retry=retry,
            retry_actions_by_default=retry_actions_by_default,
        )

    return decorate if fn is None else decorate(fn)


@overload
def action(fn: Callable[P, Coroutine[Any, Any, R]], /) -> Action[P, R]: ...
@overload
def action(fn: Callable[P, R], /) -> Action[P, R]: ...
@overload
def action(
    *,
    name: str | None = None,
    retry: Retry | bool | None = None,
    timeout: float | timedelta | None = None,
    raises: tuple[type[Exception], ...] = (),
) -> _ActionDecorator: ...
def action(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    retry: Retry | bool | None = None,
    timeout: float | timedelta | None = None,
    raises: tuple[type[Exception], ...] = (),
) -> Any:
    """Make an action of a function: a coroutine function, or a plain one, run in a worker thread.

    Args:
        fn: The function.
        name: What the journal knows it by; by default ``module:qualname``.
        retry: Whether and how a failed attempt is made again. ``True`` is the policy in force,
            ``False`` is never, and at most once: interrupted by a crash it fails with
            ``OutcomeUnknown``.
        timeout: The bound of one attempt, in seconds. An async action is cancelled; a plain one
            cannot be stopped: its time-out is reported and it keeps its slot until it ends.
        raises: Exceptions that reach the workflow as themselves, besides builtins and those that
            the action's or the workflow's module names.

    Raises:
        TypeError: It is a generator, or has an annotation without a JSON form.
        DuplicateDefinitionError: Another action has the name.
    """

    def decorate(function: Callable[..., Any]) -> Action[Any, Any]:
        return Action(function, name=name, retry=retry, timeout=timeout, raises=raises)

    return decorate if fn is None else decorate(fn)


class _ActionDecorator:
    """What ``@action(...)`` gives, for type checkers only."""

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Action[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Action[P, R]: ...
    def __call__(self, fn: Callable[..., Any], /) -> Any: ...
