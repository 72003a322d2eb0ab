"""What cannot be replayed, found in a workflow's body when it is defined.

Rules:

- Bytecode is read, once. What counts is the object that is called, whatever its name is where it is
  called; a name that cannot be resolved is no finding.
- Nothing is executed to find out: no property, no ``__getattr__``, no import.
- The functions within a body belong to it, save the actions, queries, mutations and workflows.
- The functions that a body calls by their names, of its own module, are read as a part of it, since
  to move a line into a function changes nothing; so are those that decorators have been put around.
  What other modules have is not: they may have been written for actions, too.
- A statement with a comment ``# durable: allow`` is silent, be it that of the finding or that where
  the body calls the function that has it.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from durable.core.errors import DeterminismWarning
from durable.core.refusals import no_replay_of
from durable.determinism.bodies import Reader
from durable.determinism.callees import update_index
from durable.determinism.objects import closure_of, functions_in

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FunctionType

    from durable.determinism.functions import Finding


def warn_of_findings(body: Callable[..., Any]) -> None:
    """Look through a workflow's body, and warn of what cannot be replayed.

    Raises:
        DeterminismWarning: The filter of warnings makes an error of it.
    """
    for function in functions_in(body):
        namespace = function.__globals__
        for finding in find(function):
            if _is_allowed(finding, namespace):
                continue
            by = "".join(f", called by {code.co_qualname}()" for code, _ in reversed(finding.calls))
            what = f"{finding.what}, in {finding.code.co_qualname}(){by}"
            warnings.warn_explicit(
                f"{no_replay_of(what, finding.instead)} If it does no harm there, end its line "
                "with `# durable: allow`.",
                DeterminismWarning,
                finding.code.co_filename,
                finding.line,
                module=function.__module__ or "<unknown>",  # Without any, nothing is told.
                registry=namespace.setdefault("__warningregistry__", {}),
            )


def find(function: FunctionType) -> list[Finding]:
    """Return what a function does that cannot be replayed, in the order of the lines."""
    update_index()
    known = closure_of(function)
    reader = Reader(function.__globals__)
    if not reader.is_suspect(function.__code__, known):
        return []
    reader.read(function.__code__, known, ())
    reader.look_at_as_completed()
    found = dict.fromkeys(reader.findings)
    return sorted(found, key=lambda each: (each.code.co_filename, each.line))


def _is_allowed(finding: Finding, namespace: dict[str, Any]) -> bool:
    """Whether a comment says so, where it is done or where that is called."""
    from durable.runtime.allowing import is_allowed  # noqa: PLC0415  late: mostly nothing is found

    places = (*finding.calls, (finding.code, finding.line))
    return any(is_allowed(code.co_filename, line, namespace) for code, line in places)
