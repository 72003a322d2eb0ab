"""``Engine(strict=True)``: what goes past a body's loop is refused, in bodies and nowhere else."""

# ruff: noqa: ASYNC240, PLW0108, S311  what is refused, by lines of this file
from __future__ import annotations

import asyncio
import contextlib
import cProfile
import datetime as dt
import functools
import gc
import glob
import inspect
import linecache
import logging
import os
import pathlib
import random
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
import warnings
import weakref
from contextvars import ContextVar
from importlib import import_module
from typing import TYPE_CHECKING, Any
from zoneinfo import TZPATH, ZoneInfo

import changing
import msgspec
import player
import pytest
from changing import act, today
from corpus import CORPUS, Case
from player import AnyOrder, dice
from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel
from replay_driver import replay_all, run_live
from waiting import WAIT_S_MAX, until_open, until_state

import durable
from durable import (
    Engine,
    NonDeterminismError,
    RunFailed,
    RunState,
    Step,
    Transaction,
)
from durable.core.execution import Execution
from durable.runtime import strictness
from durable.runtime.strictness import strict_guard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path
    from types import FrameType

HERE = pathlib.Path(__file__)


@pytest.fixture(autouse=True)
def _no_blocking_calls() -> None:
    """Here bodies are to make them; what fails such tests elsewhere would be there first."""


@pytest.fixture
async def strict() -> AsyncIterator[Engine]:
    async with Engine("sqlite://", strict=True) as engine:
        yield engine


async def refusal_of(engine: Engine, call: Any) -> str:  # noqa: ANN401
    """Run a workflow that ends by being refused something; return what it is told."""
    with pytest.raises(RunFailed) as failed:
        await engine.run(call)
    assert failed.value.error.type_name == "durable.NonDeterminismError", failed.value.error
    return failed.value.error.message


# --- what is refused -----------------------------------------------------------------------------


class LikePendulum(dt.datetime):
    """A class of a library."""


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "open()": (lambda: open(HERE), "put it in an action"),  # noqa: SIM115, PTH123
    "open() by a path": (lambda: HERE.read_text("utf-8"), "put it in an action"),
    "open() for writing": (lambda: HERE.with_suffix(".no").write_text("x"), "put it in an action"),
    "os.listdir()": (lambda: os.listdir("/"), "put it in an action"),  # noqa: PTH208
    "os.remove()": (lambda: pathlib.Path("/no/such").unlink(), "put it in an action"),
    "os.mkdir()": (lambda: pathlib.Path("/no/such").mkdir(), "put it in an action"),
    "glob.glob()": (lambda: glob.glob("*"), "put it in an action"),  # noqa: PTH207
    "shutil.rmtree()": (lambda: shutil.rmtree("/no/such"), "put it in an action"),
    "tempfile.mkdtemp()": (tempfile.mkdtemp, "put it in an action"),
    "sqlite3.connect()": (lambda: sqlite3.connect(":memory:"), "put it in an action"),
    "socket.socket()": (socket.socket, "put it in an action"),
    "socket.getaddrinfo()": (lambda: socket.getaddrinfo("localhost", 80), "put it in an action"),
    "urllib.Request()": (lambda: urllib.request.urlopen("http://x"), "put it in an action"),
    "subprocess.Popen()": (lambda: subprocess.run(["true"], check=True), "put it in an action"),  # noqa: S607
    "os.system()": (lambda: os.system("true"), "put it in an action"),  # noqa: S605, S607
    "os.fork()": (os.fork, "put it in an action"),
    "os.posix_spawn()": (lambda: os.posix_spawn("/bin/true", ["true"], {}), "put it in an action"),
    "threading.Thread.start()": (lambda: threading.Thread(target=print).start(), "asyncio's tasks"),
    "threading.Thread.start() by a timer": (lambda: threading.Timer(9, print).start(), "asyncio"),
    "input()": (lambda: input(), "step.wait_event()"),
    "time.sleep()": (lambda: time.sleep(5), "step.sleep()"),
    "time.time()": (lambda: time.time(), "step.now()"),
    "time.time_ns()": (lambda: time.time_ns(), "step.now()"),
    "time.monotonic()": (lambda: time.monotonic(), "step.now()"),
    "time.perf_counter()": (lambda: time.perf_counter(), "step.now()"),
    "time.clock_gettime()": (lambda: time.clock_gettime(time.CLOCK_REALTIME), "step.now()"),
    "datetime.now()": (lambda: dt.datetime.now(dt.UTC), "step.now()"),
    "datetime.today()": (lambda: dt.datetime.today(), "step.now()"),  # noqa: DTZ002
    "date.today()": (lambda: dt.date.today(), "step.now()"),  # noqa: DTZ011
    "LikePendulum.now()": (lambda: LikePendulum.now(), "step.now()"),
    "random.random()": (lambda: random.random(), "step.random"),
    "random.randint()": (lambda: random.randint(1, 6), "step.random"),
    "random.shuffle()": (lambda: random.shuffle([1, 2]), "step.random"),
    "random.gauss()": (lambda: random.gauss(0, 1), "step.random"),
    "random.Random() without a seed": (lambda: random.Random(), "step.random"),
    "random.SystemRandom()": (lambda: random.SystemRandom().random(), "action return it"),
    "uuid.uuid1()": (lambda: uuid.uuid1(), "step.uuid4()"),
    "uuid.uuid4()": (lambda: uuid.uuid4(), "step.uuid4()"),
    "secrets.token_hex()": (lambda: secrets.token_hex(), "action return it"),
    "os.urandom()": (lambda: os.urandom(1), "action return it"),
    "os.getpid()": (lambda: os.getpid(), "put it in an action"),
}
"""What is named first, with words after it where there is more than one way; and the advice."""


