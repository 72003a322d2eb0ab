"""Exceptions to JSON text and back.

Rules:

- An exception is stored as its class's *name*, its text, its traceback's text, and its arguments
  and attributes as plain JSON.
- It is rebuilt only from builtins, durable's own classes, and those that the caller hands in. No
  class is ever imported by a stored name, nothing is pickled.
- What cannot be rebuilt so that it reads the same becomes a ``StepFailed``.
"""

from __future__ import annotations

import builtins
import traceback
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import msgspec

from durable.core import errors
from durable.core.codec import (
    DecodeError,
    EncodeError,
    decode_plain,
    encode_canonical,
    one_line,
    safe_text,
    safe_utf8,
)
from durable.core.interrupts import is_from_signal
from durable.core.naming import importable
from durable.core.records import ErrorInfo, StoredError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

TRACEBACK_CHARS_MAX = 32_768
"""The longest traceback that is stored; its end is kept, where the raise stands."""

ERROR_CHARS_MAX = 262_144
"""A stored error longer than this keeps its texts only, not its arguments."""


# Read past the class's own metaclass, whose properties may raise anything.
_module_of: Callable[[type], object] = type.__dict__["__module__"].__get__
_qualname_of: Callable[[type], str] = type.__dict__["__qualname__"].__get__


# Past its own __setattr__: a frozen dataclass refuses everything.
set_args: Callable[[BaseException, tuple[object, ...]], None]
set_args = BaseException.__dict__["args"].__set__
_set_cause: Callable[[BaseException, BaseException], None]
_set_cause = BaseException.__dict__["__cause__"].__set__


def type_name_of(cls: type) -> str:
    """Return how a class is named in the journal: a builtin by its bare name.

    A script's own classes by what would be imported: the run may go on in another process.
    """
    module, name = _module_of(cls), _qualname_of(cls)
    full_name = name if module == "builtins" else f"{importable(str(module))}.{name}"
    return safe_utf8(full_name)


def _safe_traceback(exc: BaseException) -> str:
    try:
        text = "".join(traceback.format_exception(exc, limit=-40))
    except BaseException as broken:  # noqa: BLE001  a user's __str__ may raise anything
        text = f"<the traceback could not be formatted: {type(broken).__name__}>"
    text = safe_utf8(text)
    if len(text) > TRACEBACK_CHARS_MAX:
        text = "[...]" + text[-TRACEBACK_CHARS_MAX:]
    return text


def _plain_or_none(value: object) -> Any:  # noqa: ANN401  JSON of any shape
    try:
        return decode_plain(encode_canonical(value))
    except (EncodeError, DecodeError):
        return None


def _arguments_of(exc: BaseException) -> list[object]:
    if isinstance(exc, OSError) and exc.filename is not None and len(exc.args) == 2:  # noqa: PLR2004  (errno, text)
        # OSError keeps the file names out of its args; its constructor takes them back.
        names = [exc.filename] if exc.filename2 is None else [exc.filename, None, exc.filename2]
        return [*exc.args, *names]
    return list(exc.args)


def store_error(exc: BaseException) -> StoredError:
    """Describe ``exc`` for the journal. It may raise what the exception's own properties raise."""
    attributes: dict[str, object] = {}
    present: dict[Any, Any] = getattr(exc, "__dict__", None) or {}
    for key, value in present.items():
        plain = _plain_or_none(value)
        if plain is not None or value is None:
            attributes[str(key)] = plain
    attributes.pop("__notes__", None)
    return StoredError(
        type_name=type_name_of(type(exc)),
        message=safe_text(exc),
        traceback=_safe_traceback(exc),
        args=_plain_or_none(_arguments_of(exc)),
        attributes=attributes,
    )


_error_encoder = msgspec.json.Encoder()
_error_decoder = msgspec.json.Decoder(StoredError)


def encode_error(error: StoredError) -> str:
    """Return a stored error as JSON text."""
    return _error_encoder.encode(error).decode()


