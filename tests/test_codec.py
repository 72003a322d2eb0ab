"""Values, to JSON text and back."""

import asyncio
import enum
import math
import random
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Literal, NamedTuple, NoReturn, TypedDict

import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odd import containing_itself, generator, nested, unawaited

from durable.core.codec import (
    DecodeError,
    EncodeError,
    Shape,
    decode_plain,
    encode,
    encode_canonical,
)
from durable.core.failures import decode_error


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Mood(enum.StrEnum):
    GOOD = "good"


@dataclass(frozen=True)
class Point:
    x: int
    y: float = 0.5


class Node(msgspec.Struct, frozen=True):
    value: int
    next: "Node | None" = None


class Pair(NamedTuple):
    left: int
    right: str


class Row(TypedDict):
    id: int


class Model(pydantic.BaseModel):
    name: str
    at: datetime


NOW = datetime(2026, 3, 1, 12, 30, 0, 123456, tzinfo=UTC)

ROUND_TRIPS: list[tuple[Any, object]] = [
    (int, -(2**63)),
    (int, 2**70),
    (float, 0.1),
    (float, 1e308),
    (str, "a\0b \N{PILE OF POO} \u2028"),
    (bool, True),
    (None, None),
    (bytes, b"\x00\xff"),
    (datetime, NOW),
    (date, NOW.date()),
    (time, time(1, 2, 3)),
    (timedelta, timedelta(days=1, microseconds=5)),
    (Decimal, Decimal("0.10")),
    (uuid.UUID, uuid.UUID(int=5)),
    (Color, Color.RED),
    (Level, Level.HIGH),
    (Mood, Mood.GOOD),
    (Literal["a", 1], 1),
    (int | None, None),
    (int | str, "5"),
    (list[int], [1, 2]),
    (tuple[int, str], (1, "a")),
    (tuple[int, ...], (1, 2)),
    (set[int], {3, 1, 2}),
    (frozenset[str], frozenset({"b", "a"})),
    (dict[str, list[int]], {"b": [1], "a": []}),
    (dict[int, str], {2: "b", 10: "a"}),
    (dict[uuid.UUID, int], {uuid.UUID(int=5): 1}),
    (dict[str, object], {"a": [1, {"b": None}]}),
    (list[Any], [1, "a", None, 2.5]),
    (Point, Point(1)),
    (Node, Node(1, Node(2))),
    (Pair, Pair(1, "a")),
    (Row, {"id": 1}),
    (Model, Model(name="n", at=NOW)),
    (list[Model], [Model(name="n", at=NOW)]),
    (Any, {"a": [1, 2.5, "c", None, True]}),
    (object, [1]),
    (NoReturn, None),
]


@pytest.mark.parametrize(("annotation", "value"), ROUND_TRIPS, ids=lambda v: repr(v)[:40])
@pytest.mark.parametrize("canonical", [False, True])
def test_annotated_values_survive_the_round_trip(
    annotation: object, value: object, canonical: bool
) -> None:
    text, decoded = Shape[object](annotation).round_trip(value, canonical=canonical)
    assert decoded == value
    assert type(decoded) is type(value)
    assert Shape[object](annotation).decode(text) == value
    decode_plain(text)  # SQLite's JSON functions, and people, can read it.


def test_minus_zero_keeps_its_sign() -> None:
    _, decoded = Shape[float](float).round_trip(-0.0)
    assert math.copysign(1, decoded) == -1


def test_what_is_handed_on_is_the_decoded_value() -> None:
    """The first run must see what a replay will see, not the live object."""
    assert Shape[Any](Any).round_trip({"a": (1, 2), 3: b"x"})[1] == {"a": [1, 2], "3": "eA=="}
    assert Shape[Any](Any).round_trip(Point(1))[1] == {"x": 1, "y": 0.5}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=5)
    ),
    max_leaves=20,
)


@pytest.mark.slow
@given(JSON)
@settings(deadline=None)
def test_json_values_come_back_equal(value: object) -> None:
    assert decode_plain(encode(value)) == value
    assert decode_plain(encode_canonical(value)) == value