@durable.workflow
async def doing(_step: Step, name: str) -> None:
    await act("before")
    REFUSED[name][0]()


@durable.action
async def doing_in_an_action(name: str) -> None:
    REFUSED[name][0]()


@pytest.mark.parametrize("name", REFUSED)
async def test_a_body_is_refused(strict: Engine, name: str) -> None:
    what = name.partition(" by ")[0].partition(" for ")[0]
    message = await refusal_of(strict, doing(name))
    assert message.startswith(f"a workflow's body may not use {what} (")
    assert REFUSED[name][1] in message.partition("Do this instead: ")[2]
    # Where it is done, and by which line of the body.
    _, first = inspect.getsourcelines(doing.fn)
    assert f"{HERE}:" in message
    assert (
        f"called at {HERE}:{first + 3} in doing()" in message
        or f"{first + 3} in doing()" in message
    )
    assert threading._limbo == {}  # type: ignore[attr-defined]


async def test_a_body_that_calls_it_itself_is_named_once(strict: Engine) -> None:
    message = await refusal_of(strict, direct())
    _, first = inspect.getsourcelines(direct.fn)
    assert f"time.time() ({HERE}:{first + 3} in direct()): it could" in message


@durable.workflow
async def direct(_step: Step) -> None:
    clock = {"now": time.time}
    clock["now"]()


@durable.workflow
async def in_a_task(_step: Step) -> None:
    async def part() -> None:
        await act("part")
        HERE.read_text("utf-8")  # durable: allow
        REFUSED["uuid.uuid4()"][0]()

    async with asyncio.TaskGroup() as group:
        group.create_task(part())


async def test_the_tasks_of_a_body_are_refused_too(strict: Engine) -> None:
    with pytest.raises(RunFailed, match="BaseExceptionGroup"):
        await strict.run(in_a_task())


@durable.workflow
async def parent(_step: Step) -> None:
    await doing("time.time()")


async def test_a_child_is_refused_too(strict: Engine) -> None:
    with pytest.raises(RunFailed, match=r"time\.time"):
        await strict.run(parent())


