"""A journal in SQLite that is only looked at: nothing of it is written, locked or made.

Rules:

- An engine may work on it meanwhile: each run is read in a transaction of its own, and nobody waits
  for the reader.
- A file that no engine has open is read as it is. With the usual connection SQLite would make two
  files beside it, which could belong to somebody else than the engine's.
- A log without its index, as a copy has it, is read in a copy of both.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, final
from urllib.parse import quote

from durable.core.errors import JournalCorruptError, JournalUnavailableError
from durable.journal import guard as sql
from durable.journal import reads
from durable.journal.schema import damage, is_journal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from durable.core.histories import RecordedRun

T = TypeVar("T")

PAGE_RUNS = 1_000
BUSY_TIMEOUT_S = 10


@final
class JournalReader:
    """A journal's file, for reading.

    Args:
        path: The file.

    Raises:
        JournalUnavailableError: It is not there, or cannot be read.
        JournalVersionError: It is newer than this code.
        JournalCorruptError: It is damaged, or not a journal.
    """

    def __init__(self, path: Path) -> None:
        # SQLite puts its files beside the file itself, not beside a link to it.
        self._path = path.resolve()
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._db: sqlite3.Connection | None = None
        # Of a file that is read as it is: what it was when it was opened.
        self._file: tuple[int, ...] | None = None
        try:
            self._read(self._check)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> JournalReader:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release what is held."""
        if self._db is not None:
            self._db.close()
            self._db = None
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    # --- what is read ----------------------------------------------------------------------------

    def read_run(self, run_id: str) -> RecordedRun | None:
        """Return all that is recorded of a run, of one moment."""
        return self._read(partial(reads.read_recorded, run_id=run_id))

    def count_unfinished(self) -> list[tuple[str, int, int]]:
        """Return how many runs are not over, by the name and the version of their workflow."""
        return self._read(reads.count_unfinished)

    def draw_unfinished(self, count: int) -> list[str]:
        """Return the ids of so many runs that are not over, drawn at random."""
        return self._read(partial(reads.draw_unfinished, count=count))

    def iter_unfinished(self) -> Iterator[str]:
        """Iterate over the ids of the runs that are not over, in the order of their start."""
        after = 0
        while True:
            page = self._read(partial(reads.read_unfinished, after=after, limit=PAGE_RUNS))
            if not page:
                return
            yield from (run_id for _, run_id in page)
            after = page[-1][0]

    def _check(self, db: sqlite3.Connection) -> None:
        if not is_journal(db, f"the journal {self._path}"):
            msg = f"{self._path} has no journal in it: check the path"
            raise JournalCorruptError(msg)

    # --- the connection --------------------------------------------------------------------------

    def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Read in one transaction."""
        try:
            while True:
                db = self._connected()
                db.execute(sql.BEGIN)
                try:
                    result = work(db)
                finally:
                    db.execute(sql.ROLLBACK)
                if self._file is None or self._file == self._identify():
                    return result
                # An engine was opened meanwhile, and has written into the file.
        except sqlite3.Error as exc:
            raise self._translate(exc) from exc
        except OSError as exc:
            raise self._unavailable(exc.strerror) from exc

    def _connected(self) -> sqlite3.Connection:
        if self._db is not None and (self._file is None or self._file == self._identify()):
            return self._db
        self.close()
        path, options = self._path, "mode=ro"
        self._file = None
        if not path.is_file():
            raise self._unavailable("there is no such file")
        log, index = (Path(f"{path}{ending}") for ending in ("-wal", "-shm"))
        has_log = log.exists() and log.stat().st_size > 0
        if has_log and not index.exists():
            path, options = self._copy(log), "mode=rw"
        elif not has_log and not index.exists():
            self._file = self._identify()
            options = "mode=ro&immutable=1"
        self._db = sqlite3.connect(
            f"file:{quote(str(path))}?{options}",
            uri=True,
            isolation_level=None,
            timeout=BUSY_TIMEOUT_S,
        )
        return self._db

    def _copy(self, log: Path) -> Path:
        self._directory = tempfile.TemporaryDirectory(prefix="durable-")
        copy = Path(self._directory.name) / "journal.db"
        shutil.copyfile(self._path, copy)
        shutil.copyfile(log, f"{copy}-wal")
        return copy

    def _identify(self) -> tuple[int, ...]:
        found = self._path.stat()
        log = Path(f"{self._path}-wal")
        log_size = 0
        with contextlib.suppress(FileNotFoundError):
            log_size = log.stat().st_size
        return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, log_size)

    def _translate(self, exc: sqlite3.Error) -> Exception:
        return damage(exc, self._path) or self._unavailable(str(exc))

    def _unavailable(self, why: str | None) -> JournalUnavailableError:
        msg = (
            f"the journal {self._path} cannot be read: {why}. Check its path, and who may read it "
            "and the files beside it."
        )
        return JournalUnavailableError(msg)
