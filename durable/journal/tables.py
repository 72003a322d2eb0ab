"""The application's own tables, as a test compares them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from durable.journal.scopes import Scope

Tables: TypeAlias = "dict[str, list[dict[str, Any]]]"
"""By name of a table, its rows, in an order of their values."""

NAMES = """
SELECT name FROM sqlite_master
WHERE type = 'table' AND name NOT LIKE 'durable\\_%' ESCAPE '\\'
    AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
ORDER BY name
"""


async def read_tables(scope: Scope) -> Tables:
    """Return all rows of all tables that are not the journal's.

    Raises:
        JournalError: The storage failed.
    """
    tables: Tables = {}
    for (name,) in await scope.fetch(NAMES, (), None):
        quoted = str(name).replace('"', '""')
        rows = await scope.fetch(f'SELECT * FROM "{quoted}"', (), None)
        shown = [dict(zip(row.keys(), row, strict=False)) for row in rows]
        tables[str(name)] = sorted(shown, key=repr)
    return tables
