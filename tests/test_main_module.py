"""A script's own names are stored as an import has them: ``__main__`` would be another's.

So a run that ``python app.py`` began is recovered by whoever imports ``app``, exceptions included.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from interpreters import ROOT, run_python

APP = '''
import asyncio, os, pathlib
import durable
from durable import Engine, Step

class Declined(Exception):
    """What the body knows by its class."""

begun = asyncio.Event()

@durable.action
async def charge() -> None:
    raise Declined("no funds")

@durable.action
async def notify() -> None:
    if os.environ["LIFE"] == "first":
        begun.set()
        await asyncio.Event().wait()

@durable.workflow
async def checkout(step: Step) -> str:
    try:
        await charge()
    except Declined as declined:
        await notify()
        return str(declined)
    return "charged"

@durable.workflow
async def failing(step: Step) -> None:
    await charge()

async def main() -> None:
    async with Engine(pathlib.Path("app.db"), drain_timeout=0) as engine:
        run = await engine.start(checkout(), id="caught")
        failed = await engine.start(failing(), id="failed")
        if os.environ["LIFE"] == "first":
            await begun.wait()
        else:
            print(await run.result(timeout=10))
        try:
            await failed.result(timeout=10)
        except durable.RunFailed as error:
            print(type(error.__cause__) is Declined)

if __name__ == "__main__":
    asyncio.run(main())
'''

BY_IMPORT = ["-c", "import asyncio, app; asyncio.run(app.main())"]
BY_PACKAGE = ["-c", "import asyncio, kit.__main__ as app; asyncio.run(app.main())"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "kit").mkdir()
    (tmp_path / "kit" / "__main__.py").write_text(APP)
    return tmp_path


def _live(life: str, how: list[str], folder: Path) -> str:
    """Run the program; return what it printed."""
    done = run_python(*how, cwd=folder, paths=[ROOT, folder], LIFE=life)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["app.py"], BY_IMPORT),
        (["-m", "app"], BY_IMPORT),
        (["-m", "kit"], BY_PACKAGE),
        (BY_IMPORT, ["app.py"]),
    ],
    ids=["script", "module", "package", "script comes second"],
)
def test_an_exception_of_a_scripts_own_is_the_same_when_it_is_imported(
    first: list[str], second: list[str], folder: Path
) -> None:
    assert _live("first", first, folder) == "True\n"
    assert _live("second", second, folder) == "no funds\nTrue\n"
