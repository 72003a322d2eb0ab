"""How a call that a body awaits becomes a command, and what it stands for in the workpool.

Rules:

- A command's options are resolved when it is issued; on replay what the journal has stands.
- Arguments are checked when a step is issued for the first time, never again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, final

from durable.checks import milliseconds
from durable.core.codec import DecodeError
from durable.core.commands import Command
from durable.core.errors import ArgumentError
from durable.core.failures import decode_error, rebuild_error, type_name_of
from durable.core.nesting import rebuild_outcome
from durable.core.records import StepKind
from durable.core.retry import RetryDefault, resolve_retry
from durable.definitions import Action, Definition, Mutation, Query, Workflow
from durable.parameters import globals_of
from durable.transaction import Transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from durable.call import Call
    from durable.core.commands import CommandFuture, Work
    from durable.core.execution import Execution
    from durable.core.retry import Retry
    from durable.journal.scopes import Scope

    Stepped = Action[Any, Any] | Query[Any, Any] | Mutation[Any, Any] | Workflow[Any, Any]
    Wrap: TypeAlias = "Callable[[Stepped, ActionStep | TransactionStep], Work]"
    BodyOf = Callable[[Workflow[Any, Any]], Callable[..., Coroutine[Any, Any, object]]]


MAX_PAYLOAD = 8 * 1024 * 1024
"""The largest arguments or result, in bytes of JSON, of engines that do not say."""


class Defaults(NamedTuple):
    """An engine's settings that decide about steps.

    Attributes:
        wrap: What stands for a step in the place of what would, if anything does.
        body_of: What is executed as a workflow's body, if it is not always the workflow's own.
    """

    retry: Retry
    retry_actions_by_default: bool
    payload_max: int
    wrap: Wrap | None = None
    body_of: BodyOf | None = None


class StepOptions(NamedTuple):
    """The options of ``step.run``; and what durable's own workflow adds to them.

    Attributes:
        is_owed: Whether the step is tried again whatever it fails with, a mutation too.
    """

    name: str | None = None
    retry: Retry | bool | None = None
    timeout_s: float | None = None
    delay_s: float | None = None
    at_ms: int | None = None
    unstable_args: bool = False
    is_owed: bool = False


NO_OPTIONS = StepOptions()


@final
class Environment:
    """What surrounds a body: its workflow, and its engine's defaults."""

    def __init__(self, workflow: Workflow[Any, Any], defaults: Defaults) -> None:
        self.workflow = workflow
        self.defaults = defaults
        self._plain_steps: dict[Stepped, Work] = {}

    def issue(
        self, execution: Execution, call: Call[Any], options: StepOptions = NO_OPTIONS
    ) -> CommandFuture:
        """Make a step of a call that a body awaits."""
        definition = call.definition
        if isinstance(definition, Workflow):
            _check_child_options(definition, options)
        elif not isinstance(definition, (Action, Query, Mutation)):
            msg = f"a call of {definition!r} cannot be a step"
            raise TypeError(msg)
        key = execution.next_key()
        if execution.recorded(key) is None:
            args = definition.parameters.encode(call.arguments, self.defaults.payload_max)
        else:
            args = definition.parameters.encode_unchecked(call.arguments)
        if options is NO_OPTIONS:
            work = self._plain_step(definition)
            return execution.issue(
                Command(definition.kind, definition.name, key, args=args, work=work)
            )
        due_ms = options.at_ms
        if options.delay_s is not None:
            due_ms = execution.time_ms() + milliseconds(options.delay_s)
        command = Command(
            definition.kind,
            options.name or definition.name,
            key,
            args=args,
            compares_args=not options.unstable_args,
            due_ms=due_ms,
            is_absolute=options.at_ms is not None,
            work=self._make_step(definition, options),
        )
        return execution.issue(command)

    def _plain_step(self, definition: Stepped) -> Work:
        """Return what a definition is as a step without options: the same for all of them."""
        step = self._plain_steps.get(definition)
        if step is None:
            step = self._plain_steps[definition] = self._make_step(definition, NO_OPTIONS)
        return step

    def _make_step(self, definition: Stepped, options: StepOptions) -> Work:
        if isinstance(definition, Workflow):
            return ChildStep(definition, self.workflow)
        step: ActionStep | TransactionStep
        if isinstance(definition, Action):
            step = ActionStep(definition, self, options)
        else:
            step = TransactionStep(definition, self, options)
        wrap = self.defaults.wrap
        return step if wrap is None else wrap(definition, step)


