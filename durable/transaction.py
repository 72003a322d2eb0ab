"""``Transaction``: the journal's database, as queries, mutations and callers use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Mapping, Sequence

    import aiosqlite

    from durable.core.row import Row
    from durable.journal.scopes import Params, Scope


@final
class Transaction:
    """A transaction on the journal's database: the first parameter of queries and mutations, and
    what ``engine.transaction()`` gives.

    It is committed when the mutation, or the ``async with``, ends, and rolled back when that
    raises; not by SQL. Values are given one by one, for ``?`` in the statement, or as one mapping,
    for ``:name``. Tables whose names begin with ``durable_`` are the journal's own, and not to be
    written. Rows answer to column name and to index.

    All of its methods raise ``TransactionError`` when it is over, or may not do what is asked;
    ``JournalUnavailableError`` when the storage fails, and then nothing of it is committed; and the
    driver's own errors, ``sqlite3.Error``, when a statement is wrong or breaks a constraint: it may
    go on after those.

    A cancelled caller does not know whether the statement was done; what ends the transaction
    comes after it.
    """

    __slots__ = ("_scope",)

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def __repr__(self) -> str:
        return f"<Transaction {'open' if self._scope.is_open else 'over'}>"

    @property
    def connection(self) -> aiosqlite.Connection:
        """The driver's own connection, an ``aiosqlite.Connection``, for what else it offers.

        It may do what the transaction may. Use it only while that is open. ``backup`` works in a
        query, of a journal in a file; elsewhere it would wait for the transaction's own end, and
        raises ``sqlite3.OperationalError``.
        """
        return self._scope.connection

    def execute(self, sql: str, *params: Any) -> Coroutine[Any, Any, int]:  # noqa: ANN401
        """Run a statement; return how many rows it has changed."""
        return self._scope.execute(sql, _values(params))

    def executemany(
        self, sql: str, rows: Iterable[Sequence[Any] | Mapping[str, Any]]
    ) -> Coroutine[Any, Any, int]:
        """Run a statement once for each of ``rows``; return how many rows were changed in all."""
        return self._scope.execute_many(sql, rows)

    async def fetch_one(self, sql: str, *params: Any) -> Row | None:  # noqa: ANN401
        """Return the first row, or ``None`` when there is none."""
        rows = await self._scope.fetch(sql, _values(params), 1)
        return rows[0] if rows else None

    def fetch_all(self, sql: str, *params: Any) -> Coroutine[Any, Any, list[Row]]:  # noqa: ANN401
        """Return all rows."""
        return self._scope.fetch(sql, _values(params), None)

    async def fetch_value(self, sql: str, *params: Any) -> Any:  # noqa: ANN401
        """Return the first column of the first row, or ``None`` when there is none."""
        rows = await self._scope.fetch(sql, _values(params), 1)
        return rows[0][0] if rows else None


def scope_of(tx: Transaction) -> Scope:
    """Return what the runtime knows of a transaction that a caller gives, as ``tx=``."""
    if not isinstance(tx, Transaction):
        msg = f"tx= is what `async with engine.transaction() as tx` gives, not {tx!r}"
        raise TypeError(msg)
    return tx._scope  # noqa: SLF001


def _values(params: tuple[Any, ...]) -> Params:
    sole: Any = params[0] if len(params) == 1 else None
    if isinstance(sole, (list, tuple)):
        msg = "give each value as an argument of its own: tx.execute(sql, 1, 2), not (1, 2)"
        raise TypeError(msg)
    return sole if isinstance(sole, dict) else params  # pyright: ignore[reportUnknownVariableType]
