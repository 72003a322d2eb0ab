"""What the machine gives: the baselines.

Both write rows of the same shape with the journal's own safety, WAL and ``synchronous=FULL``:

* *one commit*: one row a transaction, as one function on an aiosqlite connection's thread,
  awaited, one after another. A durable step that shares its commit with nobody cannot cost less.
* *raw rows*: 100 rows a transaction, by the standard library's driver on the main thread. One
  writer cannot get more out of the disk, whatever it groups.
"""

from __future__ import annotations

import sqlite3
from contextlib import asynccontextmanager, closing
from time import perf_counter
from typing import TYPE_CHECKING, Final, TypeAlias, final

import aiosqlite

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

COMMITS_A_ROUND: Final = 200
TRANSACTIONS_A_ROUND: Final = 200
ROWS_A_TRANSACTION: Final = 100
# aiosqlite's own default; no query here returns rows, so that it has no effect.
ITER_CHUNK_SIZE: Final = 64

Row: TypeAlias = tuple[str, int, str, str, str, str, int]

CREATE_TABLE: Final = """
CREATE TABLE step (
    run_id TEXT NOT NULL, number INTEGER NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL,
    args TEXT NOT NULL, result TEXT NOT NULL, finished_at_ms INTEGER NOT NULL,
    PRIMARY KEY (run_id, number)
) WITHOUT ROWID, STRICT
"""
INSERT_ROW: Final = "INSERT INTO step VALUES (?, ?, ?, ?, ?, ?, ?)"


@final
class Machine:
    """Measures the baselines, each as often as it is asked to.

    The databases stay open between the rounds and their keys only grow: an append at the end of
    a warm file is the fastest write there is, which makes the baselines strict.
    """

    def __init__(
        self,
        hop: aiosqlite.Connection,
        hop_connection: sqlite3.Connection,
        direct: sqlite3.Connection,
    ) -> None:
        """Take the aiosqlite connection, what it wraps, and a second file's own connection."""
        self._hop = hop
        self._hop_connection = hop_connection
        self._direct = direct
        self._rows_made = 0

    async def commit_s(self) -> float:
        """Seconds for one commit of one row through one hop to the connection's thread."""
        rows = self._make_rows(COMMITS_A_ROUND)
        began = perf_counter()
        for row in rows:
            await self._commit(row)
        return (perf_counter() - began) / COMMITS_A_ROUND

    def raw_rows_per_s(self) -> float:
        """Rows a second in transactions of 100; blocks the caller's thread meanwhile."""
        batches = [self._make_rows(ROWS_A_TRANSACTION) for _ in range(TRANSACTIONS_A_ROUND)]
        began = perf_counter()
        for rows in batches:
            self._direct.execute("BEGIN IMMEDIATE")
            self._direct.executemany(INSERT_ROW, rows)
            self._direct.execute("COMMIT")
        return TRANSACTIONS_A_ROUND * ROWS_A_TRANSACTION / (perf_counter() - began)

    def row_bytes(self) -> float:
        """Bytes of the database file for each row, after one more round of rows."""
        self.raw_rows_per_s()
        (pages,) = self._direct.execute("PRAGMA page_count").fetchone()
        (page_size,) = self._direct.execute("PRAGMA page_size").fetchone()
        (rows,) = self._direct.execute("SELECT count(*) FROM step").fetchone()
        return float(pages * page_size / rows)

    async def _commit(self, row: Row) -> None:
        def commit() -> None:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(INSERT_ROW, row)
            connection.execute("COMMIT")

        connection = self._hop_connection
        # aiosqlite has no public call that runs one function on its thread, and one hop a
        # statement would measure three hops.
        await self._hop._execute(commit)  # type: ignore[no-untyped-call] # noqa: SLF001

    def _make_rows(self, count: int) -> list[Row]:
        first = self._rows_made
        self._rows_made += count
        return [_row(number) for number in range(first, first + count)]


@asynccontextmanager
async def open_machine(directory: Path) -> AsyncGenerator[Machine]:
    """Open the baselines' databases in ``directory``, warmed up by one round of each."""
    opened: list[sqlite3.Connection] = []

    def connect() -> sqlite3.Connection:
        connection = _connect(directory / "commits.db")
        opened.append(connection)
        return connection

    with closing(_connect(directory / "rows.db")) as direct:
        async with aiosqlite.Connection(connect, ITER_CHUNK_SIZE) as hop:
            machine = Machine(hop, opened[0], direct)
            await machine.commit_s()
            machine.raw_rows_per_s()
            yield machine


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(CREATE_TABLE)
    return connection


def _row(number: int) -> Row:
    """Make a row of about 110 bytes, as a step's row in a journal."""
    return (
        "0198f3a2-7c1e-7d40-9b5a-3f6e2d1c0b9a",
        number,
        "benchmarks.workflows:increment",
        "completed",
        f'{{"value":{number % 100}}}',
        f"{number % 100 + 1}",
        1_750_000_000_000 + number,
    )
