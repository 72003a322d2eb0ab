"""``restart`` with changed code, while the journal fails or the process dies."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest
from changing import Code, act, complete, new_day, today
from faults import Fault, crashing, each_to_fail, once_available, opened
from sweeps import RECOVERY_POINTS, Crash, MortalJournal
from test_restart_code import child, replays, result, states

from durable import Engine, Step

if TYPE_CHECKING:
    from pathlib import Path

    from durable import Run

pytestmark = pytest.mark.slow


async def losing(_step: Step) -> list[str]:
    first, second, third = (asyncio.ensure_future(act(text)) for text in "abc")
    done = [await first, await third]
    second.cancel()
    return done


async def completed(engine: Engine) -> Run[Any]:
    """Let a run complete whose second step is withdrawn when its third is done."""
    today.held.add("b")
    return await complete(engine, losing)


async def anew(_step: Step) -> list[str]:
    done = await asyncio.gather(act("a"), child("y"), act("z"))
    return [*done, await act("end")]


async def withdrawn(_step: Step) -> list[str]:
    first = asyncio.ensure_future(act("a"))
    others = [asyncio.ensure_future(act("never")), asyncio.ensure_future(child("never"))]
    await first
    for each in others:
        each.cancel()
    return [first.result(), await act("after")]


async def withdrawn_again(_step: Step) -> list[str]:
    first, second = asyncio.ensure_future(act("a")), asyncio.ensure_future(act("b"))
    await first
    second.cancel()
    return [first.result(), await act("after")]


async def ending(_step: Step) -> list[str]:
    tasks = [asyncio.ensure_future(call) for call in (act("a"), act("never"), child("never"))]
    return [await tasks[0]]


class Changed(NamedTuple):
    """What a run is restarted with, after ``losing``, and what comes of it.

    Attributes:
        from_step: The first step that is dropped.
        begun: What its actions note.
        states: Of its steps, in order.
        children: How many runs there are under it.
        commits: The least number of writes that may fail.
    """

    code: Code
    from_step: int
    value: list[str]
    begun: list[str]
    states: list[str]
    children: int
    commits: int


DEATHS: Final = 2
DONE, GONE = "completed", "canceled"

CHANGED: Final = {
    "issued anew": Changed(anew, 1, [*"ayz", "end"], [*"yz", "end"], [DONE] * 4, 1, 4),
    "withdrawn anew": Changed(
        withdrawn, 1, ["a", "after"], ["after"], [DONE, GONE, GONE, DONE], 0, 3
    ),
    "withdrawn again": Changed(
        withdrawn_again, 2, ["a", "after"], ["after"], [DONE, GONE, DONE], 0, 3
    ),
    "ended early": Changed(ending, 1, ["a"], [], [DONE, GONE, GONE], 0, 1),
}


async def restarted(run: Run[Any], from_step: int) -> None:
    """Ask for the restart, unless it was made by one whose outcome was unknown."""
    if not (await run.status()).generation:
        await run.restart(from_step=from_step)


@pytest.mark.parametrize("fault", list(Fault))
@pytest.mark.parametrize("what", ["commit", "claim"])
@pytest.mark.parametrize("name", CHANGED)
async def test_whichever_write_fails_the_new_code_is_done_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, name: str, what: str, fault: Fault
) -> None:
    changed = CHANGED[name]
    for number, disk in each_to_fail(monkeypatch, changed.commits if what == "commit" else 2):
        new_day()
        async with opened(path.with_name(f"{number}.db")) as engine:
            run = await completed(engine)
            today.code = changed.code
            disk.faults[what, disk.calls[what] + number] = fault
            await once_available(disk, partial(restarted, run, changed.from_step))
            assert await result(run) == changed.value
            disk.faults.clear()
            await once_available(disk, partial(check, engine, run, changed))


async def check(engine: Engine, run: Run[Any], changed: Changed) -> None:
    """See that each new step has begun once, and that the body gets the same from its history."""
    assert today.begun == Counter(changed.begun)
    await check_steps(engine, run, changed)
    assert await replays(run) == changed.value
    assert set(today.begun) == set(changed.begun)


async def check_steps(engine: Engine, run: Run[Any], changed: Changed) -> None:
    assert [state for _, _, state in await states(run)] == changed.states
    assert (await run.status()).generation == 1
    assert len([each async for each in engine.iter_runs()]) == 1 + changed.children


async def lived(path: Path, run_id: str, from_step: int, crash: Crash) -> Any:  # noqa: ANN401
    """Restart the run, unless that was done before, and see its end; ``None`` after a crash."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("durable.journal.sqlite.SqliteJournal", partial(MortalJournal, crash))
        async with crashing(path) as engine:
            living = asyncio.create_task(_to_the_end(engine.get(run_id), from_step))
            dying = asyncio.create_task(crash.has_come.wait())
            await asyncio.wait([living, dying], return_when=asyncio.FIRST_COMPLETED)
            is_over = living.done()
            for task in (living, dying):
                task.cancel()
            await asyncio.wait([living, dying])
    return living.result() if is_over else None


async def _to_the_end(run: Run[Any], from_step: int) -> Any:  # noqa: ANN401
    await restarted(run, from_step)
    return await result(run)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", CHANGED)
async def test_a_crash_around_any_commit_changes_nothing(
    path: Path, name: str, *, after: bool
) -> None:
    """And around one of the next life's, too."""
    changed = CHANGED[name]
    for number in count():
        new_day()
        file = path.with_name(f"{number}.db")
        async with Engine(file) as engine:
            run_id = (await completed(engine)).id
        today.code = changed.code
        crash = Crash(number, after=after)
        live = partial(lived, file, run_id, changed.from_step)
        found = await live(crash)
        if crash.has_come.is_set():
            again = Crash(number % RECOVERY_POINTS, after=not after)
            found = await live(again) or await live(Crash(None))
        assert found == changed.value
        assert set(today.begun) == set(changed.begun)
        assert max(today.begun.values(), default=1) <= DEATHS + 1
        async with Engine(file) as engine:
            await check_steps(engine, engine.get(run_id), changed)
        if not crash.has_come.is_set():
            assert number >= changed.commits
            return
