"""Where the effects go: an outbox of mail files, a table of customers, and a log of sends.

A step that was running when the process died runs again, so each effect is made to bear that:
the file and the row are named after the step's idempotency key, and a repeated attempt writes the
same file and the same row. The log is the witness: one line for each send *begun*, written before
anything else happens, and never taken back.
"""

import hashlib
import os
import re
import secrets
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.parser import BytesHeaderParser
from email.policy import SMTP
from enum import StrEnum
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import msgspec

import durable
from _onboarding.signups import SignUp

# How long the mail server, a stand-in on this machine, takes to connect, and then to answer. A
# crash while it answers is the one that repeats a send: the mail is out, and nobody was told.
CONNECT_S = 0.05
ANSWER_S = 0.05

OWN_FILES = (
    "journal.db*",
    "customers.db*",
    "sends.jsonl",
    "skipped.txt",
    "outbox/*.eml",
    "outbox/*.eml.tmp",
)
SCHEMA = """
CREATE TABLE IF NOT EXISTS customer (
    idempotency_key TEXT PRIMARY KEY,
    run_id TEXT NOT NULL,
    email TEXT NOT NULL,
    name TEXT NOT NULL,
    plan TEXT NOT NULL,
    language TEXT NOT NULL,
    signed_up TEXT NOT NULL,
    tips TEXT NOT NULL
) STRICT
"""
SAVE = """
INSERT INTO customer (idempotency_key, run_id, email, name, plan, language, signed_up, tips)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (idempotency_key) DO NOTHING
"""


class Mail(StrEnum):
    """The two mails that everybody gets, named like the steps that send them."""

    WELCOME = "welcome-mail"
    FOLLOW_UP = "follow-up-mail"


class Send(msgspec.Struct, frozen=True):
    """One line of the log: an attempt to send one mail has begun.

    Attributes:
        session: Drawn once per process, since process ids come again.
    """

    begun_at: datetime
    run_id: str
    step_key: str
    attempt: int
    recipient: str
    kind: Mail
    message_id: str
    pid: int
    session: str


class MailFile(NamedTuple):
    """What the header of a file in the outbox says."""

    recipient: str
    kind: str
    message_id: str


class Office:
    """The effects of the onboarding, in one folder.

    Attributes:
        done: How often what was done in this process; for the live display.
    """

    def __init__(self) -> None:
        self.done = Counter[str]()
        self._done_lock = Lock()  # mails are sent and rows are saved in worker threads
        self._session = secrets.token_hex(4)
        self._folder = Path()

    @property
    def outbox(self) -> Path:
        """The folder of mails, one file each."""
        return self._folder / "outbox"

    @property
    def send_log(self) -> Path:
        """The log of sends, one JSON object a line."""
        return self._folder / "sends.jsonl"

    @property
    def database(self) -> Path:
        """The application's own database."""
        return self._folder / "customers.db"

    def open(self, folder: Path, *, fresh: bool) -> None:
        """Make ``folder`` the place of all effects, ``fresh`` without those of earlier times."""
        self._folder = folder
        if fresh:
            self._discard()
        self.outbox.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self.database)) as db:
            db.execute(SCHEMA)
        with self.send_log.open("ab+") as log:
            # A power cut may have left half a line: it stays alone, and is skipped when read.
            log.seek(max(log.tell() - 1, 0))
            if log.read() not in {b"", b"\n"}:
                log.write(b"\n")
        sync_folder(folder)

    def count(self, what: str) -> None:
        """Note that ``what`` was done once more."""
        with self._done_lock:
            self.done[what] += 1

    def send(self, signup: SignUp, kind: Mail, subject: str, body: str) -> None:
        """Send one mail from within an action."""
        attempt = durable.attempt()
        digest = hashlib.sha256(attempt.idempotency_key.encode()).hexdigest()[:24]
        message_id = f"<{digest}@onboarding.example.com>"
        self._log(
            Send(
                begun_at=datetime.now(UTC),
                run_id=attempt.run_id,
                step_key=attempt.step_key,
                attempt=attempt.number,
                recipient=signup.email,
                kind=kind,
                message_id=message_id,
                pid=os.getpid(),
                session=self._session,
            )
        )
        message = EmailMessage(policy=SMTP)
        message["From"] = Address("Onboarding", "hello", "example.com")
        message["To"] = Address(signup.name, addr_spec=signup.email)
        message["Subject"] = subject
        message["Date"] = datetime.now(UTC)
        message["Message-ID"] = message_id
        message["X-Mail-Kind"] = kind
        message.set_content(body)

        time.sleep(CONNECT_S)
        readable = re.sub(r"[^a-z0-9@._+-]", "_", signup.email)[:100]
        write_durably(self.outbox / f"{readable}.{kind}.{digest}.eml", message.as_bytes())
        time.sleep(ANSWER_S)
        self.count(kind)

    def save(self, signup: SignUp, tips: str) -> None:
        """Save the customer from within an action."""
        attempt = durable.attempt()
        with closing(sqlite3.connect(self.database, timeout=60)) as db, db:
            db.execute(
                SAVE,
                (
                    attempt.idempotency_key,
                    attempt.run_id,
                    signup.email,
                    signup.name,
                    signup.plan,
                    signup.language,
                    signup.signed_up.isoformat(),
                    tips,
                ),
            )
        self.count("row")

    def sends(self) -> Iterator[Send]:
        """Yield the sends begun, oldest first."""
        with self.send_log.open("rb") as log:
            for line in log:
                try:
                    yield msgspec.json.decode(line, type=Send)
                except msgspec.DecodeError:
                    continue  # cut off by a power cut, before that send did anything

    def mails(self) -> Iterator[MailFile]:
        """Yield what is in the outbox."""
        parser = BytesHeaderParser(policy=SMTP)
        for path in self.outbox.glob("*.eml"):
            with path.open("rb") as file:
                header = parser.parse(file)
            recipient = header["To"].addresses[0].addr_spec
            yield MailFile(recipient, header["X-Mail-Kind"], header["Message-ID"])

    def customers(self) -> Iterator[tuple[str, str]]:
        """Yield run id and e-mail address of each row."""
        with closing(sqlite3.connect(self.database)) as db:
            yield from db.execute("SELECT run_id, email FROM customer")

    def _discard(self) -> None:
        """Remove what an earlier onboarding made, and nothing else that lies in the folder."""
        for pattern in OWN_FILES:
            for path in self._folder.glob(pattern):
                path.unlink()

    def _log(self, send: Send) -> None:
        """Append ``send`` to the log, in one write, and wait until the disk has it."""
        line = msgspec.json.encode(send) + b"\n"
        with self.send_log.open("ab", buffering=0) as log:
            if log.write(line) != len(line):
                raise OSError(f"{self.send_log}: the disk took only a part of a line")
            os.fsync(log.fileno())


def write_durably(path: Path, content: bytes) -> None:
    """Write ``path`` whole or not at all, and wait until the disk has it."""
    unfinished = path.with_name(f"{path.name}.tmp")  # the next attempt overwrites what a crash left
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in ``folder``."""
    if os.name != "posix":
        return  # there a folder cannot be opened
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
