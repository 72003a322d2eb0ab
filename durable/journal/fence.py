"""The owner's fencing token, in the database: who has taken the journal over has a later epoch.

The functions run on the connection's own thread, inside a transaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from durable.core.errors import JournalCorruptError
from durable.journal.base import OwnershipLostError

if TYPE_CHECKING:
    import sqlite3

FENCE = "SELECT epoch FROM durable_owner"

NEW_EPOCH = "UPDATE durable_owner SET epoch = epoch + 1 RETURNING epoch"

# What a dead owner worked on is due at once.
RELEASE_CLAIMS = "UPDATE durable_run SET epoch = NULL, wake_at_ms = 0 WHERE epoch IS NOT NULL"

# A stuck run is tried again by each new owner: its code may have been mended.
RETRY_STUCK = "UPDATE durable_run SET wake_at_ms = 0 WHERE state = 'stuck'"

# The epoch, too: an owner that is stopped in its tracks, and has lost the lock, is fenced.
END_OWNERSHIP = "UPDATE durable_owner SET epoch = epoch + 1"


def check_fence(db: sqlite3.Connection, epoch: int) -> None:
    """Raise ``OwnershipLostError`` unless ``epoch`` is the present owner's."""
    (present,) = db.execute(FENCE).fetchone()
    if present != epoch:
        raise ownership_lost(present, epoch)


def new_epoch(db: sqlite3.Connection, epoch: int) -> int:
    """Become the owner, again if ``epoch`` is not 0; return the new epoch.

    Raises:
        OwnershipLostError: Another one has become the owner since.
        JournalCorruptError: The row with the epoch is gone.
    """
    owner = db.execute(NEW_EPOCH).fetchone()
    if owner is None:
        msg = "the journal has lost the row of durable_owner. Restore it from a backup."
        raise JournalCorruptError(msg)
    # The own last one, or, where the outcome of writing it was unknown, the one before.
    if 0 < epoch < owner[0] - 1:
        raise ownership_lost(owner[0] - 1, epoch)
    return int(owner[0])


def end_ownership(db: sqlite3.Connection) -> None:
    """Have nobody own the journal, and nobody work on its runs."""
    db.execute(END_OWNERSHIP)
    db.execute(RELEASE_CLAIMS)


def ownership_lost(present: int, epoch: int) -> OwnershipLostError:
    """Return the error that says so."""
    msg = (
        f"another owner has taken the journal over (epoch {present}, not {epoch}). This engine "
        "writes nothing any more: close it."
    )
    return OwnershipLostError(msg)
