"""Which store a journal's URL or path names."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SCHEME = "sqlite://"

HELP = (
    "use 'sqlite:///relative.db', 'sqlite:////absolute.db', 'sqlite://' (in memory), or a "
    "pathlib.Path"
)


def parse_url(url: str | Path) -> Path | None:
    """Return the database file that ``url`` names, or ``None`` for a journal in memory.

    Raises:
        TypeError: It is neither text nor a path.
        ValueError: It is no URL of a known store.
    """
    from pathlib import Path  # noqa: PLC0415  late: 4 ms, with what follows
    from urllib.parse import unquote  # noqa: PLC0415

    if isinstance(url, Path):
        return _check_path(url, url)
    if not isinstance(url, str):
        msg = f"a journal is text or a pathlib.Path, not {url!r}: {HELP}"
        raise TypeError(msg)
    if url == SCHEME:
        return None
    if not url.startswith(SCHEME + "/") or url == SCHEME + "/" or "?" in url:
        msg = f"{url!r} names no journal: {HELP}"
        raise ValueError(msg)
    return _check_path(Path(unquote(url.removeprefix(SCHEME + "/"))), url)


def _check_path(path: Path, url: object) -> Path:
    if "\0" in str(path):
        msg = f"{url!r} has a NUL character in it: no file has such a name"
        raise ValueError(msg)
    return path
