"""``step.patched``: code that changes while runs of it are under way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING

import pytest
from clock import ManualClock
from faults import Disk, Fault, once_available
from waiting import WAIT_S_MAX, until_open, until_state, until_step

import durable
from durable import Engine, NotInWorkflowError, RunFailed, RunState, Step, StepState

if TYPE_CHECKING:
    from pathlib import Path

Code = Callable[[Step], Coroutine[None, None, list[str]]]

HOUR_S = 3_600.0
deployed: list[Code] = []


@durable.action
async def note(text: str) -> str:
    return text


@durable.workflow
async def changing(step: Step) -> list[str]:
    return await deployed[-1](step)


async def old(step: Step) -> list[str]:
    first = await note("old")
    await step.sleep(HOUR_S)
    return [first, await note("end")]


async def new(step: Step) -> list[str]:
    first = await note("new" if step.patched("first") else "old")
    await step.sleep(HOUR_S)
    ends = [await note("better")] if step.patched("last") else []
    return [first, *ends, await note("end")]


async def without_guards(step: Step) -> list[str]:
    first = await note("new")
    await step.sleep(HOUR_S)
    return [first, await note("better"), await note("end")]


class Deploys:
    """One run, across engines, each of which has the code of its time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = ManualClock()
        self.run_id = ""

    def engine(self, code: Code) -> Engine:
        deployed[:] = [code]
        engine = Engine(self.path)
        self.clock.install(engine)
        return engine

    async def start(self, code: Code) -> None:
        async with self.engine(code) as engine:
            run = await engine.start(changing())
            self.run_id = run.id
            await until_step(run, "sleep", StepState.RUNNING)

    async def finish(self, code: Code) -> list[str]:
        async with self.engine(code) as engine:
            run = engine.get(self.run_id)
            await until_open(run)
            self.clock.advance(HOUR_S)
            result: list[str] = await run.result(timeout=WAIT_S_MAX)
            return result


async def test_a_new_run_takes_the_new_code_and_keeps_to_it(path: Path) -> None:
    deploys = Deploys(path)
    await deploys.start(new)
    assert await deploys.finish(new) == ["new", "better", "end"]


async def test_a_run_that_has_passed_the_point_goes_on_with_the_old_code(path: Path) -> None:
    """And where it has not come yet, it takes the new."""
    deploys = Deploys(path)
    await deploys.start(old)
    assert await deploys.finish(new) == ["old", "better", "end"]


async def test_without_the_guard_such_a_run_is_stuck(path: Path) -> None:
    deploys = Deploys(path)
    await deploys.start(old)
    async with deploys.engine(without_guards) as engine:
        deploys.clock.advance(HOUR_S)
        status = await until_state(engine.get(deploys.run_id), RunState.STUCK)
        assert status.error is not None
        assert '"old"' in status.error.message
        assert '"new"' in status.error.message


async def test_the_guards_may_go_once_no_run_needs_them(path: Path) -> None:
    deploys = Deploys(path)
    await deploys.start(new)
    assert await deploys.finish(without_guards) == ["new", "better", "end"]


async def test_the_answer_is_no_step(path: Path) -> None:
    deploys = Deploys(path)
    await deploys.start(new)
    await deploys.finish(new)
    async with deploys.engine(new) as engine:
        run = engine.get(deploys.run_id)
        steps = [(step.number, step.name) async for step in run.steps()]
        assert [number for number, _ in steps] == [0, 1, 2, 3]
        assert [info.name for info in (await engine.list_steps(run.id, order="desc")).items] == [
            name for _, name in reversed(steps)
        ]


async def in_a_loop(step: Step) -> list[str]:
    texts: list[str] = []
    for _ in range(3):
        texts.append(await note("new" if step.patched("text") else "old"))
        if len(texts) == 1:
            await step.sleep(HOUR_S)
    return texts


async def in_a_loop_before(step: Step) -> list[str]:
    texts: list[str] = []
    for _ in range(3):
        texts.append(await note("old"))
        if len(texts) == 1:
            await step.sleep(HOUR_S)
    return texts


async def test_the_first_answer_stands_for_the_whole_run(path: Path) -> None:
    """A loop does not change its mind half way, neither at once nor after a replay."""
    deploys = Deploys(path)
    await deploys.start(in_a_loop_before)
    assert await deploys.finish(in_a_loop) == ["old", "old", "old"]
    again = Deploys(path)
    await again.start(in_a_loop)
    assert await again.finish(in_a_loop) == ["new", "new", "new"]


async def many(step: Step) -> list[str]:
    async def branch(name: str) -> str:
        new = step.patched(name)
        return await note(f"{name} {'new' if new else 'old'}")

    texts = await asyncio.gather(*(branch(name) for name in "abc"))
    await step.sleep(HOUR_S)
    more = await asyncio.gather(*(branch(name) for name in "cde"))
    return [*texts, *more]


