"""What a name in a body stands for, and whether calling that can be replayed."""

from __future__ import annotations

import asyncio
import builtins
import inspect
import sys
from datetime import date
from types import BuiltinMethodType, ClassMethodDescriptorType, FunctionType, MethodType, ModuleType
from typing import Any, Final, NamedTuple

from durable.core.forbidden import (
    DATE_METHODS,
    FORBIDDEN,
    METHODS,
    NOW,
    PATH_ATTRIBUTES,
    PATH_METHODS,
    instead_of,
)
from durable.determinism.objects import class_names, is_a, is_class, module_name, namespace_of

UNKNOWN: Final = object()
"""What a name stands for that cannot be resolved."""

MODULES: Final = {name.partition(".")[0] for name in (*FORBIDDEN, *METHODS, "datetime")}
"""The packages that have something forbidden."""

_PATHS: Final = {("pathlib", "Path"), ("pathlib._local", "Path")}
_DECORATORS: Final = {"action", "query", "mutation", "workflow"}
_DECORATORS_MODULE: Final = "durable.definitions"
_METHODS_OF_VALUES: Final = frozenset({*dir(str), *dir(bytes), *dir(int), *dir(tuple)})

_not_indexed: dict[str, None] = dict.fromkeys(FORBIDDEN)
_index: dict[int, tuple[str, object]] = {}
"""The forbidden functions by their address; with the objects, so that no other gets the address."""


class Absent(NamedTuple):
    """What is known by its dotted name alone: a module that is not imported yet, what it has."""

    name: str


class Instance(NamedTuple):
    """Some object of a class, which the body makes.

    Attributes:
        is_large: Of a set: whether it may have more than one element, and so an order.
    """

    cls: type[Any]
    is_large: bool = True


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
    for name in tuple(_not_indexed):
        module = sys.modules.get(name)
        if module is None or not is_a(module, ModuleType):
            continue
        namespace, functions = namespace_of(module), FORBIDDEN[name]
        # One that is imported when it is first used has nothing yet, and is looked at again.
        if not functions.keys().isdisjoint(namespace):
            _not_indexed.pop(name, None)
        for function_name in functions:
            function = namespace.get(function_name)
            if function is not None:
                _index.setdefault(id(function), (f"{name}.{function_name}", function))


# --- what names and attributes stand for ---------------------------------------------------------


def module_of(name: str) -> object:
    """Return a module by its dotted name."""
    module = sys.modules.get(name)
    return Absent(name) if module is None else module


def builtin_of(name: str) -> object:
    """Return what every module has."""
    if name in FORBIDDEN["builtins"]:
        return Absent(f"builtins.{name}")
    return vars(builtins).get(name, UNKNOWN)


def attribute_of(owner: object, name: str) -> object:
    """Return an attribute."""
    if owner is UNKNOWN:
        return UNKNOWN
    if is_a(owner, Absent):
        return Absent(f"{owner.name}.{name}")
    if is_a(owner, ModuleType):
        return _attribute_of_module(namespace_of(owner), name)
    if name in PATH_ATTRIBUTES and _is_path(class_of(owner)):
        return Instance(class_of(owner))
    return Member(owner, name)


def _attribute_of_module(namespace: dict[str, Any], name: str) -> object:
    module = namespace.get("__name__")
    if type(module) is not str:
        return UNKNOWN
    if name in FORBIDDEN.get(module, ()):
        return Absent(f"{module}.{name}")  # By its name: it may be patched just now.
    found = namespace.get(name, UNKNOWN)
    return module_of(f"{module}.{name}") if found is UNKNOWN else found


def class_of(found: object) -> type[Any]:
    """Return the class of an object; a class stands for its objects."""
    if is_a(found, Instance):
        return found.cls
    return found if is_class(found) else type(found)


def method_of_value(name: str) -> object:
    """Return a method of an unknown object, if it has the name of one that plain values have."""
    return Member(str, name) if name in _METHODS_OF_VALUES else UNKNOWN


