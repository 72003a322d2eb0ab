"""Modules that are written, imported, and looked at for what cannot be replayed."""

from __future__ import annotations

import importlib.util
import textwrap
import warnings
from itertools import count
from typing import TYPE_CHECKING

from durable import DeterminismWarning

if TYPE_CHECKING:
    from pathlib import Path

serial_numbers = count()

HEAD = "import asyncio, durable\nfrom durable import Step, action\n"


class App:
    """Modules that are written, imported, and looked at."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def define(self, source: str) -> list[warnings.WarningMessage]:
        """Import a module of that source; return what it warns of."""
        name = f"app_{next(serial_numbers)}"
        self.path = self._directory / f"{name}.py"
        self.path.write_text(HEAD + textwrap.dedent(source), "utf-8")
        spec = importlib.util.spec_from_file_location(name, self.path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            spec.loader.exec_module(module)
        return caught

    def body(self, *lines: str, top: str = "") -> list[str]:
        """Define a workflow with these lines; return what is found, each with its line of them."""
        before = HEAD + top + "\n@durable.workflow\nasync def flow(step: Step, xs: list[int]):\n"
        body = "".join(f"    {line}\n" for line in lines)
        source = (before + body).removeprefix(HEAD)
        begin = before.count("\n")
        return [
            f"{str(each.message).split(' may not use ')[1].split(', in ')[0]}:{each.lineno - begin}"
            for each in self.define(source)
            if each.filename == str(self.path) and each.category is DeterminismWarning
        ]