# --- what is not ---------------------------------------------------------------------------------

SHARED: ContextVar[int] = ContextVar("SHARED", default=1)


def warn() -> str:
    linecache.clearcache()
    return warnings.formatwarning("careful", UserWarning, str(HERE), 1)


ALLOWED: dict[str, Callable[[Step], object]] = {
    "step": lambda step: (step.now(), step.uuid4(), step.random.random(), step.random.choice("ab")),
    "seeded": lambda step: random.Random(step.run_id).randint(1, 6),
    "seeded, of a class": lambda _: Dice(5).roll(),
    "log": lambda step: step.log.warning("of the body", day=step.now()),
    "logging": lambda _: logging.getLogger("host").warning("of the body"),
    "warnings": lambda _: warn(),
    "print": lambda _: print("of the body"),  # noqa: T201
    "time zones": lambda step: step.now().astimezone(ZoneInfo("Europe/Lisbon")),
    "dates": lambda step: step.now().strftime("%c") + time.strftime("%c", time.gmtime(5)),
    "parsing dates": lambda _: dt.datetime.strptime("2000", "%Y"),  # noqa: DTZ007
    "environment": lambda _: os.environ.get("HOME"),
    "paths": lambda _: HERE.with_suffix(".x").name,
    "values": lambda _: msgspec.json.decode(msgspec.json.encode({"a": [1.5, None]})),
    "uuid5": lambda _: uuid.uuid5(uuid.NAMESPACE_URL, "x"),
    "locks": lambda _: threading.Lock().acquire(),
    "context": lambda _: SHARED.set(2),
    "a line that may": lambda _: time.time(),  # durable: allow
    "a line that may, further up": lambda _: clock_of_host(),  # durable: allow
    "a statement that may": lambda _: clock_of_host_and_more(),
    "traceback": lambda _: describe(),
}


class Dice(random.Random):
    def roll(self) -> int:
        return self.randint(1, 6)


def clock_of_host() -> float:
    return time.time()


def clock_of_host_and_more() -> list[float]:
    return [  # durable: allow
        1.5,
        time.time(),
    ]


def describe() -> str:
    import traceback  # noqa: PLC0415

    try:
        raise ValueError  # noqa: TRY301
    except ValueError:
        return traceback.format_exc()


@durable.workflow
async def allowed(step: Step, name: str) -> str:
    ALLOWED[name](step)
    await act("between")
    ALLOWED[name](step)
    return name


@pytest.mark.parametrize("name", ALLOWED)
async def test_a_body_may(strict: Engine, name: str) -> None:
    assert await strict.run(allowed(name)) == name


@durable.workflow
async def importing(_step: Step, name: str) -> str:
    module = import_module(name)
    return str(module.text)


