"""Sets as arguments: replay compares arguments as text, and a set's order is that of hashes."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pydantic
import pytest
from interpreters import run_python

import durable
from durable import Engine, Step
from durable.core.codec import Shape


class Color(enum.Enum):
    RED = "red"
    GREEN = "green"
    BLUE = "blue"


@dataclass(frozen=True)
class Point:
    x: int
    name: str = ""


@dataclass
class Shop:
    title: str
    colors: set[Color]
    by_owner: dict[str, set[Color]] = field(default_factory=dict[str, set[Color]])


class Struct(msgspec.Struct, frozen=True):
    x: int
    colors: frozenset[Color] = frozenset()


class Renamed(msgspec.Struct, frozen=True, rename={"some_colors": "colors", "colors": "other"}):
    some_colors: frozenset[Color]
    colors: int = 0


class Array(msgspec.Struct, frozen=True, array_like=True):
    x: int
    colors: frozenset[Color]


class Tagged(msgspec.Struct, frozen=True, tag="tagged"):
    colors: frozenset[Color]


class TaggedArray(msgspec.Struct, frozen=True, tag="tagged", array_like=True):
    colors: frozenset[Color]
    x: int = 0


class ShortStruct(msgspec.Struct, frozen=True, omit_defaults=True):
    x: int = 0
    colors: frozenset[Color] = frozenset()


class Pair(NamedTuple):
    left: set[Color]
    right: frozenset[int | str]


class Model(pydantic.BaseModel):
    tags: set[str]
    colors: set[Color]
    inner: list[set[int | str]] = []


class Aliased(pydantic.BaseModel):
    tags: set[str] = pydantic.Field(alias="labels")
    colors: set[Color] = pydantic.Field(serialization_alias="tints", validation_alias="tints")

    @pydantic.computed_field(alias="stickers")  # type: ignore[prop-decorator]  # mypy issue 1362
    @property
    def tags_again(self) -> set[str]:
        return self.tags

    model_config = pydantic.ConfigDict(serialize_by_alias=True)


class Root(pydantic.RootModel[set[int | str]]):
    pass


class Outer(pydantic.BaseModel):
    model: Model
    by_name: dict[str, Model]
    root: Root


class Frozen(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True)
    name: str


class OwnSerializer(pydantic.BaseModel):
    tags: set[str]

    @pydantic.field_serializer("tags")
    def write_tags(self, tags: set[str]) -> list[str]:
        return sorted(tags, reverse=True)


COLORS = list(Color)
MIXED: list[int | str] = [1, "a", 2, "b", 10, "1"]
TAGS = list("hgfedcba")


def values(turn: int) -> dict[str, tuple[Any, Any]]:
    """Annotations and values: the same ones for each turn, built in another order."""

    def turned(elements: list[Any]) -> list[Any]:
        return elements[turn % len(elements) :] + elements[: turn % len(elements)]

    colors, mixed = set(turned(COLORS)), set(turned(MIXED))
    frozen = frozenset(colors)
    tags = set(turned(TAGS))
    model = Model(tags=tags, colors=colors, inner=[mixed, {1}])
    structs = [Struct(x, frozen) for x in range(3)]
    return {
        "enum": (set[Color], colors),
        "int | str": (set[int | str], mixed),
        "optional": (set[int | None], set(turned([None, 1, 2]))),
        "any": (set[Any], mixed),
        "dataclass": (frozenset[Point], frozenset(turned([Point(2), Point(1, "b"), Point(1)]))),
        "struct": (frozenset[Struct], frozenset(turned(structs))),
        "renamed": (
            set[Renamed],
            set(turned([Renamed(frozen, 1), Renamed(frozenset({Color.RED}))])),
        ),
        "array_like": (set[Array], set(turned([Array(x, frozen) for x in range(3)]))),
        "tagged": (set[Tagged | int], set(turned([Tagged(frozen), 1, 2]))),
        "tagged array": (list[TaggedArray], [TaggedArray(frozen, x) for x in range(2)]),
        "defaults left out": (
            list[ShortStruct],
            [ShortStruct(), ShortStruct(1), ShortStruct(0, frozen)],
        ),
        "sets of sets": (
            set[frozenset[Color]],
            set(turned([frozen, frozenset({Color.RED}), frozenset()])),
        ),
        "sets of texts in a set": (
            set[frozenset[str]],
            set(turned([frozenset(turned(TAGS[:n])) for n in range(1, 8)])),
        ),
        "sets in tuples in a set": (
            frozenset[tuple[frozenset[str], int]],
            frozenset(turned([(frozenset(turned(TAGS[:n])), n) for n in range(1, 8)])),
        ),
        "sets of texts under any": (
            Any,
            {"a": set(turned([frozenset(turned(TAGS[:n])) for n in range(1, 8)]))},
        ),
        "tuples in a set": (
            set[tuple[int | str, frozenset[Color]]],
            set(turned([(1, frozen), ("a", frozen)])),
        ),
        "in a dict": (dict[str, set[Color]], {"a": colors, "b": {Color.RED}}),
        "in a dict with numbers as keys": (dict[int, set[Color]], {10: colors, 9: {Color.RED}}),
        "in a list": (list[set[Color]], [colors, set(), {Color.RED}]),
        "in a dataclass": (Shop, Shop("s", colors, {"o": colors})),
        "in a named tuple": (Pair, Pair(colors, frozenset(mixed))),
        "in a model": (Model, model),
        "in a model with aliases": (
            Aliased,
            Aliased.model_validate({"labels": tags, "tints": colors}),
        ),
        "in a model in a model": (
            Outer,
            Outer(model=model, by_name={"m": model}, root=Root(mixed)),
        ),
        "root model": (Root, Root(mixed)),
        "in a tuple": (tuple[set[int | str], int], (mixed, 1)),
        "in a model in a list": (list[Model], [model, model]),
        "models in a set": (set[Frozen], set(turned([Frozen(name=tag) for tag in TAGS]))),
        "own serializer": (OwnSerializer, OwnSerializer(tags=tags)),
    }


NAMES = list(values(0))
TURNS = range(8)


@pytest.mark.parametrize("name", NAMES)
def test_a_set_survives_the_round_trip(name: str) -> None:
    annotation, value = values(0)[name]
    text, decoded = Shape[Any](annotation).round_trip(value, canonical=True)
    assert decoded == value or annotation is Any
    assert Shape[Any](annotation).round_trip(decoded, canonical=True)[0] == text


@pytest.mark.parametrize("name", NAMES)
def test_equal_sets_have_one_text(name: str) -> None:
    texts = set[str]()
    for turn in TURNS:
        annotation, value = values(turn)[name]
        texts.add(Shape[Any](annotation).round_trip(value, canonical=True)[0])
    assert len(texts) == 1


def print_texts() -> None:
    """Print each value's text, for another process to compare."""
    for name, (annotation, value) in values(0).items():
        print(name, Shape[Any](annotation).round_trip(value, canonical=True)[0])  # noqa: T201


@pytest.mark.slow
def test_a_set_has_the_same_text_in_each_process() -> None:
    """Another process hashes texts, and so enumerations, in another way."""
    texts = set[str]()
    for seed in "123":
        program = "import test_sets; test_sets.print_texts()"
        done = run_python("-c", program, PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("\n") == len(NAMES)
        texts.add(done.stdout)
    assert len(texts) == 1


@durable.action
async def paint(colors: set[Color], points: frozenset[Point], mixed: set[int | str]) -> int:
    return len(colors) + len(points) + len(mixed)


@durable.workflow
async def painting(step: Step, colors: set[Color]) -> int:
    return await paint(colors, frozenset({Point(1), Point(2)}), {1, "a"})


async def test_a_start_with_the_same_set_is_the_same_run(path: Path) -> None:
    async with Engine(path) as engine:
        for turn in range(3):
            colors: set[Color] = values(turn)["enum"][1]
            assert await engine.run(painting(colors), id="r") == 7
