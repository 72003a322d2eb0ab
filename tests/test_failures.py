"""Exceptions, to JSON text and back."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odd import (
    DEPTH,
    BrokenAttributes,
    BrokenClass,
    BrokenDict,
    BrokenStr,
    OddInit,
    cyclic,
    nested,
    with_surrogate_attribute,
)

from durable import ErrorInfo, EventError, RunFailed, StepFailed
from durable.core.codec import MESSAGE_CHARS_MAX, safe_text
from durable.core.errors import PUBLIC
from durable.core.failures import (
    ERROR_CHARS_MAX,
    TRACEBACK_CHARS_MAX,
    RemoteTraceback,
    decode_error,
    encode_exception,
    rebuild_error,
    type_name_of,
)


class Known(Exception):
    """An exception with attributes."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text, code)
        self.code = code
        self.details = {"a": [1]}


class NoText(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]  # noqa: PLE0307  that is the point


class BrokenArgs(Exception):
    @property
    def args(self) -> Any:  # noqa: ANN401  as BaseException has it
        raise KeyError

    @args.setter
    def args(self, value: object) -> None: ...


@dataclass(frozen=True)
class Frozen(Exception):
    code: int

    def __str__(self) -> str:
        return str(self.code)


class FixedCause(Exception):
    __cause__ = None  # pyright: ignore[reportIncompatibleVariableOverride]
    __slots__ = ()


class OnceOnly(Exception):
    """Its constructor has enough of it the second time."""

    kinds: ClassVar[list[type[BaseException]]] = [
        *(SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError)
    ]
    made: ClassVar[set[int]] = set()

    def __init__(self, kind: int) -> None:
        super().__init__(kind)
        if kind in self.made:
            raise self.kinds[kind]
        self.made.add(kind)


class BrokenIdentity(Exception):
    def __eq__(self, other: object) -> bool:
        raise RuntimeError

    def __hash__(self) -> int:
        raise RuntimeError

    def __repr__(self) -> str:
        raise RuntimeError


class OddModule(Exception):
    pass


OddModule.__module__ = "\ud800"

KNOWN: dict[str, object] = {
    type_name_of(cls): cls
    for cls in (
        *(Known, OddInit, BrokenStr, NoText, BrokenDict, BrokenArgs, BrokenIdentity),
        *(Frozen, FixedCause, OnceOnly),
    )
} | {"a": 5, "b": object()}


def _through_the_journal(exc: BaseException) -> Exception:
    return rebuild_error(decode_error(encode_exception(exc)), KNOWN)


@pytest.mark.parametrize(
    "exc",
    [
        ValueError("a", 1, None),
        KeyError("k"),
        KeyError(("k", (1, None))),
        ValueError([1, 2]),
        ZeroDivisionError(),
        TimeoutError("late"),
        ValueError("a\0b"),
        FileNotFoundError(2, "no such file", "a.txt"),
        OSError(18, "cross-device", "a", None, "b"),
        Known("text", 7),
        OddInit(1, b=2),
        Frozen(3),
        FixedCause("text"),
        StepFailed("app.Error", "text"),
    ],
    ids=repr,
)
def test_an_exception_arrives_as_itself(exc: Exception) -> None:
    rebuilt = _through_the_journal(exc)
    assert type(rebuilt) is type(exc)
    assert rebuilt.args == exc.args
    assert str(rebuilt) == str(exc)
    assert rebuilt.__dict__ == exc.__dict__


@pytest.mark.parametrize("cls", [c for c in PUBLIC if issubclass(c, Exception)])
def test_durables_own_errors_arrive_as_themselves(cls: type[Exception]) -> None:
    exc: Exception
    if cls is RunFailed:
        exc = RunFailed("r", ErrorInfo("ValueError", "text", "tb"))
    elif issubclass(cls, StepFailed | EventError):
        exc = cls("ValueError", "text")
    else:
        exc = cls("text")
    rebuilt = _through_the_journal(exc)
    assert type(rebuilt) is cls
    assert str(rebuilt) == str(exc)
    assert rebuilt.__dict__ == exc.__dict__


@pytest.mark.parametrize("kind", range(len(OnceOnly.kinds)))
def test_whatever_a_constructor_raises_the_next_way_is_tried(kind: int) -> None:
    rebuilt = _through_the_journal(OnceOnly(kind))
    assert isinstance(rebuilt, OnceOnly)
    assert rebuilt.args == (kind,)


def test_the_traceback_of_the_original_is_the_cause() -> None:
    try:
        msg = "inner"
        raise ValueError(msg)  # noqa: TRY301  a traceback is wanted
    except ValueError as exc:
        rebuilt = _through_the_journal(exc)
    assert isinstance(rebuilt.__cause__, RemoteTraceback)
    assert "test_the_traceback_of_the_original_is_the_cause" in str(rebuilt.__cause__)
    assert "ValueError: inner" in rebuilt.__cause__.text


