"""What an action can know of the attempt that it is."""

from __future__ import annotations

from contextvars import ContextVar
from typing import final

import msgspec


@final
class Attempt(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One try of a step, as its function sees it.

    Attributes:
        run_id: The run it belongs to.
        step_key: The step's key: ``StepInfo.key``.
        number: The number of the try, from 1, by the retry policy.
        interruptions: How often the process died during the step so far.
    """

    run_id: str
    step_key: str
    number: int
    interruptions: int

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt of the step: hand it to services that know such keys."""
        return f"{self.run_id}:{self.step_key}"


CURRENT_ATTEMPT: ContextVar[Attempt] = ContextVar("durable_attempt")
