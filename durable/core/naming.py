"""How modules are named in a journal: as an import names them."""

from __future__ import annotations

import sys
from pathlib import Path


def importable(module: str) -> str:
    """Return a module's name; a script's ``__main__`` is replaced by what would be imported."""
    if module != "__main__":
        return module
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    path = getattr(main, "__file__", None)
    if spec is not None:
        return str(spec.name)
    return module if path is None else Path(path).stem