@pytest.mark.parametrize(
    ("exc", "type_name", "message"),
    [
        (SystemExit(2), "SystemExit", "2"),
        (KeyboardInterrupt(), "KeyboardInterrupt", ""),
        (GeneratorExit(), "GeneratorExit", ""),
        (asyncio.CancelledError("x"), "asyncio.exceptions.CancelledError", "x"),
        (StopIteration(3), "StopIteration", "3"),
        (StopAsyncIteration(), "StopAsyncIteration", ""),
        (ExceptionGroup("g", [ValueError()]), "ExceptionGroup", "g (1 sub-exception)"),
        (ValueError(math.nan), "ValueError", "nan"),
        (ValueError(object), "ValueError", "<class 'object'>"),
        (ValueError("\ud800"), "ValueError", "\\ud800"),
        (ValueError(((1,), [2])), "ValueError", "((1,), [2])"),
        (KeyError(b"k"), "KeyError", "b'k'"),
        (UnicodeDecodeError("u", b"a", 0, 1, "r"), "UnicodeDecodeError", None),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_cannot_be_itself_is_step_failed(
    exc: BaseException, type_name: str, message: str | None
) -> None:
    rebuilt = _through_the_journal(exc)
    assert type(rebuilt) is StepFailed
    assert rebuilt.type_name == type_name
    if message is not None:
        assert rebuilt.message == message


@pytest.mark.parametrize(
    "type_name",
    [
        "os.error",  # It exists, and was not handed in.
        "tests.Missing",
        "eval",  # A builtin, and no exception.
        "object",
        "BaseException",
        "__import__",
        "a",  # Handed in, and no class.
        "b",
        "",
        ".",
        "durable.core.codec.EncodeError",
    ],
)
def test_no_class_is_found_by_a_stored_name_alone(type_name: str) -> None:
    """A journal must not be able to choose which code runs."""
    text = msgspec.json.encode({"type_name": type_name, "message": "m", "args": ["m"]}).decode()
    rebuilt = rebuild_error(decode_error(text), KNOWN | {"eval": eval})
    assert type(rebuilt) is StepFailed


def test_a_class_is_taken_by_its_own_name_only() -> None:
    stored = decode_error(encode_exception(OddInit(1, b=2)))
    rebuilt = rebuild_error(stored, {stored.type_name: Known})
    assert type(rebuilt) is StepFailed


def _in_its_own_args() -> Exception:
    exc = ValueError()
    exc.args = (exc,)
    return exc


def _long_chain() -> Exception:
    exc = ValueError(0)
    for number in range(DEPTH):
        exc, cause = ValueError(number), exc
        exc.__cause__ = cause
    return exc


@pytest.mark.parametrize(
    "make",
    [
        BrokenStr,
        NoText,
        BrokenDict,
        BrokenArgs,
        BrokenAttributes,
        BrokenIdentity,
        BrokenClass,
        OddModule,
        with_surrogate_attribute,
        cyclic,
        _in_its_own_args,
        _long_chain,
        lambda: ValueError(nested()),
        lambda: ValueError("x" * 20_000_000),
    ],
)
def test_describing_an_exception_never_raises(make: Callable[[], Exception]) -> None:
    """An action may raise anything, and its engine lives on."""
    exc = make()
    text = encode_exception(exc)
    assert len(text) <= ERROR_CHARS_MAX
    stored = decode_error(text)
    assert stored.type_name
    rebuilt = rebuild_error(stored, KNOWN)
    assert isinstance(rebuilt, Exception)


@pytest.mark.slow
@given(
    st.sampled_from([ValueError, KeyError, OSError, Known, OddInit, UnicodeError]),
    st.lists(st.none() | st.integers() | st.floats() | st.text() | st.binary(), max_size=4),
)
@settings(deadline=None)
def test_any_arguments_keep_the_message(cls: type[Exception], args: list[object]) -> None:
    exc = cls.__new__(cls, *args)
    exc.args = tuple(args)
    rebuilt = _through_the_journal(exc)
    assert safe_text(rebuilt).removeprefix(f"{type_name_of(type(exc))}: ") == safe_text(exc)


def test_long_texts_are_cut_where_they_tell_least() -> None:
    def fail(depth: int) -> None:
        if depth:
            fail(depth - 1)
        raise ValueError("m" * (MESSAGE_CHARS_MAX + 1), "the end of it")

    try:
        fail(30)
    except ValueError as exc:
        stored = decode_error(encode_exception(exc))
    assert len(stored.message) == MESSAGE_CHARS_MAX
    assert stored.traceback.startswith("[...]")
    assert len(stored.traceback) <= TRACEBACK_CHARS_MAX + len("[...]")
    assert stored.traceback.rstrip().endswith("'the end of it')")


def test_an_error_over_the_bound_keeps_its_texts() -> None:
    exc = ValueError("short")
    exc.extra = "x" * ERROR_CHARS_MAX  # type: ignore[attr-defined]
    stored = decode_error(encode_exception(exc))
    assert (stored.message, stored.args, stored.attributes) == ("short", None, {})
    assert type(rebuild_error(stored, {})) is StepFailed


def test_notes_are_part_of_the_traceback_only() -> None:
    exc = ValueError("text")
    exc.add_note("look here")
    stored = decode_error(encode_exception(exc))
    assert stored.attributes == {}
    assert "look here" in stored.traceback
