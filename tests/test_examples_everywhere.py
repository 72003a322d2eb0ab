"""Each example comes to the same with a crash around every commit, and in other orders.

By the test kit, as users would do it. ``test_example_crashes`` has what is not theirs: the checkers
of the invariants, crashes in recovery, and SIGKILL.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

import durable
from durable import Engine, EventAlreadySentError, EventId, OutcomeUnknown, testing
from durable.testing import Environment

EXAMPLES: Final = Path(__file__).parent.parent / "examples"
DAY_S: Final = 86_400.0

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _no_blocking_calls() -> None:
    """The examples' own files are written on the event loop."""


@pytest.fixture(autouse=True)
def _examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)


@dataclass
class Case:
    """What is played of an example.

    Attributes:
        outcome: What it comes to, in every order of completion as well.
        fakes: What stands in for the world.
    """

    call: durable.Call[Any]
    outcome: str
    script: Callable[[Environment, str], Awaitable[None]] | None = None
    setup: Callable[[Environment], object] | None = None
    check: Callable[[Environment], object] | None = None
    may_raise: tuple[type[Exception], ...] = ()
    fakes: Callable[[Environment], None] = lambda _: None


def example(name: str) -> Any:  # noqa: ANN401  what mypy cannot follow
    return importlib.import_module(name)


def agent() -> Case:
    module = example("agent")

    async def approve(env: Environment, run_id: str) -> None:
        await env.run_until_idle()
        await env.send_event(run_id, module.APPROVED, value=True)

    def answer(url: str, messages: Any) -> Any:  # noqa: ANN401  the model's
        return module._answer(messages)

    return Case(
        module.agent("no url", "Get me to Oslo."),
        "completed: 'Booked. Weather: rain in Oslo; seat 12A on the 9:40 to Oslo.'",
        script=approve,
        may_raise=(OutcomeUnknown,),
        fakes=lambda env: void(env.replace(module.ask_model, answer)),
    )


def void(_: object) -> None:
    pass


def approval() -> Case:
    module = example("approval")

    def setup(env: Environment) -> None:
        module.mailbox = asyncio.Queue()

    async def answer_the_last_mail(env: Environment, run_id: str) -> None:
        await env.run_until_idle()
        links = [module.mailbox.get_nowait()[1] for _ in range(module.mailbox.qsize())]
        decision = module.Decision(approved=True, by="the boss")
        with contextlib.suppress(EventAlreadySentError):
            await env.ask(lambda engine: engine.send_event_id(EventId.parse(links[-1]), decision))

    return Case(
        module.expenses("Ann", 250),
        "completed: 'Ann was paid 250 euros, approved by the boss'",
        script=answer_the_last_mail,
        setup=setup,
    )


def approval_without_an_answer() -> Case:
    case = approval()
    case.call = example("approval").expenses("Cem", 40)
    case.outcome = "completed: 'Cem was paid 40 euros, approved by nobody: the time was up'"
    case.script = None
    return case


def batch() -> Case:
    return Case(
        example("batch").batch(4, 2), "completed: {'converted': 4, 'failed': 0, 'bytes': 6000}"
    )


def callback() -> Case:
    module = example("callback")

    async def make_table(env: Environment) -> None:
        async with env.engine.transaction() as tx:
            await tx.execute("CREATE TABLE outcome (customer TEXT, text TEXT)")

    async def start_another(env: Environment, run_id: str) -> None:
        call = module.job(13)
        context = {"customer": "Grace"}
        await env.ask(
            lambda engine: engine.start(
                call, id="second", on_complete=module.record, context=context
            )
        )
        with contextlib.suppress(durable.RunFailed):
            await env.result("second")

    return Case(module.job(4), "completed: 8", script=start_another, setup=make_table)


def ledger() -> Case:
    module = example("ledger")

    async def open_accounts(env: Environment) -> None:
        async with env.engine.transaction() as tx:
            for table in module.TABLES:
                await tx.execute(table)
            await tx.executemany("INSERT INTO account VALUES (?, ?)", module.OPENING.items())

    return Case(
        module.transfer("ann", "bob", 1250),
        "completed: 'ann has 487.50 left'",
        setup=open_accounts,
        fakes=lambda env: void(env.replace(module.approve, "approved")),
    )


def nested() -> Case:
    module = example("nested")

    def check(env: Environment) -> None:
        assert module.bookings == {"a flight to the moon", "a room on the moon"}

    return Case(
        module.trip("Ada", "the moon"),
        "completed: ['a flight to the moon', 'a walk, because there is no road', "
        "'a room on the moon']",
        setup=lambda _: module.bookings.clear(),
        check=check,
    )


