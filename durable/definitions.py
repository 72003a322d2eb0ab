"""Workflows, actions, queries, mutations and their calls.

Rules:

- A decorated function called gives a ``Call``. It does nothing by itself: who awaits it decides.
- A ``Call`` is immutable. Each await of it in a body is a step of its own.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    TypeVar,
    final,
    overload,
)

from durable import registry
from durable.call import Call
from durable.checks import (
    check_flag,
    check_name,
    check_raises,
    check_retry,
    check_timeout,
    check_version,
)
from durable.core.callbacks import ON_COMPLETE
from durable.core.records import StepKind
from durable.core.retry import Retry
from durable.parameters import Parameters, callers_frame

if TYPE_CHECKING:
    from datetime import timedelta

    from durable.step import Step
    from durable.transaction import Transaction

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


async def _coroutine() -> None: ...


@final
class _CallersSignature:
    """What ``inspect.signature`` gives of a definition; its class has its own."""

    def __get__(self, definition: Definition[Any, Any] | None, _: object) -> inspect.Signature:
        if definition is None:
            raise AttributeError
        return definition.parameters.signature()


class Definition(Generic[P, R]):
    """A decorated function.

    To whoever looks at it, it is a coroutine function of the parameters that callers see: to
    ``inspect.signature``, ``typing.get_type_hints``, and libraries that make a schema of them.

    Attributes:
        fn: The function as it was written.
        name: What the journal knows it by.
        kind: What its calls are.
        version: For workflows; 0 for all else.
    """

    kind: StepKind
    injected: str | None = None
    """The first parameter, which callers do not see."""

    __signature__ = _CallersSignature()
    if sys.version_info < (3, 12):
        # What makes it a coroutine function to ``inspect``: others are marked as such.
        __code__ = _coroutine.__code__
        __defaults__ = __kwdefaults__ = None

    def __init__(self, fn: Callable[..., Any], name: str | None, version: int) -> None:
        if not callable(fn) or isinstance(fn, Definition):
            msg = f"@{type(self).__name__.lower()} decorates a function, not {fn!r}"
            raise TypeError(msg)
        name = check_name(name, "name=")
        if name is None and not hasattr(fn, "__qualname__"):
            msg = f"{fn!r} has no name of its own: give it one, by @durable.{self.kind}(name=...)"
            raise TypeError(msg)
        self.fn = fn
        self.name = name or registry.default_name(fn)
        self.version = version
        self.parameters = Parameters(fn, self.name, injected=self.injected, frame=callers_frame())
        self.__name__ = getattr(fn, "__name__", self.name)
        self.__qualname__ = getattr(fn, "__qualname__", self.name)
        self.__module__ = fn.__module__
        self.__doc__ = fn.__doc__
        self.__wrapped__ = fn
        self.__annotations__ = self.parameters.annotations
        if sys.version_info >= (3, 12):
            inspect.markcoroutinefunction(self)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
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
        if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
            shown = getattr(fn, "__qualname__", fn)
            msg = f"{shown!r} is a generator, but a step has one result: return a list"
            raise TypeError(msg)
        super().__init__(fn, name, 0)
        self.retry = check_retry(retry)
        self.timeout_s = check_timeout(timeout)
        self.raises = check_raises(raises)
        self.is_async = inspect.iscoroutinefunction(_callee(fn))
        registry.register(self)


@final
class Workflow(Definition[P, R]):
    """A plain coroutine whose steps are journaled. Made by ``@durable.workflow``."""

    kind = StepKind.WORKFLOW
    injected = "step"

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        name: str | None,
        version: int,
        retry: Retry | bool | None,
        retry_actions_by_default: bool | None,
        timeout: float | timedelta | None,
    ) -> None:
        if not inspect.iscoroutinefunction(fn):
            msg = (
                f"a workflow's body is a coroutine function (async def), which "
                f"{getattr(fn, '__qualname__', fn)!r} is not"
            )
            raise TypeError(msg)
        super().__init__(fn, name, check_version(version))
        self.retry = check_retry(retry)
        if retry_actions_by_default is not None:
            check_flag(retry_actions_by_default, "workflow(retry_actions_by_default=)")
        self.retry_actions_by_default = retry_actions_by_default
        self.timeout_s = check_timeout(timeout)
        if name != ON_COMPLETE:  # durable's own: who imports it has none of theirs yet.
            from durable.determinism import warn_of_findings  # noqa: PLC0415  late: as needed

            warn_of_findings(fn)
        registry.register(self)


class _InTransaction(Definition[P, R]):
    """What is called with a ``Transaction``."""

    injected = "tx"

    def __init__(self, fn: Callable[..., Any], *, name: str | None) -> None:
        if not inspect.iscoroutinefunction(_callee(fn)):
            msg = (
                f"a {self.kind} is a coroutine function (async def), which awaits its `tx`; "
                f"{getattr(fn, '__qualname__', fn)!r} is not"
            )
            raise TypeError(msg)
        super().__init__(fn, name, 0)
        registry.register(self)


@final
class Query(_InTransaction[P, R]):
    """A function that reads the journal's database. Made by ``@durable.query``."""

    kind = StepKind.QUERY


