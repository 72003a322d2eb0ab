"""``durable.attempt()``: who calls this action, query or mutation."""

from __future__ import annotations

from durable.core.errors import NotInWorkflowError
from durable.runtime.attempt import CURRENT_ATTEMPT, Attempt


def attempt() -> Attempt:
    """Return the attempt that the calling action, query or mutation is.

    Raises:
        NotInWorkflowError: The function was not called as a step.
    """
    try:
        return CURRENT_ATTEMPT.get()
    except LookupError:
        msg = (
            "durable.attempt() works in an action, query or mutation that a workflow awaits, not "
            "in a direct call"
        )
        raise NotInWorkflowError(msg) from None