async def test_an_import_may_read_what_it_likes(
    strict: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It happens once in a process, and not once in a run."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "text.txt").write_text("read")
    (tmp_path / "imported_in_a_body.py").write_text(
        "import time, uuid\nat, number = time.time(), uuid.uuid4()\n"
        f"text = open({str(tmp_path / 'text.txt')!r}).read()\n"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        assert await strict.run(importing("imported_in_a_body")) == "read"


@durable.query
async def look(_tx: Transaction) -> float:
    return time.time()


@durable.mutation
async def change(_tx: Transaction) -> float:
    return time.time()


@durable.action
def act_in_a_thread() -> str:
    return f"{HERE.read_text('utf-8')[:3]} {uuid.uuid4()} {time.time()}"


@durable.action
async def act_on_the_loop() -> str:
    reader = await asyncio.to_thread(HERE.read_text, "utf-8")
    return f"{reader[:3]} {random.random()} {dt.datetime.now(dt.UTC)}"


@durable.workflow
async def everything_elsewhere(_step: Step) -> None:
    await asyncio.gather(act_in_a_thread(), act_on_the_loop(), look(), change())


async def test_the_same_is_fine_in_actions_queries_and_mutations(path: Path) -> None:
    async with Engine(path, strict=True) as engine:
        await engine.run(everything_elsewhere())
        assert time.time() > 0  # And so it is around the engine.
        assert HERE.read_text("utf-8")


@pytest.mark.parametrize("name", ["time.time()", "open() by a path", "uuid.uuid4()"])
async def test_an_engine_that_is_not_strict_is_not_made_so_by_another(
    strict: Engine, name: str
) -> None:
    async with Engine("sqlite://") as other:
        await asyncio.gather(other.run(doing(name)), refusal_of(strict, doing(name)))
        await other.run(doing(name))


# --- threads, signals, profilers -----------------------------------------------------------------


@durable.workflow
async def beside_a_thread(_step: Step) -> bool:
    beside.go.set()
    return beside.done.wait(WAIT_S_MAX)


class Beside:
    """A thread of the host, which does what bodies may not while a body has its turn."""

    def __init__(self) -> None:
        self.go, self.done = threading.Event(), threading.Event()
        self.errors: list[BaseException] = []

    def work(self) -> None:
        self.go.wait(WAIT_S_MAX)
        try:
            assert HERE.read_text("utf-8")
            assert time.time()
            assert uuid.uuid4().version == 4
        except BaseException as error:  # noqa: BLE001  shown by the test
            self.errors.append(error)
        self.done.set()


beside = Beside()


async def test_threads_beside_a_body_are_left_alone(strict: Engine) -> None:
    beside.__init__()  # type: ignore[misc]
    thread = threading.Thread(target=beside.work)
    thread.start()
    assert await strict.run(beside_a_thread()) is True
    thread.join()
    assert beside.errors == []


@durable.workflow
async def interrupted(_step: Step) -> str:
    signal.raise_signal(signal.SIGUSR1)
    return "done"


async def test_a_signal_handler_that_comes_in_a_bodys_turn_is_the_hosts(strict: Engine) -> None:
    heard: list[str] = []

    def handler(_number: int, _frame: FrameType | None) -> None:
        heard.append(f"{time.time()}{HERE.read_text('utf-8')[:3]}")

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        assert await strict.run(interrupted()) == "done"
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(heard) == 1


@durable.workflow
async def collecting(_step: Step) -> str:
    gc.collect()
    return "done"


async def test_what_the_host_does_when_the_collector_runs_is_the_hosts(strict: Engine) -> None:
    heard: list[float] = []

    def callback(_phase: str, _info: object) -> None:
        heard.append(time.time())

    gc.callbacks.append(callback)
    try:
        assert await strict.run(collecting()) == "done"
    finally:
        gc.callbacks.remove(callback)
    assert heard


class Thing:
    """The host's: does what bodies may not when it is freed."""

    def __init__(self, cleaned: list[str]) -> None:
        self.cleaned = cleaned
        self.me: object = None

    def __del__(self) -> None:
        cleaned_up(self.cleaned)


def cleaned_up(cleaned: list[str]) -> None:
    time.time()
    os.listdir("/")  # noqa: PTH208
    cleaned.append("to the end")


def part_of_a_thing(cleaned: list[str]) -> Iterator[None]:
    try:
        yield
    finally:
        cleaned_up(cleaned)


class Plain:
    """May be in a cycle, and may be referred to weakly."""

    me: object = None


def thing_with_del(cleaned: list[str]) -> Thing:
    return Thing(cleaned)


def thing_with_finalize(cleaned: list[str]) -> Plain:
    thing = Plain()
    weakref.finalize(thing, cleaned_up, cleaned)
    return thing


def thing_with_callback(cleaned: list[str]) -> Plain:
    thing = Plain()
    REFERENCES.append(weakref.ref(thing, lambda _: cleaned_up(cleaned)))
    return thing


def thing_with_generator(cleaned: list[str]) -> Plain:
    thing = Plain()
    part = part_of_a_thing(cleaned)
    next(part)
    thing.parts = part  # type: ignore[attr-defined]
    return thing


REFERENCES: list[weakref.ref[Plain]] = []
HELD: list[Any] = []


@durable.workflow
async def freeing(_step: Step) -> str:
    HELD.clear()
    return "done"


@pytest.mark.parametrize(
    "make", [thing_with_del, thing_with_finalize, thing_with_callback, thing_with_generator]
)
async def test_a_finalizer_that_the_collector_runs_in_a_bodys_turn_is_the_hosts(
    strict: Engine, make: Callable[[list[str]], Any]
) -> None:
    cleaned: list[str] = []
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        thing = make(cleaned)
        thing.me = thing
        del thing
        assert await strict.run(collecting()) == "done"
    finally:
        if was_enabled:
            gc.enable()
    assert cleaned == ["to the end"]
    assert strictness._on_collection not in gc.callbacks
    await refusal_of(strict, doing("time.time()"))


@pytest.mark.parametrize("make", [thing_with_del, thing_with_finalize, thing_with_callback])
async def test_a_finalizer_of_what_is_freed_in_a_bodys_turn_is_the_hosts(
    strict: Engine, make: Callable[[list[str]], Any]
) -> None:
    cleaned: list[str] = []
    HELD.append(make(cleaned))
    assert await strict.run(freeing()) == "done"
    assert cleaned == ["to the end"]


async def test_a_profile_function_of_the_host_goes_on_and_stays(strict: Engine) -> None:
    seen: set[str] = set()

    def profile(frame: FrameType, event: str, _arg: object) -> None:
        if event == "call":
            seen.add(frame.f_code.co_qualname)

    sys.setprofile(profile)
    try:
        await refusal_of(strict, doing("time.time()"))
        await strict.run(allowed("step"))
        assert sys.getprofile() is profile
    finally:
        sys.setprofile(None)
    assert {"doing", "allowed", "Step.now"} <= seen


async def test_a_profiler_in_c_goes_on_and_stays(strict: Engine) -> None:
    profiler = cProfile.Profile()
    profiler.enable()
    try:
        await strict.run(allowed("step"))
        message = await refusal_of(strict, doing("open()"))
    finally:
        profiler.disable()
    assert "open()" in message
    codes = [entry.code for entry in profiler.getstats()]
    assert allowed.fn.__code__ in codes


async def test_a_tracer_goes_on_and_may_do_as_it_likes(strict: Engine) -> None:
    """Coverage and debuggers are such."""
    traced: list[str] = []

    def trace(frame: FrameType, _event: str, _arg: object) -> Any:  # noqa: ANN401
        if frame.f_code is doing.fn.__code__:
            traced.append(frame.f_code.co_name)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        message = await refusal_of(strict, doing("time.time()"))
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)
    assert "time.time()" in message
    assert traced


async def test_nothing_is_left_after_a_turn(strict: Engine) -> None:
    before = sys.getprofile()
    await strict.run(allowed("step"))
    await refusal_of(strict, doing("time.time()"))
    assert sys.getprofile() is before
    assert strictness._refusing == {}


def test_a_turn_within_a_turn_has_its_own_refusals() -> None:
    refused: list[str] = []
    guard = strict_guard()

    def refuse(who: str, what: str, _instead: str = "") -> Any:  # noqa: ANN401
        refused.append(f"{who} {what.partition(' ')[0]}")

    def inner() -> None:
        os.listdir("/")  # noqa: PTH208

    def outer() -> None:
        guard(inner, functools.partial(refuse, "inner"))
        os.listdir("/")  # noqa: PTH208

    guard(outer, functools.partial(refuse, "outer"))
    os.listdir("/")  # noqa: PTH208
    assert refused == ["inner os.listdir()", "outer os.listdir()"]
    assert sys.getprofile() is None


def frame_in(module: str, function: str) -> FrameType:
    """Return a frame of a function of that name, in a module of that name."""
    names: dict[str, Any] = {"__name__": module, "sys": sys}
    exec(f"def {function}(): return sys._getframe()", names)  # noqa: S102  a test's own
    frame: FrameType = names[function]()
    return frame


@pytest.mark.parametrize(
    ("ask", "refused"),
    [
        (lambda: strictness._on_call(sys._getframe(), "c_call", time.time), "time.time()"),
        (lambda: strictness._on_call(sys._getframe(), "c_call", dt.date.today), "date.today()"),
        (lambda: strictness._on_call(sys._getframe(), "c_call", len), None),
        (lambda: strictness._on_call(sys._getframe(), "call", None), None),
        (
            lambda: strictness._on_call(frame_in("uuid", "uuid4"), "c_call", os.urandom),
            "uuid.uuid4()",
        ),
        (
            lambda: strictness._on_call(frame_in("random", "choice"), "c_call", os.urandom),
            "random.SystemRandom()",
        ),
        (lambda: strictness._on_call(frame_in("logging", "log"), "c_call", time.time), None),
        (lambda: strictness._on_audit("open", ("/no/such", "r", 0)), "open()"),
        (lambda: strictness._on_audit("open", (f"{TZPATH[0]}/Europe/Rome", "r", 0)), None),
        (lambda: strictness._on_audit("glob.glob/2", ("*",)), "glob.glob()"),
        (lambda: strictness._on_audit("os.putenv", ("A", "B")), None),
        (lambda: strictness._on_audit("import", ("time",)), None),
    ],
)
def test_what_the_hooks_decide(ask: Callable[[], None], refused: str | None) -> None:
    """Called by hand: within real hooks nothing traces, so coverage sees none of it."""
    strict_guard()
    found: list[str] = []
    strictness._refusing[threading.get_ident()] = lambda what, _="": found.append(what)  # type: ignore[assignment]
    try:
        ask()
    finally:
        strictness._refusing.clear()
    assert [what.partition(" (")[0] for what in found] == ([] if refused is None else [refused])


def test_the_hook_is_installed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be taken out again."""
    strict_guard()
    added: list[object] = []
    monkeypatch.setattr(sys, "addaudithook", added.append)
    strict_guard()
    assert added == []


@pytest.mark.slow
def test_without_a_strict_engine_there_is_no_hook() -> None:
    code = """
import asyncio, sys
added = []
sys.addaudithook = added.append
import durable
@durable.workflow
async def flow(step: durable.Step) -> int:
    return 1
async def main(strict):
    async with durable.Engine("sqlite://", strict=strict) as engine:
        await engine.run(flow())
asyncio.run(main(False))
assert added == [], added
asyncio.run(main(True))
asyncio.run(main(True))
assert len(added) == 1, added
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HERE.parent.parent)


