"""A recorded outcome, as the body gets it. One that does not fit the code is ``Stuck``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from durable.core.codec import DecodeError, decode_plain
from durable.core.commands import Damaged, Stuck
from durable.core.diff import describe, shorten, way_of
from durable.core.failures import type_name_of
from durable.core.records import StepState

if TYPE_CHECKING:
    from durable.core.commands import Work
    from durable.core.records import StepRecord


def decode_result(record: StepRecord, work: Work, run_id: str) -> object:
    """Return what the recorded result of a step of that run is to the code."""
    try:
        return work.decode(record.result or "null")
    except Exception as exc:  # noqa: BLE001  a user's decoding hook may raise anything
        _check_json(record, run_id)
        msg = (
            f"the recorded result of {describe(record)} does not fit the code's annotation "
            f"any more: {exc}. Annotate it so that both fit, or give the workflow a new "
            "version."
        )
        way = ("result", type_name_of(type(exc)), *way_of(record))
        raise Stuck(msg, way=way) from None


def rebuild_error(record: StepRecord, work: Work, run_id: str) -> BaseException:
    """Return the exception that a step of that run has failed with."""
    try:
        assert record.state is StepState.FAILED
        return work.rebuild(record.error or "")
    except Exception as exc:
        error = shorten(record.error or "")
        why = (
            f"the recorded outcome of {describe(record)} is damaged: it is {record.state}, "
            f"with the error {error!r}"
        )
        raise Damaged(run_id, why) from exc


def _check_json(record: StepRecord, run_id: str) -> None:
    """Raise ``Damaged`` when a step's recorded result is no result of any code."""
    try:
        decode_plain(record.result or "null")
    except DecodeError as exc:
        why = f"the recorded result of {describe(record)} is damaged: {exc}"
        raise Damaged(run_id, why) from None
