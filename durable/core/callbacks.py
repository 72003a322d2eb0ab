"""What is owed when a run has ended: the run that calls its ``on_complete``.

It is started by the transaction of the end. A workflow is started itself; an action or a mutation
is called by a run of durable's own, which tries until it succeeds, and then is no more.
"""

from __future__ import annotations

from typing import Any

import msgspec

from durable.core.failures import decode_error
from durable.core.records import RunRecord, RunState, StepKind

ON_COMPLETE = "durable.on_complete"
"""The name of the workflow that calls actions and mutations. No list shows its runs."""


class Callback(msgspec.Struct, frozen=True):
    """A definition that takes one ``Completion``.

    Attributes:
        parameter: What its parameter is called.
    """

    kind: StepKind
    name: str
    version: int
    parameter: str


def callback_run(run: RunRecord, run_id: str, now_ms: int) -> RunRecord:
    """Return the run, with that id, that is to call the ``on_complete`` of one that has ended."""
    assert run.on_complete is not None
    callback = msgspec.json.decode(run.on_complete, type=Callback)
    completion = {
        "run_id": run.run_id,
        "name": run.name,
        "outcome": _outcome(run),
        "context": _raw(run.context),
    }
    if callback.kind is StepKind.WORKFLOW:
        name, version = callback.name, callback.version
        args: dict[str, Any] = {callback.parameter: completion}
    else:
        name, version = ON_COMPLETE, 0
        args = {"kind": callback.kind, "name": callback.name, "completion": completion}
    return RunRecord(
        run_id=run_id,
        name=name,
        version=version,
        args=msgspec.json.encode(args, order="sorted").decode(),
        created_at_ms=now_ms,
    )


def _outcome(run: RunRecord) -> dict[str, Any]:
    if run.state is RunState.COMPLETED:
        return {"kind": "success", "value": _raw(run.result)}
    if run.state is RunState.CANCELED:
        return {"kind": "canceled"}
    return {"kind": "error", "error": decode_error(run.error or "").info}


def _raw(text: str | None) -> msgspec.Raw:
    return msgspec.Raw((text or "null").encode())
