"""A module imports its own layer or a lower one, the core is pure, and SQL stays in the journal."""

import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.skipif(find_spec("importlinter") is None, reason="import-linter is not installed")
def test_imports_go_down_only() -> None:
    """The contracts stand in ``pyproject.toml``."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_module_has_a_layer() -> None:
    """One that no contract names would be free to import anything."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = config["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    named = {name.strip() for layer in layers for name in layer.replace("|", ":").split(":")}
    modules = {path for path in (ROOT / "durable").iterdir() if path.suffix == ".py"}
    packages = {path.parent for path in (ROOT / "durable").glob("*/__init__.py")}
    found = {f"durable.{path.stem}" for path in modules | packages} - {"durable.__init__"}
    assert found == named
