"""The order of sets: what is a set, who asks for its order, and to whom it matters.

A set has another order in another process: texts hash by a seed. One of numbers has, too, since its
order depends on that in which it was filled, and bytecode that was read from a file fills constants
in another one than bytecode that was just compiled.

What is made in the order of a set has that order: a list, a dict, what ``gather`` starts. It does
not matter to whom the order makes no difference, as to ``sorted``, ``len`` and other sets, unless
something is called meanwhile that may have an effect.
"""

from __future__ import annotations

from types import CodeType
from typing import TYPE_CHECKING, Any, Final, final

from durable.determinism.bytecode import is_within
from durable.determinism.callees import UNKNOWN, Instance, Member, class_of
from durable.determinism.objects import is_a, is_class, module_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import TypeGuard

    from durable.determinism.bytecode import Position

A_SET: Final = Instance(set)
SMALL_SET: Final = Instance(set, is_large=False)
"""A set of one element, or of none: it has no order yet, and may get one."""

_FREE: Final = (sorted, sum, any, all, min, max, len, set, frozenset)
_KEEPING: Final = (list, tuple, enumerate, iter, map, filter, zip)
_OPERATORS: Final = ("|", "&", "-", "^")
_GIVING_SETS: Final = {"union", "intersection", "difference", "symmetric_difference", "copy"}
"""The methods of a set that give another one."""

_MAKING_TASKS: Final = frozenset({"create_task", "ensure_future"})


# --- what is a set -------------------------------------------------------------------------------


def is_set_class(called: object) -> bool:
    """Whether what it makes is in no order."""
    return called is set or called is frozenset


def set_of(found: object) -> Instance | None:
    """Return what is known of a set; ``None``: it is something else."""
    if is_a(found, Instance):
        return found if found.cls is set else None
    if is_set_class(type(found)):
        held: Any = found
        return set_of_size(len(held))
    return None


def set_of_size(count: int) -> Instance:
    """Return what is known of a set of so many elements."""
    return A_SET if count > 1 else SMALL_SET


def has_order_of_set(found: object) -> bool:
    """Whether it is a set that is in some order."""
    return set_of(found) is A_SET


def set_made_by(called: object, arguments_count: int) -> object:
    """Return the set that a call gives, if it does."""
    if is_set_class(called):
        return A_SET if arguments_count else SMALL_SET
    if not _is_method_of_set(called, _GIVING_SETS):
        return UNKNOWN
    owner = set_of(called.owner)  # None: the class itself, of which the set is an argument.
    return A_SET if owner is None or called.name != "copy" else owner


def set_joined(left: object, operator: str, right: object) -> object:
    """Return the set that an operator gives, if it does."""
    sets = [each for each in map(set_of, (left, right)) if each is not None]
    if not sets or operator.rstrip("=") not in _OPERATORS:
        return UNKNOWN
    return SMALL_SET if operator.startswith("&") and SMALL_SET in sets else A_SET


def makes_tasks(code: CodeType) -> bool:
    """Whether a set in a function may be one of tasks: these are in the order of their making."""
    return not _MAKING_TASKS.isdisjoint(code.co_names) or any(
        makes_tasks(each) for each in code.co_consts if is_a(each, CodeType)
    )


# --- who asks for its order ----------------------------------------------------------------------


def is_order_free(called: object) -> bool:
    """Whether it gives the same in whatever order it gets what it is given."""
    return any(called is each for each in _FREE) or _is_method_of_set(called, _GIVING_SETS)


def is_ordering(called: object) -> bool:
    """Whether what it gives is in the order of what it is given."""
    if is_a(called, Member):
        cls, name = class_of(called.owner), called.name
        return (cls is str and name == "join") or (cls is dict and name == "fromkeys")
    if is_class(called) and module_name(called) == "itertools":
        return True
    return any(called is each for each in _KEEPING)


def _is_method_of_set(called: object, names: set[str]) -> TypeGuard[Member]:
    return is_a(called, Member) and called.name in names and is_set_class(class_of(called.owner))


# --- to whom it matters --------------------------------------------------------------------------


@final
class SetOrder:
    """Where a function asks for the order of a set, and to whom that is given."""

    def __init__(self) -> None:
        # As far as what it is given to is not read yet, for good, and that within what does not
        # depend on it.
        self._pending: list[Position] = []
        self._ordered: list[Position] = []
        self._free: list[tuple[Position, Position]] = []

    def ask(self, place: Position) -> None:
        """Somebody asks for the order of a set there."""
        self._pending.append(place)

    def give(self, consumer: Position, *, is_free: bool) -> None:
        """Decide on what is used in the order of a set by what it is given to."""
        if not self._pending:
            return
        within = [
            place
            for place in self._pending
            # Some Pythons give the iteration of a comprehension the place of the whole.
            if is_within(place, consumer) or (place == consumer and None not in place)
        ]
        self._pending = [place for place in self._pending if place not in within]
        if is_free:
            self._free += [(place, consumer) for place in within]
        else:
            self._ordered += within

    def places(self, effects: Iterable[Position]) -> Iterator[Position]:
        """Return where it matters, now that all is known that has an effect."""
        effects = list(effects)
        yield from self._ordered
        yield from self._pending
        for place, consumer in self._free:
            if any(is_within(effect, consumer) for effect in effects):
                yield place
