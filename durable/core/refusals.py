"""What a body's loop refuses: whatever would make the body depend on the world."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class Refusing(Protocol):
    """A loop that can say no."""

    def refuse(self, what: str, instead: str = "put it in an action") -> NoReturn:
        """Raise ``NonDeterminismError``, and remember that."""
        ...


ANYIO_WORKER = "run_sync_in_worker_thread"
"""What in anyio starts a thread, past the loop: it makes a future just before."""

TOUCHED_FROM_OUTSIDE = (
    "a future or task of a workflow's body was touched from outside of it. Send the value as the "
    "result of an action."
)
"""What is said when other code schedules something on a body's loop."""

REFUSED = (
    "add_reader",
    "remove_reader",
    "add_writer",
    "remove_writer",
    "add_signal_handler",
    "remove_signal_handler",
    "call_soon_threadsafe",
    "run_forever",
    "run_until_complete",
    "stop",
    "set_debug",
    "set_task_factory",
    "set_exception_handler",
    "run_in_executor",
    "set_default_executor",
    "getaddrinfo",
    "getnameinfo",
    "create_connection",
    "create_server",
    "create_unix_connection",
    "create_unix_server",
    "create_datagram_endpoint",
    "connect_accepted_socket",
    "connect_read_pipe",
    "connect_write_pipe",
    "sendfile",
    "start_tls",
    "subprocess_exec",
    "subprocess_shell",
    "sock_accept",
    "sock_connect",
    "sock_recv",
    "sock_recv_into",
    "sock_recvfrom",
    "sock_recvfrom_into",
    "sock_sendall",
    "sock_sendfile",
    "sock_sendto",
    "shutdown_asyncgens",
    "shutdown_default_executor",
)
"""The methods of ``asyncio.AbstractEventLoop`` for I/O, threads, processes, signals and policy."""


def no_replay_of(what: str, instead: str) -> str:
    """Return what is said when a body tries ``what``."""
    return (
        f"a workflow's body may not use {what}: it could not be replayed. Do this instead: "
        f"{instead}."
    )


def refuse_all(cls: type[Any]) -> None:
    """Give a loop's class the methods that refuse."""
    for name in REFUSED:
        setattr(cls, name, _refuser(cls, name))


def _refuser(cls: type[Any], name: str) -> Callable[..., Any]:
    def refused(self: Refusing, *_args: object, **_kwargs: object) -> NoReturn:
        self.refuse(f"loop.{name}()")

    refused.__name__ = name
    refused.__qualname__ = f"{cls.__qualname__}.{name}"
    return refused
