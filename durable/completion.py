"""What ``on_complete`` is given: how a run has ended."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, final

import msgspec

from durable.core.records import ErrorInfo


@final
class Success(msgspec.Struct, frozen=True, tag_field="kind", tag="success"):
    """The run has completed.

    Attributes:
        value: Its result, as plain JSON.
    """

    value: Any = None

    @property
    def kind(self) -> Literal["success"]:
        return "success"


@final
class Failure(msgspec.Struct, frozen=True, tag_field="kind", tag="error"):
    """The run has failed."""

    error: ErrorInfo

    @property
    def kind(self) -> Literal["error"]:
        return "error"


@final
class Canceled(msgspec.Struct, frozen=True, tag_field="kind", tag="canceled"):
    """The run was cancelled."""

    @property
    def kind(self) -> Literal["canceled"]:
        return "canceled"


Outcome: TypeAlias = Success | Failure | Canceled


@final
class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a run, as its ``on_complete`` sees it.

    Attributes:
        run_id: The run.
        name: Its workflow's name.
        outcome: How it has ended; ``outcome.kind`` is ``success``, ``error`` or ``canceled``.
        context: What was given to ``start`` as ``context``, as plain JSON.
    """

    run_id: str
    name: str
    outcome: Outcome
    context: Any = None
