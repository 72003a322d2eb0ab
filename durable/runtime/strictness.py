"""``Engine(strict=True)``: what goes past a body's loop is refused while the body's code runs.

Rules:

- An audit hook sees what does I/O, sleeps, or starts a thread or process. It is there for the rest
  of the process, and does nothing unless a strict body has its turn in the thread that asks.
- Clocks and randomness raise no audit events, nor does a thread on Python 3.11: a profile function
  sees the calls of them. It is set for the turn alone. One that was set before is called too; a
  profiler written in C, which cannot be, is left alone, and there is then no such watch.
- Both see the calls of any code that runs in the turn, the body's or a library's: what a library
  reads comes to the body all the same.
- Not refused: imports, logging, texts of warnings and errors, time zones, debuggers, handlers of
  signals and of the collector, finalizers, and lines that end with ``# durable: allow``.
- What is freed in a turn may be anyone's, so no finalizer is taken for the body's: nothing that
  runs while the collector does, which tells so by a callback, and no ``__del__`` or callback of a
  weak reference, which are known by their frames.
- A refusal is that of the body's loop: a body that ends with it has failed, one that swallows it is
  stuck, so nothing is lost by a profile function being dropped once it has raised.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import weakref
from datetime import date
from typing import TYPE_CHECKING, Any

from durable.core.forbidden import (
    ACTION,
    CLOCKS,
    DATE_METHODS,
    NOW,
    RANDOM,
    SECRET,
    SLEEP,
    THREAD,
    instead_of,
)
from durable.core.interrupts import code_of, signal_handlers
from durable.runtime.allowing import is_allowed

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

    from durable.core.host import Guard, Refuse

    Profile = Callable[..., object]

READS = {
    "time": (*CLOCKS, "sleep"),
    "os": ("urandom", "getrandom", "getpid", "getppid"),
    "random": ("random", "getrandbits"),
    "uuid": ("_generate_time_safe",),
    "_thread": ("start_new_thread",),
}
"""The functions in C that are watched: all others come down to these."""

FAMILIES = frozenset(
    {
        *("socket", "subprocess", "shutil", "tempfile", "glob", "pathlib", "urllib", "http"),
        *("ftplib", "imaplib", "poplib", "smtplib", "nntplib", "telnetlib", "webbrowser"),
        *("sqlite3", "fcntl", "mmap", "msvcrt", "winreg", "syslog", "pty", "os"),
    }
)
"""The modules whose audit events are refused."""

EVENTS = {
    "open": ("open()", ACTION),
    "builtins.input": ("input()", instead_of("builtins.input")),
    "time.sleep": ("time.sleep()", SLEEP),
    "socket.__new__": ("socket.socket()", ACTION),
    "_thread.start_new_thread": ("a thread", THREAD),
    "_thread.start_joinable_thread": ("a thread", THREAD),
}
"""What other audit events are refused, and how some are called."""

HARMLESS = frozenset({"os.putenv", "os.unsetenv", "os.add_dll_directory"})

GUESTS = frozenset(
    {
        *("logging", "structlog", "warnings", "linecache", "traceback", "tokenize", "zoneinfo"),
        *("bdb", "pdb", "coverage", "debugpy", "pydevd", "_pydevd_bundle", "_pydev_bundle"),
    }
)
"""The packages that may do what they do while a body has its turn: none of it comes to the body."""

IMPORTERS = frozenset(
    {
        "<frozen importlib._bootstrap>",
        "<frozen importlib._bootstrap_external>",
        "<frozen zipimport>",
    }
)

WRAPPERS = frozenset({"random", "uuid", "secrets", "tempfile", "threading"})
"""Modules in Python that call what is watched: what they are asked for is named."""

CALLERS_SHOWN_MAX = 3
"""How many of the lines that lead to a refused call are shown, besides that of the body."""

LIBRARY = os.path.dirname(os.__file__) + os.sep  # noqa: PTH120  no need for pathlib
"""Where the standard library is."""

_refusing: dict[int, Refuse] = {}
"""The threads in which a strict body has its turn."""

_collecting: set[int] = set()
"""The threads of those in which the collector runs just now."""

_reads: dict[object, tuple[str, str]] = {}
"""The functions in C that read a clock or draw: how they are called, and what to do instead."""

_seed_codes: set[CodeType] = set()


def strict_guard() -> Guard:
    """Return what watches strict bodies; install the audit hook, if it is not there yet."""
    if not _reads:
        _fill_reads()
        sys.addaudithook(_on_audit)
    return _watch


def _fill_reads() -> None:
    import _thread  # noqa: PLC0415  strict engines alone
    import random  # noqa: PLC0415
    import time  # noqa: PLC0415
    import uuid  # noqa: PLC0415

    for module in (_thread, os, random, time, uuid):
        for function in READS[module.__name__]:
            if hasattr(module, function):  # It is not on all systems.
                name = f"{module.__name__}.{function}"
                _reads[getattr(module, function)] = (f"{name}()", instead_of(name))
    _seed_codes.add(random.Random.seed.__code__)


def _watch(run: Callable[[], None], refuse: Refuse) -> None:
    thread = threading.get_ident()
    outer = _refusing.get(thread)
    profile = sys.getprofile()
    is_watching = profile is None or callable(profile)
    try:
        gc.callbacks.append(_on_collection)
        _refusing[thread] = refuse
        if is_watching:
            sys.setprofile(_on_call if profile is None else _chained(profile))
        run()
    finally:
        if is_watching:
            sys.setprofile(profile)
        if outer is None:
            del _refusing[thread]
        else:
            _refusing[thread] = outer
        gc.callbacks.remove(_on_collection)


# --- what is seen --------------------------------------------------------------------------------


def _on_audit(event: str, args: tuple[Any, ...]) -> None:
    if not _refusing:
        return
    if event not in EVENTS and (event.partition(".")[0] not in FAMILIES or event in HARMLESS):
        return
    refuse = _refusing.get(threading.get_ident())
    if refuse is not None and not (event == "open" and _is_time_zone(args[0])):
        what, instead = EVENTS.get(event) or (f"{event.partition('/')[0]}()", ACTION)
        _refuse(refuse, what, instead, sys._getframe(1))  # noqa: SLF001


def _is_time_zone(path: object) -> bool:
    """Whether ``zoneinfo`` reads it: it is written in C, so it has no frame."""
    directories: tuple[str, ...] = getattr(sys.modules.get("zoneinfo"), "TZPATH", ())
    return isinstance(path, str) and path.startswith(directories)


def _on_call(frame: FrameType, event: str, called: Any) -> None:  # noqa: ANN401  whatever is called
    if event != "c_call":
        return
    read = _reads.get(called)
    if read is None:
        name = called.__name__
        if name in DATE_METHODS:
            cls = called.__self__
            if not isinstance(cls, type) or not issubclass(cls, date):
                return
            read = (f"{cls.__name__}.{name}()", NOW)
        elif name == "seed" and frame.f_code in _seed_codes and frame.f_locals["a"] is None:
            read = ("random.Random() without a seed", RANDOM)
        else:
            return
    refuse = _refusing.get(threading.get_ident())
    if refuse is not None:
        _refuse(refuse, *read, frame)


def _on_collection(phase: str, _info: object) -> None:
    """Note whether the collector runs: what it frees may be anyone's."""
    if phase == "start":
        _collecting.add(threading.get_ident())
    else:
        _collecting.discard(threading.get_ident())


