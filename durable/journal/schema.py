"""The tables of a journal: whether a database has them, and how they are made."""

from __future__ import annotations

import sqlite3
from importlib.resources import files
from typing import TYPE_CHECKING

from durable.core.errors import JournalCorruptError, JournalVersionError
from durable.journal.rows import probes

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA_VERSION = 1


CORRUPT = ("SQLITE_NOTADB", "SQLITE_CORRUPT", "SQLITE_FORMAT", "SQLITE_SCHEMA")


def damage(exc: sqlite3.Error, path: Path | None) -> JournalCorruptError | None:
    """Return the error that an exception of SQLite is, if it means that the file is damaged."""
    if not getattr(exc, "sqlite_errorname", "").startswith(CORRUPT):
        return None
    msg = (
        f"{path} is damaged, or not a journal ({exc}). Check the path, or restore the file from a "
        "backup."
    )
    return JournalCorruptError(msg)


def make_tables(db: sqlite3.Connection) -> None:
    """Make them, in the transaction that is open."""
    # executescript() would commit it.
    statement = ""
    script = files("durable.journal").joinpath("schema.sql").read_text("utf-8")
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            db.execute(statement)
            statement = ""
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def read_journal_id(db: sqlite3.Connection) -> str | None:
    """Return what tells a journal from others; ``None`` if it has lost that."""
    row = db.execute("SELECT journal_id FROM durable_owner").fetchone()
    return None if row is None else str(row[0])


def is_journal(db: sqlite3.Connection, name: str) -> bool:
    """Return whether the database has a journal of this code's version; ``False`` if it has none.

    Raises:
        JournalVersionError: It is newer.
        JournalCorruptError: The file is another application's, or its tables are not the schema's.
    """
    (version,) = db.execute("PRAGMA user_version").fetchone()
    tables = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    has_tables = ("durable_run",) in tables
    if version > SCHEMA_VERSION and (has_tables or not tables):
        msg = (
            f"{name} has schema version {version}; this durable knows {SCHEMA_VERSION}. Install "
            "the newer durable that wrote it."
        )
        raise JournalVersionError(msg)
    if version != 0 and not has_tables:
        msg = (
            f"{name}: the database has user_version {version} but no journal in it: it belongs to "
            "another application. Give the journal a file of its own."
        )
        raise JournalCorruptError(msg)
    for probe in probes() if has_tables else ():
        try:
            db.execute(probe)
        except sqlite3.OperationalError as exc:
            msg = (
                f"{name}: its durable tables are not those of a journal ({exc}). Check the path, "
                "or restore the file from a backup."
            )
            raise JournalCorruptError(msg) from exc
    return has_tables
