"""A row that the application's own SQL gave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


@final
class Row:
    """A row: its values by column name, by index, in order, or as a ``dict``.

    Of columns with the same name, the name means the first.
    """

    __slots__ = ("_places", "_values")

    def __init__(self, places: Mapping[str, int], values: Sequence[Any]) -> None:
        self._places = places
        self._values = tuple(values)

    def __getitem__(self, key: str | int) -> Any:  # noqa: ANN401  of any column
        if isinstance(key, int):
            return self._values[key]
        try:
            return self._values[self._places[key]]
        except KeyError:
            msg = f"the row has no column {key!r}; it has {', '.join(map(repr, self._places))}"
            raise KeyError(msg) from None

    def keys(self) -> list[str]:
        """Return the names of the columns."""
        return list(self._places)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Row):
            return self._values == other._values and self.keys() == other.keys()
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self._values)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={self._values[place]!r}" for name, place in self._places.items())
        return f"<Row {shown}>"


def places_of(names: Sequence[str]) -> dict[str, int]:
    """Return at which index each column is."""
    places: dict[str, int] = {}
    for place, name in enumerate(names):
        places.setdefault(name, place)
    return places
