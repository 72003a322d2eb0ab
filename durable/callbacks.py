"""Calling what is owed when a run has ended: ``start(on_complete=)``.

One that fails is tried again as one step, by the engine's policy, for ever and whatever it raises:
so the journal does not grow by it. Only one that its process has died of too often is called again
by another step, after as long a wait.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, final

import msgspec
from msgspec.structs import replace

from durable import registry
from durable.completion import Canceled, Completion
from durable.core.callbacks import ON_COMPLETE, Callback
from durable.core.codec import EncodeError, decode_plain, encode
from durable.core.commands import Stuck
from durable.core.errors import ArgumentError
from durable.core.records import StepKind
from durable.definitions import Action, Definition, Mutation, Workflow, workflow
from durable.issue import Environment, StepOptions
from durable.parameters import check_size
from durable.step import Step

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from durable.core.execution import Execution
    from durable.core.retry import Retry

FOR_EVER = 2**31 - 1
NO_BOUND = 2**62
"""A completion has the run's result and its context, which are bounded by themselves."""

_ANY_END = Completion(run_id="run", name="workflow", outcome=Canceled())

BACKOFF_S_MAX = 60.0
"""The longest wait between two calls."""


def encode_callback(on_complete: Definition[Any, Any] | None) -> str | None:
    """Return what a run's row has of its ``on_complete``.

    Raises:
        TypeError: It is no action, mutation or workflow, or does not take a ``Completion``.
    """
    return None if on_complete is None else _encode(on_complete)


@functools.cache  # Definitions are for ever.
def _encode(given: Any) -> str:  # noqa: ANN401  the caller may have given anything
    if not isinstance(given, (Action, Mutation, Workflow)):
        msg = f"on_complete= is an action, a mutation or a workflow, without a call, not {given!r}"
        raise TypeError(msg)
    try:
        arguments = given.parameters.bind((None,), {})
    except TypeError as exc:
        msg = f"on_complete={given.__name__} has to take one argument, a Completion: {exc}"
        raise TypeError(msg) from None
    why = _why_unfit(given)
    if why is not None:
        msg = (
            f"on_complete={given.__name__} has to take a Completion: {why}. Annotate its parameter "
            "with durable.Completion, or not at all."
        )
        raise TypeError(msg)
    callback = Callback(given.kind, given.name, given.version, next(iter(arguments)))
    return msgspec.json.encode(callback).decode()


def _why_unfit(definition: Any) -> str | None:  # noqa: ANN401  a definition
    """Return why a definition does not take a ``Completion``; ``None`` if it does."""
    try:
        definition.parameters.encode(definition(_ANY_END).arguments, NO_BOUND)
    except (ArgumentError, TypeError) as exc:
        return str(exc)
    return None


def encode_context(context: object, payload_max: int) -> str | None:
    """Return what a run's row has of its ``context``.

    Raises:
        ArgumentError: It has no JSON form.
        PayloadTooLarge: It is larger than ``payload_max`` bytes.
    """
    if context is None:
        return None
    try:
        text = encode(context)
    except EncodeError as exc:
        msg = f"context=: {exc}"
        raise ArgumentError(msg) from exc
    check_size(text, payload_max, "context=")
    return text


@workflow(name=ON_COMPLETE)
async def call_back(step: Step, kind: str, name: str, completion: Completion) -> None:
    """Call a definition until it succeeds."""
    call = registry.find(StepKind(kind), name)(completion)
    execution = step._execution  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    environment = execution.environment
    assert isinstance(environment, Environment)
    policy = _policy(environment.defaults.retry)
    owed = StepOptions(retry=policy, is_owed=True)
    count = 0
    while True:
        count += 1
        try:
            await environment.issue(execution, call, owed)
        except Exception:  # noqa: BLE001  its own, which the step has recorded
            wait_ms = policy.backoff_ms(min(count, FOR_EVER - 1), step.random.random())
            await step.sleep((wait_ms or 0) / 1000, name="back off")
        else:
            return


def _policy(retry: Retry) -> Retry:
    bound_s = BACKOFF_S_MAX if retry.max_backoff is None else min(retry.max_backoff, BACKOFF_S_MAX)
    return replace(retry, max_attempts=FOR_EVER, max_backoff=bound_s)


@final
class BoundCallback:
    """The workflow that calls back, which needs the definition that it is to call."""

    def __init__(self, bound: Any) -> None:  # noqa: ANN401  a BoundWorkflow, of the layer above
        self._bound = bound

    def open(self, execution: Execution) -> Coroutine[Any, Any, object]:
        self._check_definition(execution)
        coroutine: Coroutine[Any, Any, object] = self._bound.open(execution)
        return coroutine

    def check_arguments(self, execution: Execution) -> None:
        self._check_definition(execution)
        self._bound.check_arguments(execution)

    def _check_definition(self, execution: Execution) -> None:
        args = decode_plain(execution.run.args)
        kind, name = args["kind"], args["name"]
        definition = registry.find(StepKind(kind), name)
        owed = f"{kind} {name!r}, which is owed the end of run {args['completion']['run_id']!r}"
        if definition is None:
            msg = f"the code has no {owed}. Import the module that defines it."
            raise Stuck(msg, way=("no definition", kind, name))
        why = _why_unfit(definition)
        if why is not None:
            msg = f"the code has {owed}, but it does not take a Completion: {why}"
            raise Stuck(msg, way=("unfit definition", kind, name, why))

    def encode_result(self, value: object) -> str:
        text: str = self._bound.encode_result(value)
        return text

    def is_same_result(self, one: str, other: str) -> bool:
        return bool(self._bound.is_same_result(one, other))
