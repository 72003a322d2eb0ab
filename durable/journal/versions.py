"""The sets of versions that a journal's runs were begun with, on a plain connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from durable.core.versions import Versions, VersionTable, present_versions

if TYPE_CHECKING:
    import sqlite3

FIND = "SELECT id FROM durable_versions WHERE python = ? AND durable = ?"
ADD = "INSERT INTO durable_versions (python, durable) VALUES (?, ?) RETURNING id"
ALL = "SELECT id, python, durable FROM durable_versions"


def enter_versions(db: sqlite3.Connection) -> VersionTable:
    """See that this process's versions are in the table; return all of it."""
    now = present_versions()
    values = (now.python, now.durable)
    (present,) = db.execute(FIND, values).fetchone() or db.execute(ADD, values).fetchone()
    return VersionTable(present, read_versions(db))


def read_versions(db: sqlite3.Connection) -> dict[int, Versions]:
    """Return the table."""
    return {number: Versions(python, durable) for number, python, durable in db.execute(ALL)}
