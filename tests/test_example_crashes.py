"""What the examples do comes out right whichever commit a crash comes before, or after."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any, Final

import pytest
from crashes.image import Image
from invariants import Rules
from sweeps import Flow, Life, Lives, die_at, sweep

import durable
from durable import (
    EventAlreadySentError,
    EventId,
    Retry,
    RunFinishedError,
    RunState,
    Step,
    Transaction,
)

ROOT: Final = Path(__file__).parent.parent
RUN: Final = "run"
HOUR_S: Final = 3600.0
LOOK_S: Final = 0.02
"""The real time after which the clock is looked at again, when it was set forward."""

GOING_ON: Final = (RunState.PENDING, RunState.RUNNING)

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]


@pytest.fixture(autouse=True)
def _no_blocking_calls() -> None:
    """The flows' own files are written on the event loop; and looking takes its time."""


@pytest.fixture(autouse=True)
def _examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")


def example(name: str) -> Any:  # noqa: ANN401  what mypy cannot follow
    return importlib.import_module(name)


# --- the flows -----------------------------------------------------------------------------------


class Onboarding:
    """One sign-up: two mails, a refusal of the writing service that is retried, a row."""

    run_id = "run-6"
    """The service refuses the first attempt of this one, and not the second."""
    rules = Rules(25, retries={"tips": Retry(max_attempts=6, initial_backoff=0.2)})

    def __init__(self, directory: Path) -> None:
        self._module: Any = example("onboarding")
        office: Any = example("_onboarding.office")
        texts: Any = example("_onboarding.texts")
        signups: Any = example("_onboarding.signups")
        office.CONNECT_S = office.ANSWER_S = texts.ANSWER_S = 0.001
        self._module.office.open(directory, fresh=False)
        self._signup = signups.SignUp(
            "Ada", "ada@example.com", signups.Plan.PRO, signups.Language.EN, date(2026, 1, 2)
        )
        self._recorded: Counter[str] = Counter()

    async def live(self, life: Life) -> object:
        run = await life.start(self._module.onboarding(self._signup, 0.4), self.run_id)
        return await life.see(run)

    def check(self, image: Image) -> None:
        """A mail is sent once at most when its sending is recorded, and none is sent again."""
        office = self._module.office
        sent = Counter(str(send.kind) for send in office.sends())
        mails = Counter(str(mail.kind) for mail in office.mails())
        assert not mails or set(mails.values()) == {1}, mails
        for step in image.steps.values():
            if step.state == "completed" and step.name.endswith("-mail"):
                assert mails[step.name] == 1
                assert self._recorded.setdefault(step.name, sent[step.name]) == sent[step.name]
            if step.state == "completed" and step.name == "tips":
                assert step.attempts == 2
        if image.runs and image.runs[self.run_id].is_final:
            assert list(office.customers()) == [(self.run_id, "ada@example.com")]
            assert sum(mails.values()) == 2


class Approval:
    """Three claims: one is approved, one is sent back, nobody answers the third."""

    rules = Rules(25)
    claims = (("Ann", 250), ("Ben", 80), ("Cem", 40))

    def __init__(self, _directory: Path) -> None:
        self._module: Any = example("approval")
        self._module.ANSWER_WITHIN_S = HOUR_S
        self._module.mailbox = asyncio.Queue()
        self._mails: list[tuple[str, EventId]] = []

    async def live(self, life: Life) -> object:
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(self._boss(life))]
        try:
            runs = [
                await life.start(self._module.expenses(*claim), claim[0]) for claim in self.claims
            ]
            answered = [await life.see(run) for run in runs[:2]]
            last = asyncio.create_task(life.see(runs[2]))
            tasks.append(last)
            while not last.done():
                life.clock.set_forward(HOUR_S)
                await asyncio.wait([last], timeout=LOOK_S)
            return [*answered, last.result()]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _boss(self, life: Life) -> None:
        """Answer each mail, until that is acknowledged: mails stay, whatever crashes."""
        module = self._module
        answers: dict[str, dict[str, Any]] = {
            "Ann": {"value": module.Decision(approved=True, by="the boss")},
            "Ben": {"error": "please add the receipts"},
        }
        while True:
            while not self._mails:
                employee, link = await module.mailbox.get()
                self._mails.append((employee, EventId.parse(link)))
            employee, event_id = self._mails[0]
            if employee in answers:
                with contextlib.suppress(EventAlreadySentError, RunFinishedError):
                    await life.engine.send_event_id(event_id, **answers[employee])
            self._mails.pop(0)

    def check(self, image: Image) -> None:
        """That each event is consumed once is checked with all invariants."""


class Nested:
    """A trip, with children two levels deep, one of which fails."""

    rules = Rules(25)

    def __init__(self, _directory: Path) -> None:
        self._module: Any = example("nested")
        self._module.bookings.clear()

    async def live(self, life: Life) -> object:
        run = await life.start(self._module.trip("Ada", "the moon"), RUN)
        return await life.see(run)

    def check(self, image: Image) -> None:
        """What was booked stays booked, by one run each."""
        if image.runs and image.runs[RUN].is_final:
            assert self._module.bookings == {"a flight to the moon", "a room on the moon"}
            assert len(image.runs) == 5
            assert all(run.is_final for run in image.runs.values())


