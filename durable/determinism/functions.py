"""Reads one function of a body, instruction by instruction.

Loads are resolved as they come, with the attributes after them. In the source, a call begins where
what it calls does, and what an expression is made of stands within it: so they are found to belong
together.
"""

from __future__ import annotations

import inspect
from collections import Counter
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, NamedTuple, final

from durable.core.forbidden import FREE_WITH_ARGUMENTS, UNORDERED
from durable.determinism.bytecode import (
    ATTRIBUTES,
    CALLS,
    IMPORTS,
    LOADS,
    STORES,
    Instruction,
    instructions,
    is_within,
)
from durable.determinism.callees import (
    UNKNOWN,
    attribute_of,
    forbidden,
    is_definition,
    joined,
    made_by,
    method_of_value,
    module_of,
)
from durable.determinism.objects import is_a
from durable.determinism.order import (
    A_SET,
    SetOrder,
    has_order_of_set,
    is_order_free,
    is_ordering,
    makes_tasks,
    set_joined,
    set_made_by,
    set_of,
    set_of_size,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from durable.determinism.bodies import Reader
    from durable.determinism.bytecode import Position

    _Operand = tuple[Position, object]

_COROUTINE = inspect.CO_COROUTINE
_COMPREHENSIONS = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")
_KEEPING = ("SWAP", "COPY", "POP_TOP", "MAKE_FUNCTION", "SET_FUNCTION_ATTRIBUTE")
"""Instructions after which what was found before is still what a name gets."""
_LEAVES = frozenset({*LOADS, "LOAD_CONST"})
"""Instructions whose value is made of nothing else."""
_ENDING_SETS = frozenset({*STORES, "SWAP", "POP_TOP", "END_FOR"})
_FILLING_SETS = ("SET_UPDATE", "SET_ADD")
_ITERATING = ("GET_ITER", "LIST_EXTEND", "UNPACK_SEQUENCE", "UNPACK_EX")

Calls = tuple[tuple[CodeType, int], ...]
"""The calls that lead to a function: each a function and a line of it."""


class Finding(NamedTuple):
    """What cannot be replayed.

    Attributes:
        what: What is done, as it is called where it comes from.
        instead: What to do instead.
        code: The function that does it.
        line: Where.
        calls: What leads there.
    """

    what: str
    instead: str
    code: CodeType
    line: int
    calls: Calls


class Made(NamedTuple):
    """A call whose result matters.

    Attributes:
        place: Where it stands, from the beginning of what is called to the end of the arguments.
    """

    place: Position
    code: CodeType
    calls: Calls


def is_coroutine_function(called: object) -> bool:
    """Whether a call of it gives a coroutine, as far as that is known."""
    code = called.__code__ if is_a(called, FunctionType) else called
    return is_a(code, CodeType) and bool(code.co_flags & _COROUTINE)


@final
class FunctionReader:
    """Reads one function.

    Args:
        reader: Who reads the body, and gets what is found.
        known: What the names of its closure stand for, as far as that is known.
        calls: What leads to it.
    """

    def __init__(
        self, reader: Reader, code: CodeType, known: Mapping[str, object], calls: Calls
    ) -> None:
        self._reader = reader
        self._code = code
        self._calls = calls
        self._instructions = instructions(code)
        stores = Counter(each.value for each in self._instructions if each.name in STORES)
        parameters = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        self._stored_once = {name for name, count in stores.items() if count == 1}
        self._stored_once.difference_update(parameters)
        self._known = {name: known[name] for name in code.co_freevars if name in known}
        # What the latest instructions have found, and what names are imported from.
        self._latest: object = UNKNOWN
        self._imported: object = UNKNOWN
        self._is_import_as = False
        # What expressions give that are not a part of a larger one yet.
        self._operands: list[_Operand] = []
        # What is going to be called, by where it begins, if that is known.
        self._called: dict[tuple[int, int] | None, list[object]] = {}
        self._comprehensions: set[Position] = set()
        self._set_places: set[Position] = set()
        self._order = SetOrder()
        self._has_tasks = makes_tasks(code)
        self._is_definition_next = False

    def read(self) -> None:
        """Note what cannot be replayed."""
        for index, each in enumerate(self._instructions):
            self._read_one(index, each)
        for place in self._order.places(self._reader.effects):
            self._note("the order of a set", UNORDERED, place)

    def _read_one(self, index: int, each: Instruction) -> None:
        name = each.name
        if name in STORES:
            self._store(index, each)
        elif name not in _KEEPING:
            self._latest = self._value_of(index, each)
            if name not in _LEAVES:
                self._take_operands(each.place)
            if None not in each.place:
                self._operands.append((each.place, self._latest))

    def _value_of(self, index: int, each: Instruction) -> object:
        """Return what an instruction gives, if that matters."""
        name = each.name
        found = UNKNOWN
        if name in LOADS or name in ATTRIBUTES:
            found = self._load(index, each)
        elif name in CALLS:
            found = self._call(index, each)
        elif name in IMPORTS:
            found = self._import(index, each)
        elif name == "LOAD_CONST":
            found = self._load_constant(each)
        elif name == "BUILD_SET":
            found = self._build_set(each)
        elif name == "BINARY_OP":
            found = self._operate(index, each)
        elif name in _FILLING_SETS:
            found = A_SET
        elif _is_iterating(each) and has_order_of_set(self._before(index)):
            self._order.ask(each.place)
        return found

    # --- what expressions are made of ------------------------------------------------------------

    def _take_operands(self, place: Position) -> list[_Operand]:
        """Return what an expression is made of, in order of evaluation: from now on it has that."""
        operands = self._operands
        count = len(operands)
        while count and _is_part(operands[count - 1][0], place):
            count -= 1
        taken = operands[count:]
        del operands[count:]
        return taken

    def _before(self, index: int) -> object:
        """Return what the instructions before have left."""
        # Some Pythons make the sets of comprehensions in place, which ends with nothing of note.
        before = self._instructions[index - 1]
        is_set = before.name in _ENDING_SETS and before.place in self._set_places
        return A_SET if is_set else self._latest

    # --- instructions ----------------------------------------------------------------------------

    def _store(self, index: int, each: Instruction) -> None:
        # Some Pythons store a set that is made in place before they restore the loop's variable.
        after = self._instructions[index + 1]
        is_set = after.name in STORES and after.place in self._set_places
        found = A_SET if is_set else self._latest
        is_known = found is not UNKNOWN and not (self._has_tasks and set_of(found))
        if is_known and each.value in self._stored_once:
            self._known[each.value] = found
        self._latest = UNKNOWN
        self._is_definition_next = False

    def _load(self, index: int, each: Instruction) -> object:
        if each.name in ATTRIBUTES:
            found = attribute_of(self._before(index), each.value)
        elif each.name in ("LOAD_GLOBAL", "LOAD_NAME"):
            found = self._reader.resolve(each.value)
        else:
            found = self._known.get(each.value, UNKNOWN)
        if is_definition(found):
            self._is_definition_next = True
        after = self._instructions[index + 1]  # A function ends with none of these.
        if each.is_call and not (after.is_call and after.name in ATTRIBUTES):
            self._find(each, found)
        return found

    def _find(self, each: Instruction, called: object) -> None:
        """Look at what is going to be called."""
        if called is UNKNOWN and each.name in ATTRIBUTES:
            called = method_of_value(each.value)
        self._called.setdefault(each.start, []).append(called)
        self._look_at(called, each.place)

    def _look_at(self, called: object, place: Position) -> None:
        found = forbidden(called)
        if found is not None and found.name not in FREE_WITH_ARGUMENTS:
            self._note(f"{found.name}()", found.instead, place)
        line = place[0]
        if line is not None:
            self._reader.follow(called, (*self._calls, (self._code, line)))

    def _call(self, index: int, each: Instruction) -> object:
        operands = self._take_operands(each.place)
        if each.place in self._comprehensions:
            if each.place not in self._set_places:
                return UNKNOWN
            self._order.give(each.place, is_free=True)
            return A_SET
        at_start = self._called.get(each.start) or self._called.get(None)
        called = at_start.pop() if at_start and each.start is not None else UNKNOWN
        first = _leftmost(operands)
        if each.name == "CALL_FUNCTION_EX" and first is not UNKNOWN and first is not called:
            # In some Pythons, the mark of such a call stands before the object of the method.
            called = first
            self._look_at(called, each.place)
        self._reader.note_call(called, Made(each.place, self._code, self._calls))
        values = [*(value for _, value in operands), self._before(index)]
        self._note_order_of(called, each, values)
        found = forbidden(called)
        if found is not None and found.name in FREE_WITH_ARGUMENTS:
            if each.arguments_count <= FREE_WITH_ARGUMENTS[found.name]:
                self._note(f"{found.name}()", found.instead, each.place)
            return UNKNOWN
        made = set_made_by(called, each.arguments_count)
        return made_by(called) if made is UNKNOWN else made

    def _note_order_of(self, called: object, each: Instruction, values: list[object]) -> None:
        """Take note of a call that asks for the order of a set, or gets what is in it."""
        is_ordered = is_ordering(called)
        is_free = is_order_free(called)
        if not is_ordered:
            self._order.give(each.place, is_free=is_free)
        is_spread = each.name == "CALL_FUNCTION_EX" and not is_free
        if (is_ordered or is_spread) and any(map(has_order_of_set, values)):
            self._order.ask(each.place)

    def _load_constant(self, each: Instruction) -> object:
        if not is_a(each.value, CodeType):
            return set_of(each.value) or UNKNOWN
        if self._is_definition_next:
            self._is_definition_next = False
            return UNKNOWN
        if each.value.co_name in _COMPREHENSIONS:
            self._comprehensions.add(each.place)
        if each.value.co_name == "<setcomp>" and each.start is not None:
            self._set_places.add(each.place)
        self._reader.read(each.value, self._known, self._calls)
        return each.value

    def _import(self, index: int, each: Instruction) -> object:
        if each.name == "IMPORT_FROM":
            found = attribute_of(self._imported, each.value)
            if self._is_import_as:
                self._imported = found
            return found
        level, names = (before.value for before in self._instructions[index - 2 : index])
        self._is_import_as = names is None  # import a.b as c
        name = each.value.partition(".")[0] if names is None else each.value
        # A relative import is of the user's own package.
        self._imported = module_of(name) if level == 0 else UNKNOWN
        return self._imported

    def _build_set(self, each: Instruction) -> object:
        if each.arguments_count:
            return set_of_size(each.arguments_count)
        # One that is filled by what follows; a comprehension, in some Pythons.
        self._order.give(each.place, is_free=True)
        if each.start is not None:
            self._set_places.add(each.place)
        return A_SET

    def _operate(self, index: int, each: Instruction) -> object:
        left = _leftmost(self._take_operands(each.place))
        right = self._before(index)
        made = set_joined(left, each.value, right)
        return joined(left, each.value, right) if made is UNKNOWN else made

    def _note(self, what: str, instead: str, place: Position) -> None:
        line = place[0]
        if line is not None:
            finding = Finding(what, instead, self._code, line, self._calls)
            self._reader.findings.append(finding)


def _is_iterating(each: Instruction) -> bool:
    is_only = each.name == "UNPACK_SEQUENCE" and each.arguments_count == 1
    return each.name in _ITERATING and not is_only


def _is_part(inner: Position, outer: Position) -> bool:
    return inner == outer or is_within(inner, outer)


def _leftmost(operands: list[_Operand]) -> object:
    """Return what stands first in the source: what is called, the left side of an operator."""
    return min(operands, key=_start_of)[1] if operands else UNKNOWN


def _start_of(operand: _Operand) -> tuple[int, int]:
    line, _, column, _ = operand[0]
    assert line is not None
    assert column is not None
    return line, column
