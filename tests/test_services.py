"""The services of the examples, as real servers over loopback."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
import pytest
from waiting import WAIT_S_MAX

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncGenerator, AsyncIterator

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX"),
    pytest.mark.parametrize("name", ["starlette_app", "aiohttp_app"]),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Service:
    """A service in a process of its own."""

    def __init__(self, process: Process, url: str) -> None:
        self.process = process
        self.url = url
        self.http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=WAIT_S_MAX))

    async def sign_up(self, email: str) -> str:
        async with self.http.post(f"{self.url}/sign-ups", json={"email": email}) as response:
            assert response.status == 201, await response.text()
            run_id: str = (await response.json())["id"]
            return run_id

    async def confirm(self, run_id: str) -> int:
        async with self.http.post(f"{self.url}/sign-ups/{run_id}/confirm") as response:
            return response.status

    async def show(self, run_id: str) -> Any:  # noqa: ANN401  JSON
        async with self.http.get(f"{self.url}/sign-ups/{run_id}") as response:
            return await response.json()

    async def follow(self, run_id: str) -> AsyncIterator[dict[str, Any]]:
        async with self.http.get(f"{self.url}/sign-ups/{run_id}/events") as response:
            assert response.status == 200
            async for line in response.content:
                if line.startswith(b"data: "):
                    yield msgspec.json.decode(line[6:])

    async def until_waiting(self, run_id: str) -> None:
        async for shown in self.follow(run_id):
            if shown["waiting"] == ["confirmed"]:
                return


@asynccontextmanager
async def serving(name: str, folder: Path) -> AsyncGenerator[Service]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLES / f"{name}.py"),
        cwd=folder,
        env=os.environ
        | {"PORT": str(port), "DURABLE_URL": "sqlite:///app.db", "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    service = Service(process, f"http://127.0.0.1:{port}")
    try:
        await _until_serving(service)
        yield service
    finally:
        await service.http.close()
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _until_serving(service: Service) -> None:
    async with asyncio.timeout(WAIT_S_MAX):
        while True:
            try:
                async with service.http.get(f"{service.url}/sign-ups/nobody") as response:
                    assert response.status == 404
                    return
            except aiohttp.ClientConnectionError:
                assert service.process.returncode is None, "the service has ended"


async def test_a_sign_up_is_confirmed_and_followed_live(name: str, tmp_path: Path) -> None:
    async with serving(name, tmp_path) as service:
        run_id = await service.sign_up("ada@example.org")
        assert await service.show(run_id) == {"email": "ada@example.org", "state": "new"}
        states: list[str] = []
        async with asyncio.timeout(WAIT_S_MAX):
            async for shown in service.follow(run_id):
                states.append(shown["state"])
                if shown["waiting"] == ["confirmed"] and "asked" not in states:
                    states.append("asked")
                    assert await service.confirm(run_id) == 202
        assert states[0] in {"pending", "running"}
        assert states[-1] == "completed"
        assert await service.show(run_id) == {"email": "ada@example.org", "state": "confirmed"}
        assert await service.confirm(run_id) == 409
        assert await service.confirm("nobody") == 404


async def test_a_client_that_goes_away_leaves_the_run_alone(name: str, tmp_path: Path) -> None:
    async with serving(name, tmp_path) as service:
        run_id = await service.sign_up("grace@example.org")
        await service.until_waiting(run_id)  # It goes away in the middle of the stream.
        assert await service.confirm(run_id) == 202
        async with asyncio.timeout(WAIT_S_MAX):
            shown = [each async for each in service.follow(run_id)]
        assert shown[-1]["state"] == "completed"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_a_service_that_stops_goes_on_where_it_was(
    name: str, tmp_path: Path, how: signal.Signals
) -> None:
    async with serving(name, tmp_path) as service:
        run_id = await service.sign_up("edsger@example.org")
        await service.until_waiting(run_id)
        service.process.send_signal(how)
        status = await asyncio.wait_for(service.process.wait(), WAIT_S_MAX)
        assert how is signal.SIGKILL or status in (0, -signal.SIGTERM), "it closes in order"
    async with serving(name, tmp_path) as service:
        assert await service.show(run_id) == {"email": "edsger@example.org", "state": "new"}
        assert await service.confirm(run_id) == 202
        async with asyncio.timeout(WAIT_S_MAX):
            shown = [each async for each in service.follow(run_id)]
        assert shown[-1]["state"] == "completed"