class NestedCanceled(Nested):
    """A trip that is cancelled when all is reserved: the children give it back."""

    async def live(self, life: Life) -> object:
        run = await life.start(self._module.trip("Grace", "an island"), RUN)
        while (await run.status()).state in GOING_ON and not await self._is_all_reserved(life):
            pass
        await run.cancel(interrupt=True)
        outcome = await life.see(run)
        children = [child async for child in life.engine.iter_runs()]
        for child in children:
            await life.see(life.engine.get(child.id))
        return outcome

    async def _is_all_reserved(self, life: Life) -> bool:
        runs = [run async for run in life.engine.iter_runs()]
        open_steps = [step.name for run in runs for step in run.running]
        return sum(name.endswith("approve") for name in open_steps) == 3

    def check(self, image: Image) -> None:
        if len(image.runs) == 5 and all(run.is_final for run in image.runs.values()):
            assert not self._module.bookings
            assert image.runs[RUN].state == "canceled"


# --- cancel with cleanup, by mutations -----------------------------------------------------------


@durable.mutation
async def take(tx: Transaction, run_id: str) -> None:
    await tx.execute("UPDATE stock SET left = left - 1")
    await tx.execute("INSERT INTO move VALUES (?, 'take')", run_id)


@durable.mutation
async def put_back(tx: Transaction, run_id: str) -> None:
    await tx.execute("UPDATE stock SET left = left + 1")
    await tx.execute("INSERT INTO move VALUES (?, 'put back')", run_id)


@durable.action
async def deliver() -> None:
    await asyncio.Event().wait()


@durable.action
async def refund(run_id: str) -> str:
    return f"refunded {run_id}"


@durable.workflow
async def order(step: Step) -> None:
    await take(step.run_id)
    try:
        await deliver()
    finally:
        await asyncio.gather(put_back(step.run_id), refund(step.run_id))
        await step.sleep(0.05)


class Order:
    """An order that is cancelled while it is delivered: a mutation and an action clean up."""

    rules = Rules(25)

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def live(self, life: Life) -> object:
        async with life.engine.transaction() as tx:
            await tx.execute("CREATE TABLE IF NOT EXISTS move (run_id TEXT, what TEXT)")
            await tx.execute("CREATE TABLE IF NOT EXISTS stock (left INTEGER)")
            if await tx.fetch_one("SELECT * FROM stock") is None:
                await tx.execute("INSERT INTO stock VALUES (10)")
        run = await life.start(order(), RUN)
        while (status := await run.status()).state in GOING_ON:
            if any(step.name.endswith("deliver") for step in status.running):
                break
        await run.cancel(interrupt=True)
        return await life.see(run)

    def check(self, image: Image) -> None:
        """A mutation's writes are there exactly when its step is recorded, and once."""
        with closing(sqlite3.connect(self._directory / "journal.db")) as db:
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
            moves = db.execute("SELECT what FROM move").fetchall() if "move" in tables else []
            left = db.execute("SELECT left FROM stock").fetchone() if "stock" in tables else None
        recorded = Counter(
            step.name.rpartition(":")[2]
            for step in image.steps.values()
            if step.kind == "mutation" and step.state == "completed"
        )
        made = Counter(what.replace(" ", "_") for (what,) in moves)
        assert made == recorded
        assert not made or set(made.values()) == {1}
        if left is not None:
            assert left == (10 - made["take"] + made["put_back"],)
        if image.runs and image.runs[RUN].is_final:
            assert made == {"take": 1, "put_back": 1}
            assert image.runs[RUN].state == "canceled"


# --- the sweeps ----------------------------------------------------------------------------------

FLOWS: Final[dict[str, tuple[Callable[[Path], Flow], int]]] = {
    "onboarding": (Onboarding, 9),
    "approval": (Approval, 10),
    "nested": (Nested, 9),
    "nested, cancelled": (NestedCanceled, 9),
    "cancel with cleanup": (Order, 7),
}
"""Each with the least number of its commits: how many changes share one is a matter of time."""


@pytest.mark.parametrize("name", FLOWS)
async def test_a_crash_around_any_commit_changes_nothing(tmp_path: Path, name: str) -> None:
    make_flow, commits_min = FLOWS[name]
    swept = await sweep(tmp_path, make_flow)
    print(f"{name}: {swept}")  # noqa: T201  pytest shows it
    assert len(swept.outcomes) == 1
    assert swept.commits >= commits_min
    assert swept.crashes >= 4 * commits_min


KILLED: Final = ("onboarding", "cancel with cleanup")
"""The flows whose effects outlive their process."""

KILLED_AT: Final = (2, 4, 6)
CHILD: Final = "import sys, asyncio, test_example_crashes as t; asyncio.run(t.live(*sys.argv[1:]))"


async def live(name: str, directory: str, life: str, at: str, after: str) -> None:
    """The child: live until the kill."""
    make_flow, _ = FLOWS[name]
    await die_at(make_flow(Path(directory)), Path(directory), life, int(at), after=after == "after")


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("after", ["before", "after"])
@pytest.mark.parametrize("name", KILLED)
async def test_a_killed_process_is_taken_up(tmp_path: Path, name: str, after: str) -> None:
    make_flow, _ = FLOWS[name]
    outcomes: set[str] = set()
    for at in KILLED_AT:
        directory = tmp_path / str(at)
        await asyncio.to_thread(directory.mkdir)
        places = [str(ROOT), str(ROOT / "tests"), str(ROOT / "examples")]
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", CHILD, name, str(directory), "killed", str(at), after),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
            stderr=subprocess.PIPE,
        )
        _, errors = await child.communicate()
        assert child.returncode == -9, errors.decode()
        lives = Lives(make_flow(directory), directory)
        lives.examine(directory / "life-killed.jsonl")
        is_over, outcome = await lives.live()
        assert is_over
        lives.examine_end()
        outcomes.add(repr(outcome))
    assert len(outcomes) == 1
