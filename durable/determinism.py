"""What cannot be replayed, found in a workflow's body when it is defined.

Rules:

- Bytecode is read, once. What counts is the object that is called, whatever its name is where it is
  called; a name that cannot be resolved is no finding.
- The functions within a body belong to it, save the actions, queries, mutations and workflows.
- The functions that a body calls by their names, of its own module, are read as a part of it, since
  to move a line into a function changes nothing. What other modules have is not: they may have
  been written for actions, too.
- A line that ends with ``# durable: allow`` is silent, be it that of the finding or that where the
  body calls the function that has it.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections import Counter
from opcode import opmap
from types import CodeType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, NamedTuple, final

from durable.bytecode import (
    ATTRIBUTES,
    CALLS,
    IMPORTS,
    LOADS,
    STORES,
    Instruction,
    instructions,
    is_within,
    looked_up_names,
)
from durable.callees import (
    MODULES,
    UNKNOWN,
    attribute_of,
    builtin_of,
    forbidden,
    has_forbidden_methods,
    has_no_effect,
    is_as_completed,
    is_definition,
    is_of_interest,
    is_order_free,
    is_ordering,
    is_set_class,
    method_of_value,
    module_of,
    update_index,
)
from durable.core.errors import DeterminismWarning
from durable.core.forbidden import ALLOWED, AS_COMPLETED, FREE_WITH_ARGUMENTS, UNORDERED
from durable.core.refusals import no_replay_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from durable.bytecode import Position

HELPERS_DEPTH_MAX = 3
"""How far the functions that a body calls are followed."""

_BUILD_SET = opmap["BUILD_SET"]

_COROUTINE = inspect.CO_COROUTINE
_COMPREHENSIONS = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")
_KEEPING = ("SWAP", "COPY", "POP_TOP", "MAKE_FUNCTION", "SET_FUNCTION_ATTRIBUTE")
"""Instructions after which what was found before is still what a name gets."""

_Calls = tuple[tuple[CodeType, int], ...]


class Finding(NamedTuple):
    """What cannot be replayed.

    Attributes:
        what: What is done, as it is called where it comes from.
        instead: What to do instead.
        code: The function that does it.
        line: Where.
        calls: The calls that lead there: each a function and a line of it.
    """

    what: str
    instead: str
    code: CodeType
    line: int
    calls: _Calls


def warn_of_findings(body: Callable[..., Any]) -> None:
    """Look through a workflow's body, and warn of what cannot be replayed.

    Raises:
        DeterminismWarning: The filter of warnings makes an error of it.
    """
    for function in _functions_of(body):
        namespace = function.__globals__
        for finding in find(function):
            if is_allowed(finding, namespace):
                continue
            by = "".join(f", called by {code.co_qualname}()" for code, _ in reversed(finding.calls))
            what = f"{finding.what}, in {finding.code.co_qualname}(){by}"
            warnings.warn_explicit(
                f"{no_replay_of(what, finding.instead)} If it does no harm there, end its line "
                "with `# durable: allow`.",
                DeterminismWarning,
                finding.code.co_filename,
                finding.line,
                module=function.__module__ or "<unknown>",  # Without any, nothing is told.
                registry=namespace.setdefault("__warningregistry__", {}),
            )


def find(function: FunctionType) -> list[Finding]:
    """Return what a function does that cannot be replayed, in the order of the lines."""
    update_index()
    known = _closure_of(function)
    reader = _Reader(function.__globals__)
    if not reader.is_suspect(function.__code__, known):
        return []
    reader.read(function.__code__, known, ())
    reader.look_at_as_completed()
    found = dict.fromkeys(reader.findings)
    return sorted(found, key=lambda each: (each.code.co_filename, each.line))


def is_allowed(finding: Finding, namespace: dict[str, Any]) -> bool:
    """Whether a comment says so, on the line or where it is called."""
    import linecache  # noqa: PLC0415  late: there is mostly nothing to warn of

    places = (*finding.calls, (finding.code, finding.line))
    return any(
        _has_comment(linecache.getline(code.co_filename, line, namespace)) for code, line in places
    )


def _has_comment(line: str) -> bool:
    """Whether a comment of the line allows it; the same words within a string do not."""
    if ALLOWED.search(line) is None:
        return False
    import tokenize  # noqa: PLC0415  late: as above

    try:
        return any(
            each.type == tokenize.COMMENT and ALLOWED.search(each.string)
            for each in tokenize.generate_tokens(iter([line.strip()]).__next__)
        )
    except (tokenize.TokenError, SyntaxError):
        return True  # A part of a statement: it cannot be told.


def _functions_of(body: Any) -> Iterator[FunctionType]:  # noqa: ANN401  any callable
    """Return the function that was written, and what decorators have put around it."""
    while body is not None:
        if isinstance(body, functools.partial):
            body = body.func  # pyright: ignore[reportUnknownMemberType,reportUnknownVariableType]
            continue
        if isinstance(body, MethodType):
            body = body.__func__
        if isinstance(body, FunctionType):
            yield body
        body = getattr(body, "__wrapped__", None)  # pyright: ignore[reportUnknownArgumentType]


def _closure_of(function: FunctionType) -> dict[str, object]:
    known: dict[str, object] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            known[name] = cell.cell_contents
        except ValueError:
            continue  # It gets its value later.
    return known


class _Made(NamedTuple):
    """A call whose result matters.

    Attributes:
        place: Where it stands, from the beginning of what is called to the end of the arguments.
    """

    place: Position
    code: CodeType
    calls: _Calls


@final
class _Reader:
    """Reads a body and the functions that it calls.

    Attributes:
        findings: What cannot be replayed.
        effects: Where something is called that may have one.
    """

    def __init__(self, namespace: dict[str, Any]) -> None:
        self.findings: list[Finding] = []
        self.effects: list[Position] = []
        self._globals = namespace
        self._seen: set[CodeType] = set()
        self._suspects: dict[CodeType, bool] = {}
        self._completing: list[_Made] = []
        self._coroutines: list[_Made] = []
        self._other_calls: list[Position] = []

    def is_suspect(self, code: CodeType, known: Mapping[str, object]) -> bool:
        """Look at names and constants alone: few bodies have any that are worth more."""
        answer = self._suspects.get(code)
        if answer is None:
            self._suspects[code] = False  # For itself, if it is called by what it calls.
            answer = self._suspects[code] = (
                any(map(self._is_name_of_interest, looked_up_names(code)))
                or any(map(self._is_of_interest, known.values()))
                or any(map(self._is_constant_of_interest, code.co_consts))
                or "as_completed" in code.co_names
                or _BUILD_SET in code.co_code[::2]
            )
        return answer

    def _is_name_of_interest(self, name: str) -> bool:
        found = self.resolve(name)
        if found is UNKNOWN:
            return name.partition(".")[0] in MODULES  # It may be imported in the body.
        return self._is_of_interest(found)

    def _is_of_interest(self, found: object) -> bool:
        if isinstance(found, FunctionType) and found.__globals__ is self._globals:
            return self.is_suspect(found.__code__, _closure_of(found))
        return is_of_interest(found)

    def _is_constant_of_interest(self, constant: object) -> bool:
        if isinstance(constant, CodeType):
            return self.is_suspect(constant, {})
        return type(constant) is frozenset

    def resolve(self, name: str) -> object:
        """Return what a global name stands for."""
        found = self._globals.get(name, UNKNOWN)
        if found is UNKNOWN:
            return builtin_of(name)
        # One that answers for its attributes by code of its own would be executed by a look.
        return UNKNOWN if isinstance(type(found).__getattribute__, FunctionType) else found

    def read(
        self,
        code: CodeType,
        known: Mapping[str, object],
        calls: _Calls,
    ) -> None:
        """Read a function and those in it.

        Args:
            known: What the names of its closure stand for, as far as that is known.
            calls: What leads to it.
        """
        if code not in self._seen:
            self._seen.add(code)
            _Function(self, code, known, calls).read()

    def follow(self, called: object, calls: _Calls) -> None:
        """Read a function that is called, if it is one of the body's own module."""
        if (
            isinstance(called, FunctionType)
            and called.__globals__ is self._globals
            and len(calls) <= HELPERS_DEPTH_MAX
        ):
            known = _closure_of(called)
            if self.is_suspect(called.__code__, known):
                self.read(called.__code__, known, calls)

    def note_call(self, called: object, made: _Made) -> None:
        """Take note of a call, for what contains it or is contained in it."""
        if not has_no_effect(called):
            self.effects.append(made.place)
        if is_as_completed(called):
            self._completing.append(made)
        elif _is_coroutine_function(called):
            self._coroutines.append(made)
        else:
            self._other_calls.append(made.place)

    def look_at_as_completed(self) -> None:
        """Look for the coroutines that are given to ``asyncio.as_completed`` as they are."""
        for completing in self._completing:
            for made in self._coroutines:
                if is_within(made.place, completing.place) and not any(
                    is_within(made.place, other) and is_within(other, completing.place)
                    for other in self._other_calls
                ):
                    what = "asyncio.as_completed() with bare coroutines, which hash by address"
                    line = made.place[0]
                    assert line is not None
                    self.findings.append(Finding(what, AS_COMPLETED, made.code, line, made.calls))
                    break


