"""Values and errors to JSON text and back, shaped by annotations.

Rules:

- A value is first checked as a Python object against its annotation, then encoded, then decoded
  by the annotation. What everybody gets is the decoded one, on the first run as on replay.
- Arguments are canonical (sorted keys and sets), because replay compares them as text.
- Nothing is pickled.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Generic, Never, NoReturn, TypeVar, final

import msgspec

from durable.core.interrupts import is_from_signal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

T = TypeVar("T")

OWN_TYPES = (bool, int, str)
"""Types whose values are what their JSON decodes to."""

MESSAGE_CHARS_MAX = 65_536
"""The longest exception text that is stored."""


class EncodeError(Exception):
    """A value has no faithful JSON. The message says which part."""


class DecodeError(Exception):
    """JSON text does not fit the annotation. The message has the path."""


# --- what msgspec does not know: pydantic, if the user has it ------------------------------------


def _encode_foreign(value: object) -> object:
    dump = getattr(type(value), "model_dump", None)
    if dump is not None:
        # By the names of the fields, there and back: aliases may differ in the two directions.
        return _with_sorted_sets(dump(value, mode="json", by_alias=False, round_trip=True), value)
    name = type(value).__qualname__
    if value is None or isinstance(value, tuple | frozenset):
        # msgspec asks about these only where JSON has no place for them.
        msg = f"a dict with {name} as a key has no JSON form"
        raise EncodeError(msg)
    msg = f"objects of type {name} have no JSON form"
    if hasattr(value, "__await__"):
        msg += " (was an await forgotten?)"
    raise EncodeError(msg)


def _decode_foreign(shape: type, value: object) -> object:
    if shape is object:
        return value
    validate = getattr(shape, "model_validate", None)
    if validate is not None:
        return validate(value, by_alias=False, by_name=True)
    msg = f"type {shape!r} has no JSON form"
    raise DecodeError(msg)


def _parts_of_annotation(annotation: Any) -> Iterator[msgspec.inspect.Type]:  # noqa: ANN401
    """Iterate over an annotation, as msgspec sees it, and all that it is made of."""
    seen: set[int] = set()
    todo: list[object] = [msgspec.inspect.type_info(annotation)]
    while todo:
        info = todo.pop()
        if isinstance(info, tuple | list):
            todo += info  # pyright: ignore[reportUnknownArgumentType]
        elif isinstance(info, msgspec.Struct) and id(info) not in seen:
            seen.add(id(info))
            if isinstance(info, msgspec.inspect.Type):
                yield info
            todo += (getattr(info, field) for field in info.__struct_fields__)


def _find_foreign(parts: Iterable[msgspec.inspect.Type]) -> type | None:
    """Return a class in an annotation that neither msgspec nor the hooks above know."""
    for info in parts:
        if isinstance(info, msgspec.inspect.CustomType) and (
            info.cls is not object and not hasattr(info.cls, "model_validate")
        ):
            return info.cls
    return None


_ORDERED = (
    msgspec.inspect.StrType,
    msgspec.inspect.IntType,
    msgspec.inspect.BytesType,
    msgspec.inspect.UUIDType,
    msgspec.inspect.DateType,
)
"""What ``<`` puts into one order, whatever the values."""


def _may_have_odd_sets(parts: Iterable[msgspec.inspect.Type]) -> bool:
    sets = (msgspec.inspect.SetType, msgspec.inspect.FrozenSetType)
    return any(
        isinstance(info, msgspec.inspect.AnyType)
        or (isinstance(info, sets) and not isinstance(info.item_type, _ORDERED))
        for info in parts
    )


_encoder = msgspec.json.Encoder(enc_hook=_encode_foreign)
_canonical_encoder = msgspec.json.Encoder(enc_hook=_encode_foreign, order="deterministic")
_plain_decoder = msgspec.json.Decoder()


def _find_unfaithful_float(value: Any, path: str) -> str | None:  # noqa: ANN401  plain JSON values
    """Return the path of a NaN or an infinity: JSON has neither, and null is not the same."""
    if isinstance(value, float):
        return None if math.isfinite(value) else path
    items: Iterable[tuple[str, Any]] = ()
    if isinstance(value, dict):
        by_key: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
        items = ((f"{path}.{key}", element) for key, element in by_key.items())
    elif isinstance(value, list):
        in_order: list[Any] = value  # pyright: ignore[reportUnknownVariableType]
        items = ((f"{path}[{index}]", element) for index, element in enumerate(in_order))
    return next((found for p, v in items if (found := _find_unfaithful_float(v, p))), None)


def _refuse_unfaithful_floats(value: object) -> None:
    path = _find_unfaithful_float(value, "$")
    if path is not None:
        msg = f"NaN and infinity have no JSON form - at `{path}`"
        raise EncodeError(msg)


def _to_plain(value: object) -> object:
    try:
        return msgspec.to_builtins(
            value, enc_hook=_encode_foreign, order="deterministic", str_keys=True
        )
    except TypeError:  # A set whose elements have no order of their own.
        return _sorted_plain(value)


def _sorted_plain(value: object) -> object:
    plain = msgspec.to_builtins(value, enc_hook=_encode_foreign, str_keys=True)
    return _with_sorted_sets(plain, value)


def _with_sorted_sets(plain: Any, value: Any) -> Any:  # noqa: ANN401  any value, as plain JSON
    """Return ``plain``, with the sets in ``value``, whose order is that of hashes, sorted."""
    if getattr(value.__class__, "__pydantic_root_model__", False):
        value = value.root
    parts = _parts_of(value, plain)
    if parts is None:
        return plain
    if isinstance(plain, dict):
        by_key: dict[str, Any] = plain  # pyright: ignore[reportUnknownVariableType]
        pairs = zip(by_key.items(), parts, strict=True)
        return {key: _with_sorted_sets(element, part) for (key, element), part in pairs}
    elements = [_with_sorted_sets(*pair) for pair in zip(plain, parts, strict=True)]
    if isinstance(value, set | frozenset):
        elements.sort(key=_canonical_encoder.encode)
    return elements


def _parts_of(value: Any, plain: Any) -> list[Any] | None:  # noqa: ANN401
    """Return what each element of ``plain`` was made of, as far as that can be told."""
    parts: list[Any]
    names = _names_of(value)
    if isinstance(plain, dict):
        keys: list[str] = list(plain)  # pyright: ignore[reportUnknownArgumentType]
        if isinstance(value, dict):
            parts = list(value.values())  # pyright: ignore[reportUnknownArgumentType]
        else:
            parts = [getattr(value, names.get(key, key), None) for key in keys]
    elif not isinstance(plain, list | tuple):
        return None
    elif isinstance(value, msgspec.Struct):
        # A tag, where there is one, comes first.
        parts = [getattr(value, name) for name in names.values()]
        parts = [None] * (len(plain) - len(parts)) + parts  # pyright: ignore[reportUnknownArgumentType]
    elif isinstance(value, set | frozenset | list | tuple):
        parts = list(value)  # pyright: ignore[reportUnknownArgumentType,reportUnknownVariableType]
    else:
        return None
    return parts if len(parts) == len(plain) else None  # pyright: ignore[reportUnknownArgumentType]


def _names_of(value: Any) -> dict[str, str]:  # noqa: ANN401
    """Return an object's attributes by the names that they have in JSON, if those differ."""
    if isinstance(value, msgspec.Struct):
        return dict(zip(value.__struct_encode_fields__, value.__struct_fields__, strict=True))
    return {}


