"""What a name in a body stands for, and whether calling that can be replayed.

Nothing is executed to find out: no property, no ``__getattr__``, no import.
"""

from __future__ import annotations

import asyncio
import builtins
import inspect
import sys
from datetime import date
from types import BuiltinMethodType, ClassMethodDescriptorType, FunctionType, MethodType, ModuleType
from typing import Any, Final, NamedTuple

from durable.core.forbidden import DATE_METHODS, FORBIDDEN, METHODS, NOW, instead_of

UNKNOWN: Final = object()
"""What a name stands for that cannot be resolved."""

MODULES: Final = {name.partition(".")[0] for name in (*FORBIDDEN, *METHODS, "datetime")}
"""The packages that have something forbidden."""

_DECORATORS: Final = {"action", "query", "mutation", "workflow"}
_DECORATORS_MODULE: Final = "durable.definitions"

_indexed: set[str] = set()
_index: dict[int, tuple[str, object]] = {}
"""The forbidden functions by their address; with the objects, so that no other gets the address."""


_ORDER_FREE: Final = (sorted, sum, any, all, min, max, len, set, frozenset)
_ORDERING: Final = (list, tuple, enumerate, iter, map, filter, zip)
_METHODS_OF_VALUES: Final = frozenset({*dir(str), *dir(bytes), *dir(int), *dir(tuple)})


class Absent(NamedTuple):
    """What is known by its dotted name alone: a module that is not imported yet, what it has."""

    name: str


class Member(NamedTuple):
    """What a class or an object has."""

    owner: Any
    name: str


class Forbidden(NamedTuple):
    """What a body may not call."""

    name: str
    instead: str


def update_index() -> None:
    """Take note of the modules that were imported meanwhile."""
    for module_name, functions in FORBIDDEN.items():
        module = sys.modules.get(module_name)
        if module is None or module_name in _indexed:
            continue
        _indexed.add(module_name)
        for name in functions:
            function = vars(module).get(name)
            if function is not None:
                _index.setdefault(id(function), (f"{module_name}.{name}", function))


def module_of(name: str) -> object:
    """Return a module by its dotted name."""
    return sys.modules.get(name) or Absent(name)


def builtin_of(name: str) -> object:
    """Return what every module has."""
    if name in FORBIDDEN["builtins"]:
        return Absent(f"builtins.{name}")
    return vars(builtins).get(name, UNKNOWN)


def attribute_of(owner: object, name: str) -> object:
    """Return an attribute."""
    if owner is UNKNOWN:
        return UNKNOWN
    if isinstance(owner, Absent):
        return Absent(f"{owner.name}.{name}")
    if not isinstance(owner, ModuleType):
        return Member(owner, name)
    if name in FORBIDDEN.get(owner.__name__, ()):
        return Absent(f"{owner.__name__}.{name}")  # By its name: it may be patched just now.
    found = vars(owner).get(name, UNKNOWN)
    return module_of(f"{owner.__name__}.{name}") if found is UNKNOWN else found


def forbidden(called: object) -> Forbidden | None:
    """Return what is called, if a body may not call it."""
    if isinstance(called, Absent):
        return _forbidden_absent(called.name)
    found = _index.get(id(called))
    if found is not None:
        return Forbidden(found[0].removeprefix("builtins."), instead_of(found[0]))
    if isinstance(called, BuiltinMethodType | MethodType):
        called = Member(called.__self__, called.__name__)
    if not isinstance(called, Member):
        return None
    owner, name = called
    cls: type[Any] = owner if isinstance(owner, type) else type(owner)
    if issubclass(cls, date) and name in DATE_METHODS:
        # A class of the user's own may have its own clock.
        is_own = not isinstance(inspect.getattr_static(cls, name, None), ClassMethodDescriptorType)
        return None if is_own else Forbidden(f"{cls.__name__}.{name}", NOW)
    return _forbidden_method(cls, name)


def _forbidden_absent(name: str) -> Forbidden | None:
    module, _, function = name.rpartition(".")
    if function in FORBIDDEN.get(module, ()):
        return Forbidden(name.removeprefix("builtins."), instead_of(name))
    return None


def _forbidden_method(cls: type[Any], name: str) -> Forbidden | None:
    for each in cls.__mro__:
        methods = METHODS.get(each.__module__, {}).get(each.__name__, {})
        if name in methods:
            return Forbidden(f"{each.__name__}.{name}", methods[name])
    return None


def has_forbidden_methods(cls: type[Any]) -> bool:
    """Whether objects of the class have methods that a body may not call."""
    return any(each.__name__ in METHODS.get(each.__module__, ()) for each in cls.__mro__)


def is_set_class(called: object) -> bool:
    """Whether what it makes is in no order."""
    return called is set or called is frozenset


def is_order_free(called: object) -> bool:
    """Whether it gives the same in whatever order it gets what it is given."""
    return any(called is each for each in _ORDER_FREE)


def is_ordering(called: object) -> bool:
    """Whether what it gives is in the order of what it is given."""
    if isinstance(called, Member):
        return called.owner is str and called.name == "join"
    return any(called is each for each in _ORDERING)


def method_of_value(name: str) -> object:
    """Return a method of an unknown object, if it has the name of one that plain values have."""
    return Member(str, name) if name in _METHODS_OF_VALUES else UNKNOWN


def has_no_effect(called: object) -> bool:
    """Whether it does not matter when it is called: a builtin, a method of a plain value."""
    if isinstance(called, Member):
        return called.owner is str
    return isinstance(called, type | BuiltinMethodType) and called.__module__ == "builtins"


def is_definition(called: object) -> bool:
    """Whether it decorates what is no part of the body: an action, or the like."""
    return (
        isinstance(called, FunctionType)
        and called.__name__ in _DECORATORS
        and called.__module__ == _DECORATORS_MODULE
    )


def is_as_completed(called: object) -> bool:
    """Whether it is asyncio's own."""
    return called is asyncio.as_completed


def is_of_interest(found: Any) -> bool:  # noqa: ANN401  whatever a name stands for
    """Whether a body that has such a name is worth reading."""
    if isinstance(found, Absent):
        return True
    if isinstance(found, ModuleType):
        return found.__name__.partition(".")[0] in MODULES
    if isinstance(found, type):
        kind: type[Any] = found
        return (
            is_set_class(kind)
            or id(kind) in _index
            or issubclass(kind, date)
            or has_forbidden_methods(kind)
        )
    if isinstance(found, BuiltinMethodType | MethodType):
        return forbidden(found) is not None
    cls: type[Any] = type(found)  # pyright: ignore[reportUnknownVariableType]
    return id(found) in _index or is_as_completed(found) or has_forbidden_methods(cls)