def _chained(outer: Profile) -> Profile:
    def on_event(frame: FrameType, event: str, called: Any) -> None:  # noqa: ANN401
        outer(frame, event, called)
        _on_call(frame, event, called)

    return on_event


# --- who has asked -------------------------------------------------------------------------------


def _refuse(refuse: Refuse, what: str, instead: str, frame: FrameType) -> None:
    """Refuse what a frame asks for, unless it is not the body's."""
    if threading.get_ident() in _collecting:
        return
    frames = _frames_of_turn(frame)
    callbacks = signal_handlers().union(map(code_of, gc.callbacks))
    if any(_is_guest(each) or each.f_code in callbacks or _is_finalizer(each) for each in frames):
        return
    own = [each for each in frames if not _is_library(each)]
    if any(_is_allowed(each) for each in own):
        return
    _forget_thread(frames)
    what, instead = _asked_for(frame, what, instead)
    refuse(f"{what}{_place_of(own)}", instead)


def _asked_for(frame: FrameType | None, what: str, instead: str) -> tuple[str, str]:
    """Return what the standard library was asked for, whatever that comes down to."""
    while frame is not None and (module := frame.f_globals.get("__name__")) in WRAPPERS:
        code = frame.f_code
        if not code.co_name.startswith("_") and code not in _seed_codes:
            # The functions of ``random`` are methods of a generator.
            name = code.co_name if module == "random" else code.co_qualname
            if module == "random" and instead is SECRET:
                name = "SystemRandom"
            what = f"{module}.{name}()"
            instead = instead_of(f"{module}.{name}", instead)
        frame = frame.f_back
    return what, instead


def _frames_of_turn(frame: FrameType | None) -> list[FrameType]:
    """Return the frames of the turn, the innermost first."""
    frames: list[FrameType] = []
    while frame is not None and frame.f_code is not _watch.__code__:
        frames.append(frame)
        frame = frame.f_back
    return frames


def _is_guest(frame: FrameType) -> bool:
    name = str(frame.f_globals.get("__name__"))
    return name.partition(".")[0] in GUESTS or frame.f_code.co_filename in IMPORTERS


def _is_finalizer(frame: FrameType) -> bool:
    """Whether it runs since an object is freed: its ``__del__``, or what a weak reference calls."""
    code = frame.f_code
    if code.co_name == "__del__":
        return True
    parameters = code.co_varnames[: code.co_argcount]
    given: list[Any] = [frame.f_locals[name] for name in parameters if name in frame.f_locals]
    return any(weakref.ref in type(each).__mro__ and each() is None for each in given)


def _is_library(frame: FrameType) -> bool:
    """Whether it is of the standard library, or of ours."""
    name = str(frame.f_globals.get("__name__"))
    file = frame.f_code.co_filename
    return name.partition(".")[0] == "durable" or file.startswith((LIBRARY, "<frozen "))


def _is_allowed(frame: FrameType) -> bool:
    return is_allowed(frame.f_code.co_filename, frame.f_lineno, frame.f_globals)


def _place_of(frames: list[FrameType]) -> str:
    """Return where that is: the line that asks, those that call it, and that of the body."""
    if not frames:
        return ""
    places = dict.fromkeys(map(_line_of, (*frames[:CALLERS_SHOWN_MAX], frames[-1])))
    return f" ({', called at '.join(places)})"


def _line_of(frame: FrameType) -> str:
    code = frame.f_code
    return f"{code.co_filename}:{frame.f_lineno} in {code.co_qualname}()"


def _forget_thread(frames: list[FrameType]) -> None:
    """Undo what ``Thread.start`` has begun: it does so for an ``Exception`` alone."""
    for frame in frames:
        if frame.f_code is threading.Thread.start.__code__:
            threading._limbo.pop(frame.f_locals["self"], None)  # type: ignore[attr-defined]  # noqa: SLF001
