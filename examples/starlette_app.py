"""A sign-up service: Starlette (or FastAPI), one process, nothing else to operate.

$ pip install "durable-run[starlette]" uvicorn
$ uvicorn examples.starlette_app:app        # or: python examples/starlette_app.py
$ curl -d '{"email": "ada@example.org"}' localhost:8000/sign-ups      # {"id": "..."}
$ curl -N localhost:8000/sign-ups/ID/events                           # follow it live
$ curl -X POST localhost:8000/sign-ups/ID/confirm                     # what the mail's link does

The row of the application and the start of the run are one transaction. A client that goes away
never touches a run; stopping the service lets running steps finish, and the next start goes on.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

import durable
from durable import Engine, Event, Retry, Step, Transaction
from durable.contrib.starlette import lifespan

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

CONFIRMED = Event("confirmed", str)
"""Sent by the link in the mail; its value is the client that followed it."""

CONFIRM_WITHIN = timedelta(days=7)


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


async def create(request: Request) -> Response:
    """Sign up: one row and one run, or neither."""
    email = str((await request.json())["email"])
    engine = Engine.current()
    async with engine.transaction() as tx:
        run = await engine.start(sign_up(email), tx=tx)
        await tx.execute(
            "INSERT INTO sign_up (run_id, email, state) VALUES (?, ?, 'new')", run.id, email
        )
    return JSONResponse({"id": run.id}, status_code=201)


async def confirm(request: Request) -> Response:
    """Take a webhook: the run goes on."""
    client = request.client.host if request.client else "unknown"
    try:
        await Engine.current().send_event(request.path_params["id"], CONFIRMED, client)
    except durable.RunNotFoundError:
        return JSONResponse({"error": "no such sign-up"}, status_code=404)
    except durable.RunFinishedError:
        return JSONResponse({"error": "too late"}, status_code=409)
    return JSONResponse({}, status_code=202)


async def follow(request: Request) -> Response:
    """Follow a run live, as server-sent events."""
    run = Engine.current().get(request.path_params["id"])
    try:
        await run.status()
    except durable.RunNotFoundError:
        return JSONResponse({"error": "no such sign-up"}, status_code=404)

    async def events() -> AsyncIterator[bytes]:
        async for status in run.watch():
            shown = {"state": status.state, "waiting": [step.name for step in status.running]}
            yield b"data: " + msgspec.json.encode(shown) + b"\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


async def show(request: Request) -> Response:
    """Show what the application's own table has."""
    async with Engine.current().transaction() as tx:
        row = await tx.fetch_one(
            "SELECT email, state FROM sign_up WHERE run_id = ?", request.path_params["id"]
        )
    if row is None:
        return JSONResponse({"error": "no such sign-up"}, status_code=404)
    return JSONResponse({"email": row["email"], "state": row["state"]})


@asynccontextmanager
async def prepare(_app: Starlette) -> AsyncGenerator[None]:
    """Make the application's table, in the journal's database."""
    async with Engine.current().transaction() as tx:
        await tx.execute(
            "CREATE TABLE IF NOT EXISTS sign_up (run_id TEXT PRIMARY KEY, email TEXT, state TEXT)"
        )
    yield


def make_app() -> Starlette:
    """Return the application, on the journal that ``DURABLE_URL`` names."""
    return Starlette(
        routes=[
            Route("/sign-ups", create, methods=["POST"]),
            Route("/sign-ups/{id}", show),
            Route("/sign-ups/{id}/confirm", confirm, methods=["POST"]),
            Route("/sign-ups/{id}/events", follow),
        ],
        lifespan=lifespan(Engine.from_env(), prepare),
    )


app = make_app()

if __name__ == "__main__":
    import uvicorn

    # Who follows a run live must not keep the service from stopping.
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")), timeout_graceful_shutdown=2)
