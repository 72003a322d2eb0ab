"""How modules are named in a journal: as an import names them."""

from __future__ import annotations

import os
import sys


def importable(module: str) -> str:
    """Return a module's name; a script's ``__main__`` is replaced by what would be imported."""
    if module != "__main__":
        return module
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    path: str | None = getattr(main, "__file__", None)
    if spec is not None:
        return str(spec.name)
    if path is None:
        return module
    return os.path.splitext(os.path.basename(path))[0]  # noqa: PTH119, PTH122  pathlib takes 4 ms
