"""What commands are given: code to import, and a journal to read."""

from __future__ import annotations

import importlib
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, final

from durable.core.codec import safe_text
from durable.journal.url import SCHEME, parse_url

if TYPE_CHECKING:
    from collections.abc import Iterable


@final
class UsageError(Exception):
    """What the command was given is of no use. The message says what is wrong with it."""


def import_code(names: Iterable[str]) -> None:
    """Import the modules that define workflows: that registers them.

    What they print goes where messages go, out of the way of results.

    Args:
        names: ``package.module``, or ``package.module:name`` of something that is in it.

    Raises:
        UsageError: One cannot be imported.
    """
    for name in names:
        module_name, _, attribute = name.partition(":")
        if module_name.endswith(".py") or "/" in module_name:
            msg = f"{name!r} is a file: name the module as an import does, such as package.module"
            raise UsageError(msg)
        try:
            with redirect_stdout(sys.stderr):
                module = importlib.import_module(module_name)
        except KeyboardInterrupt:
            raise
        except BaseException as exc:
            # Not an ``Exception`` alone: by a module's ``sys.exit()`` this would end, as if all
            # were well.
            raise UsageError(_cannot_import(module_name, exc)) from exc
        if attribute and not hasattr(module, attribute):
            msg = f"the module {module_name!r} has no {attribute!r}"
            raise UsageError(msg)


def _cannot_import(module_name: str, error: BaseException) -> str:
    text = safe_text(error)
    raised = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, Exception):
        way_out = "Call the command from where the application is started, or set PYTHONPATH."
    else:
        way_out = (
            "A module that is imported must not end its process: what a script does goes below "
            "if __name__ == '__main__'."
        )
    return f"cannot import {module_name!r}: {raised}. {way_out}"


def journal_path(url: str | None) -> Path:
    """Return the file of a journal that is given by its URL or its path.

    Raises:
        UsageError: It is none.
    """
    if not url:
        msg = "which journal? Give --journal URL, such as sqlite:///app.db, or set DURABLE_URL"
        raise UsageError(msg)
    try:
        path = parse_url(url) if "://" in url else Path(url)
    except ValueError as exc:
        raise UsageError(str(exc)) from exc
    if path is None:
        msg = f"{SCHEME!r} is a journal in memory, which ends with its process: give a file"
        raise UsageError(msg)
    return path
