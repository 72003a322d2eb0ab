"""Replaying the histories of runs in tests: does the code still fit what it has begun?"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import final

import msgspec

from durable.catalog import find_workflow
from durable.core.commands import Stuck
from durable.core.diff import WAYS_OUT, message_of, no_workflow
from durable.core.errors import NonDeterminismError
from durable.core.histories import decode_history
from durable.core.replaying import replay_run
from durable.core.versions import explain_versions


@final
class DivergenceError(NonDeterminismError, AssertionError):
    """The code does not do what a history says it did. The message has the diff."""


def replay(history: str | bytes | os.PathLike[str] | Mapping[str, object]) -> None:
    """Execute a run's body over its history, with the code as it is now.

    No step is executed and nothing is written: no engine and no journal are needed. The modules
    that define the workflow, and what it calls, have to be imported. A run that is over has to end
    as it did; one that is not, to wait where it waited.

    Args:
        history: What ``engine.history()`` has returned: its text, a path of a file that has it, or
            the object that its JSON stands for.

    Raises:
        DivergenceError: The body does something else, or there is no such workflow.
        ValueError: It is no history.
        OSError: The file cannot be read.
    """
    recorded = decode_history(_text_of(history))
    run = recorded.run
    spec = find_workflow(run.name, run.version)
    if spec is None:
        msg = f"{no_workflow(run)}. Import the module that defines it."
        raise DivergenceError(msg)
    try:
        replay_run(run, recorded.steps, spec)
    except Stuck as stuck:
        versions = "" if recorded.begun_with is None else explain_versions(recorded.begun_with)
        raise DivergenceError(message_of(stuck, WAYS_OUT, versions)) from None


def _text_of(history: str | bytes | os.PathLike[str] | Mapping[str, object]) -> str | bytes:
    if isinstance(history, str | bytes):
        return history
    if isinstance(history, Mapping):
        return msgspec.json.encode(history)
    return Path(os.fspath(history)).read_bytes()