async def test_each_change_has_its_own_answer(path: Path) -> None:
    deploys = Deploys(path)
    await deploys.start(many)
    assert await deploys.finish(many) == [f"{name} new" for name in "abccde"]


async def pure(step: Step) -> list[str]:
    return [str(step.patched("a")), str(step.patched("b")), str(step.patched("a"))]


async def test_a_body_without_steps_may_ask(path: Path) -> None:
    deployed[:] = [pure]
    async with Engine(path) as engine:
        assert await engine.run(changing()) == ["True", "True", "True"]


async def many_soon(step: Step) -> list[str]:
    texts = [await note(f"{name} {'new' if step.patched(name) else 'old'}") for name in "ab"]
    texts.append(await note("end"))
    texts += [await note(f"{name} {'new' if step.patched(name) else 'old'}") for name in "bc"]
    return texts


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("number", range(1, 6))
async def test_a_commit_that_fails_changes_no_answer(
    path: Path, number: int, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is in the journal together with what it has led to, or neither is."""
    disk = Disk()
    disk.install(monkeypatch)
    disk.faults[("commit", number)] = fault
    deployed[:] = [many_soon]
    async with Engine(path) as engine:
        start = partial(engine.start, changing(), id="run")
        run = await once_available(disk, start)
        ask = partial(run.result, WAIT_S_MAX)
        assert await once_available(disk, ask) == ["a new", "b new", "end", "b new", "c new"]
        assert disk.outages == 1


# --- restarted -----------------------------------------------------------------------------------


@durable.action
async def bug() -> str:
    msg = "a bug"
    raise LookupError(msg)


async def breaking(_step: Step) -> list[str]:
    first = await note("first")
    await bug()
    return [first, "broken"]


async def mended(step: Step) -> list[str]:
    first = await note("first")
    if step.patched("mend"):
        second = await note("mended")
        await step.sleep(HOUR_S)
        return [first, second, await note("new" if step.patched("later") else "old")]
    await bug()
    return [first, "broken"]


@pytest.mark.parametrize("from_step", [1, "test_patched:bug", None])
@pytest.mark.parametrize("fault", [None, *Fault])
async def test_a_restart_takes_the_code_that_is_mended_where_it_goes_on(
    path: Path,
    from_step: int | str | None,
    fault: Fault | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And keeps to it: the answer is recorded with what it leads to."""
    disk = Disk()
    disk.install(monkeypatch)
    deployed[:] = [breaking]
    async with Engine(path) as engine:
        with pytest.raises(RunFailed):
            await engine.run(changing(), id="run")
    deployed[:] = [mended]
    clock, engine = ManualClock(), Engine(path)
    clock.install(engine)
    async with engine:
        if fault is not None:
            disk.faults["commit", disk.calls["commit"] + 2] = fault  # The first one after it.
        await engine.restart("run", from_step=from_step)
        again = partial(until_step, engine.get("run"), "sleep", StepState.RUNNING)
        await once_available(disk, again)
        assert disk.outages == (fault is not None)
    clock, engine = ManualClock(), Engine(path)
    clock.install(engine)
    async with engine:
        await until_step(engine.get("run"), "sleep", StepState.RUNNING)
        clock.advance(HOUR_S)
        assert await engine.get("run").result(WAIT_S_MAX) == ["first", "mended", "new"]


async def test_a_restart_changes_no_answer_before_it(path: Path) -> None:
    async def asking_early(step: Step) -> list[str]:
        first = await note("early" if step.patched("mend") else "first")
        await note("late" if step.patched("mend") else "mended")
        return [first]

    deployed[:] = [breaking]
    async with Engine(path) as engine:
        with pytest.raises(RunFailed):
            await engine.run(changing(), id="run")
        deployed[:] = [asking_early]
        await engine.restart("run", from_step=1)
        assert await engine.get("run").result(WAIT_S_MAX) == ["first"]


@pytest.mark.parametrize("change_id", ["", None, 3, b"x"])
async def test_a_change_has_a_name(path: Path, change_id: object) -> None:
    async def asking(step: Step) -> list[str]:
        with pytest.raises(TypeError, match="change_id"):
            step.patched(change_id)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        return []

    deployed[:] = [asking]
    async with Engine(path) as engine:
        assert await engine.run(changing()) == []


async def test_only_the_body_itself_may_ask(path: Path) -> None:
    steps: list[Step] = []

    async def leaking(step: Step) -> list[str]:
        steps.append(step)
        return []

    deployed[:] = [leaking]
    async with Engine(path) as engine:
        await engine.run(changing())
        with pytest.raises(NotInWorkflowError):
            steps[0].patched("x")
