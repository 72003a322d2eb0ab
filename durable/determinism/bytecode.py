"""The instructions of a function, as far as they say what it calls: alike on all Pythons.

Source: docs.python.org/3/library/dis.html, and the compiler of each version. The source text is
not needed, so applications in archives, ``exec`` and interactive sessions are read as well.
"""

from __future__ import annotations

import dis
import sys
from types import CodeType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

if TYPE_CHECKING:
    from collections.abc import Iterator

CALLEE_BEFORE_NULL = sys.version_info >= (3, 13)
"""Whether what is called is pushed before the NULL that marks a call, or after it."""

LOADS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FAST", "LOAD_DEREF")
ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")
STORES = ("STORE_FAST", "STORE_DEREF")
IMPORTS = ("IMPORT_NAME", "IMPORT_FROM")
CALLS = ("CALL", "CALL_KW", "CALL_FUNCTION_EX")

_NOTHING = frozenset({"CACHE", "EXTENDED_ARG", "NOP", "PRECALL", "KW_NAMES", "NOT_TAKEN"})
_LOAD_GLOBAL = dis.opmap["LOAD_GLOBAL"]
_BY_NAME = {dis.opmap["LOAD_NAME"], dis.opmap["IMPORT_NAME"]}
NAMES_MAX = 127
"""With more names, some are not told by one byte of an instruction."""

ARGUMENTS_UNKNOWN = 255

Position = tuple[int | None, int | None, int | None, int | None]
"""First line, last line, first column, last column."""


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
        name: Of all variants of one load or store, the plain one's.
        value: What it is about: a name, a constant, an operator.
        is_call: Whether what it loads is going to be called.
        arguments_count: How many arguments a call hands over; many, where nobody can know.
        place: Where it stands in the source.
    """

    name: str
    value: Any
    is_call: bool
    arguments_count: int
    place: Position

    @property
    def start(self) -> tuple[int, int] | None:
        """Where it begins: a call begins where what is called does. ``None``: nobody knows."""
        line, _, column, _ = self.place
        return None if line is None or column is None else (line, column)


def looked_up_names(code: CodeType) -> tuple[str, ...]:
    """Return what a function looks up by name or imports, quickly; no attributes, mostly."""
    names, raw = code.co_names, code.co_code
    if len(names) > NAMES_MAX:
        return names
    found: set[int] = set()
    for operation, argument in zip(raw[::2], raw[1::2], strict=True):
        if operation == _LOAD_GLOBAL:
            found.add(argument >> 1)
        elif operation in _BY_NAME:
            found.add(argument)
    return tuple(names[index] for index in found if index < len(names))


def is_within(inner: Position, outer: Position) -> bool:
    """Whether what stands in one place is a part of what stands in the other, and less than it."""
    if None in inner or None in outer or inner == outer:
        return False
    first, last, begin, end = inner
    outer_first, outer_last, outer_begin, outer_end = outer
    return (outer_first, outer_begin) <= (first, begin) and (last, end) <= (outer_last, outer_end)


def instructions(code: CodeType) -> list[Instruction]:
    """Return the instructions of a function, without those of the functions in it."""
    return list(_simple(code))


def _simple(code: CodeType) -> Iterator[Instruction]:
    is_marked = False
    found = [each for each in dis.get_instructions(code) if each.opname not in _NOTHING]
    for each, after in zip(found, [*found[1:], None], strict=True):
        name = each.opname
        if name == "PUSH_NULL":
            is_marked = not CALLEE_BEFORE_NULL
            continue
        argument, argument_value = each.arg or 0, cast("object", each.argval)
        if name == "BINARY_OP":
            argument_value = each.argrepr
        positions = each.positions
        place: Position = (None, None, None, None) if positions is None else positions
        is_marked = is_marked or _is_call(name, argument)
        if CALLEE_BEFORE_NULL:
            is_marked = is_marked or (after is not None and after.opname == "PUSH_NULL")
        if name.startswith(("LOAD_FAST", "STORE_FAST")) and isinstance(argument_value, tuple):
            first, second = cast("tuple[str, str]", argument_value)
            yield Instruction(_plain(name), first, is_call=False, arguments_count=0, place=place)
            # The place is that of the first: of the second one, the line is known at most.
            line = (place[0], place[1], None, None)
            plain = "LOAD_FAST" if "_LOAD_FAST" in name else "STORE_FAST"
            yield Instruction(plain, second, is_marked, 0, line)
        else:
            count = ARGUMENTS_UNKNOWN if name == "CALL_FUNCTION_EX" else argument
            yield Instruction(_plain(name), argument_value, is_marked, count, place)
        # What is called is the attribute, and the mark may stand before the object that has it.
        is_marked = is_marked and after is not None and after.opname in ATTRIBUTES


def _is_call(name: str, argument: int) -> bool:
    """Whether an instruction loads what is called, and says so itself."""
    if name == "LOAD_ATTR" and sys.version_info < (3, 12):
        return False
    return name == "LOAD_METHOD" or (name in ("LOAD_GLOBAL", "LOAD_ATTR") and bool(argument & 1))


def _plain(name: str) -> str:
    """Return the name of the instruction that this one is a variant of."""
    for plain in ("LOAD_FAST", "STORE_FAST"):
        if name.startswith(plain):
            return plain
    return "LOAD_DEREF" if name.startswith("LOAD") and name.endswith("DEREF") else name
