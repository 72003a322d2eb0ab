"""What an object is, found out without running its code.

A name of a body may stand for anything: for a proxy that asks a database for its class, a module
that is imported when it is first used, an object whose attributes raise. So nothing here asks an
object for an attribute, not even for ``__class__``, as ``isinstance`` does: what counts is how the
interpreter itself holds it.
"""

from __future__ import annotations

from functools import lru_cache, partial
from types import FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeGuard

T = TypeVar("T")

_mro_of: Final[Any] = type.__dict__["__mro__"].__get__
_name_of: Final[Any] = type.__dict__["__name__"].__get__
_module_of: Final[Any] = type.__dict__["__module__"].__get__
_namespace_of: Final[Any] = vars(ModuleType)["__dict__"].__get__

_CACHED: Final = type(lru_cache(lambda: None))
"""What ``functools.lru_cache`` and ``functools.cache`` make of a function."""

_DEFINITIONS: Final = "durable.definitions"


def is_a(found: object, kind: type[T], /) -> TypeGuard[T]:
    """Whether it is of the class, whatever it says itself."""
    return issubclass(type(found), kind)


def is_class(found: object) -> TypeGuard[type[Any]]:
    """Whether it is a class."""
    return issubclass(type(found), type)


def class_names(cls: type[Any]) -> list[tuple[str, str]]:
    """Return the module and the name of a class and of all that it inherits from."""
    return [(module_name(each), _name_of(each)) for each in _mro_of(cls)]


def module_name(cls: type[Any]) -> str:
    """Return the module of a class; nothing, where it has something else by that name."""
    found = _module_of(cls)
    return found if type(found) is str else ""


def namespace_of(module: ModuleType) -> dict[str, Any]:
    """Return what a module has by now."""
    found: dict[str, Any] = _namespace_of(module)
    return found


def closure_of(function: FunctionType) -> dict[str, object]:
    """Return what the names of a function's closure stand for, as far as they have a value."""
    known: dict[str, object] = {}
    if function.__closure__ is None:
        return known
    for name, cell in zip(function.__code__.co_freevars, function.__closure__, strict=True):
        try:
            known[name] = cell.cell_contents
        except ValueError:
            continue  # It gets its value later.
    return known


def functions_in(called: object) -> Iterator[FunctionType]:
    """Return the functions that a call of it leads to: its own, and those it was put around.

    Decorators that say what they are put around, as ``functools.wraps`` does for them, are looked
    through. Not those that hold an action or the like: what these are put around is none of the
    body's.
    """
    seen: set[int] = set()
    while id(called) not in seen:  # What is put around itself has no end.
        seen.add(id(called))
        kind = type(called)
        if kind is FunctionType:
            function: Any = called
            yield function
            called = None if _holds_definition(function) else function.__dict__.get("__wrapped__")
        elif kind is _CACHED:
            cached: Any = called
            called = cached.__dict__.get("__wrapped__")
        elif kind is partial:
            given: Any = called
            called = given.func
        elif kind is MethodType:
            method: Any = called
            called = method.__func__
        else:
            return


def _holds_definition(function: FunctionType) -> bool:
    return any(module_name(type(held)) == _DEFINITIONS for held in closure_of(function).values())
