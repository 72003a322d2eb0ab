"""What is said of a run that cannot go on, or of which a part has failed: in its row, and to an
operator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from durable.core.codec import safe_text
from durable.core.commands import Damaged, Stuck
from durable.core.diff import message_of, no_workflow
from durable.core.errors import DurableError, JournalCorruptError, NonDeterminismError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from durable.core.records import RunRecord
    from durable.core.versions import VersionTable
    from durable.runtime.instrumentation import EngineLog

STUCK_HINT = "The run goes on when the engine is opened with code that fits."
"""What a stuck run's error ends with: what can be done about it."""


def report_stuck(
    log: EngineLog, record: RunRecord, exc: Exception, versions: VersionTable
) -> BaseException:
    """Log that a run's body cannot go on; return the error that its row gets.

    Args:
        log: The engine's.
        record: The run.
        exc: A divergence, or what nobody has foreseen.
        versions: Those that runs were begun with.
    """
    error, fields = _explain(exc, record, versions)
    log.error(
        "durable.run_stuck",
        run_id=record.run_id,
        workflow=record.name,
        reason=safe_text(exc),
        **fields,
    )
    return error


def _explain(
    exc: Exception, record: RunRecord, versions: VersionTable
) -> tuple[BaseException, dict[str, object]]:
    if not isinstance(exc, Stuck):
        return _unexpected(exc), {"exc_info": exc}
    if isinstance(exc, Damaged):
        return JournalCorruptError(str(exc)), {}
    explained = versions.explain(record.begun_with)
    fields: dict[str, object] = {"diff": exc.diff} if exc.diff else {}
    if explained:
        fields["versions"] = explained
    return NonDeterminismError(message_of(exc, STUCK_HINT, explained)), fields


def _unexpected(exc: Exception) -> DurableError:
    msg = (
        f"durable could not go on with the run: {type(exc).__name__}: {safe_text(exc)}. Either the "
        "run's rows in the journal are damaged, or this is a bug of durable: please report it."
    )
    error = DurableError(msg)
    error.__cause__ = exc
    return error


def report_undefined(log: EngineLog, record: RunRecord) -> BaseException:
    """Log that the code does not have a run's workflow; return the error that its row gets."""
    log.error("durable.workflow_undefined", run_id=record.run_id, workflow=record.name)
    return NonDeterminismError(
        f"{no_workflow(record)}. Import the module that defines it; the run then goes on."
    )


def report_failures(log: EngineLog, run_id: str, failures: Iterable[dict[str, Any]]) -> None:
    """Log what was raised in a body's callbacks, where no part of it could catch it."""
    for context in failures:
        error = context.get("exception")
        log.warning(
            "durable.body_callback_failed",
            run_id=run_id,
            reason=str(context.get("message")),
            error=None if error is None else f"{type(error).__name__}: {safe_text(error)}",
        )
