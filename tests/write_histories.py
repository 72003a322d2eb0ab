"""Writes the histories of what the examples do, to be kept and replayed for ever.

They are written once for each release: what is there is left as it is.

$ python tests/write_histories.py 0.1.0
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from pathlib import Path
from typing import Any

from durable import Engine

EXAMPLES = ("agent", "approval", "callback", "nested", "retries", "scheduled", "signals")
ROOT = Path(__file__).parent.parent
HISTORIES = ROOT / "tests" / "histories"


async def write(engine: Engine, directory: Path) -> None:
    """Write the histories of all runs of a journal."""
    counts: dict[str, int] = {}
    async for run in engine.iter_runs():
        name = run.name.rpartition(":")[2]
        counts[name] = counts.get(name, 0) + 1
        text = await engine.history(run.id)
        # Tracebacks name files: not those of one machine.
        text = text.replace(f"{ROOT}/", "").replace(f"{sys.base_prefix}/", "")
        keep(directory / f"{name}-{counts[name]}.json", text)


def keep(path: Path, text: str) -> None:
    """Write a file, unless it is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(text, "utf-8")


def main(release: str) -> None:
    """Run the examples, each with its journal looked at before it is closed."""
    sys.path.insert(0, str(ROOT / "examples"))
    close: Any = Engine.__aexit__
    for name in EXAMPLES:

        async def write_and_close(engine: Engine, *exc: Any, name: str = name) -> None:  # noqa: ANN401
            await write(engine, HISTORIES / release / name)
            await close(engine, *exc)

        Engine.__aexit__ = write_and_close  # type: ignore[method-assign, assignment]
        asyncio.run(importlib.import_module(name).main())


if __name__ == "__main__":
    main(sys.argv[1])
