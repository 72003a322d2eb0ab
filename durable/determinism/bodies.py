"""Reads a body, with the functions in it and those of its module that it calls."""

from __future__ import annotations

from opcode import opmap
from types import CodeType
from typing import TYPE_CHECKING, Any, Final, final

from durable.core.forbidden import AS_COMPLETED
from durable.determinism.bytecode import is_within, looked_up_names
from durable.determinism.callees import (
    MODULES,
    UNKNOWN,
    builtin_of,
    has_no_effect,
    is_as_completed,
    is_of_interest,
)
from durable.determinism.functions import Finding, FunctionReader, is_coroutine_function
from durable.determinism.objects import closure_of, functions_in, is_a
from durable.determinism.order import is_set_class, set_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import FunctionType

    from durable.determinism.bytecode import Position
    from durable.determinism.functions import Calls, Made

HELPERS_DEPTH_MAX: Final = 3
"""How far the functions that a body calls are followed."""

_BUILD_SET = opmap["BUILD_SET"]


@final
class Reader:
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
        self._completing: list[Made] = []
        self._coroutines: list[Made] = []
        self._other_calls: list[Position] = []

    # --- what is worth reading -------------------------------------------------------------------

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
        if is_of_interest(found) or is_set_class(found) or set_of(found) is not None:
            return True
        return any(
            self.is_suspect(each.__code__, closure_of(each)) for each in self._own_functions(found)
        )

    def _is_constant_of_interest(self, constant: object) -> bool:
        if is_a(constant, CodeType):
            return self.is_suspect(constant, {})
        return type(constant) is frozenset

    # --- reading ---------------------------------------------------------------------------------

    def resolve(self, name: str) -> object:
        """Return what a global name stands for."""
        found = self._globals.get(name, UNKNOWN)
        return builtin_of(name) if found is UNKNOWN else found

    def read(self, code: CodeType, known: Mapping[str, object], calls: Calls) -> None:
        """Read a function and those in it: see ``FunctionReader``."""
        if code not in self._seen:
            self._seen.add(code)
            FunctionReader(self, code, known, calls).read()

    def follow(self, called: object, calls: Calls) -> None:
        """Read what is called, as far as it is of the body's own module."""
        if len(calls) > HELPERS_DEPTH_MAX:
            return
        for function in self._own_functions(called):
            known = closure_of(function)
            if self.is_suspect(function.__code__, known):
                self.read(function.__code__, known, calls)

    def _own_functions(self, called: object) -> Iterator[FunctionType]:
        return (each for each in functions_in(called) if each.__globals__ is self._globals)

    # --- calls -----------------------------------------------------------------------------------

    def note_call(self, called: object, made: Made) -> None:
        """Take note of a call, for what contains it or is contained in it."""
        if not has_no_effect(called):
            self.effects.append(made.place)
        if is_as_completed(called):
            self._completing.append(made)
        elif is_coroutine_function(called):
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
