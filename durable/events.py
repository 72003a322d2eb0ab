"""Events: a name and a type, the id of one, what is sent, and what a body's wait for it is.

Rules:

- The sender's value is checked against the sender's type, the waiter's against the waiter's: the
  two may be of different releases. A plain name, and an id, mean ``Any``.
- An id is random: whoever has it may send the event. It says nothing of the run.
"""

from __future__ import annotations

import re
from typing import Any, Generic, Protocol, TypeVar, final, overload

import msgspec

from durable.checks import check_name
from durable.core.codec import DecodeError, EncodeError, Shape, safe_text, safe_utf8
from durable.core.errors import ArgumentError, EventError
from durable.core.failures import decode_error, encode_error, encode_exception, rebuild_error
from durable.core.records import StoredError
from durable.parameters import check_size

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_ID = re.compile(r"[0-9a-f]{32}")

NAME_OF_ID_WAITS = "event"
"""The step's name of a wait for an id, which is not known by a name."""


@final
class Event(Generic[T]):
    """A name and a type: ``approval = Event("approval", Approval)``.

    Attributes:
        name: What it is sent and awaited by.
        type: What its values are checked against, at both ends; by default anything.
    """

    __slots__ = ("name", "shape", "type")

    @overload
    def __init__(self: Event[Any], name: str) -> None: ...
    @overload
    def __init__(self, name: str, type: type[T]) -> None: ...
    @overload
    def __init__(self: Event[Any], name: str, type: Any) -> None: ...  # noqa: ANN401
    def __init__(self, name: str, type: Any = Any) -> None:  # noqa: A002
        """Name an event.

        Raises:
            TypeError: The name is no text, or empty; or the type has no JSON form.
            ValueError: The name cannot be stored.
        """
        self.name = _check_event_name(name)
        self.type = type
        try:
            self.shape: Shape[T] = Shape(type)
        except TypeError as exc:
            msg = f"the type of event {name!r} has no JSON form: {exc}"
            raise TypeError(msg) from exc

    def __repr__(self) -> str:
        return f"<Event {self.name!r} of {self.type!r}>"

    def decode(self, text: str) -> T:
        """Return a value that was sent, of its JSON. Raises ``DecodeError`` if it does not fit."""
        return self.shape.decode(text)


class Typed(Protocol[T_co]):
    """An ``Event`` as type checkers see it at the wait, which only takes values out of it."""

    def decode(self, text: str) -> T_co: ...


@final
class EventId(msgspec.Struct, frozen=True):
    """The id of one event of one run.

    It travels through arguments and results by annotation, and through a URL as text.
    """

    id: str

    def __str__(self) -> str:
        return self.id

    @classmethod
    def parse(cls, text: str) -> EventId:
        """Return the id that ``str`` gave.

        Raises:
            ValueError: It is no such text.
        """
        if not isinstance(text, str) or _ID.fullmatch(text) is None:
            msg = f"an event's id is 32 hexadecimal digits, as str(event_id) gives, not {text!r}"
            raise ValueError(msg)
        return cls(text)


ANYTHING: Shape[Any] = Shape(Any)


@final
class EventWait:
    """What a body's wait stands for: of which event, and what the body gets of it.

    Attributes:
        step_name: The name of its step.
        event_id: The one event that it is for; ``None`` when it is for the next of that name.
    """

    __slots__ = ("event_id", "shape", "step_name")

    def __init__(self, event: str | Typed[Any] | EventId) -> None:
        self.event_id: str | None = None
        self.shape = ANYTHING
        if isinstance(event, EventId):
            self.step_name = NAME_OF_ID_WAITS
            self.event_id = event.id
        else:
            self.step_name, self.shape = name_and_shape(event)

    @property
    def args(self) -> dict[str, object]:
        """What the journal has as the step's arguments: replay compares them."""
        if self.event_id is None:
            return {"event": self.step_name}
        return {"event_id": self.event_id}

    def decode(self, text: str) -> object:
        return self.shape.decode(text)

    def rebuild(self, error: str) -> BaseException:
        return rebuild_error(decode_error(error), {})


def name_and_shape(event: object) -> tuple[str, Shape[Any]]:
    """Return what an event is called, and what its values have to fit.

    Raises:
        TypeError: It is neither a name nor an ``Event``.
        ValueError: The name cannot be stored.
    """
    if isinstance(event, Event):
        known: Event[Any] = event  # pyright: ignore[reportUnknownVariableType]
        return known.name, known.shape
    return _check_event_name(event), ANYTHING


def encode_sent(
    shape: Shape[Any], value: object, error: str | Exception | None, *, what: str, payload_max: int
) -> tuple[str | None, str | None]:
    """Return what is sent as JSON: a value, or an error.

    Args:
        shape: What the value has to fit.
        value: What is sent.
        error: What is sent instead.
        what: The event, for messages.
        payload_max: How many bytes the value may take.

    Raises:
        ArgumentError: The value does not fit, or has no JSON form.
        PayloadTooLarge: It is larger than ``payload_max`` bytes.
        TypeError: The error is neither text nor an exception.
        ValueError: There are both.
    """
    if error is not None:
        if value is not None:
            msg = f"give {what} a value or error=, not both"
            raise ValueError(msg)
        return None, _encode_error(error)
    try:
        text, _ = shape.round_trip(value)
    except (EncodeError, DecodeError) as exc:
        msg = f"the value of {what}: {exc}"
        raise ArgumentError(msg) from exc
    if len(text) * 4 > payload_max:
        check_size(text, payload_max, f"the value of {what}")
    return text, None


def _encode_error(error: str | Exception) -> str:
    traceback = ""
    if isinstance(error, str):
        raised = EventError(None, safe_utf8(error))
    elif isinstance(error, Exception):
        info = decode_error(encode_exception(error)).info
        raised, traceback = EventError(info.type_name, info.message), info.traceback
    else:
        msg = f"error= is text or an exception, not {error!r}"
        raise TypeError(msg)
    message = safe_text(raised)
    stored = StoredError(
        type_name="durable.EventError",
        message=message,
        traceback=traceback,
        args=list(raised.args) if message == str(raised) else [None, message],
    )
    return encode_error(stored)


def _check_event_name(name: Any) -> str:  # noqa: ANN401  users may err
    checked = check_name(name, "an event's name")
    if checked is None:
        msg = "an event's name is text, and not empty; it is None"
        raise TypeError(msg)
    return checked