@pytest.mark.slow
@given(st.dictionaries(st.text(max_size=3), JSON, max_size=5), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_canonical_text_does_not_depend_on_the_order_of_keys(
    value: dict[str, object], draw: random.Random
) -> None:
    keys = list(value)
    draw.shuffle(keys)
    assert _or_refusal({key: value[key] for key in keys}) == _or_refusal(value)


@given(st.sets(st.integers()), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_canonical_text_does_not_depend_on_the_order_of_sets(
    value: set[int], draw: random.Random
) -> None:
    members = list(value)
    draw.shuffle(members)
    assert encode_canonical(set(members)) == encode_canonical(value)
    assert encode_canonical({"a": frozenset(members)}) == encode_canonical({"a": value})


@given(st.dictionaries(st.integers(), st.integers()))
@settings(deadline=None)
def test_canonical_text_of_number_keys_is_sorted_too(value: dict[int, int]) -> None:
    backwards = dict(reversed(value.items()))
    assert encode_canonical(backwards) == encode_canonical(value)


def _or_refusal(value: object) -> str | None:
    try:
        return encode_canonical(value)
    except EncodeError:  # A lone surrogate.
        return None


REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: math.nan, r"NaN and infinity .* at `\$`"),
    (lambda: -math.inf, r"NaN and infinity .* at `\$`"),
    (lambda: {"a": [None, math.nan]}, r"at `\$\.a\[1\]`"),
    (lambda: Point(1, math.inf), r"at `\$\.y`"),
    (lambda: "a\ud800", "surrogates not allowed"),
    (lambda: {"\ud800": 1}, "surrogates not allowed"),
    (nested, "nested too deeply"),
    (containing_itself, "nested too deeply, or contains itself"),
    (object, "type object have no JSON form"),
    (lambda: [generator()], "type generator have no JSON form"),
    (lambda: 1j, "type complex have no JSON form"),
    (lambda: {(1, 2): 3}, "key"),
    (lambda: {None: 3}, "key"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
@pytest.mark.parametrize("encode_by", [encode, encode_canonical])
def test_what_has_no_faithful_json_is_refused(
    make: Callable[[], object], message: str, encode_by: Callable[[object], str]
) -> None:
    with pytest.raises(EncodeError, match=message):
        encode_by(make())


def test_a_forgotten_await_is_named() -> None:
    coroutine = unawaited()
    with pytest.raises(EncodeError, match="was an await forgotten"):
        encode({"a": coroutine})
    coroutine.close()


def test_none_is_not_taken_for_nan() -> None:
    assert encode([None, "null", {"null": None}]) == '[null,"null",{"null":null}]'


def test_a_hook_of_the_user_may_raise_anything() -> None:
    class Broken(pydantic.BaseModel):
        @pydantic.model_serializer
        def _dump(self) -> str:
            msg = "no\n  dump"
            raise LookupError(msg)

    with pytest.raises(EncodeError, match="no dump"):
        encode(Broken())


WRONG: list[tuple[Any, object, str]] = [
    (int, "1", "Expected `int`, got `str`"),
    (int, True, "Expected `int`, got `bool`"),
    (int, 1.5, "Expected `int`, got `float`"),
    (str, b"a", "Expected `str`, got `bytes`"),
    (list[int], [1, "a"], r"at `\$\[1\]`"),
    (dict[str, Point], {"p": {"x": "1"}}, r"at `\$\[\.\.\.\]\.x`"),
    (Color, "blue", "Invalid enum value 'blue'"),
    (Model, {"name": 5}, "Model"),
    (Point, Node(1), "Expected `object`, got `Node`|Expected `Point`"),
    (None, 5, "Expected `null`"),
]


@pytest.mark.parametrize(("annotation", "value", "message"), WRONG)
def test_a_value_that_does_not_fit_is_refused_with_its_path(
    annotation: object, value: object, message: str
) -> None:
    with pytest.raises(DecodeError, match=message):
        Shape[object](annotation).round_trip(value)


@pytest.mark.parametrize("text", ["", "nope", "[1", '{"a": }', "[" * 100_000])
def test_damaged_json_is_a_decode_error(text: str) -> None:
    with pytest.raises(DecodeError):
        decode_plain(text)
    with pytest.raises(DecodeError):
        Shape[Any](Any).decode(text)
    with pytest.raises(DecodeError):
        decode_error(text)


@dataclass
class HasEvent:
    event: asyncio.Event


@pytest.mark.parametrize(
    "annotation", [asyncio.Event, list[asyncio.Event], HasEvent, Callable[[], int], Iterator[int]]
)
def test_an_annotation_without_json_is_refused(annotation: object) -> None:
    with pytest.raises(TypeError):
        Shape[object](annotation)


class Aliased(pydantic.BaseModel):
    """Validated by one alias, dumped by another, with a default that would hide a loss."""

    model_config = pydantic.ConfigDict(extra="forbid")
    order_id: str = pydantic.Field("none", alias="orderId")
    total: int = pydantic.Field(0, validation_alias="totalIn", serialization_alias="totalOut")

    @pydantic.computed_field
    def double(self) -> int:
        return 2 * self.total


class Outer(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(serialize_by_alias=True)
    inner: Aliased = pydantic.Field(alias="innerOne")


def test_a_model_with_aliases_keeps_its_values() -> None:
    inner = Aliased.model_validate({"orderId": "o-1", "totalIn": 900})
    for value in (inner, Outer.model_validate({"innerOne": inner})):
        for canonical in (True, False):
            _, decoded = Shape[Any](type(value)).round_trip(value, canonical=canonical)
            assert decoded == value
