"""The file that a journal is in: where it is, and whether it is still the one that was opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import anyio.to_thread

from durable.core.errors import JournalUnavailableError

if TYPE_CHECKING:
    from pathlib import Path


@final
class JournalFile:
    """A journal's file, or none: of a journal in memory, about which there is nothing to check.

    Attributes:
        path: The file. From ``fix`` on absolute, whatever the working directory becomes.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._opened: tuple[int, int] | None = None

    def __str__(self) -> str:
        return "the journal in memory" if self.path is None else f"the journal {self.path}"

    async def fix(self) -> None:
        """Settle where the file is.

        Raises:
            JournalUnavailableError: There cannot be a file.
        """
        if self.path is not None:
            self.path = await anyio.to_thread.run_sync(_check_path, self.path)

    async def check_is_there(self) -> None:
        """Raise ``JournalUnavailableError`` if there is no file at the path any more."""
        if self.path is not None and not await anyio.to_thread.run_sync(self.path.exists):
            msg = f"{self} is gone: its file was removed. Put it back, or restart without it."
            raise JournalUnavailableError(msg)

    async def note_opened(self) -> None:
        """Remember which file was opened."""
        if self.path is not None:
            self._opened = await anyio.to_thread.run_sync(_identify, self.path)

    def check(self) -> None:
        """See that what is written can be found again: SQLite would write to a removed file.

        Raises:
            JournalUnavailableError: Another file is at the path, or none.
        """
        if self.path is not None and _identify(self.path) != self._opened:
            msg = f"{self} is not the file that was opened: it was removed or replaced"
            raise JournalUnavailableError(msg)


def _check_path(path: Path) -> Path:
    """Return the path of a journal, absolute.

    Raises:
        JournalUnavailableError: There cannot be a file.
    """
    path = path.absolute()
    try:
        is_dir, has_parent = path.is_dir(), path.parent.is_dir()
        path.resolve()
    except OSError as exc:
        msg = f"the journal {path} cannot be opened: {exc.strerror}. Check its path."
        raise JournalUnavailableError(msg) from exc
    if is_dir:
        msg = f"{path} is a directory; a journal is a file, such as {path / 'durable.db'}"
        raise JournalUnavailableError(msg)
    if not has_parent:
        msg = f"the directory {path.parent} of the journal {path.name} does not exist; make it"
        raise JournalUnavailableError(msg)
    return path


def _identify(path: Path) -> tuple[int, int] | None:
    """Return which file is at ``path``, or ``None``."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
