"""The exception tree.

Rules:

- One root, ``DurableError``. The only exception outside it is ``NonDeterminismError``, a
  ``BaseException``, so that a body's ``except Exception`` cannot swallow it.
- A message says what was expected, what came, and what to do next.
- The classes present themselves as ``durable.<Name>``, which is also the name stored in a journal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from durable.core.records import ErrorInfo


class DurableError(Exception):
    """The root of every error that ``durable`` raises."""


class NonDeterminismError(BaseException):
    """A body did what cannot be replayed: I/O, a thread, a process, or a call of the engine.

    Put that work in an action. It is a ``BaseException`` so that ``except Exception`` in a body
    does not hide it. A body that ends with it has failed; one that swallows it is ``stuck``.
    """


class DeterminismWarning(UserWarning):
    """A workflow's body has a line that another run of it, such as a replay, does otherwise.

    Given once, where the workflow is defined, with the file and line, and what to do instead. A
    comment ``# durable: allow`` at the end of the line silences it.
    """


# --- definitions and calls -----------------------------------------------------------------------


class DuplicateDefinitionError(DurableError):
    """Two definitions of one kind have the same name (and version). Nothing was registered."""


class ArgumentError(DurableError):
    """An argument does not fit its annotation or cannot be encoded. Nothing was written."""


class ReturnTypeError(DurableError):
    """A result does not fit the return annotation or cannot be encoded. Never retried."""


class PayloadTooLarge(DurableError):
    """A value is over ``Engine(max_payload=)``.

    At a call nothing was written; a result that is too large fails its step.
    """


class NotInWorkflowError(DurableError):
    """The call has a meaning only inside a workflow's body (or an action)."""


class TransactionError(DurableError):
    """What was asked is not to be had in this transaction, or the transaction is over.

    The message says which. What the transaction had written is not in the journal, if it is over
    without having been committed.
    """


# --- runs and steps ------------------------------------------------------------------------------


class RunFailed(DurableError):
    """The run ended ``failed``. ``__cause__`` is the exception itself, rebuilt where possible.

    Attributes:
        run_id: The run that failed.
        error: What the journal holds of the error.
    """

    def __init__(self, run_id: str, error: ErrorInfo) -> None:
        super().__init__(f"run {run_id!r} failed: {error.type_name}: {error.message}")
        self.run_id = run_id
        self.error = error


class RunCanceled(DurableError):
    """The run was cancelled before it completed.

    Attributes:
        run_id: The run.
    """

    def __init__(self, run_id: str) -> None:
        super().__init__(f"run {run_id!r} was cancelled")
        self.run_id = run_id


class StepFailed(DurableError):
    """An action's exception that does not reach the body as itself.

    Attributes:
        type_name: The name of the exception's class.
        message: Its text.
    """

    def __init__(self, type_name: str, message: str) -> None:
        super().__init__(type_name, message)
        self.type_name = type_name
        self.message = message

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}"


class StepInterrupted(DurableError):
    """The process died during this step more than ``Engine(max_interruptions=)`` times."""


class OutcomeUnknown(DurableError):
    """An at-most-once step (``retry=False``) was running when its process died.

    It may or may not have had its effect, and it is not run again.
    """


class NonRetryable(DurableError):
    """Raise it in an action to end the step at once, whatever its retry policy."""


class DeadlockError(DurableError):
    """The body waits for something that nothing can bring about any more."""


class RunConflictError(DurableError):
    """The id belongs to a run of another workflow or with other arguments. Nothing was written."""


class RunTimeout(DurableError):
    """The run took longer than its workflow's ``timeout``, and was cancelled."""


class RunNotFoundError(DurableError):
    """The journal has no run of that id."""


class RunNotFinishedError(DurableError):
    """The run is not over. Nothing was written."""


class StepNotFoundError(DurableError):
    """The run has no such step. Nothing was written."""


class RunFinishedError(DurableError):
    """The run is over: it takes no events any more. Nothing was written."""


# --- events --------------------------------------------------------------------------------------


class EventError(DurableError):
    """An error was sent instead of a value; a body's wait for the event raises it.

    Attributes:
        type_name: The class of the exception that was sent; ``None`` when a text was sent.
        message: The text.
    """

    def __init__(self, type_name: str | None, message: str) -> None:
        super().__init__(type_name, message)
        self.type_name = type_name
        self.message = message

    def __str__(self) -> str:
        return self.message if self.type_name is None else f"{self.type_name}: {self.message}"


class EventTypeError(DurableError):
    """What was sent does not fit the type that the body waits for. The event is consumed."""


class EventNotFoundError(DurableError):
    """There is no event of that id; to a body that waits for it: not for this run."""


class EventAlreadySentError(DurableError):
    """The event of that id was sent before. Nothing was written."""


class EventConsumedError(DurableError):
    """The body waits for an event that was consumed before, or that it waits for already."""


# --- engine --------------------------------------------------------------------------------------


class NoEngineError(DurableError):
    """No engine is open on this event loop."""


class EngineClosedError(DurableError):
    """The engine is not open: use it inside ``async with Engine(...)``.

    When a start raises it the start may or may not be committed; ask again with the same id.
    """


# --- journal -------------------------------------------------------------------------------------


class JournalError(DurableError):
    """The root of the storage errors."""


class JournalLockedError(JournalError):
    """Another process owns the journal. The message names its process id. Nothing was changed."""


class JournalVersionError(JournalError):
    """The journal was written by a newer ``durable``. Nothing was changed."""


class JournalCorruptError(JournalError):
    """The file, or a row of it, is damaged or not a journal. The message names it."""


class JournalUnavailableError(JournalError):
    """The storage failed (I/O error, full disk, no permission). **The outcome is unknown.**

    What was asked may have been written or not. Ask again with the same id.
    """


def damaged(where: str, why: str | Exception) -> str:
    """Return what is said of a row that cannot be what ``durable`` wrote.

    Args:
        where: What it is of, such as ``run 'r-1'``.
        why: What is wrong with it.
    """
    return f"damaged row in the journal, {where}: {why}. Restore the file from a backup."


PUBLIC: tuple[type[BaseException], ...] = (
    DurableError,
    NonDeterminismError,
    DuplicateDefinitionError,
    ArgumentError,
    ReturnTypeError,
    PayloadTooLarge,
    NotInWorkflowError,
    TransactionError,
    RunFailed,
    RunCanceled,
    StepFailed,
    StepInterrupted,
    OutcomeUnknown,
    NonRetryable,
    DeadlockError,
    RunConflictError,
    RunTimeout,
    RunNotFoundError,
    RunNotFinishedError,
    StepNotFoundError,
    RunFinishedError,
    EventError,
    EventTypeError,
    EventNotFoundError,
    EventAlreadySentError,
    EventConsumedError,
    NoEngineError,
    EngineClosedError,
    JournalError,
    JournalLockedError,
    JournalVersionError,
    JournalCorruptError,
    JournalUnavailableError,
)

for _cls in (*PUBLIC, DeterminismWarning):
    _cls.__module__ = "durable"
