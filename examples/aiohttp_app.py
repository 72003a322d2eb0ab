"""The same sign-up service on aiohttp: see ``starlette_app.py`` for what it shows.

$ pip install "durable-run[aiohttp]"
$ python examples/aiohttp_app.py
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

import durable
from durable import Engine, Event, Retry, Step, Transaction
from durable.contrib.aiohttp import ENGINE, setup

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CONFIRMED = Event("confirmed", str)
CONFIRM_WITHIN = timedelta(days=7)

routes = web.RouteTableDef()


@durable.action(retry=Retry(max_attempts=5))
async def send_mail(email: str, text: str) -> None:
    """Stand in for a mail service."""
    print(f"mail to {email}: {text}")


@durable.mutation
async def set_state(tx: Transaction, run_id: str, state: str) -> None:
    """Record how far a sign-up is, in the transaction that records the step."""
    await tx.execute("UPDATE sign_up SET state = ? WHERE run_id = ?", state, run_id)


@durable.workflow
async def sign_up(step: Step, email: str) -> str:
    """Ask for a confirmation, for a week, and welcome who gives it."""
    await send_mail(email, f"please confirm: POST /sign-ups/{step.run_id}/confirm")
    try:
        await step.wait_event(CONFIRMED, timeout=CONFIRM_WITHIN)
    except TimeoutError:
        await set_state(step.run_id, "expired")
        return "expired"
    await set_state(step.run_id, "confirmed")
    await send_mail(email, "welcome")
    return "confirmed"


@routes.post("/sign-ups")
async def create(request: web.Request) -> web.Response:
    """Sign up: one row and one run, or neither."""
    email = str((await request.json())["email"])
    engine = request.app[ENGINE]
    async with engine.transaction() as tx:
        run = await engine.start(sign_up(email), tx=tx)
        await tx.execute(
            "INSERT INTO sign_up (run_id, email, state) VALUES (?, ?, 'new')", run.id, email
        )
    return web.json_response({"id": run.id}, status=201)


@routes.post("/sign-ups/{id}/confirm")
async def confirm(request: web.Request) -> web.Response:
    """Take a webhook: the run goes on."""
    engine = request.app[ENGINE]
    try:
        await engine.send_event(request.match_info["id"], CONFIRMED, str(request.remote))
    except durable.RunNotFoundError:
        return web.json_response({"error": "no such sign-up"}, status=404)
    except durable.RunFinishedError:
        return web.json_response({"error": "too late"}, status=409)
    return web.json_response({}, status=202)


@routes.get("/sign-ups/{id}/events")
async def follow(request: web.Request) -> web.StreamResponse:
    """Follow a run live, as server-sent events."""
    run = request.app[ENGINE].get(request.match_info["id"])
    try:
        await run.status()
    except durable.RunNotFoundError:
        return web.json_response({"error": "no such sign-up"}, status=404)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    async for status in run.watch():
        shown = {"state": status.state, "waiting": [step.name for step in status.running]}
        await response.write(b"data: " + msgspec.json.encode(shown) + b"\n\n")
    return response


@routes.get("/sign-ups/{id}")
async def show(request: web.Request) -> web.Response:
    """Show what the application's own table has."""
    async with request.app[ENGINE].transaction() as tx:
        row = await tx.fetch_one(
            "SELECT email, state FROM sign_up WHERE run_id = ?", request.match_info["id"]
        )
    if row is None:
        return web.json_response({"error": "no such sign-up"}, status=404)
    return web.json_response({"email": row["email"], "state": row["state"]})


async def prepare(app: web.Application) -> AsyncIterator[None]:
    """Make the application's table, in the journal's database."""
    async with app[ENGINE].transaction() as tx:
        await tx.execute(
            "CREATE TABLE IF NOT EXISTS sign_up (run_id TEXT PRIMARY KEY, email TEXT, state TEXT)"
        )
    yield


def make_app() -> web.Application:
    """Return the application, on the journal that ``DURABLE_URL`` names."""
    app = web.Application()
    setup(app, Engine.from_env())
    app.cleanup_ctx.append(prepare)
    app.add_routes(routes)
    return app


if __name__ == "__main__":
    # Who follows a run live must not keep the service from stopping.
    web.run_app(make_app(), port=int(os.environ.get("PORT", "8000")), shutdown_timeout=2)