def made_by(called: object) -> object:
    """Return what a call gives, if that matters."""
    if is_class(called):
        return Instance(called) if has_forbidden_methods(called) else UNKNOWN
    if is_a(called, Member) and called.name in PATH_METHODS and _is_path(class_of(called.owner)):
        return Instance(class_of(called.owner))
    return UNKNOWN


def joined(left: object, operator: str, right: object) -> object:
    """Return what an operator gives, if that matters: a path, of a path and a text."""
    for operand in (left, right):
        if operator.startswith("/") and operand is not UNKNOWN and _is_path(class_of(operand)):
            return Instance(class_of(operand))
    return UNKNOWN


# --- what may be called --------------------------------------------------------------------------


def forbidden(called: object) -> Forbidden | None:
    """Return what is called, if a body may not call it."""
    if is_a(called, Absent):
        return _forbidden_absent(called.name)
    found = _index.get(id(called))
    if found is not None:
        return Forbidden(found[0].removeprefix("builtins."), instead_of(found[0]))
    member = _as_member(called)
    if member is None:
        return None
    cls = class_of(member.owner)
    if issubclass(cls, date) and member.name in DATE_METHODS:
        # A class of the user's own may have its own clock.
        found_method = inspect.getattr_static(cls, member.name, None)
        is_own = type(found_method) is not ClassMethodDescriptorType
        return None if is_own else Forbidden(f"{class_names(cls)[0][1]}.{member.name}", NOW)
    return _forbidden_method(cls, member.name)


def _as_member(called: object) -> Member | None:
    """Return the object and the name of a method."""
    if is_a(called, Member):
        return called
    if is_a(called, BuiltinMethodType):
        return Member(called.__self__, called.__name__)
    if is_a(called, MethodType) and is_a(called.__func__, FunctionType):
        return Member(called.__self__, called.__func__.__name__)
    return None


def _forbidden_absent(name: str) -> Forbidden | None:
    module, _, function = name.rpartition(".")
    if function in FORBIDDEN.get(module, ()):
        return Forbidden(name.removeprefix("builtins."), instead_of(name))
    return None


def _forbidden_method(cls: type[Any], name: str) -> Forbidden | None:
    for module, class_name in class_names(cls):
        methods = METHODS.get(module, {}).get(class_name, {})
        if name in methods:
            return Forbidden(f"{class_name}.{name}", methods[name])
    return None


def has_forbidden_methods(cls: type[Any]) -> bool:
    """Whether objects of the class have methods that a body may not call."""
    return any(name in METHODS.get(module, ()) for module, name in class_names(cls))


def _is_path(cls: type[Any]) -> bool:
    return not _PATHS.isdisjoint(class_names(cls))


def has_no_effect(called: object) -> bool:
    """Whether it does not matter when it is called: a builtin, a method of a plain value."""
    if is_a(called, Member):
        return class_of(called.owner) is str
    if is_a(called, BuiltinMethodType):
        return called.__module__ == "builtins"
    return is_class(called) and module_name(called) == "builtins"


def is_definition(called: object) -> bool:
    """Whether it decorates what is no part of the body: an action, or the like."""
    return (
        is_a(called, FunctionType)
        and called.__name__ in _DECORATORS
        and called.__module__ == _DECORATORS_MODULE
    )


def is_as_completed(called: object) -> bool:
    """Whether it is asyncio's own."""
    return called is asyncio.as_completed


def is_of_interest(found: object) -> bool:
    """Whether a body that has such a name is worth reading."""
    if type(found) is FunctionType:  # As most names are.
        return id(found) in _index or is_as_completed(found)
    if is_a(found, Absent):
        return True
    if is_a(found, ModuleType):
        name = namespace_of(found).get("__name__")
        return type(name) is not str or name.partition(".")[0] in MODULES
    if is_class(found):
        return id(found) in _index or issubclass(found, date) or has_forbidden_methods(found)
    if is_a(found, BuiltinMethodType) or is_a(found, MethodType):
        return forbidden(found) is not None
    return id(found) in _index or has_forbidden_methods(type(found))