# --- what becomes of the run ---------------------------------------------------------------------


async def test_a_body_that_swallows_it_is_stuck_and_goes_on_once_it_is_mended(
    strict: Engine,
) -> None:
    async def swallows(_step: Step) -> str:
        await act("a")
        with contextlib.suppress(BaseException):  # As careless code does.
            REFUSED["time.time()"][0]()
        return await act("b")

    async def mended(step: Step) -> str:
        await act("a")
        step.now()
        return await act("b")

    today.code = swallows
    run = await strict.start(changing.changing())
    status = await until_state(run, RunState.STUCK)
    assert status.error is not None
    _, first = inspect.getsourcelines(swallows)
    assert status.error.type_name == "durable.NonDeterminismError"
    assert "time.time()" in status.error.message
    assert f"{HERE}:{first + 3} in " in status.error.message
    assert today.begun == {"a": 1}
    today.code = mended
    assert await strict.resume(run.id)
    assert await run.result(timeout=WAIT_S_MAX) == "b"
    assert today.begun == {"a": 1, "b": 1}


async def test_a_run_that_has_failed_by_it_is_restarted_once_it_is_mended(strict: Engine) -> None:
    async def bad(_step: Step) -> str:
        await act("a")
        REFUSED["open()"][0]()
        return await act("b")

    async def mended(_step: Step) -> str:
        await act("a")
        return await act("b")

    run = await changing.fail(strict, bad)
    today.code = mended
    await strict.restart(run.id)
    assert await run.result(timeout=WAIT_S_MAX) == "b"
    assert today.begun == {"b": 1}


