"""Options that look right: a time zone without an offset, a cursor in other digits."""

from __future__ import annotations

from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest

import durable
from durable import Engine, RunState, Step


class NoOffset(tzinfo):
    """A time zone that does not know its offset: such a datetime is naive, as Python has it."""

    def utcoffset(self, _: datetime | None, /) -> timedelta | None:
        return None

    def dst(self, _: datetime | None, /) -> timedelta | None:
        return None

    def tzname(self, _: datetime | None, /) -> str | None:
        return None


NAIVE = datetime(2030, 1, 1, tzinfo=NoOffset())
EXPECTED = r"is an aware datetime: .* has no time zone"


@durable.action
async def nothing() -> None:
    pass


@durable.workflow
async def sleeping_until(step: Step) -> str:
    with pytest.raises(ValueError, match=EXPECTED) as info:
        await step.sleep_until(NAIVE)
    return str(info.value)


@durable.workflow
async def running_at(step: Step) -> str:
    with pytest.raises(ValueError, match=EXPECTED) as info:
        await step.run(nothing(), run_at=NAIVE)
    return str(info.value)


@pytest.mark.parametrize("call", [sleeping_until(), running_at()])
async def test_a_body_cannot_wait_until_a_naive_time(call: durable.Call[str], path: Path) -> None:
    async with Engine(path) as engine:
        run = await engine.start(call)
        assert "datetime.now(UTC) has" in await run.result(timeout=5)
        assert [step async for step in run.steps()] == []


async def test_a_run_cannot_be_started_at_a_naive_time(path: Path) -> None:
    async with Engine(path) as engine:
        with pytest.raises(ValueError, match=f"run_at= {EXPECTED}"):
            await engine.start(sleeping_until(), run_at=NAIVE)
        assert [run async for run in engine.iter_runs()] == []


@pytest.mark.parametrize("cursor", ["asc-\N{ARABIC-INDIC DIGIT THREE}", "asc-\N{SUPERSCRIPT TWO}"])
async def test_a_cursor_is_in_ascii_digits(cursor: str, path: Path) -> None:
    async with Engine(path) as engine:
        run = await engine.start(running_at())
        assert (await run.result(), (await run.status()).state)[1] is RunState.COMPLETED
        with pytest.raises(ValueError, match="is no cursor of such a page"):
            await engine.list_runs(cursor=cursor)
        with pytest.raises(ValueError, match="is no cursor of such a page"):
            await engine.list_steps(run.id, cursor=cursor)
