"""One attempt as the workpool has it: what is called, where it stands, and its outcome."""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Protocol, final

from durable.core.codec import safe_text
from durable.core.commands import Work
from durable.core.errors import NonRetryable, PayloadTooLarge, ReturnTypeError
from durable.core.failures import encode_exception, set_args

if TYPE_CHECKING:
    import asyncio

    from durable.core.records import StepRecord
    from durable.core.retry import Retry
    from durable.runtime.attempt import Attempt

FINAL_ERRORS = (NonRetryable, ReturnTypeError, PayloadTooLarge)
"""Trying again would not help, or is not wanted."""


class ActionWork(Work, Protocol):
    """What an action's command stands for.

    Attributes:
        is_owed: Whether it is tried again whatever it fails with.
    """

    name: str
    retry: Retry | None
    is_owed: bool
    is_at_most_once: bool
    is_async: bool
    timeout_s: float | None

    def call(self, args: str) -> Any:  # noqa: ANN401
        """Call the function with recorded arguments: an awaitable, or a sync function's result."""
        ...

    def encode_result(self, result: object) -> tuple[str, object]:
        """Return the result as JSON text, and what that decodes to."""
        ...


@final
class Succeeded:
    """An attempt returned: its result as JSON, and what that decodes to."""

    __slots__ = ("text", "value")

    def __init__(self, text: str, value: object) -> None:
        self.text = text
        self.value = value


@final
class Failed:
    """An attempt raised."""

    __slots__ = ("error", "is_final")

    def __init__(self, exc: BaseException) -> None:
        # Not isinstance: that asks the exception, whose __getattribute__ may raise anything.
        self.is_final = issubclass(type(exc), FINAL_ERRORS)
        if issubclass(type(exc), NonRetryable) and exc.__cause__ is not None and not exc.args:
            # ``raise NonRetryable from exc`` says no more.
            set_args(exc, (safe_text(exc.__cause__),))
        self.error = encode_exception(exc)


class JobState(Enum):
    """Where an attempt stands in the pool."""

    QUEUED = auto()
    RESERVED = auto()
    RUNNING = auto()
    ENDED = auto()
    WITHDRAWN = auto()
    """It never ran, and never will."""
    DROPPED = auto()
    """It runs, and nobody wants its outcome any more."""


# By themselves: before Python 3.12 each mention of a member by its class is a slow lookup.
JOB_QUEUED, JOB_RESERVED, JOB_RUNNING, JOB_ENDED, JOB_WITHDRAWN, JOB_DROPPED = JobState


class JobOwner(Protocol):
    """Who wants an attempt made."""

    def on_slot(self, job: Job) -> None:
        """A queued job has its slot: record that it runs, then launch it."""
        ...

    def on_outcome(self, job: Job) -> StepRecord | None:
        """A job has its outcome: return its step as it is now, unless nobody wants that."""
        ...

    def wants(self, job: Job) -> bool:
        """Whether the outcome of a job is wanted."""
        ...


@final
class Job:
    """One attempt that is to be made, or is under way.

    Attributes:
        id: Which step it is: the run's id, and the step's number.
        owner: Who is told what becomes of it; ``None`` while its run is not in memory.
        has_slot: Whether it takes one of the pool's slots.
    """

    __slots__ = (
        "args",
        "attempt",
        "has_slot",
        "id",
        "number",
        "outcome",
        "owner",
        "state",
        "task",
        "work",
    )

    def __init__(
        self, attempt: Attempt, number: int, work: ActionWork, args: str, owner: JobOwner
    ) -> None:
        self.attempt = attempt
        self.number = number
        self.id = (attempt.run_id, number)
        self.work = work
        self.args = args
        self.owner: JobOwner | None = owner
        self.state = JOB_QUEUED
        self.has_slot = True
        self.task: asyncio.Task[Any] | None = None
        self.outcome: Succeeded | Failed | None = None
