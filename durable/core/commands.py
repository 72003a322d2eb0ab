"""What goes in and out of an execution: commands, their futures, turns, and how a body ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, final

from durable.core.errors import damaged
from durable.core.tasks import WorkflowFuture

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from durable.core.records import StepKind, StepRecord

UNSET: Any = object()
"""Stands for a value that was not handed over, where ``None`` is a value."""

DUE_MS_MAX = 253_402_300_799_000
"""The end of the year 9999: no timer is due later."""


class Stuck(Exception):
    """The body cannot go on with the code as it is. The message has both sides, in a sentence.

    Attributes:
        record: The recorded step that it is about, if it is about one.
        command: What the code has issued in its place, or where the journal has nothing.
        now: What the code does instead of issuing a command, in words.
        way: What tells this difference from others, where the step and the command do not, without
            what is a run's own: the same for all runs that differ in the same way.
        diff: Both sides line by line, with what is around them and where the code stands; empty
            when it is about something else.
    """

    def __init__(
        self,
        summary: str,
        *,
        record: StepRecord | None = None,
        command: Command | None = None,
        now: str = "",
        way: tuple[str, ...] = (),
    ) -> None:
        super().__init__(summary)
        self.record = record
        self.command = command
        self.now = now
        self.way = way
        self.diff = ""


@final
class Damaged(Stuck):
    """What the journal has of a run cannot be what was written: it is not for the code to mend."""

    def __init__(self, run_id: str, why: str) -> None:
        super().__init__(damaged(f"run {run_id!r}", why))


class Work(Protocol):
    """What a command of the body stands for. Only the layers above look into it."""

    def decode(self, text: str) -> object:
        """Return the result that JSON text stands for."""
        ...

    def rebuild(self, error: str) -> BaseException:
        """Return the exception that a stored error stands for."""
        ...


@final
class Command:
    """Something that the body waits for: a step, or a timer.

    Attributes:
        key: ``task path : ordinal``.
        number: The order of issue in the run; -1 until the turn has ended.
        args: The canonical JSON of the arguments.
        compares_args: Whether replay compares the arguments.
        due_ms: When a timer fires or a delayed step begins.
        is_absolute: Whether that is a time that the user has given, and not one from its issue on.
        record: What the journal holds of it, when it was issued in an earlier life.
    """

    __slots__ = (
        "args",
        "compares_args",
        "due_ms",
        "future",
        "handle",
        "is_absolute",
        "is_withdrawn",
        "key",
        "kind",
        "name",
        "number",
        "record",
        "work",
    )

    def __init__(
        self,
        kind: StepKind,
        name: str,
        key: str,
        *,
        args: str = "{}",
        compares_args: bool = True,
        due_ms: int | None = None,
        is_absolute: bool = False,
        work: Work | None = None,
    ) -> None:
        self.kind = kind
        self.name = name
        self.key = key
        self.args = args
        self.compares_args = compares_args
        self.due_ms = due_ms
        self.is_absolute = is_absolute
        self.work = work
        self.number = -1
        self.record: StepRecord | None = None
        self.is_withdrawn = False
        self.future: CommandFuture | None = None
        self.handle: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Command {self.number} {self.kind} {self.name!r} at {self.key}>"


class Issuer(Protocol):
    """Whose commands they are: the execution."""

    def withdraw(self, command: Command) -> None:
        """The body does not wait for ``command`` any more."""
        ...


@final
class CommandFuture(WorkflowFuture[Any]):
    """What the body awaits. Cancelling it withdraws the command, at that moment.

    Attributes:
        issuer: The execution. It and the command are given by whoever makes the future: one
            constructor less for each step.
        command: What the future is of.
    """

    __slots__ = ("command", "issuer")
    command: Command
    issuer: Issuer

    def cancel(self, msg: Any | None = None) -> bool:  # noqa: ANN401  as asyncio has it
        if not super().cancel(msg):
            return False
        self.issuer.withdraw(self.command)
        return True


@final
class Returned:
    """The body returned ``value``."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


@final
class Raised:
    """The body raised ``error``."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


@final
class Turn:
    """What one turn of the body led to.

    Attributes:
        issued: New commands, numbered, in order.
        withdrawn: Earlier commands that the body does not wait for any more.
        patches: What is new in the code, as records.
        end: How the body ended, if it did.
    """

    __slots__ = ("end", "issued", "patches", "withdrawn")

    def __init__(
        self,
        issued: list[Command],
        withdrawn: list[Command],
        patches: Sequence[StepRecord],
        end: Returned | Raised | None,
    ) -> None:
        self.issued = issued
        self.withdrawn = withdrawn
        self.patches = patches
        self.end = end
