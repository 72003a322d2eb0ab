"""What the documentation shows is so: its programs run and print that, its links lead somewhere."""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path

import page_player
import pages
import pytest
from interpreters import run_python

import durable

OPERATIONS = pages.ROOT / "docs" / "operations.md"

INSIDE = {
    "durable": durable,
    "engine": durable.Engine,
    "Engine": durable.Engine,
    "run": durable.Run,
    "step": durable.Step,
}
"""What names in the text stand for, so that what they are said to have can be looked up."""

_CALL = re.compile(
    r"(?<![\w.])((?:durable\.)?(?:Engine|Retry|workflow|action|query|mutation|attempt)"
    r"|(?:durable|[eE]ngine|run|step)\.[a-z]\w*)\("
)

each_page = pytest.mark.parametrize("page", pages.PAGES, ids=pages.name_of)


PAGE_S_MAX = 300
"""Far longer than it takes to do all that a page shows."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in pages.PAGES if any(b.language == "python" for b in pages.blocks_of(page))],
    ids=pages.name_of,
)
def test_what_a_page_shows_is_what_happens(page: Path, tmp_path: Path) -> None:
    player = page_player.__file__
    done = run_python("-W", "error", player, page, cwd=tmp_path, seconds_max=PAGE_S_MAX)
    assert done.returncode == 0, done.stdout + done.stderr


@each_page
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in pages.links_of(page):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        path = page.parent / target if target else page
        assert path.exists(), link
        if anchor:
            assert anchor in pages.anchors_of(path), link


@each_page
def test_files_that_commands_name_exist(page: Path) -> None:
    for block in pages.blocks_of(page):
        if block.language == "console":
            for name in re.findall(r"\b(?:examples|benchmarks|docs|tests)/[\w./]+", block.text):
                assert (pages.ROOT / name).exists(), name


def _fields_of(name: str) -> tuple[str, ...]:
    fields: tuple[str, ...] = getattr(getattr(durable, name), "__struct_fields__", ())
    return fields


def _said_of(page: Path) -> set[str]:
    """Return what a page says that our objects have: ``engine.start`` and the like."""
    said = set(re.findall(r"\b(?:durable|[eE]ngine|run|step)\.[a-z]\w*", pages.read(page)))
    files = {name for name in said if name.endswith((".py", ".db"))}
    return said - files - _listed_events()


def _listed_events() -> set[str]:
    rows = re.findall(r"^\| (`durable\..*?) \|", pages.read(OPERATIONS), re.MULTILINE)
    return set(re.findall(r"`(durable\.\w+)`", " ".join(rows)))


@each_page
def test_what_is_said_to_exist_does(page: Path) -> None:
    assert [name for name in _said_of(page) if not _exists(name)] == []


def _exists(name: str) -> bool:
    owner, _, attribute = name.partition(".")
    return hasattr(INSIDE[owner], attribute) or (
        owner == "durable" and importlib.util.find_spec(name) is not None
    )


@each_page
def test_options_that_are_spoken_of_exist(page: Path) -> None:
    unknown: list[str] = []
    for name, options in _calls_of(pages.read(page)):
        owner, _, attribute = name.rpartition(".")
        called = getattr(INSIDE[owner or "durable"], attribute, None)
        if called is None:
            continue  # The test above says so.
        parameters = inspect.signature(called).parameters
        unknown += [f"{name}({option}=)" for option in options if option not in parameters]
    assert unknown == []


def _calls_of(text: str) -> list[tuple[str, list[str]]]:
    """Return the calls of ours in a text, each with the names of the options that it gives."""
    calls: list[tuple[str, list[str]]] = []
    for match in re.finditer(_CALL, text):
        depth, options = 1, ""
        for character in text[match.end() :]:
            depth += {"(": 1, ")": -1}.get(character, 0)
            if depth == 0:
                break
            options += character if depth == 1 else ""
        calls.append((match[1], re.findall(r"(\w+)=(?!=)", options)))
    return calls


def test_every_public_name_is_spoken_of() -> None:
    text = "".join(map(pages.read, pages.PAGES))
    unsaid = [name for name in durable.__all__ if not re.search(rf"\b{name}\b", text)]
    assert unsaid == []


@pytest.mark.parametrize("name", [name for name in durable.__all__ if _fields_of(name)])
def test_all_fields_are_spoken_of(name: str) -> None:
    text = "".join(map(pages.read, pages.PAGES))
    spoken_of = set(re.findall(r"`(\w+)`|\b(\w+)=", text))
    names = {name for pair in spoken_of for name in pair}
    assert [field for field in _fields_of(name) if field not in names] == []


def test_the_readme_lists_all_settings_with_their_defaults() -> None:
    table = pages.read(pages.ROOT / "README.md").split("| setting of `Engine` |")[1]
    rows = dict(re.findall(r"^\| `(\w+)` \| `?(.*?)`? \|", table.split("\n\n")[0], re.MULTILINE))
    parameters = inspect.signature(durable.Engine).parameters
    shown = {name: _show(each.default) for name, each in parameters.items()}
    assert rows == shown


def _show(default: object) -> str:
    if default == 8 * 1024 * 1024:
        return "8 MiB"
    return "Retry()" if isinstance(default, durable.Retry) else str(default)


def test_the_readme_tells_how_a_retry_is_made_by_default() -> None:
    policy = durable.Retry()
    readme = pages.read(pages.ROOT / "README.md")
    assert f"| {policy.max_attempts} attempts, the first counts; " in readme
    assert f"; {policy.initial_backoff} s before the second, then twice as long" in readme
    assert (policy.base, policy.max_backoff, policy.jitter) == (2.0, None, True)


def test_all_events_of_the_log_are_listed() -> None:
    sources = "".join(path.read_text("utf-8") for path in (pages.ROOT / "durable").rglob("*.py"))
    logged = set(re.findall(r"log\.(?:info|warning|error)\(\s*\"(durable\.\w+)\"", sources))
    logged |= {f"durable.run_{state}" for state in durable.RunState if state.is_final}
    assert _listed_events() == logged


# --- the web applications of a page --------------------------------------------------------------

SERVE = {
    "app.py": """
