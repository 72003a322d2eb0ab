"""Does what a page of the documentation shows, in the working directory: a child of its test.

Called with the page's path. It ends with 1, and says where, when something is not as shown.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pages

if TYPE_CHECKING:
    from collections.abc import Container

SECONDS_MAX = 60


class NotAsShownError(Exception):
    pass


class Program:
    """The blocks of a page that are one program, as ``python -m asyncio`` would take them."""

    def __init__(self, page: Path, runner: asyncio.Runner) -> None:
        self._page = page
        self._runner = runner
        module = ModuleType(page.stem.replace("-", "_"))
        sys.modules[module.__name__] = module
        self._names = module.__dict__

    def run(self, block: pages.Block) -> str:
        """Execute a block; return what it prints."""
        # Errors and definitions name the line of the page.
        source = "\n" * (block.line - 1) + block.text
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile(source, self._page.name, "exec", flags=flags, dont_inherit=True)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            result = eval(code, self._names)  # noqa: S307  a page of ours
            if inspect.iscoroutine(result):
                self._runner.run(result)
        return printed.getvalue()


def run_command(*command: str, statuses: Container[int] = (0,)) -> str:
    """Run a program; return what it prints."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
    if done.returncode not in statuses:
        msg = f"it ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        raise NotAsShownError(msg)
    return done.stdout


def run_file(name: str) -> str:
    if name.startswith("test_"):
        options = ["-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto"]
        options += ["-p", "pytest_durable"]  # As it is where durable is installed.
        return run_command(sys.executable, "-m", "pytest", *options, name)
    return run_command(sys.executable, name)


def interrupt_file(name: str, before: str) -> str:
    """Run a script, and press Ctrl-C when it has printed so many lines; return what it prints."""
    with subprocess.Popen(
        (sys.executable, name), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as child:
        assert child.stdout is not None
        printed = "".join(child.stdout.readline() for _ in before.splitlines())
        child.send_signal(signal.SIGINT)
        return printed + child.communicate(timeout=SECONDS_MAX)[0]


def play(page: Path, program: Program | None, block: pages.Block) -> None:
    """Do what a block shows.

    Raises:
        NotAsShownError: It does something else.
    """
    if block.language == "console":
        for command, output in pages.sessions_of(block):
            _play_command(command, output)
    if block.language != "python":
        return
    if block.file is not None:
        Path(block.file).write_text(block.text, "utf-8")
        if f"$ python {block.file}\n" in pages.read(page):
            return
        printed = run_file(block.file)
    elif program is None:
        file = Path(f"block_{block.line}.py")
        file.write_text(block.text, "utf-8")
        printed = run_file(file.name)
    else:
        printed = program.run(block)
    if block.output is not None:
        _compare(block.output, printed)


def _play_command(command: str, output: str) -> None:
    program, _, rest = command.partition(" ")
    if program == "python" and Path(rest).exists():
        before, is_interrupted, after = output.partition("^C\n")
        if is_interrupted:
            _compare(before + after, interrupt_file(rest, before))
        else:
            _compare(output, run_file(rest))
    if rest.startswith("-m durable "):
        _compare(output, run_command(sys.executable, *rest.split(), statuses=(0, 1)))
    if program == "sqlite3" and shutil.which("sqlite3"):
        _compare(output, run_command("/bin/sh", "-c", command))


def _compare(shown: str, printed: str) -> None:
    if not pages.is_as_shown(shown, printed):
        msg = f"it prints\n{printed}instead of\n{shown}"
        raise NotAsShownError(msg)


def main() -> None:
    page = Path(sys.argv[1])
    with asyncio.Runner() as runner:
        program = Program(page, runner) if pages.is_one_program(page) else None
        for block in pages.blocks_of(page):
            try:
                play(page, program, block)
            except BaseException:
                print(f"{pages.name_of(page)}:{block.line}:", file=sys.stderr)  # noqa: T201
                raise


if __name__ == "__main__":
    main()
