"""``python -m durable``: looking at journals from the command line, with the code at hand.

Each command is a module, imported when it is asked for. Its status is 0 when all is well, 1 when
code and journal do not fit each other, and 2 when that could not be found out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING

from durable.cli.loading import UsageError
from durable.core.errors import JournalError

if TYPE_CHECKING:
    from collections.abc import Sequence

FAILED = 2
INTERRUPTED = 130
"""What shells have for Ctrl-C."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the process's exit status.

    Args:
        argv: The arguments after the program's name; by default those of the process.
    """
    options = _parser().parse_args(argv)
    try:
        status: int = options.run(options)
    except (UsageError, JournalError) as exc:
        print(f"{options.prog}: {exc}", file=sys.stderr)  # noqa: T201  a command line
        if options.json:
            print(json.dumps({"error": str(exc)}, indent=2))  # noqa: T201
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Who reads has had enough. Python would say so again when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    return status


def _parser() -> argparse.ArgumentParser:
    prog = "python -m durable"
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Look at a journal with the code at hand. Nothing is executed or written.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    check = commands.add_parser(
        "check",
        help="before a deploy: would the runs under way get stuck with this code?",
        description=(
            "Execute the bodies of all unfinished runs over what is recorded of them, with the "
            "code at hand, and list those that would get stuck. No step is executed and nothing "
            "is written; an engine may work on the journal meanwhile. The exit status is 0 when "
            "all runs fit, 1 when some would get stuck, 2 when that could not be found out."
        ),
    )
    _add_sources(check)
    check.add_argument(
        "--sample",
        type=_count,
        metavar="N",
        help="check at most so many runs, drawn at random; by default all",
    )
    check.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    check.set_defaults(run=_check, prog=check.prog)
    replay = commands.add_parser(
        "replay",
        help="time travel: execute one run's body again, here",
        description=(
            "Execute the body of a run again over what is recorded of it, with the code at hand: "
            "what it prints is seen, and its breakpoints work. No step is executed and nothing is "
            "written. Each delivery and each command is shown, with its file and line, and then "
            "where the body waits, or how it ends. The exit status is 0 when code and journal fit "
            "each other, 1 when they do not, 2 when that could not be found out."
        ),
    )
    replay.add_argument("run_id", metavar="RUN_ID", help="the run")
    _add_sources(replay)
    replay.add_argument(
        "--to-step", type=int, metavar="N", help="stop before the outcome of step N is delivered"
    )
    replay.add_argument(
        "--pdb",
        action="store_true",
        help=(
            "open the debugger in the body's frame there, to go on from it; without --to-step, "
            "or when the replay does not come to that delivery, where the replay has ended"
        ),
    )
    replay.set_defaults(run=_replay, prog=replay.prog, json=False)
    return parser


def _add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "code",
        nargs="+",
        metavar="MODULE[:NAME]",
        help="a module that defines workflows, as an import names it; all of them are imported",
    )
    parser.add_argument(
        "--journal",
        metavar="URL",
        default=os.environ.get("DURABLE_URL"),
        help="the journal, such as sqlite:///app.db, or a path; by default DURABLE_URL",
    )


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ValueError
    return count


_count.__name__ = "number"  # What argparse calls it.


def _replay(options: argparse.Namespace) -> int:
    from durable.cli.replay import run_replay  # noqa: PLC0415  late: each command is its own

    return run_replay(
        options.journal,
        options.run_id,
        options.code,
        to_step=options.to_step,
        with_debugger=options.pdb,
    )


def _check(options: argparse.Namespace) -> int:
    from durable.cli.check import run_check  # noqa: PLC0415  late: each command is its own

    return run_check(options.journal, options.code, sample=options.sample, is_json=options.json)