import asyncio

import uvicorn
from aiohttp import ClientSession
from app import app


async def main() -> None:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with ClientSession(f"http://127.0.0.1:{port}") as session:
        async with session.post("/orders/o-1") as response:
            print(response.status, await response.json())
        state = "running"
        while state in ("pending", "running"):
            async with session.get("/orders/o-1") as response:
                looked = await response.json()
                state = looked["state"]
        print(looked)
    server.should_exit = True
    await serving


asyncio.run(main())
""",
    "web_app.py": """
import asyncio

from aiohttp.test_utils import TestClient, TestServer
from durable import Engine
from web_app import make_app


async def main() -> None:
    async with TestClient(TestServer(make_app())) as client:
        async with client.post("/orders/o-1") as response:
            print(response.status, await response.json())
        run = Engine.current().get("order-o-1")
        await run.result()
        status = await run.status()
        print({"state": str(status.state), "result": status.result})


asyncio.run(main())
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVE)
def test_the_web_applications_serve(name: str, tmp_path: Path) -> None:
    for block in pages.blocks_of(pages.ROOT / "docs" / "embedding.md"):
        if block.file is not None:
            (tmp_path / block.file).write_text(block.text, "utf-8")
    (tmp_path / "serve.py").write_text(SERVE[name], "utf-8")
    done = run_python("serve.py", cwd=tmp_path, paths=[pages.ROOT])
    assert done.stdout.splitlines() == [
        "202 {'run': 'order-o-1'}",
        "{'state': 'completed', 'result': 'receipt for o-1: 500 cents'}",
    ], done.stdout + done.stderr
