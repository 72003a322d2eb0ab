"""Values and errors to JSON text and back, shaped by annotations.

Rules:

- A value is first checked as a Python object against its annotation, then encoded, then decoded
  by the annotation. What everybody gets is the decoded one, on the first run as on replay.
- Arguments are canonical (sorted keys and sets), because replay compares them as text.
- An exception is stored as its class's *name*, its text, and its arguments as plain JSON. It is
  rebuilt only from classes that the caller hands in. Nothing is pickled, nothing is imported.
"""

from __future__ import annotations

import builtins
import math
import traceback
from typing import TYPE_CHECKING, Any, Generic, Never, NoReturn, TypeVar, final

import msgspec

from durable.core import errors
from durable.core.records import ErrorInfo, StoredError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

T = TypeVar("T")

TRACEBACK_CHARS_MAX = 32_768
"""The longest traceback that is stored; its end is kept, where the raise stands."""

MESSAGE_CHARS_MAX = 65_536
"""The longest exception text that is stored."""


ERROR_CHARS_MAX = 262_144
"""A stored error longer than this keeps its texts only, not its arguments."""


class EncodeError(Exception):
    """A value has no faithful JSON. The message says which part."""


class DecodeError(Exception):
    """JSON text does not fit the annotation. The message has the path."""


# --- what msgspec does not know: pydantic, if the user has it ------------------------------------


def _encode_foreign(value: object) -> object:
    dump = getattr(type(value), "model_dump", None)
    if dump is not None:
        return dump(value, mode="json")
    if value is None or isinstance(value, tuple | frozenset):
        # msgspec asks about these only where JSON has no place for them.
        msg = f"a dict with {type(value).__qualname__} as a key has no JSON form"
        raise EncodeError(msg)
    msg = f"objects of type {type(value).__qualname__} have no JSON form"
    if hasattr(value, "__await__"):
        msg += " (was an await forgotten?)"
    raise EncodeError(msg)


def _decode_foreign(shape: type, value: object) -> object:
    if shape is object:
        return value
    validate = getattr(shape, "model_validate", None)
    if validate is not None:
        return validate(value)
    msg = f"type {shape!r} has no JSON form"
    raise DecodeError(msg)


def _find_foreign(annotation: Any) -> type | None:  # noqa: ANN401  any type form
    """Return a class in an annotation that neither msgspec nor the hooks above know."""
    seen: set[int] = set()
    todo: list[object] = [msgspec.inspect.type_info(annotation)]
    while todo:
        info = todo.pop()
        if isinstance(info, msgspec.inspect.CustomType):
            if info.cls is not object and not hasattr(info.cls, "model_validate"):
                return info.cls
        elif isinstance(info, tuple | list):
            todo += info  # pyright: ignore[reportUnknownArgumentType]
        elif isinstance(info, msgspec.Struct) and id(info) not in seen:
            seen.add(id(info))
            todo += (getattr(info, field) for field in info.__struct_fields__)
    return None


_encoder = msgspec.json.Encoder(enc_hook=_encode_foreign)
_canonical_encoder = msgspec.json.Encoder(enc_hook=_encode_foreign, order="deterministic")
_plain_decoder = msgspec.json.Decoder()


def _find_unfaithful_float(value: object, path: str) -> str | None:
    """Return the path of a NaN or an infinity: JSON has neither, and null is not the same."""
    if isinstance(value, float):
        return None if math.isfinite(value) else path
    if isinstance(value, dict):
        items: Iterable[tuple[str, object]] = ((f"{path}.{k}", v) for k, v in value.items())  # pyright: ignore[reportUnknownVariableType]
    elif isinstance(value, list):
        items = ((f"{path}[{i}]", v) for i, v in enumerate(value))  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    else:
        return None
    return next((found for p, v in items if (found := _find_unfaithful_float(v, p))), None)


def _to_plain(value: object) -> object:
    return msgspec.to_builtins(
        value, enc_hook=_encode_foreign, order="deterministic", str_keys=True
    )


def _encode(value: object, *, canonical: bool) -> str:
    try:
        try:
            data = (_canonical_encoder if canonical else _encoder).encode(value)
        except TypeError:
            # Ordering asks for text keys, which to_builtins makes of numbers, dates and the like.
            data = _canonical_encoder.encode(_to_plain(value))
        if b"null" in data and (path := _find_unfaithful_float(_to_plain(value), "$")):
            msg = f"NaN and infinity have no JSON form - at `{path}`"
            raise EncodeError(msg)
        return data.decode()
    except EncodeError:
        raise
    except RecursionError:
        msg = "the value is nested too deeply, or contains itself"
        raise EncodeError(msg) from None
    except Exception as exc:
        # Users' own hooks (a dataclass property, model_dump) may raise anything.
        raise EncodeError(_one_line(exc)) from exc


def _one_line(exc: BaseException) -> str:
    return " ".join(safe_text(exc).split()) or type(exc).__name__


def encode(value: object) -> str:
    """Encode ``value`` as JSON text.

    Raises:
        EncodeError: It has no faithful JSON form.
    """
    return _encode(value, canonical=False)


