"""The engine as a guest: its settings, its life, and whose loop it is on."""

import asyncio
import contextlib
import logging
import os
import random
import signal
import threading
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from gates import a_gate, passing
from world import echoing

import durable
from durable import (
    Engine,
    EngineClosedError,
    JournalUnavailableError,
    NoEngineError,
    Step,
)

# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_parallelism": -1}, ValueError, "max_parallelism is not negative, but it is -1"),
        ({"max_parallelism": 1.5}, TypeError, "max_parallelism is a whole number, not 1.5"),
        ({"max_parallelism": True}, TypeError, "max_parallelism is a whole number, not True"),
        ({"retry": True}, TypeError, r"Engine\(retry=\) is a durable.Retry, not True"),
        ({"retry": None}, TypeError, r"Engine\(retry=\) is a durable.Retry, not None"),
        ({"retry_actions_by_default": "no"}, TypeError, "is True or False, not 'no'"),
        ({"drain_timeout": -1}, ValueError, "drain_timeout is not negative, but it is -1"),
        ({"drain_timeout": timedelta(-1)}, ValueError, "drain_timeout is not negative"),
        ({"drain_timeout": "1"}, TypeError, "drain_timeout is seconds or a timedelta, not '1'"),
        ({"drain_timeout": float("nan")}, ValueError, "drain_timeout is not a number"),
        ({"max_payload": -1}, ValueError, "max_payload is not negative"),
        ({"max_payload": "8M"}, TypeError, "max_payload is a whole number, not '8M'"),
        ({"max_interruptions": None}, TypeError, "max_interruptions is a whole number, not None"),
        ({"parallelism": 5}, TypeError, "unexpected keyword argument 'parallelism'"),
    ],
)
def test_a_setting_that_is_none_is_refused_before_anything_is_opened(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Engine("sqlite://", **options)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///a.db", Path("a.db")),
        ("sqlite:///a/b c.db", Path("a/b c.db")),
        ("sqlite:////var/a.db", Path("/var/a.db")),
        ("sqlite:///a%20b%23.db", Path("a b#.db")),
        (Path("a?b%20.db"), Path("a?b%20.db")),
        ("sqlite://", None),
    ],
)
def test_a_url_names_a_file(url: str | Path, path: Path | None) -> None:
    assert Engine(url)._path == path
    assert repr(Engine(url)) == f"<Engine {path or 'in memory'} closed>"


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("", ValueError),
        ("app.db", ValueError),
        ("sqlite:/app.db", ValueError),
        ("sqlite:///", ValueError),
        ("sqlite://host/app.db", ValueError),
        ("sqlite:///app.db?mode=ro", ValueError),
        ("sqlite:///a%00b", ValueError),
        (Path("a\0b"), ValueError),
        ("postgres://localhost/app", ValueError),
        (None, TypeError),
        (b"sqlite://", TypeError),
    ],
)
def test_what_names_no_journal_is_refused(url: Any, error: type[Exception]) -> None:  # noqa: ANN401
    with pytest.raises(error, match=r"sqlite:///relative\.db|NUL character"):
        Engine(url)


def test_a_relative_path_starts_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with Engine("sqlite:///here.db") as engine:
            assert await engine.run(echoing("here")) == "here"

    monkeypatch.chdir(tmp_path)
    asyncio.run(work())
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "here.db",
        "here.db.lock",
        "here.db.write",
    ]


def test_the_environment_names_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DURABLE_URL", raising=False)
    assert Engine.from_env()._path == Engine()._path == Path("durable.db")
    monkeypatch.setenv("DURABLE_URL", "")
    assert Engine.from_env()._path == Path("durable.db")
    monkeypatch.setenv("DURABLE_URL", "sqlite:////srv/runs.db")
    assert Engine.from_env()._path == Path("/srv/runs.db")
    monkeypatch.setenv("DURABLE_URL", "srv")
    with pytest.raises(ValueError, match="'srv' names no journal"):
        Engine.from_env()


# --- life ----------------------------------------------------------------------------------------


CALLS: list[Callable[[Engine], Awaitable[object]]] = [
    lambda engine: engine.start(echoing("a")),
    lambda engine: engine.run(echoing("a")),
    lambda engine: engine.status("r"),
    lambda engine: engine.list_runs(),
    lambda engine: engine.list_steps("r"),
    lambda engine: anext(engine.iter_runs()),
    lambda engine: anext(engine.iter_steps("r")),
    lambda engine: engine.get("r").result(),
    lambda engine: engine.get("r").status(),
    lambda engine: anext(engine.get("r").steps()),
]


@pytest.mark.parametrize("number", range(len(CALLS)))
async def test_a_closed_engine_says_so(number: int, path: Path) -> None:
    engine = Engine(path)
    for _ in range(2):
        with pytest.raises(EngineClosedError, match=r"use it inside `async with Engine\(\.\.\.\)`"):
            await CALLS[number](engine)
        async with engine:
            pass
    with pytest.raises(EngineClosedError, match=r"engine\.statistics\(\) needs an open engine"):
        engine.statistics()


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_an_engine_belongs_to_the_loop_it_was_opened_on(number: int, path: Path) -> None:
    async def use_elsewhere() -> None:
        async with Engine(path) as engine:

            async def use() -> None:
                with pytest.raises(RuntimeError, match="was opened on another event loop"):
                    await asyncio.wait_for(CALLS[number](engine), 5)

            await asyncio.to_thread(asyncio.run, use())
            assert await engine.run(echoing("still open")) == "still open"

    asyncio.run(use_elsewhere())


