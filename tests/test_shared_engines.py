"""Calls of ``durable.run`` at the same time share the engine that the first of them opens."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest
from waiting import until

import durable
from durable import Engine, JournalUnavailableError, Step
from durable.journal.sqlite import SqliteJournal
from durable.shared import find_shared

pytestmark = pytest.mark.both_loops


class Gate:
    """Lets actions of one name end."""

    def __init__(self) -> None:
        self.begun: set[str] = set()
        self.open: dict[str, asyncio.Event] = {}

    def event(self, name: str) -> asyncio.Event:
        return self.open.setdefault(name, asyncio.Event())


gate = Gate()


@pytest.fixture(autouse=True)
def _new_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_shared_engines.gate", Gate())


@durable.action
async def passing(name: str) -> str:
    gate.begun.add(name)
    await gate.event(name).wait()
    return name


@durable.workflow
async def going(step: Step, name: str) -> str:
    return await passing(name)


async def begun(name: str, path: Path) -> asyncio.Task[str]:
    """Start a call whose action runs, until the gate is opened for it."""
    task = asyncio.create_task(durable.run(going(name), id=name, url=path))
    await until(lambda: name in gate.begun or task.done())
    return task


def close_slowly(monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, asyncio.Event]:
    """Return what is set when a journal is being closed, and what it then waits for."""
    closing, may_close = asyncio.Event(), asyncio.Event()
    close = SqliteJournal.close

    async def close_when_told(journal: SqliteJournal) -> None:
        closing.set()
        await may_close.wait()
        await close(journal)

    monkeypatch.setattr(SqliteJournal, "close", close_when_told)
    return closing, may_close


async def nobody_has(path: Path, *ids: str) -> None:
    """The journal can be opened, and the runs are in it."""
    assert find_shared(path=path) is None
    async with Engine(path) as engine:
        assert [run.id async for run in engine.iter_runs()] == list(ids)


async def test_two_at_once_share_a_journal(path: Path) -> None:
    gate.event("a").set()
    gate.event("b").set()
    both = (durable.run(going(name), id=name, url=path) for name in "ab")
    assert [*await asyncio.gather(*both)] == ["a", "b"]
    await nobody_has(path, "a", "b")


async def test_awaited_calls_share_the_default_journal(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DURABLE_URL", f"sqlite:///{path}")
    gate.event("a").set()
    gate.event("b").set()
    assert [*await asyncio.gather(going("a"), going("b"), durable.run(going("a")))] == [
        "a",
        "b",
        "a",
    ]
    assert find_shared(path=path) is None


@pytest.mark.parametrize("by_url", [True, False])
async def test_one_that_begins_later_outlasts_the_first(by_url: bool, path: Path) -> None:
    """Without a url it finds the engine that is open, which is not closed under it."""
    first = await begun("a", path)
    later = asyncio.create_task(durable.run(going("b"), id="b", url=path if by_url else None))
    await until(lambda: "b" in gate.begun or later.done())
    gate.event("a").set()
    assert await first == "a"
    third = await begun("c", path)
    gate.event("b").set()
    gate.event("c").set()
    assert [*await asyncio.gather(later, third)] == ["b", "c"]
    await nobody_has(path, "a", "b", "c")


async def test_one_that_comes_while_the_engine_is_being_closed_opens_it_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closing, may_close = close_slowly(monkeypatch)
    gate.event("a").set()
    first = await begun("a", path)
    await closing.wait()
    second, third = (
        asyncio.create_task(durable.run(going(name), id=name, url=path)) for name in "bc"
    )
    for _ in range(10):
        await asyncio.sleep(0)
    assert not gate.begun & {"b", "c"}
    gate.event("b").set()
    gate.event("c").set()
    may_close.set()
    assert [*await asyncio.gather(first, second, third)] == ["a", "b", "c"]
    await nobody_has(path, "a", "b", "c")


async def test_that_it_cannot_be_opened_is_told_to_each(tmp_path: Path) -> None:
    both = (durable.run(going(name), url=tmp_path) for name in "ab")
    errors = await asyncio.gather(*both, return_exceptions=True)
    assert [type(error) for error in errors] == [JournalUnavailableError] * 2
    assert find_shared(path=tmp_path) is None
    gate.event("a").set()
    assert await durable.run(going("a"), url=tmp_path / "a.db") == "a"


@pytest.mark.parametrize("cancelled", ["first", "second"])
async def test_cancelling_one_leaves_the_other(cancelled: str, path: Path) -> None:
    first, second = await begun("a", path), await begun("b", path)
    one, other = (first, second) if cancelled == "first" else (second, first)
    one.cancel()
    with pytest.raises(asyncio.CancelledError):
        await one
    gate.event("a").set()
    gate.event("b").set()
    assert await other == ("b" if cancelled == "first" else "a")
    await nobody_has(path, "a", "b")


@pytest.mark.parametrize("cancelled", [0, 1])
async def test_cancelling_one_while_the_engine_is_being_opened_leaves_the_other(
    cancelled: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, may_open = asyncio.Event(), asyncio.Event()
    open_ = SqliteJournal.open

    async def open_slowly(journal: SqliteJournal) -> None:
        opening.set()
        await may_open.wait()
        await open_(journal)

    monkeypatch.setattr(SqliteJournal, "open", open_slowly)
    calls = [asyncio.create_task(durable.run(going(name), url=path)) for name in "ab"]
    await opening.wait()
    await asyncio.sleep(0)
    calls[cancelled].cancel()
    gate.event("a").set()
    gate.event("b").set()
    may_open.set()
    assert await calls[1 - cancelled] == "ba"[cancelled]
    with pytest.raises(asyncio.CancelledError):
        await calls[cancelled]
    monkeypatch.undo()
    assert find_shared(path=path) is None
    async with Engine(path):
        pass


async def test_journals_in_memory_are_not_shared() -> None:
    gate.event("a").set()
    run = partial(durable.run, going("a"), id="a", url="sqlite://")
    assert [*await asyncio.gather(run(), run())] == ["a", "a"]


async def test_all_cancelled_leaves_nothing_open(path: Path) -> None:
    calls = [await begun("a", path), await begun("b", path)]
    for call in calls:
        call.cancel()
    gate.event("a").set()  # As it closes, the engine waits for actions that run.
    gate.event("b").set()
    await asyncio.wait(calls)
    assert all(call.cancelled() for call in calls)
    await nobody_has(path, "a", "b")


@durable.workflow
async def inner(step: Step) -> str:
    return await passing("inner")


@durable.action
async def running_another(path: str) -> str:
    return await durable.run(inner(), id="inner", url=Path(path))


@durable.workflow
async def nesting(step: Step, path: str) -> str:
    return await running_another(path)


@durable.action
async def asking_late(path: str) -> str:
    await passing.fn("late")
    return await durable.run(inner(), id="inner", url=Path(path))


@durable.workflow
async def late(step: Step, path: str) -> str:
    return await asking_late(path)


async def test_closing_waits_for_an_action_that_runs_another(path: Path) -> None:
    """Which is the last one to use the engine, and must not wait for its own end."""
    outer = asyncio.create_task(durable.run(nesting(str(path)), id="outer", url=path))
    await until(lambda: "inner" in gate.begun)
    outer.cancel()
    gate.event("inner").set()
    with pytest.raises(asyncio.CancelledError):
        await outer
    await nobody_has(path, "outer", "inner")


async def test_an_action_cannot_hold_up_the_engine_that_is_being_closed(path: Path) -> None:
    """It asks for another run when the last call has left, and the engine waits for it."""
    outer = asyncio.create_task(durable.run(late(str(path)), id="outer", url=path))
    await until(lambda: "late" in gate.begun)
    shared = find_shared(path=path)
    assert shared is not None
    runner = shared.engine._runner
    assert runner is not None
    outer.cancel()
    await until(lambda: runner._is_closing)
    gate.event("late").set()
    with pytest.raises(asyncio.CancelledError):
        await outer
    await nobody_has(path, "outer")
    async with Engine(path, max_parallelism=0) as engine:
        error = (await engine.list_steps("outer")).items[0].error
        assert error is not None
        assert error.type_name == "durable.EngineClosedError"


async def test_one_that_leaves_twice_over_is_cancelled_like_any_other(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes while the engine is being closed, and is cancelled before it could open it again."""
    first = await begun("first", path)
    closing, may_close = close_slowly(monkeypatch)
    gate.event("first").set()
    await closing.wait()
    second = asyncio.create_task(durable.run(going("second"), id="second", url=path))
    await asyncio.sleep(0)
    second.cancel()
    may_close.set()
    assert await first == "first"
    with pytest.raises(asyncio.CancelledError):
        await second
    await nobody_has(path, "first")


@durable.action
async def closing_its_engine() -> None:
    await Engine.current().__aexit__(None, None, None)


@durable.workflow
async def closing_it(step: Step) -> None:
    await closing_its_engine()


async def test_an_action_cannot_close_its_engine(path: Path) -> None:
    async with Engine(path) as engine:
        with pytest.raises(durable.RunFailed, match="cannot close the engine") as failed:
            await engine.run(closing_it())
        assert isinstance(failed.value.__cause__, RuntimeError)
