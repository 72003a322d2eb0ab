"""The pytest plugin: an engine for each test, whichever plugin runs async tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow

PROGRAM = """
import asyncio
from datetime import timedelta

import pytest

import durable
from durable import Engine, Step


@durable.action
async def charge(order: str) -> str:
    return f"paid {order}"


@durable.workflow
async def flow(step: Step, order: str) -> str:
    await step.sleep(timedelta(days=30))
    return await charge(order)
"""

TESTS = """
MARKS

async def test_time_passes(durable_env):
    before = durable_env.now
    assert await durable_env.run(flow("o-1")) == "paid o-1"
    assert durable_env.now - before == timedelta(days=30)


async def test_the_next_test_has_a_journal_and_a_time_of_its_own(durable_env, durable_engine):
    assert durable_env.engine is durable_engine is Engine.current()
    assert not [run async for run in durable_engine.iter_runs()]
    assert durable_env.now.year == 2025


@pytest.mark.durable("sqlite://", max_parallelism=1, auto=False)
async def test_the_marker_gives_options(durable_env):
    run = await durable_env.start(flow("o-2"))
    await durable_env.run_until_idle()
    await durable_env.advance(timedelta(days=29))
    assert (await run.status()).state == "running"
    await durable_env.advance(timedelta(days=1))
    assert await run.result() == "paid o-2"


class TestInAClass:
    @pytest.mark.parametrize("order", ["a", "b"])
    async def test_replaces(self, durable_env, order):
        durable_env.replace(charge, lambda order: order * 2)
        assert await durable_env.run(flow(order)) == order * 2
"""

AFTER = """
def test_nothing_is_left(durable_env):
    with pytest.raises(durable.EngineClosedError, match="open environment"):
        durable_env.advance(1)
    assert charge.fn.__name__ == "charge"
"""


def run_pytest(directory: Path, source: str, *options: str) -> subprocess.CompletedProcess[str]:
    (directory / "test_it.py").write_text(source, "utf-8")
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"),
            *("-p", "pytest_durable", *options),
        ],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


SCOPE = ("-o", "asyncio_default_fixture_loop_scope=function")


@pytest.mark.parametrize(
    ("marks", "options"),
    [
        ("pytestmark = pytest.mark.asyncio", ("-o", "asyncio_mode=strict", *SCOPE)),
        ("", ("-o", "asyncio_mode=auto", *SCOPE)),
        (
            "pytestmark = pytest.mark.anyio\nanyio_backend = pytest.fixture(lambda: 'asyncio')",
            ("-p", "no:asyncio"),
        ),
    ],
    ids=["pytest-asyncio, strict", "pytest-asyncio, auto", "anyio"],
)
def test_each_test_has_an_environment_of_its_own(
    tmp_path: Path, marks: str, options: tuple[str, ...]
) -> None:
    source = PROGRAM + TESTS.replace("MARKS", marks)
    done = run_pytest(tmp_path, source, *options)
    assert "5 passed" in done.stdout, done.stdout + done.stderr
    assert not done.stderr


def test_a_test_that_is_not_async_is_told_to_open_it(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, PROGRAM + AFTER, *SCOPE)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_a_failing_test_fails_as_itself_and_leaves_the_next_alone(tmp_path: Path) -> None:
    source = """
    async def test_fails(durable_env):
        await durable_env.start(flow("o-1"), id="r")
        raise LookupError("mine")

    async def test_passes(durable_env):
        assert not [run async for run in durable_env.engine.iter_runs()]
    """
    done = run_pytest(
        tmp_path, PROGRAM + source.replace("\n    ", "\n"), "-o", "asyncio_mode=auto", *SCOPE
    )
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "LookupError: mine" in done.stdout


def test_the_plugin_does_nothing_until_it_is_asked() -> None:
    program = """
import sys
import pytest
before = set(sys.modules)
import pytest_durable
assert not [name for name in sys.modules if name.split(".")[0] == "durable"]
assert set(sys.modules) - before <= {"pytest_durable"}, set(sys.modules) - before
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