def encode_exception(exc: BaseException) -> str:
    """Describe ``exc`` as JSON text for the journal. Never raises, whatever the exception is."""
    try:
        error = store_error(exc)
        text = encode_error(error)
        if len(text) <= ERROR_CHARS_MAX:
            return text
    except BaseException:  # noqa: BLE001  its attributes may be properties that raise anything
        error = StoredError(type_name=type_name_of(type(exc)), message=safe_text(exc))
    return encode_error(msgspec.structs.replace(error, args=None, attributes={}))


def decode_error(text: str) -> StoredError:
    """Return the stored error of JSON text.

    Raises:
        DecodeError: The text is no stored error.
    """
    try:
        return _error_decoder.decode(text)
    except msgspec.DecodeError as exc:
        raise DecodeError(one_line(exc)) from None


class RemoteTraceback(Exception):
    """The ``__cause__`` of a rebuilt exception: the traceback text of the original."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return "\n\n" + self.text


_DURABLE_CLASSES: dict[str, object] = {f"durable.{cls.__name__}": cls for cls in errors.PUBLIC}
_NOT_AS_ITSELF = (StopIteration, StopAsyncIteration)
"""Raising one of these inside a coroutine would turn it into a RuntimeError."""


def _find_class(name: str, known: Mapping[str, object]) -> type[Exception] | None:
    module, dot, _ = name.rpartition(".")
    candidate: object
    if not dot and not module:
        candidate = builtins.__dict__.get(name)
    else:
        candidate = known.get(name) or _DURABLE_CLASSES.get(name)
    if (
        isinstance(candidate, type)
        and issubclass(candidate, Exception)
        and not issubclass(candidate, _NOT_AS_ITSELF)
        and type_name_of(candidate) == name
    ):
        return candidate
    return None


def is_known(stored: StoredError, known: Mapping[str, object]) -> bool:
    """Whether its class is there to rebuild it: see ``rebuild_error``."""
    return _find_class(stored.type_name, known) is not None


def rebuild_error(stored: StoredError, known: Mapping[str, object]) -> Exception:
    """Make the exception that a body gets for ``stored``.

    Args:
        stored: What the journal holds.
        known: The classes that may be used besides builtins and durable's own, by stored name.
    """
    rebuilt = _instantiate(stored, known)
    if rebuilt is None:
        rebuilt = errors.StepFailed(stored.type_name, stored.message)
    if stored.traceback:
        _set_cause(rebuilt, RemoteTraceback(stored.traceback))
    return rebuilt


def _instantiate(stored: StoredError, known: Mapping[str, object]) -> Exception | None:
    cls = _find_class(stored.type_name, known)
    if cls is None or stored.args is None:
        return None
    if cls is errors.RunFailed:
        of_the_run = msgspec.convert(stored.attributes.get("error"), ErrorInfo)
        return errors.RunFailed(str(stored.attributes.get("run_id")), of_the_run)
    makers: tuple[Callable[..., Exception], ...] = (cls, partial(_bare, cls))
    given, in_tuples = tuple(stored.args), _as_tuples(stored.args)  # JSON has no tuples, but lists.
    for args, make in product((given,) if in_tuples == given else (given, in_tuples), makers):
        try:
            exc = make(*args)
            if type(exc) is not cls:
                continue
            exc.__dict__.update(stored.attributes)
            if safe_text(exc) == stored.message:
                return exc
        except BaseException as failure:
            if is_from_signal(failure):
                raise
    return None


def _bare(cls: type[Exception], *args: object) -> Exception:
    exc = cls.__new__(cls, *args)
    set_args(exc, args)
    return exc


def _as_tuples(value: Any) -> Any:  # noqa: ANN401  JSON of any shape
    if not isinstance(value, list):
        return value
    items: list[Any] = value  # pyright: ignore[reportUnknownVariableType]
    return tuple(map(_as_tuples, items))
