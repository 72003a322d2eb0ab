"""The table of definitions: what a name in a journal stands for.

It is the only state that exists from import on. Engines listen to it, because a run may be waiting
for code that is imported later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from durable.core.errors import DuplicateDefinitionError
from durable.core.naming import importable

if TYPE_CHECKING:
    from collections.abc import Callable

    from durable.core.records import StepKind


class Registered(Protocol):
    """What the table needs to know of a definition."""

    @property
    def kind(self) -> StepKind: ...
    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def fn(self) -> Callable[..., Any]: ...


_definitions: dict[tuple[str, str, int], Any] = {}
_listeners: list[Callable[[str, str, int], None]] = []


def register(definition: Registered) -> None:
    """Enter a definition.

    The same code executed again (a reloaded module, a function that defines one) takes the place
    of its earlier self.

    Raises:
        DuplicateDefinitionError: Another definition has the kind, name and version.
    """
    key = (str(definition.kind), definition.name, definition.version)
    other = _definitions.get(key)
    if other is not None and _place(other) != _place(definition):
        version = f" version {definition.version}" if definition.version else ""
        msg = (
            f"two {definition.kind} definitions are named {definition.name!r}{version}: "
            f"{_show(other)} and {_show(definition)}. Give one another name, or for a changed "
            "workflow another version."
        )
        raise DuplicateDefinitionError(msg)
    _definitions[key] = definition
    for listener in _listeners:
        listener(*key)


def find(kind: StepKind, name: str, version: int = 0) -> Any:  # noqa: ANN401
    """Return the definition, or ``None``."""
    return _definitions.get((str(kind), name, version))


def definitions() -> list[Any]:
    """Return all that there are."""
    return list(_definitions.values())


def listen(listener: Callable[[str, str, int], None]) -> Callable[[], None]:
    """Call ``listener(kind, name, version)`` for each new definition; return what ends that.

    It is called in the thread that imports the definition.
    """
    _listeners.append(listener)
    return lambda: _listeners.remove(listener)


def default_name(fn: Callable[..., Any]) -> str:
    """Return ``module:qualname``; a script's ``__main__`` is replaced by what would be imported."""
    return f"{importable(fn.__module__)}:{fn.__qualname__}"


def _place(definition: Registered) -> tuple[str, int, str]:
    code = getattr(definition.fn, "__code__", None)
    if code is None:
        return (definition.fn.__module__, id(definition.fn), "")
    return (code.co_filename, code.co_firstlineno, code.co_qualname)


def _show(definition: Registered) -> str:
    file, line, _ = _place(definition)
    name = getattr(definition.fn, "__qualname__", repr(definition.fn))
    return f"{name} at {file}:{line}"
