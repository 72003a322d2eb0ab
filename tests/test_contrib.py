"""Engines inside web applications: open while these are, whatever else these do."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import ClientSession, web
from starlette.applications import Starlette

import durable
from durable import Engine, EngineClosedError, JournalUnavailableError, Step
from durable.contrib import aiohttp as durable_aiohttp
from durable.contrib.starlette import lifespan

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path


@durable.action
async def greet(name: str) -> str:
    return f"hello {name}"


@durable.workflow
async def greeting(_step: Step, name: str) -> str:
    return await greet(name)


class Broken(Exception):
    pass


# --- Starlette -----------------------------------------------------------------------------------


async def test_starlette_the_engine_is_open_while_the_application_is(path: Path) -> None:
    engine = Engine(path)
    app = Starlette(lifespan=lifespan(engine))
    async with app.router.lifespan_context(app):
        assert Engine.current() is engine
        assert await engine.run(greeting("you")) == "hello you"
    with pytest.raises(EngineClosedError):
        await engine.start(greeting("you"))


async def test_starlette_the_application_s_own_lifespan_is_inside(path: Path) -> None:
    seen: list[str] = []

    @asynccontextmanager
    async def own(app: Starlette) -> AsyncGenerator[dict[str, Any]]:
        assert isinstance(app, Starlette)
        seen.append(await engine.run(greeting("begin")))
        yield {"pool": 7}
        seen.append(await engine.run(greeting("end")))

    engine = Engine(path)
    app = Starlette(lifespan=lifespan(engine, own))
    async with app.router.lifespan_context(app) as state:
        assert state == {"pool": 7}
        assert seen == ["hello begin"]
    assert seen == ["hello begin", "hello end"]


async def test_starlette_a_lifespan_that_fails_leaves_no_engine_open(path: Path) -> None:
    @asynccontextmanager
    async def broken(_app: Starlette) -> AsyncGenerator[None]:
        raise Broken
        yield

    engine = Engine(path)
    app = Starlette(lifespan=lifespan(engine, broken))
    with pytest.raises(Broken):
        async with app.router.lifespan_context(app):
            pass
    with pytest.raises(EngineClosedError):
        await engine.start(greeting("you"))
    async with Engine(path):
        pass  # And its journal is free.


async def test_starlette_a_journal_that_cannot_be_opened_stops_the_start(tmp_path: Path) -> None:
    app = Starlette(lifespan=lifespan(Engine(tmp_path / "nowhere" / "journal.db")))
    with pytest.raises(JournalUnavailableError, match="nowhere"):
        async with app.router.lifespan_context(app):
            pass


async def test_starlette_an_application_can_be_started_again(path: Path) -> None:
    app = Starlette(lifespan=lifespan(Engine(path)))
    for _ in range(2):
        async with app.router.lifespan_context(app):
            assert await Engine.current().run(greeting("you")) == "hello you"


# --- aiohttp -------------------------------------------------------------------------------------


async def serve(app: web.Application) -> tuple[web.AppRunner, str]:
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    return runner, f"http://{host}:{port}"


async def hello(request: web.Request) -> web.Response:
    engine = request.app[durable_aiohttp.ENGINE]
    assert Engine.current() is engine
    return web.Response(text=await engine.run(greeting(request.match_info["name"])))


async def test_aiohttp_handlers_have_the_engine(path: Path) -> None:
    engine = Engine(path)
    app = web.Application()
    app.router.add_get("/{name}", hello)
    durable_aiohttp.setup(app, engine)
    runner, url = await serve(app)
    async with ClientSession() as session, session.get(f"{url}/you") as response:
        assert await response.text() == "hello you"
    await runner.cleanup()
    with pytest.raises(EngineClosedError):
        await engine.start(greeting("you"))


async def test_aiohttp_a_start_that_fails_leaves_no_engine_open(path: Path) -> None:
    async def broken(_app: web.Application) -> None:
        raise Broken

    engine = Engine(path)
    app = web.Application()
    durable_aiohttp.setup(app, engine)
    app.on_startup.append(broken)
    runner = web.AppRunner(app)
    with pytest.raises(Broken):
        await runner.setup()
    await runner.cleanup()
    with pytest.raises(EngineClosedError):
        await engine.start(greeting("you"))
