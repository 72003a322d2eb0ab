"""Sign-ups, and how they are read from a CSV file.

A row that cannot be used is skipped, and reported with its line and the reason. A file that cannot
be read to its end is refused as a whole, so that no row is lost without a word.
"""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, TypeVar
from unicodedata import category

Choice = TypeVar("Choice", bound=StrEnum)


class Plan(StrEnum):
    """What somebody signed up for."""

    FREE = "free"
    PRO = "pro"
    TEAM = "team"


class Language(StrEnum):
    """The language somebody is written to in."""

    EN = "en"
    DE = "de"
    FR = "fr"
    ES = "es"


@dataclass(frozen=True)
class SignUp:
    """One row of the file."""

    name: str
    email: str
    plan: Plan
    language: Language
    signed_up: date


class Skipped(NamedTuple):
    """A row that was not used."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


class InputError(Exception):
    """The file as a whole cannot be used. Nothing was started."""


COLUMNS = ("name", "email", "plan", "language", "signed_up")
NAME_LENGTH_MAX = 200
EMAIL_LENGTH_MAX = 254  # RFC 5321, section 4.5.3.1.3, less the angle brackets

# The unquoted addresses of RFC 5322: words joined by single dots, at a host that has a dot.
EMAIL = re.compile(
    r"[a-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[a-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
    r"@[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+",
)


def read_signups(path: Path) -> tuple[list[SignUp], list[Skipped]]:
    """Read the sign-ups of ``path``, and say which rows were skipped.

    Raises:
        InputError: The file is missing, is not CSV in UTF-8, lacks a column, or has no usable row.
    """
    records = _records(path)
    nothing: tuple[int, list[str]] = (1, [])
    _, header = next(records, nothing)
    columns = _columns(path, header)
    signups: list[SignUp] = []
    skipped: list[Skipped] = []
    line_of: dict[str, int] = {}
    for line, record in records:
        try:
            signup = _signup(record, columns, fields=len(header))
        except ValueError as exc:
            skipped.append(Skipped(line, str(exc)))
            continue
        first_line = line_of.setdefault(signup.email, line)
        if first_line == line:
            signups.append(signup)
        else:
            skipped.append(Skipped(line, f"{signup.email} signed up in line {first_line} already"))
    if not signups:
        reasons = "".join(f"\n  {row}" for row in skipped[:5])
        raise InputError(f"{path} has no usable row{reasons}")
    return signups, skipped


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line where each record begins, and its fields."""
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            # Strict: a quote that is never closed is an error, not one very long field.
            reader = csv.reader(file, strict=True)
            for record in reader:
                if record:
                    yield line, record
                line = reader.line_num + 1
    except OSError as exc:
        raise InputError(f"cannot read {path}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise InputError(f"{path}, line {line} or below: not UTF-8: {exc.reason}") from exc
    except csv.Error as exc:
        raise InputError(f"{path}, record at line {line}: not CSV: {exc}") from exc


def _columns(path: Path, header: list[str]) -> dict[str, int]:
    """Find where each column stands; further columns are welcome and not used."""
    position = {name.strip().lower(): at for at, name in enumerate(header)}
    missing = [name for name in COLUMNS if name not in position]
    if missing:
        found = ", ".join(header) or "nothing"
        raise InputError(f"{path}, header: no column {', '.join(missing)}; found: {found}")
    return {name: position[name] for name in COLUMNS}


def _signup(record: list[str], columns: dict[str, int], *, fields: int) -> SignUp:
    if len(record) != fields:
        raise ValueError(f"{len(record)} fields, expected {fields}")
    cell = {name: record[at].strip() for name, at in columns.items()}
    return SignUp(
        name=_name(cell["name"]),
        email=_email(cell["email"]),
        plan=_choice(Plan, cell["plan"].lower()),
        language=_choice(Language, cell["language"].lower()),
        signed_up=_date(cell["signed_up"]),
    )


def _name(text: str) -> str:
    if not text:
        raise ValueError("no name")
    if len(text) > NAME_LENGTH_MAX:
        raise ValueError(f"the name is longer than {NAME_LENGTH_MAX} characters")
    # A line break in a name is mostly a quote that was closed some rows too late; in the header
    # of a mail it would be worse than a typing error.
    if any(category(char) in {"Cc", "Zl", "Zp"} for char in text):
        raise ValueError(f"the name {text!r} has a line break or a control character in it")
    return text


def _email(text: str) -> str:
    email = text.lower()  # two spellings of one address are one person
    if len(email) > EMAIL_LENGTH_MAX or not EMAIL.fullmatch(email):
        raise ValueError(f"{text!r} is not an e-mail address")
    return email


def _choice(kind: type[Choice], text: str) -> Choice:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{kind.__name__.lower()} {text!r} is none of {', '.join(kind)}") from None


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"signed_up {text!r} is not a date like 2026-01-31") from None
