"""What a body's loop refuses: whatever would make the body depend on the world."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future as ThreadFuture
from typing import Any

import anyio
import anyio.to_thread
import pytest
from bare_loop import Host, begin, current, nothing, run

from durable.core.errors import NonDeterminismError
from durable.core.loop import WorkflowLoop

REFUSED: dict[str, Callable[[], Any]] = {
    "run_in_executor": lambda: asyncio.to_thread(nothing),
    "run_in_executor ": lambda: current().run_in_executor(None, nothing),
    "set_default_executor": lambda: current().set_default_executor(None),
    "shutdown_default_executor": lambda: current().shutdown_default_executor(),
    "create_connection": lambda: asyncio.open_connection("localhost", 80),
    "create_unix_connection": lambda: asyncio.open_unix_connection("/socket"),
    "create_server": lambda: asyncio.start_server(nothing, "localhost", 0),
    "create_datagram_endpoint": lambda: current().create_datagram_endpoint(nothing),
    "getaddrinfo": lambda: current().getaddrinfo("localhost", 80),
    "sock_recv": lambda: current().sock_recv(None, 1),
    "add_reader": lambda: current().add_reader(0, nothing),
    "connect_read_pipe": lambda: current().connect_read_pipe(nothing, sys.stdin),
    "subprocess_exec": lambda: asyncio.create_subprocess_exec("true"),
    "subprocess_shell": lambda: asyncio.create_subprocess_shell("true"),
    "add_signal_handler": lambda: current().add_signal_handler(signal.SIGINT, nothing),
    "call_soon_threadsafe": lambda: current().call_soon_threadsafe(nothing),
    "run_until_complete": lambda: current().run_until_complete(None),
    "run_forever": lambda: current().run_forever(),
    "stop": lambda: current().stop(),
    "set_debug": lambda: current().set_debug(enabled=True),
    "set_task_factory": lambda: current().set_task_factory(None),
    "set_exception_handler": lambda: current().set_exception_handler(None),
}


@pytest.mark.parametrize("name", REFUSED)
def test_io_threads_and_processes_are_refused(loop: WorkflowLoop, host: Host, name: str) -> None:
    """By name, with what to do instead; and that is noted, for a body may swallow the error."""

    async def body() -> None:
        made = REFUSED[name]()
        if isinstance(made, Awaitable):
            await made

    with pytest.raises(
        NonDeterminismError, match=rf"loop\.{name.strip()}\(\).*put it in an action"
    ):
        run(loop, body())
    assert len(host.refusals) == 1


@pytest.mark.parametrize(
    "use",
    [
        lambda: anyio.to_thread.run_sync(nothing),
        lambda: anyio.connect_tcp("127.0.0.1", 80),
        lambda: anyio.run_process("true"),
        lambda: anyio.Path("/").exists(),
        lambda: anyio.getaddrinfo("localhost", 80),
    ],
)
def test_io_by_anyio_is_refused(
    loop: WorkflowLoop, host: Host, use: Callable[[], Awaitable[object]]
) -> None:
    async def body() -> None:
        await use()

    with pytest.raises((NonDeterminismError, BaseExceptionGroup)):
        run(loop, body())
    assert len(host.refusals) == 1


def test_every_method_of_a_loop_is_there_or_refused() -> None:
    """A method that asyncio adds must not come as a bare NotImplementedError."""
    abstract = asyncio.AbstractEventLoop
    names = [name for name in vars(abstract) if not name.startswith("__")]
    assert [n for n in names if getattr(WorkflowLoop, n) is getattr(abstract, n)] == []


def test_an_eager_task_is_refused(loop: WorkflowLoop) -> None:
    """It would run before its turn, and issue steps under the key of its parent."""

    async def child() -> None:
        pass

    async def body() -> None:
        coroutine = child()
        try:
            current().create_task(coroutine, eager_start=True)
        finally:
            coroutine.close()

    with pytest.raises(NonDeterminismError, match="eager"):
        run(loop, body())


def test_another_thread_is_refused_without_blaming_the_body(loop: WorkflowLoop, host: Host) -> None:
    caught: list[BaseException] = []

    def elsewhere() -> None:
        try:
            loop.call_soon_threadsafe(nothing)
        except NonDeterminismError as error:
            caught.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(caught) == 1
    assert host.refusals == []


def test_a_future_cannot_be_settled_from_outside(loop: WorkflowLoop) -> None:
    """What wakes a body is a delivery, which is recorded, and nothing else."""
    futures: list[asyncio.Future[None]] = []

    async def body() -> None:
        futures.append(current().create_future())
        await futures[0]

    task = begin(loop, body())
    with pytest.raises(NonDeterminismError, match="from outside"):
        futures[0].set_result(None)
    assert not task.done()


def test_a_thread_of_its_own_cannot_wake_a_body(loop: WorkflowLoop) -> None:
    """A concurrent future tells the loop by call_soon_threadsafe."""
    elsewhere: ThreadFuture[str] = ThreadFuture()

    async def body() -> str:
        return await asyncio.wrap_future(elsewhere)

    task = begin(loop, body())
    with pytest.raises(NonDeterminismError):
        elsewhere.set_result("late")
    assert not task.done()