def nested_canceled() -> Case:
    module = example("nested")

    async def cancel(env: Environment, run_id: str) -> None:
        await env.run_until_idle()
        assert module.bookings == {"a flight to an island", "a car on an island"} | {
            "a room on an island"
        }
        await env.cancel(run_id, interrupt=True)

    def check(env: Environment) -> None:
        assert not module.bookings

    return Case(
        module.trip("Grace", "an island"),
        "canceled",
        script=cancel,
        setup=lambda _: module.bookings.clear(),
        check=check,
        fakes=lambda env: env.delay(module.approve, DAY_S),
    )


def onboarding() -> Case:
    module = example("onboarding")
    office, texts = example("_onboarding.office"), example("_onboarding.texts")
    signups = example("_onboarding.signups")
    office.CONNECT_S = office.ANSWER_S = texts.ANSWER_S = 0.001
    folders: list[tempfile.TemporaryDirectory[str]] = []

    def setup(env: Environment) -> None:
        folders.append(tempfile.TemporaryDirectory())
        module.office.open(Path(folders[-1].name), fresh=False)

    def check(env: Environment) -> None:
        assert list(module.office.customers()) == [("run", "ada@example.com")]
        assert len(list(module.office.mails())) == 2
        folders.pop().cleanup()

    signup = signups.SignUp(
        "Ada", "ada@example.com", signups.Plan.PRO, signups.Language.EN, date(2026, 1, 2)
    )
    return Case(module.onboarding(signup, DAY_S), "completed", setup=setup, check=check)


def retries() -> Case:
    return Case(
        example("retries").order("a lamp"),
        "completed: ['charged 1200', 'not reserved: a lamp is sold out', 'charged 0']",
        may_raise=(OutcomeUnknown,),
    )


def scheduled() -> Case:
    return Case(example("scheduled").reminders("Ada"), "completed: ['2025-01-01T00:00:00Z', ")


def signals() -> Case:
    module = example("signals")

    async def send(event_id: EventId, value: str, engine: Engine) -> None:
        await engine.send_event_id(event_id, value)

    async def sign(env: Environment, run_id: str) -> None:
        await env.run_until_idle()
        for name, event_id in reversed(list(module.offices.items())):
            with contextlib.suppress(EventAlreadySentError):
                await env.ask(partial(send, event_id, f"by {name}"))

    return Case(
        module.contract(["legal", "board"]),
        "completed: ['by legal', 'by board']",
        script=sign,
        setup=lambda _: module.offices.clear(),
    )


def web_app(name: str) -> Case:
    module = example(name)

    async def sign_up(env: Environment) -> None:
        async with env.engine.transaction() as tx:
            await tx.execute("CREATE TABLE sign_up (run_id TEXT PRIMARY KEY, email, state)")
            await tx.execute("INSERT INTO sign_up VALUES ('run', 'ada@example.com', 'new')")

    async def confirm(env: Environment, run_id: str) -> None:
        await env.advance(6 * DAY_S)
        await env.send_event(run_id, module.CONFIRMED, "a browser")

    return Case(
        module.sign_up("ada@example.com"),
        "completed: 'confirmed'",
        script=confirm,
        setup=sign_up,
    )


CASES: Final[dict[str, Callable[[], Case]]] = {
    "agent": agent,
    "aiohttp_app": lambda: web_app("aiohttp_app"),
    "approval": approval,
    "approval, without an answer": approval_without_an_answer,
    "batch": batch,
    "callback": callback,
    "ledger": ledger,
    "nested": nested,
    "nested, cancelled": nested_canceled,
    "onboarding": onboarding,
    "retries": retries,
    "scheduled": scheduled,
    "signals": signals,
    "starlette_app": lambda: web_app("starlette_app"),
}

each_case = pytest.mark.parametrize("name", CASES)


def test_there_is_a_case_for_every_example() -> None:
    names = {name.partition(",")[0] for name in CASES}
    assert names == {path.stem for path in EXAMPLES.glob("*.py")}


@each_case
async def test_a_crash_around_any_commit_changes_nothing(name: str) -> None:
    case = CASES[name]()
    env = testing.engine()
    case.fakes(env)
    crashes = await env.crash_everywhere(
        case.call,
        script=case.script,
        setup=case.setup,
        check=case.check,
        may_raise=case.may_raise,
    )
    print(f"{name}: {crashes.commits} commits")  # noqa: T201  pytest shows it
    assert str(crashes.outcome).startswith(case.outcome)
    assert crashes.crashes >= crashes.commits >= 4


@each_case
async def test_any_order_of_completions_is_replayed(name: str) -> None:
    case = CASES[name]()
    env = testing.engine()
    case.fakes(env)
    shuffled = await env.shuffle(
        case.call, seeds=5, script=case.script, setup=case.setup, check=case.check
    )
    for outcome in shuffled.outcomes.values():
        assert str(outcome).startswith(case.outcome)