@final
class ActionStep:
    """An action as one step of one run: what the workpool calls, what the body gets of it."""

    def __init__(
        self, action: Action[Any, Any], environment: Environment, options: StepOptions
    ) -> None:
        workflow, defaults = environment.workflow, environment.defaults
        self.retry, self.is_at_most_once = resolve_retry(
            options.retry,
            action.retry,
            RetryDefault(workflow.retry, workflow.retry_actions_by_default),
            RetryDefault(defaults.retry, defaults.retry_actions_by_default),
        )
        self.is_owed = options.is_owed
        self.timeout_s = action.timeout_s if options.timeout_s is None else options.timeout_s
        self.name = action.name
        self.is_async = action.is_async
        self._action = action
        self._workflow = workflow
        self._payload_max = defaults.payload_max

    def call(self, args: str) -> Any:  # noqa: ANN401
        positional, keyword = recorded_arguments(self._action, args)
        return self._action.fn(*positional, **keyword)

    def encode_result(self, result: object) -> tuple[str, object]:
        return self._action.parameters.encode_result(result, self._payload_max)

    def decode(self, text: str) -> object:
        return self._action.parameters.decode_result(text)

    def rebuild(self, error: str) -> BaseException:
        known = known_errors(self._action, self._workflow)
        return rebuild_error(decode_error(error), known)


@final
class ChildStep:
    """A workflow as one step of a run: the child that is started, and what the body gets of it."""

    __slots__ = ("_parent", "_workflow", "name", "version")

    def __init__(self, workflow: Workflow[Any, Any], parent: Workflow[Any, Any]) -> None:
        self.name = workflow.name
        self.version = workflow.version
        self._workflow = workflow
        self._parent = parent

    def decode(self, text: str) -> object:
        return self._workflow.parameters.decode_result(text)

    def rebuild(self, error: str) -> BaseException:
        return rebuild_outcome(error, known_errors(self._workflow, self._parent))


def _check_child_options(workflow: Workflow[Any, Any], options: StepOptions) -> None:
    """Refuse what makes sense for the attempts of an action only.

    Raises:
        TypeError: An option of that kind is given.
    """
    if options.retry is not None:
        msg = (
            f"step.run({workflow.__name__}(...)) takes no retry=: a child run is not tried again "
            "as a whole. Give the retries to its actions, or call it again when it has failed."
        )
        raise TypeError(msg)
    if options.timeout_s is not None:
        msg = (
            f"step.run({workflow.__name__}(...)) takes no timeout=, which bounds one attempt of an "
            "action. Await the child in `async with asyncio.timeout(...)`: it is cancelled then."
        )
        raise TypeError(msg)


@final
class TransactionStep:
    """A query or a mutation as one step of one run. What is said of retries does not concern it,
    unless it is owed.
    """

    is_at_most_once = False
    is_async = True

    def __init__(
        self,
        definition: Query[Any, Any] | Mutation[Any, Any],
        environment: Environment,
        options: StepOptions,
    ) -> None:
        self.name = definition.name
        self.is_reading = definition.kind is StepKind.QUERY
        self.is_owed = options.is_owed
        self.retry = options.retry if options.is_owed else None
        self.timeout_s = options.timeout_s
        self._definition = definition
        self._workflow = environment.workflow
        self._payload_max = environment.defaults.payload_max

    def call_in(self, scope: Scope, args: str) -> Any:  # noqa: ANN401
        positional, keyword = recorded_arguments(self._definition, args)
        return self._definition.fn(Transaction(scope), *positional, **keyword)

    def encode_result(self, result: object) -> tuple[str, object]:
        return self._definition.parameters.encode_result(result, self._payload_max)

    def decode(self, text: str) -> object:
        return self._definition.parameters.decode_result(text)

    def rebuild(self, error: str) -> BaseException:
        known = known_errors(self._definition, self._workflow)
        return rebuild_error(decode_error(error), known)


def recorded_arguments(
    definition: Definition[Any, Any], args: str
) -> tuple[list[Any], dict[str, Any]]:
    """Return recorded arguments as positional and keyword arguments.

    Raises:
        ArgumentError: They do not fit the code any more.
    """
    try:
        return definition.parameters.decode(args)
    except DecodeError as exc:
        msg = (
            f"the recorded arguments do not fit {definition.name} any more: {exc}. Make it "
            "accept both."
        )
        raise ArgumentError(msg) from exc


def known_errors(*definitions: Definition[Any, Any]) -> dict[str, object]:
    """Return the exception classes that may be rebuilt, by the name they are stored under."""
    known: dict[str, object] = {}
    modules = {id(names): names for names in (globals_of(each.fn) for each in definitions)}
    named = [value for names in modules.values() for value in list(names.values())]
    named += (cls for each in definitions if isinstance(each, Action) for cls in each.raises)
    for value in named:
        # Not isinstance: that asks the value, which may be a proxy that raises anything.
        if issubclass(type(value), type) and issubclass(value, BaseException):
            known[type_name_of(value)] = value
    return known