def encode_canonical(value: object) -> str:
    """Encode ``value`` so that equal values give equal text.

    Raises:
        EncodeError: It has no faithful JSON form.
    """
    return _encode(value, canonical=True)


def decode_plain(text: str) -> Any:  # noqa: ANN401  JSON of any shape
    """Decode JSON text to plain values.

    Raises:
        DecodeError: It is not JSON.
    """
    try:
        return _plain_decoder.decode(text)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise DecodeError(_one_line(exc)) from None


@final
class Shape(Generic[T]):
    """An annotation, ready to check, encode and decode values."""

    __slots__ = ("_decoder", "_is_any", "annotation")

    def __init__(self, annotation: Any) -> None:  # noqa: ANN401  any type form
        """Prepare ``annotation``.

        Raises:
            TypeError: It, or a part of it, has no JSON form.
        """
        if annotation is NoReturn or annotation is Never:
            annotation = None
        foreign = _find_foreign(annotation)
        if foreign is not None:
            msg = (
                f"{foreign!r} is neither a type that msgspec encodes nor a pydantic model. Use a "
                "dataclass, a msgspec.Struct, or plain values"
            )
            raise TypeError(msg)
        self.annotation = annotation
        self._is_any = annotation is Any or annotation is object
        self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(
            Any if self._is_any else annotation, dec_hook=_decode_foreign
        )

    def check(self, value: object) -> None:
        """Raise ``DecodeError`` when ``value`` as an object does not fit the annotation."""
        if self._is_any:
            return
        try:
            msgspec.convert(value, self.annotation, dec_hook=_decode_foreign)
        except DecodeError:
            raise
        except Exception as exc:
            raise DecodeError(_one_line(exc)) from exc

    def decode(self, text: str) -> T:
        """Decode JSON text by the annotation.

        Raises:
            DecodeError: It does not fit.
        """
        try:
            return self._decoder.decode(text)
        except DecodeError:
            raise
        except Exception as exc:
            raise DecodeError(_one_line(exc)) from exc

    def round_trip(self, value: object, *, canonical: bool = False) -> tuple[str, T]:
        """Check and encode ``value``; return its text and what the text decodes to.

        Raises:
            EncodeError: It has no faithful JSON form.
            DecodeError: It does not fit the annotation.
        """
        self.check(value)
        text = _encode(value, canonical=canonical)
        return text, self.decode(text)


# --- exceptions ----------------------------------------------------------------------------------


def safe_text(exc: BaseException) -> str:
    """Return ``str(exc)``, whatever its ``__str__`` does, in a form that can be stored."""
    try:
        text = str(exc)
    except BaseException as broken:  # noqa: BLE001  a user's __str__ may raise anything
        text = f"<its __str__ raised {type(broken).__name__}>"
    return text.encode("utf-8", "backslashreplace").decode()[:MESSAGE_CHARS_MAX]


# Read past the class's own metaclass, whose properties may raise anything.
_module_of: Callable[[type], object] = type.__dict__["__module__"].__get__
_qualname_of: Callable[[type], str] = type.__dict__["__qualname__"].__get__


def type_name_of(cls: type) -> str:
    """Return how a class is named in the journal: a builtin by its bare name."""
    module, name = _module_of(cls), _qualname_of(cls)
    full_name = name if module == "builtins" else f"{module}.{name}"
    return full_name.encode("utf-8", "backslashreplace").decode()


def _safe_traceback(exc: BaseException) -> str:
    try:
        text = "".join(traceback.format_exception(exc, limit=-40))
    except BaseException as broken:  # noqa: BLE001  formatting calls users' code
        text = f"<the traceback could not be formatted: {type(broken).__name__}>"
    text = text.encode("utf-8", "backslashreplace").decode()
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
    for key, value in (getattr(exc, "__dict__", None) or {}).items():
        if value is None or (plain := _plain_or_none(value)) is not None:
            attributes[str(key)] = None if value is None else plain
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
        raise DecodeError(_one_line(exc)) from None


class RemoteTraceback(Exception):  # noqa: N818  it shows a traceback, and is not an error
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
        rebuilt.__cause__ = RemoteTraceback(stored.traceback)
    return rebuilt


def _instantiate(stored: StoredError, known: Mapping[str, object]) -> Exception | None:
    cls = _find_class(stored.type_name, known)
    if cls is None or stored.args is None:
        return None
    if cls is errors.RunFailed:
        of_the_run = msgspec.convert(stored.attributes.get("error"), ErrorInfo)
        return errors.RunFailed(str(stored.attributes.get("run_id")), of_the_run)
    ways: tuple[Callable[[], Exception], ...] = (
        lambda: cls(*stored.args or ()),
        lambda: _bare(cls, stored.args or []),
    )
    for make in ways:
        try:
            exc = make()
            if type(exc) is not cls:
                continue
            exc.__dict__.update(stored.attributes)
            if safe_text(exc) == stored.message:
                return exc
        except Exception:  # noqa: BLE001, S112  a user's __init__ may raise anything: try the next way
            continue
    return None


def _bare(cls: type[Exception], args: list[object]) -> Exception:
    exc = cls.__new__(cls, *args)
    exc.args = tuple(args)
    return exc