def _encode(value: object, *, canonical: bool, sorts_sets: bool = False) -> str:
    try:
        try:
            encoder = _canonical_encoder if canonical else _encoder
            data = encoder.encode(_sorted_plain(value) if sorts_sets else value)
        except TypeError:
            # Ordering asks for text keys, which to_builtins makes of numbers, dates and the like.
            data = _canonical_encoder.encode(_to_plain(value))
        text = data.decode()
        if "null" in text:
            _refuse_unfaithful_floats(_to_plain(value))
    except EncodeError:
        raise
    except RecursionError:
        msg = "the value is nested too deeply, or contains itself"
        raise EncodeError(msg) from None
    except Exception as exc:
        # Users' own hooks (a dataclass property, model_dump) may raise anything.
        raise EncodeError(one_line(exc)) from exc
    return text


def safe_utf8(text: str) -> str:
    """Return ``text`` in a form that can be stored: UTF-8 has no lone surrogates."""
    return text.encode("utf-8", "backslashreplace").decode()


def safe_text(exc: BaseException) -> str:
    """Return ``str(exc)``, whatever its ``__str__`` does, in a form that can be stored."""
    try:
        text = str(exc)
    except BaseException as broken:  # noqa: BLE001  a user's __str__ may raise anything
        text = f"<its __str__ raised {type(broken).__name__}>"
    return safe_utf8(text)[:MESSAGE_CHARS_MAX]


