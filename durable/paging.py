"""Lists of runs and steps, a page at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeVar

from durable.checks import check_count, check_id, check_name
from durable.core.records import RunRecord, RunState, StepRecord
from durable.journal.base import RunQuery, StepQuery
from durable.status import Page, RunStatus, StepInfo, run_status, step_info

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

T = TypeVar("T")

PAGE_ITEMS_MAX = 1_000
"""A page holds no more than this, so that no reader holds the journal for long."""

CURSOR_CHARS_MAX = 18
"""A cursor is a place in the journal, which fits into 63 bits."""


def runs_query(
    *,
    name: str | None,
    state: RunState | str | None,
    parent: str | None,
    order: Literal["asc", "desc"],
    limit: int,
    cursor: str | None,
) -> RunQuery:
    """Return the query for a page of runs, and one more, which tells that there is a next page."""
    return RunQuery(
        name=check_name(name, "name="),
        state=_check_state(state),
        parent_id=None if parent is None else check_id(parent),
        order=_check_order(order),
        limit=_check_limit(limit) + 1,
        after=_check_cursor(cursor, order),
    )


def runs_page(
    rows: list[tuple[int, RunRecord, list[StepRecord]]], query: RunQuery
) -> Page[RunStatus]:
    """Return the page that a query led to."""
    shown = rows[: query.limit - 1]
    return Page(
        items=[run_status(record, steps) for _, record, steps in shown],
        cursor=_make_cursor(shown[-1][0], query.order) if len(rows) > len(shown) else None,
    )


def steps_query(
    run_id: str, order: Literal["asc", "desc"], limit: int, cursor: str | None
) -> StepQuery:
    """Return the query for a page of steps, and one more."""
    return StepQuery(
        run_id=check_id(run_id),
        order=_check_order(order),
        limit=_check_limit(limit) + 1,
        after=_check_cursor(cursor, order),
    )


def steps_page(rows: list[StepRecord], query: StepQuery) -> Page[StepInfo]:
    """Return the page that a query led to."""
    shown = rows[: query.limit - 1]
    return Page(
        items=[step_info(query.run_id, record) for record in shown],
        cursor=_make_cursor(shown[-1].number, query.order) if len(rows) > len(shown) else None,
    )


async def iterate(list_page: Callable[[str | None], Awaitable[Page[T]]]) -> AsyncIterator[T]:
    """Iterate over all pages; ``list_page`` returns the one after a cursor."""
    cursor: str | None = None
    while True:
        page = await list_page(cursor)
        for item in page.items:
            yield item
        cursor = page.cursor
        if cursor is None:
            return


def _check_limit(limit: int) -> int:
    """Return the size of a page."""
    if not 1 <= check_count(limit, "limit") <= PAGE_ITEMS_MAX:
        msg = f"limit is from 1 to {PAGE_ITEMS_MAX}, not {limit}; use iter_... for all of them"
        raise ValueError(msg)
    return limit


def _check_order(order: Literal["asc", "desc"]) -> Literal["asc", "desc"]:
    """Return the order of a list."""
    if order not in ("asc", "desc"):
        msg = f"order is 'asc' or 'desc', not {order!r}"
        raise ValueError(msg)
    return order


def _check_state(state: RunState | str | None) -> RunState | None:
    """Return a state by which runs are listed."""
    try:
        return None if state is None else RunState(state)
    except ValueError:
        msg = f"state is one of {', '.join(RunState)}, not {state!r}"
        raise ValueError(msg) from None


def _make_cursor(place: int, order: str) -> str:
    """Return the cursor of a page that ends at ``place``."""
    return f"{order}-{place}"


def _check_cursor(cursor: str | None, order: str) -> int | None:
    """Return the place that a page's cursor stands for."""
    if cursor is None:
        return None
    if isinstance(cursor, str):
        made_for, _, place = cursor.partition("-")
        if (
            made_for == order
            and place.isascii()
            and place.isdecimal()
            and len(place) <= CURSOR_CHARS_MAX
        ):
            return int(place)
    msg = f"{cursor!r} is no cursor of such a page: pass Page.cursor as it is, in the same order"
    raise ValueError(msg)
