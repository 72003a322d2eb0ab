"""What a start writes: checked, before anything is written."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from durable.call import Call
from durable.callbacks import encode_callback, encode_context
from durable.checks import check_delay, check_id, milliseconds
from durable.core.errors import NotInWorkflowError
from durable.core.records import RunRecord
from durable.definitions import Workflow
from durable.runtime.ids import new_run_id

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from durable.definitions import Definition


def new_run(
    call: Call[Any],
    run_id: str | None,
    run_after: float | timedelta | None,
    run_at: datetime | None,
    *,
    on_complete: Definition[Any, Any] | None,
    context: object,
    now_ms: int,
    max_payload: int,
) -> tuple[Workflow[Any, Any], RunRecord, int | None]:
    """Return the workflow of a call, its new run, and, when it is delayed, until when.

    Raises:
        TypeError, ValueError: It is no workflow's call, or an option is none.
        ArgumentError: An argument does not fit its annotation.
        PayloadTooLarge: The arguments are over ``max_payload``.
    """
    workflow = _check_workflow(call)
    delay_s, due_ms = check_delay(run_after, run_at)
    if delay_s is not None:
        due_ms = now_ms + milliseconds(delay_s)
    record = RunRecord(
        run_id=new_run_id(now_ms) if run_id is None else check_id(run_id),
        name=workflow.name,
        version=workflow.version,
        args=workflow.parameters.encode(call.arguments, max_payload),
        context=encode_context(context, max_payload),
        on_complete=encode_callback(on_complete),
        created_at_ms=now_ms,
    )
    return workflow, record, due_ms if due_ms is not None and due_ms > now_ms else None


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