async def test_an_open_engine_cannot_be_opened_again(path: Path) -> None:
    engine = Engine(path)
    async with engine:
        with pytest.raises(RuntimeError, match="open already; make another one, or leave"):
            await engine.__aenter__()
        assert await engine.run(echoing("a"), id="r") == "a"
    async with engine:
        assert await engine.get("r").result() == "a"
    assert repr(engine) == f"<Engine {path} closed>"


async def test_an_engine_that_could_not_be_opened_can_be_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "later" / "runs.db"
    engine = Engine(path)
    for _ in range(2):
        with pytest.raises(
            JournalUnavailableError, match=r"later of the journal runs\.db does not"
        ):
            await engine.__aenter__()
        with pytest.raises(NoEngineError):
            Engine.current()
    await asyncio.to_thread(path.parent.mkdir)
    async with engine:
        assert await engine.run(echoing("a")) == "a"


async def test_what_is_raised_inside_passes_through_and_the_engine_is_closed(path: Path) -> None:
    engine = Engine(path)
    with pytest.raises(LookupError, match="mine"):
        async with engine:
            raise LookupError("mine")
    with pytest.raises(EngineClosedError):
        await engine.status("r")
    async with Engine(path):
        pass  # The file is free.


async def test_closing_tells_who_still_waits(path: Path, request: pytest.FixtureRequest) -> None:
    name, gate = a_gate(request)
    engine = Engine(path, drain_timeout=0)
    async with engine:
        run = await engine.start(passing(name, 1), id="r")
        await gate.begun.get()
        waiter = asyncio.create_task(run.result())
        await asyncio.sleep(0)
    with pytest.raises(EngineClosedError, match="open it again and ask with the same id"):
        await waiter
    gate.open.set()
    async with engine:
        assert await run.result(timeout=5) == [0]


async def test_closing_waits_for_running_actions_and_begins_no_more(
    path: Path, request: pytest.FixtureRequest
) -> None:
    name, gate = a_gate(request)

    async def open_when_closing(engine: Engine) -> None:
        with contextlib.suppress(EngineClosedError):
            while True:
                await engine.start(echoing("queued"))
        gate.open.set()

    async with Engine(path, max_parallelism=1) as engine:
        await engine.start(passing(name, 2), id="r")
        await gate.begun.get()
        opening = asyncio.create_task(open_when_closing(engine))
    await opening
    async with Engine(path) as engine:
        engine.set_max_parallelism(0)
        states = [step.state async for step in engine.iter_steps("r")]
        engine.set_max_parallelism(25)
        assert await engine.get("r").result(timeout=5) == [0, 1]
    assert states == ["completed", "pending"]
    assert gate.begun.qsize() == 1


@pytest.mark.both_loops
async def test_an_engine_is_a_guest(path: Path) -> None:
    loop = asyncio.get_running_loop()

    def surroundings() -> list[object]:
        return [
            *(signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)),
            signal.set_wakeup_fd(-1) and None,
            logging.getLogger().handlers[:],
            logging.getLogger("durable").handlers[:],
            logging.getLogger("durable").level,
            structlog.is_configured(),
            loop.get_exception_handler(),
            loop.get_task_factory(),
            loop.get_debug(),
            getattr(loop, "_default_executor", None),
            asyncio.get_event_loop_policy(),
        ]

    def journal_threads() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if "_connection_worker" in t.name]

    before, tasks = surroundings(), asyncio.all_tasks()
    async with Engine(path) as engine:
        threads = journal_threads()
        assert await engine.run(echoing("a")) == "a"
        assert surroundings() == before
    assert surroundings() == before
    assert asyncio.all_tasks() == tasks
    assert threads
    for thread in threads:  # They are told to end, and do so after they have said that they will.
        await asyncio.to_thread(thread.join, 5)
        assert not thread.is_alive()


def sources_of_chance() -> list[object]:
    return [
        *(time.time, time.monotonic, asyncio.sleep, asyncio.timeout),
        *(random.random, random.Random, uuid.uuid4, os.urandom, datetime.now),
    ]


BEFORE = sources_of_chance()


@durable.action
async def look_in_an_action() -> bool:
    return sources_of_chance() == BEFORE


@durable.workflow
async def looking(_step: Step) -> list[bool]:
    return [sources_of_chance() == BEFORE, await look_in_an_action()]


async def test_nothing_of_time_and_chance_is_patched(path: Path) -> None:
    """That would be seen by all code of the process: bodies have ``step.now()`` and the like."""
    async with Engine(path) as engine:
        assert sources_of_chance() == BEFORE
        assert await engine.run(looking()) == [True, True]
