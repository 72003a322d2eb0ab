"""Durable execution inside an asyncio application.

A workflow is a plain coroutine. Every await of a step in it is journaled, so that it survives
crashes, deploys and months of sleep, and runs to completion.
"""

from durable.attempts import attempt
from durable.call import Call
from durable.completion import Canceled, Completion, Failure, Success
from durable.core.errors import (
    ArgumentError,
    DeadlockError,
    DeterminismWarning,
    DuplicateDefinitionError,
    DurableError,
    EngineClosedError,
    EventAlreadySentError,
    EventConsumedError,
    EventError,
    EventNotFoundError,
    EventTypeError,
    JournalCorruptError,
    JournalError,
    JournalLockedError,
    JournalUnavailableError,
    JournalVersionError,
    NoEngineError,
    NonDeterminismError,
    NonRetryable,
    NotInWorkflowError,
    OutcomeUnknown,
    PayloadTooLarge,
    ReturnTypeError,
    RunCanceled,
    RunConflictError,
    RunFailed,
    RunFinishedError,
    RunNotFinishedError,
    RunNotFoundError,
    RunTimeout,
    StepFailed,
    StepInterrupted,
    StepNotFoundError,
    TransactionError,
)
from durable.core.records import ErrorInfo, RunState, StepKind, StepState
from durable.core.retry import Retry
from durable.core.row import Row
from durable.definitions import (
    Action,
    Mutation,
    Query,
    Workflow,
    action,
    mutation,
    query,
    workflow,
)
from durable.engine import Engine
from durable.events import Event, EventId
from durable.run import Run, run
from durable.runtime.attempt import Attempt
from durable.status import EngineStatistics, Page, RunStatus, StepInfo
from durable.step import Step
from durable.transaction import Transaction

__all__ = [
    "Action",
    "ArgumentError",
    "Attempt",
    "Call",
    "Canceled",
    "Completion",
    "DeadlockError",
    "DeterminismWarning",
    "DuplicateDefinitionError",
    "DurableError",
    "Engine",
    "EngineClosedError",
    "EngineStatistics",
    "ErrorInfo",
    "Event",
    "EventAlreadySentError",
    "EventConsumedError",
    "EventError",
    "EventId",
    "EventNotFoundError",
    "EventTypeError",
    "Failure",
    "JournalCorruptError",
    "JournalError",
    "JournalLockedError",
    "JournalUnavailableError",
    "JournalVersionError",
    "Mutation",
    "NoEngineError",
    "NonDeterminismError",
    "NonRetryable",
    "NotInWorkflowError",
    "OutcomeUnknown",
    "Page",
    "PayloadTooLarge",
    "Query",
    "Retry",
    "ReturnTypeError",
    "Row",
    "Run",
    "RunCanceled",
    "RunConflictError",
    "RunFailed",
    "RunFinishedError",
    "RunNotFinishedError",
    "RunNotFoundError",
    "RunState",
    "RunStatus",
    "RunTimeout",
    "Step",
    "StepFailed",
    "StepInfo",
    "StepInterrupted",
    "StepKind",
    "StepNotFoundError",
    "StepState",
    "Success",
    "Transaction",
    "TransactionError",
    "Workflow",
    "action",
    "attempt",
    "mutation",
    "query",
    "run",
    "workflow",
]