def one_line(exc: BaseException) -> str:
    """Return an exception's text on one line, for a message."""
    return " ".join(safe_text(exc).split()) or type(exc).__name__


def encode(value: object) -> str:
    """Encode ``value`` as JSON text.

    Raises:
        EncodeError: It has no faithful JSON form.
    """
    return _encode(value, canonical=False)


def encode_canonical(value: object, *, sorts_sets: bool = False) -> str:
    """Encode ``value`` so that equal values give equal text.

    Args:
        value: What is to be encoded.
        sorts_sets: It may have sets in it that msgspec cannot sort: ``Shape.sorts_sets``.

    Raises:
        EncodeError: It has no faithful JSON form.
    """
    return _encode(value, canonical=True, sorts_sets=sorts_sets)


def decode_plain(text: str) -> Any:  # noqa: ANN401  JSON of any shape
    """Decode JSON text to plain values.

    Raises:
        DecodeError: It is not JSON.
    """
    try:
        return _plain_decoder.decode(text)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise DecodeError(one_line(exc)) from None


@final
class Shape(Generic[T]):
    """An annotation, ready to check, encode and decode values.

    Attributes:
        own_type: The annotation, if its values decode to themselves, so that one of just this type
            needs no check; else ``None``.
        sorts_sets: Whether its values may have sets in them whose elements ``<`` does not put into
            one order, such as sets of sets, where it means "is a part of".
    """

    __slots__ = ("_decoder", "_is_any", "annotation", "own_type", "sorts_sets")

    def __init__(self, annotation: Any) -> None:  # noqa: ANN401  any type form
        """Prepare ``annotation``.

        Raises:
            TypeError: It, or a part of it, has no JSON form.
        """
        if annotation is NoReturn or annotation is Never:
            annotation = None
        parts = list(_parts_of_annotation(annotation))
        foreign = _find_foreign(parts)
        if foreign is not None:
            msg = (
                f"{foreign!r} is neither a type that msgspec encodes nor a pydantic model. Use a "
                "dataclass, a msgspec.Struct, or plain values"
            )
            raise TypeError(msg)
        self.annotation = annotation
        self.own_type: type | None = next((t for t in OWN_TYPES if t is annotation), None)
        self.sorts_sets = _may_have_odd_sets(parts)
        self._is_any = annotation is Any or annotation is object
        shape: Any = Any if self._is_any else annotation
        self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(
            shape, dec_hook=_decode_foreign
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
            raise DecodeError(one_line(exc)) from exc

    def decode(self, text: str) -> T:
        """Decode JSON text by the annotation.

        Raises:
            DecodeError: It does not fit.
        """
        try:
            return self._decoder.decode(text)
        except DecodeError:
            raise
        except BaseException as exc:  # A user's __post_init__ may raise anything.
            if is_from_signal(exc):
                raise
            raise DecodeError(one_line(exc)) from exc

    def round_trip(self, value: object, *, canonical: bool = False) -> tuple[str, T]:
        """Check and encode ``value``; return its text and what the text decodes to.

        Raises:
            EncodeError: It has no faithful JSON form.
            DecodeError: It does not fit the annotation.
        """
        if type(value) is self.own_type:
            own: Any = value
            return _encode(value, canonical=canonical), own
        self.check(value)
        text = _encode(value, canonical=canonical, sorts_sets=canonical and self.sorts_sets)
        return text, self.decode(text)
