"""Values and exceptions that are hard to write down."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

DEPTH = 10_000
"""Nothing recursive gets so deep."""


def nested() -> list[object]:
    value: list[object] = []
    for _ in range(DEPTH):
        value = [value]
    return value


def containing_itself() -> list[object]:
    value: list[object] = []
    value.append(value)
    return value


async def unawaited() -> None: ...


def generator() -> Iterator[int]:
    yield 1


class OddInit(Exception):
    """Its constructor does not take its ``args``."""

    def __init__(self, a: int, *, b: int) -> None:
        super().__init__(f"{a} and {b}")
        self.b = b


class BrokenStr(Exception):
    def __str__(self) -> str:
        raise RuntimeError


class BrokenDict(Exception):
    __dict__ = 5  # type: ignore[assignment]


class BrokenAttributes(Exception):
    def __getattribute__(self, name: str) -> object:
        raise RuntimeError


class _BrokenMeta(type):
    @property
    def __module__(cls) -> str:  # type: ignore[override]
        raise RuntimeError


class BrokenClass(Exception, metaclass=_BrokenMeta):
    pass


def cyclic() -> Exception:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    return one


def with_surrogate_attribute() -> Exception:
    exc = ValueError("x")
    setattr(exc, "\udc80", 1)
    return exc