@durable.workflow
async def waiting(step: Step) -> str:
    REFUSED["time.time()"][0]()
    return str(await step.wait_event("go"))


async def test_a_run_begun_without_it_is_stuck_and_goes_on_without_it(path: Path) -> None:
    async with Engine(path) as engine:
        run = await engine.start(waiting(), id="r")
        await until_open(run)
    async with Engine(path, strict=True) as engine:
        run = engine.get("r")
        await run.send_event("go", "gone")
        status = await until_state(run, RunState.STUCK)
        assert status.error is not None
    async with Engine(path) as engine:
        assert await engine.get("r").result(timeout=WAIT_S_MAX) == "gone"


CLEANING: dict[str, Callable[[str], object]] = {
    "up": lambda file: pathlib.Path(file).write_text("clean", "utf-8")
}


@durable.workflow
async def cleaning_up(_step: Step, file: str) -> None:
    try:
        await asyncio.sleep(20)
    finally:
        CLEANING["up"](file)


async def test_a_body_that_is_dropped_from_memory_is_refused_too(path: Path) -> None:
    """Its ``finally`` would do that each time the engine is closed."""
    file = path.with_name("cleaned")
    async with Engine(path, strict=True) as engine:
        await until_open(await engine.start(cleaning_up(str(file))))
    assert not file.exists()