def _is_coroutine_function(called: object) -> bool:
    code = getattr(called, "__code__", None) if isinstance(called, FunctionType) else called
    return isinstance(code, CodeType) and bool(code.co_flags & _COROUTINE)


@final
class _Function:
    """Reads one function.

    Loads are resolved as they come, with the attributes after them. In the source, a call begins
    where what it calls does: so the two are found to belong together.
    """

    def __init__(
        self, reader: _Reader, code: CodeType, known: Mapping[str, object], calls: _Calls
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
        # What is going to be called, by where it begins, if that is known.
        self._called: dict[tuple[int, int] | None, list[object]] = {}
        self._sets: set[Position] = set()
        self._comprehensions: set[Position] = set()
        self._is_definition_next = False
        # Where the order of a set is used: as far as what it is given to is not read yet, for good,
        # and that within what does not depend on it.
        self._pending: list[Position] = []
        self._ordered: list[Position] = []
        self._order_free: list[tuple[Position, Position]] = []

    def read(self) -> None:
        """Note what cannot be replayed."""
        for index, each in enumerate(self._instructions):
            self._read_one(index, each)
        self._note_order()

    def _read_one(self, index: int, each: Instruction) -> None:
        name = each.name
        if name in LOADS or name in ATTRIBUTES:
            self._load(index, each)
        elif name in CALLS:
            self._call(index, each)
        elif name in STORES:
            self._store(each)
        elif name in IMPORTS:
            self._import(index, each)
        elif name == "GET_ITER":
            self._iterate(index, each)
        elif name == "LOAD_CONST":
            self._load_constant(each)
        elif name == "BUILD_SET":
            self._note_set(each)
        elif name == "BINARY_OP":
            self._operate(index, each)
        elif name not in _KEEPING:
            self._latest = UNKNOWN

    def _store(self, each: Instruction) -> None:
        if each.value in self._stored_once and self._latest is not UNKNOWN:
            self._known[each.value] = self._latest
        self._latest = UNKNOWN
        self._is_definition_next = False

    def _load(self, index: int, each: Instruction) -> None:
        if each.name in ATTRIBUTES:
            self._latest = attribute_of(self._latest, each.value)
        elif each.name in ("LOAD_GLOBAL", "LOAD_NAME"):
            self._latest = self._reader.resolve(each.value)
        else:
            self._latest = self._known.get(each.value, UNKNOWN)
        if is_definition(self._latest):
            self._is_definition_next = True
        after = self._instructions[index + 1]  # A function ends with none of these.
        if each.is_call and not (after.is_call and after.name in ATTRIBUTES):
            self._find(each)

    def _find(self, each: Instruction) -> None:
        """Look at what is going to be called."""
        called = self._latest
        if called is UNKNOWN and each.name in ATTRIBUTES:
            called = method_of_value(each.value)
        found = forbidden(called)
        if found is not None and found.name not in FREE_WITH_ARGUMENTS:
            self._note(f"{found.name}()", found.instead, each.place)
        self._called.setdefault(each.start, []).append(called)
        line = each.place[0]
        if line is not None:
            self._reader.follow(called, (*self._calls, (self._code, line)))

    def _call(self, index: int, each: Instruction) -> None:
        self._latest = UNKNOWN
        if each.place in self._comprehensions:
            if each.place in self._sets:
                self._use_of_order(each.place, is_free=True)
            return
        at_start = self._called.get(each.start) or self._called.get(None)
        called = at_start.pop() if at_start and each.start is not None else UNKNOWN
        self._reader.note_call(called, _Made(each.place, self._code, self._calls))
        if not is_ordering(called):
            self._use_of_order(each.place, is_free=is_order_free(called))
        if is_set_class(called):
            if each.arguments_count:
                self._sets.add(each.place)
        elif (is_ordering(called) or each.name == "CALL_FUNCTION_EX") and self._is_set(index - 1):
            self._pending.append(each.place)
        found = forbidden(called)
        if found is not None and found.name in FREE_WITH_ARGUMENTS:
            if each.arguments_count <= FREE_WITH_ARGUMENTS[found.name]:
                self._note(f"{found.name}()", found.instead, each.place)
        elif isinstance(called, type) and has_forbidden_methods(called):
            self._latest = called  # What it makes has the methods of the class.

    def _load_constant(self, each: Instruction) -> None:
        self._latest = UNKNOWN
        if not isinstance(each.value, CodeType):
            return
        if self._is_definition_next:
            self._is_definition_next = False
            return
        if each.value.co_name in _COMPREHENSIONS:
            self._comprehensions.add(each.place)
        if each.value.co_name == "<setcomp>" and each.start is not None:
            self._sets.add(each.place)
        self._reader.read(each.value, self._known, self._calls)
        self._latest = each.value

    def _import(self, index: int, each: Instruction) -> None:
        if each.name == "IMPORT_FROM":
            self._latest = attribute_of(self._imported, each.value)
            if self._is_import_as:
                self._imported = self._latest
            return
        level, names = (before.value for before in self._instructions[index - 2 : index])
        self._is_import_as = names is None  # import a.b as c
        name = each.value.partition(".")[0] if names is None else each.value
        # A relative import is of the user's own package.
        self._latest = self._imported = module_of(name) if level == 0 else UNKNOWN

    def _note_set(self, each: Instruction) -> None:
        self._latest = UNKNOWN
        if each.arguments_count == 0:  # Of a comprehension, in some Pythons.
            self._use_of_order(each.place, is_free=True)
        if each.arguments_count != 1 and each.start is not None:
            self._sets.add(each.place)

    def _iterate(self, index: int, each: Instruction) -> None:
        self._latest = UNKNOWN
        if self._is_set(index - 1):
            self._pending.append(each.place)

    def _is_set(self, index: int) -> bool:
        """Whether an instruction leaves a set of more than one."""
        each = self._instructions[index]
        if each.name == "BUILD_SET":
            return each.arguments_count > 1
        if each.name == "LOAD_CONST":
            return is_set_class(each.value.__class__) and len(each.value) > 1
        return each.name == "SET_UPDATE" or each.place in self._sets

    def _operate(self, index: int, each: Instruction) -> None:
        """Note a union, difference, or the like: what begins it is a set, or what ends it."""
        self._latest = UNKNOWN
        begin = [place for place in self._sets if (place[0], place[2]) == each.start]
        if any(is_within(place, each.place) for place in begin) or self._is_set(index - 1):
            self._sets.add(each.place)

    def _use_of_order(self, consumer: Position, *, is_free: bool) -> None:
        """Decide on what is used in the order of a set by what it is given to."""
        within = [
            place
            for place in self._pending
            # Some Pythons give the iteration of a comprehension the place of the whole.
            if is_within(place, consumer) or (place == consumer and None not in place)
        ]
        self._pending = [place for place in self._pending if place not in within]
        if is_free:
            self._order_free += [(place, consumer) for place in within]
        else:
            self._ordered += within

    def _note_order(self) -> None:
        """Note where the order of a set is used, now that all that has an effect is known."""
        effects = self._reader.effects
        dependent = [
            place
            for place, consumer in self._order_free
            if any(is_within(effect, consumer) for effect in effects)
        ]
        for place in (*self._ordered, *self._pending, *dependent):
            self._note("the order of a set", UNORDERED, place)

    def _note(self, what: str, instead: str, place: Position) -> None:
        line = place[0]
        if line is not None:
            finding = Finding(what, instead, self._code, line, self._calls)
            self._reader.findings.append(finding)
