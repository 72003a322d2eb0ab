"""A run's history as JSON text: for keeping, for reading, and for replaying it elsewhere.

Rules:

- Values are JSON within the JSON, as they are recorded: replay compares arguments as text.
- It has all that replay needs, and what a reader wants to know. A later format has another number.
"""

from __future__ import annotations

from typing import Any, Literal, final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from durable.core.records import EventRecord, RunRecord, RunState, StepKind, StepRecord, StepState
from durable.core.versions import Versions

JSON_FIELDS = frozenset({"args", "result", "error", "context", "on_complete", "value"})
"""The fields of records whose text is JSON."""


class _Run(msgspec.Struct, kw_only=True, omit_defaults=True):
    run_id: str
    name: str
    version: int = 0
    state: RunState
    generation: int = 0
    parent_id: str | None = None
    args: Raw
    result: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET
    context: Raw | UnsetType = UNSET
    on_complete: Raw | UnsetType = UNSET
    created_at_ms: int
    started_at_ms: int | None = None
    finished_at_ms: int | None = None
    restarted_from: int | None = None


class _Step(msgspec.Struct, kw_only=True, omit_defaults=True):
    number: int
    key: str
    kind: StepKind
    name: str
    args: Raw
    state: StepState
    attempts: int = 0
    interruptions: int = 0
    due_at_ms: int | None = None
    started_at_ms: int | None = None
    finished_at_ms: int | None = None
    result: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET
    child_run_id: str | None = None
    event_id: str | None = None


class _Event(msgspec.Struct, kw_only=True, omit_defaults=True):
    event_id: str
    name: str
    sent_at_ms: int | None = None
    value: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET
    step_number: int | None = None


class _File(msgspec.Struct, kw_only=True):
    format: Literal[1]
    begun_with: Versions | None
    run: _Run
    steps: list[_Step]
    deliveries: list[int]
    events: list[_Event]


@final
class RecordedRun(msgspec.Struct, frozen=True):
    """All that is recorded of a run.

    Attributes:
        run: The run.
        steps: All its steps, and what else was handed to its body.
        events: What was sent to it, in the order of sending.
        begun_with: The versions that it was begun with, if that is known.
    """

    run: RunRecord
    steps: list[StepRecord]
    events: list[EventRecord] = []
    begun_with: Versions | None = None


def encode_history(recorded: RecordedRun) -> str:
    """Return a run's history as JSON text, a line for each field."""
    delivered = [step for step in recorded.steps if step.position is not None]
    delivered.sort(key=lambda step: step.position or 0)
    file = _File(
        format=1,
        begun_with=recorded.begun_with,
        run=_export(recorded.run, _Run),
        steps=[_export(step, _Step) for step in recorded.steps],
        deliveries=[step.number for step in delivered],
        events=[_export(event, _Event) for event in recorded.events],
    )
    return msgspec.json.format(msgspec.json.encode(file), indent=2).decode() + "\n"


def decode_history(data: str | bytes) -> RecordedRun:
    """Return the run that a history is of.

    Raises:
        ValueError: It is no history.
    """
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, UnicodeError) as exc:
        msg = f"this is no history as engine.history() returns it (format 1): {exc}"
        raise ValueError(msg) from exc
    positions = {number: position for position, number in enumerate(file.deliveries)}
    if not {step.number for step in file.steps}.issuperset(positions):
        msg = "this history is damaged: it has a delivery of a step that it does not have"
        raise ValueError(msg)
    run_id = file.run.run_id
    return RecordedRun(
        RunRecord(**_import(file.run)),
        [
            StepRecord(position=positions.get(step.number), **_import(step))
            for step in sorted(file.steps, key=lambda step: step.number)
        ],
        [
            EventRecord(run_id=run_id, seq=seq, **_import(event))
            for seq, event in enumerate(file.events)
        ],
        file.begun_with,
    )


def _export(record: msgspec.Struct, shape: Any) -> Any:  # noqa: ANN401  a record as one of the above
    values: dict[str, object] = {}
    for name in shape.__struct_fields__:
        value = getattr(record, name)
        if name in JSON_FIELDS:
            value = UNSET if value is None else Raw(value.encode())
        values[name] = value
    return shape(**values)


def _import(exported: msgspec.Struct) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in exported.__struct_fields__:
        value = getattr(exported, name)
        if isinstance(value, Raw):
            value = msgspec.json.format(bytes(value), indent=-1).decode()
        if value is not UNSET:
            values[name] = value
    return values
