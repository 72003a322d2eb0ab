"""Workflows as an engine sees them: found by name, opened with its defaults, outcomes read."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, final

from durable import registry
from durable.bounding import bounded
from durable.callbacks import NO_BOUND, BoundCallback, call_back
from durable.core.callbacks import ON_COMPLETE
from durable.core.codec import DecodeError, decode_plain, safe_text
from durable.core.commands import Stuck
from durable.core.errors import JournalCorruptError, RunCanceled, RunFailed
from durable.core.failures import decode_error, is_known, rebuild_error, type_name_of
from durable.core.records import RunState, StepKind
from durable.core.retry import Retry
from durable.issue import MAX_PAYLOAD, Defaults, Environment, known_errors
from durable.step import Step

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from durable.core.execution import Execution, WorkflowSpec
    from durable.core.records import RunRecord
    from durable.definitions import Workflow


@final
class BoundWorkflow:
    """A workflow and an engine's defaults: what the runtime opens bodies with."""

    def __init__(self, definition: Workflow[Any, Any], defaults: Defaults) -> None:
        self.definition = definition
        self._environment = Environment(definition, defaults)

    def open(self, execution: Execution) -> Coroutine[Any, Any, object]:
        return bounded(execution, self._make(execution), self.definition.timeout_s)

    def check_arguments(self, execution: Execution) -> None:
        self._make(execution).close()

    def _make(self, execution: Execution) -> Coroutine[Any, Any, object]:
        try:
            args, kwargs = self.definition.parameters.decode(execution.run.args)
        except (DecodeError, TypeError) as exc:
            msg = (
                f"the recorded arguments of the run do not fit {self.definition.name!r} any more: "
                f"{exc}. Make it accept both, or give it a new version."
            )
            raise Stuck(msg, way=("arguments", type_name_of(type(exc)))) from exc
        execution.environment = self._environment
        step = Step(execution, self.definition)
        body_of = self._environment.defaults.body_of
        body = self.definition.fn if body_of is None else body_of(self.definition)
        try:
            coroutine: Coroutine[Any, Any, object] = body(step, *args, **kwargs)
        except TypeError as exc:
            msg = (
                f"the journal has the run with arguments {execution.run.args}; the code's "
                f"{exc}. Give new parameters a default, or the workflow a new version."
            )
            # Python's sentence names parameters, and no values.
            raise Stuck(msg, way=("parameters", safe_text(exc))) from exc
        return coroutine

    def encode_result(self, value: object) -> str:
        payload_max = self._environment.defaults.payload_max
        return self.definition.parameters.encode_result(value, payload_max)[0]

    def is_same_result(self, one: str, other: str) -> bool:
        if one == other:
            return True
        # A set has no order of its own.
        try:
            decode = self.definition.parameters.decode_result
            return bool(decode(one) == decode(other))
        except DecodeError:
            return False


@final
class Catalog:
    """The registry, seen through one engine's defaults.

    Attributes:
        defaults: Those of the engine.
    """

    def __init__(self, defaults: Defaults) -> None:
        self.defaults = defaults
        self._bound: dict[Workflow[Any, Any], BoundWorkflow] = {}
        unbounded = defaults._replace(payload_max=NO_BOUND)
        self._callback = BoundCallback(BoundWorkflow(call_back, unbounded))

    def find(self, name: str, version: int) -> BoundWorkflow | BoundCallback | None:
        if name == ON_COMPLETE:
            return self._callback
        workflow = registry.find(StepKind.WORKFLOW, name, version)
        return None if workflow is None else self.bind(workflow)

    def bind(self, workflow: Workflow[Any, Any]) -> BoundWorkflow:
        bound = self._bound.get(workflow)
        if bound is None:
            bound = self._bound[workflow] = BoundWorkflow(workflow, self.defaults)
        return bound


@functools.cache
def _any_engines() -> Catalog:
    return Catalog(Defaults(Retry(), retry_actions_by_default=False, payload_max=MAX_PAYLOAD))


def find_workflow(name: str, version: int) -> WorkflowSpec | None:
    """Return a workflow as one sees it who only replays it: an engine's defaults matter nothing."""
    return _any_engines().find(name, version)


def outcome_of(record: RunRecord) -> Any:  # noqa: ANN401
    """Return the value of a run that has ended, or raise its failure.

    Raises:
        RunFailed: It failed.
        RunCanceled: It was cancelled.
        JournalCorruptError: What the journal has of it cannot be read.
    """
    workflow = registry.find(StepKind.WORKFLOW, record.name, record.version)
    try:
        if record.state is RunState.COMPLETED:
            text = record.result or "null"
            return (
                decode_plain(text) if workflow is None else workflow.parameters.decode_result(text)
            )
        if record.state is RunState.CANCELED:
            raise RunCanceled(record.run_id)
        stored = decode_error(record.error or "")
    except DecodeError as exc:
        msg = (
            f"the outcome of run {record.run_id!r} does not fit the code, or is damaged: {exc}. "
            "Make the workflow's annotation fit, or restore the journal from a backup."
        )
        raise JournalCorruptError(msg) from exc
    known = {} if workflow is None else known_errors(workflow)
    if not is_known(stored, known):  # It may be an action's, that the body let pass.
        known = known_errors(*registry.definitions())
    raise RunFailed(record.run_id, stored.info) from rebuild_error(stored, known)