@final
class Mutation(_InTransaction[P, R]):
    """A function that writes the journal's database. Made by ``@durable.mutation``."""

    kind = StepKind.MUTATION


def _callee(fn: Callable[..., Any]) -> Any:  # noqa: ANN401
    """Return the function that decides whether calling ``fn`` gives a coroutine."""
    if isinstance(fn, partial):
        return _callee(fn.func)
    if isinstance(fn, staticmethod):
        return _callee(fn.__func__)
    if inspect.isroutine(fn):
        return fn
    return type(fn).__call__


@overload
def workflow(fn: Callable[Concatenate[Step, P], Coroutine[Any, Any, R]], /) -> Workflow[P, R]: ...
@overload
def workflow(
    *,
    name: str | None = None,
    version: int = 0,
    retry: Retry | bool | None = None,
    retry_actions_by_default: bool | None = None,
    timeout: float | timedelta | None = None,
) -> Callable[[Callable[Concatenate[Step, P], Coroutine[Any, Any, R]]], Workflow[P, R]]: ...
def workflow(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    version: int = 0,
    retry: Retry | bool | None = None,
    retry_actions_by_default: bool | None = None,
    timeout: float | timedelta | None = None,
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
        timeout: How long a run may take from its first turn on, in seconds; by default for ever.
            Then its body is cancelled where it waits, may clean up, and the run fails with
            ``RunTimeout``. The timer is a step called ``timeout``. What a run began with stands.

    Raises:
        TypeError: It is no coroutine function, lacks the ``step`` parameter, or has an annotation
            without a JSON form.
        DuplicateDefinitionError: Another workflow has the name and version.
    """
    make: partial[Workflow[Any, Any]] = partial(
        Workflow,
        name=name,
        version=version,
        retry=retry,
        retry_actions_by_default=retry_actions_by_default,
        timeout=timeout,
    )
    return make if fn is None else make(fn)


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
    make: partial[Action[Any, Any]] = partial(
        Action, name=name, retry=retry, timeout=timeout, raises=raises
    )
    return make if fn is None else make(fn)


@overload
def query(fn: Callable[Concatenate[Transaction, P], Coroutine[Any, Any, R]], /) -> Query[P, R]: ...
@overload
def query(
    *, name: str | None = None
) -> Callable[[Callable[Concatenate[Transaction, P], Coroutine[Any, Any, R]]], Query[P, R]]: ...
def query(fn: Callable[..., Any] | None = None, /, *, name: str | None = None) -> Any:
    """Make a query of a coroutine function whose first parameter is its ``Transaction``.

    As a step it reads the journal's database as it is at one moment, and holds up nothing; writing
    in it is an error. It is never retried after an exception.

    Args:
        fn: The function.
        name: What the journal knows it by; by default ``module:qualname``.

    Raises:
        TypeError: It is no coroutine function, lacks the ``tx`` parameter, or has an annotation
            without a JSON form.
        DuplicateDefinitionError: Another query has the name.
    """
    make: partial[Query[Any, Any]] = partial(Query, name=name)
    return make if fn is None else make(fn)


@overload
def mutation(
    fn: Callable[Concatenate[Transaction, P], Coroutine[Any, Any, R]], /
) -> Mutation[P, R]: ...
@overload
def mutation(
    *, name: str | None = None
) -> Callable[[Callable[Concatenate[Transaction, P], Coroutine[Any, Any, R]]], Mutation[P, R]]: ...
def mutation(fn: Callable[..., Any] | None = None, /, *, name: str | None = None) -> Any:
    """Make a mutation of a coroutine function whose first parameter is its ``Transaction``.

    As a step it writes the journal's database, in the transaction that records its outcome: what
    it writes is there exactly once, and not at all when it raises. It is never retried after an
    exception. When that transaction fails, it is run again, so let it do nothing but use its
    ``tx``. Nothing else is committed while it runs: after 10 seconds, or
    ``step.run(timeout=)``, it fails with ``TimeoutError``.

    Args:
        fn: The function.
        name: What the journal knows it by; by default ``module:qualname``.

    Raises:
        TypeError: It is no coroutine function, lacks the ``tx`` parameter, or has an annotation
            without a JSON form.
        DuplicateDefinitionError: Another mutation has the name.
    """
    make: partial[Mutation[Any, Any]] = partial(Mutation, name=name)
    return make if fn is None else make(fn)


class _ActionDecorator:
    """What ``@action(...)`` gives, for type checkers only."""

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Action[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Action[P, R]: ...
    def __call__(self, fn: Callable[..., Any], /) -> Any: ...