# --- asyncio and anyio ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.id)
def test_nothing_that_bodies_may_do_is_refused(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it look different."""
    call = case.workflow(*case.args)
    plain = run_live(call, AnyOrder(1))
    monkeypatch.setattr(player, "Execution", functools.partial(Execution, guard=strict_guard()))
    watched = run_live(call, AnyOrder(1))
    assert watched.turns == plain.turns
    if len(watched.turns) < 20:
        replay_all(call, watched.journal, dice(1))


# --- the option ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, "yes", None])
def test_the_option_is_checked(value: Any) -> None:  # noqa: ANN401
    with pytest.raises(TypeError, match=r"strict= is True or False"):
        Engine("sqlite://", strict=value)


async def test_a_client_may_be_strict(path: Path) -> None:
    async with Engine(path, strict=True), Engine(path, worker=False, strict=True) as client:
        run = await client.start(allowed("step"))
        assert await run.result(timeout=WAIT_S_MAX) == "step"


def test_the_refusal_cannot_be_caught_by_accident() -> None:
    assert not issubclass(NonDeterminismError, Exception)


async def test_what_verify_replay_executes_again_is_watched_too() -> None:
    """What is refused the first time is refused the second time, and is no divergence."""
    look = functools.partial(open, os.devnull)

    @durable.workflow(name="strict.verified")
    async def verified(_step: Step) -> None:
        look()

    async with Engine("sqlite://", strict=True, verify_replay=True) as engine:
        with pytest.raises(RunFailed, match=r"open\(\)"):
            await engine.run(verified())


agent = Agent(TestModel())


@durable.workflow
async def asking_an_agent(step: Step) -> str:
    return (await agent.run("go")).output  # durable: allow


async def test_the_clocks_that_an_agent_reads_in_its_own_tasks_are_refused(strict: Engine) -> None:
    """The line's comment reaches its own calls, where an agent draws an id, and not those."""
    message = await refusal_of(strict, asking_an_agent())
    assert "may not use datetime.now()" in message
    assert "pydantic_ai" in message
