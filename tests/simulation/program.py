"""Random workflows over the whole surface, and the one workflow that runs any of them.

A program is a tree in JSON: a node is a list of its kind, a label that no other node has, and what
else it takes. A body notes each value that it sees, with the time, in the order of seeing; each
step has a digest of these notes among its arguments. So a replay in which the body sees anything
else gets stuck, which no run may.
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, Final, Protocol, TypeAlias

import durable
from durable import (
    Completion,
    Engine,
    EventId,
    JournalUnavailableError,
    NonRetryable,
    Retry,
    RunCanceled,
    RunFailed,
    Step,
    Transaction,
)

Node: TypeAlias = list[Any]

EVENT_NAMES: Final = ("red", "red", "red", "blue")
BOUND_S: Final = 25.0
"""How long a run of the bounded workflow may take."""

cleaning: ContextVar[bool] = ContextVar("cleaning", default=False)
"""Whether the body's code that runs now cleans up: a cancel does not end that."""


class Witness(Protocol):
    """Who takes note of what functions do."""

    def begin(self, label: str, *, is_cleaning: bool) -> int:
        """A step's function begins, in the attempt that runs now; return its serial number."""
        ...

    def end(self, serial: int, *, returned: bool) -> None:
        """It has ended."""
        ...

    def made(self, event_id: str) -> None:
        """A run waits for an event of that id."""
        ...

    def completed(self, completion: Completion) -> int:
        """A run's end is told; return how often that one's end was told before."""
        ...


class Stage:
    """Where the seed is played that is played now."""

    witness: Witness


stage = Stage()


# --- steps ---------------------------------------------------------------------------------------


class OddError(Exception):
    """An exception that cannot be rebuilt."""

    def __init__(self, one: str, _two: object) -> None:
        super().__init__(one)


def _raise_as_planned(label: str, plan: list[str]) -> None:
    match plan[min(durable.attempt().number, len(plan)) - 1]:
        case "fail":
            raise ValueError(label)
        case "fatal":
            raise NonRetryable(label)
        case "odd":
            raise OddError(label, object())
        case _:
            pass


@contextlib.contextmanager
def _witnessed(label: str, cleans: bool, plan: list[str]) -> Iterator[str]:
    """Do what is planned for this attempt, after the block; give what the step then returns."""
    serial, returned = stage.witness.begin(label, is_cleaning=cleans), False
    try:
        yield f"{label}#{serial}"
        _raise_as_planned(label, plan)
        returned = True
    finally:
        stage.witness.end(serial, returned=returned)


@durable.action(name="act")
async def act(label: str, seen: int, cleans: bool, plan: list[str], seconds: float) -> str:
    """Take some time, and do what is planned for this attempt."""
    with _witnessed(label, cleans, plan) as result:
        await asyncio.sleep(seconds)
    return result


@durable.action(name="work")
def work(label: str, seen: int, cleans: bool, plan: list[str]) -> str:
    """The same in a thread."""
    with _witnessed(label, cleans, plan) as result:
        return result


@durable.action(name="make")
async def make(label: str, seen: int) -> EventId:
    """Create an event of the run that calls this."""
    serial = stage.witness.begin(label, is_cleaning=False)
    try:
        while True:
            with contextlib.suppress(JournalUnavailableError):
                run_id = durable.attempt().run_id
                event_id = await Engine.current().create_event(run_id, "made")
                break
            await asyncio.sleep(0.3)
    finally:
        stage.witness.end(serial, returned=True)
    stage.witness.made(str(event_id))
    return event_id


@durable.mutation(name="deposit")
async def deposit(  # noqa: PLR0917
    tx: Transaction,
    label: str,
    seen: int,
    cleans: bool,
    plan: list[str],
    seconds: float,
) -> str:
    """Write a row for this step, and then fail, if it is planned."""
    serial, attempt = stage.witness.begin(label, is_cleaning=cleans), durable.attempt()
    try:
        await tx.execute(
            "INSERT INTO entry (run_id, key, label, serial) VALUES (?, ?, ?, ?)",
            attempt.run_id,
            attempt.step_key,
            label,
            serial,
        )
        if seconds:
            await asyncio.sleep(seconds)
        _raise_as_planned(label, plan)
    finally:
        stage.witness.end(serial, returned=True)
    return f"{label}#{serial}"


@durable.query(name="look")
async def look(tx: Transaction, label: str, seen: int) -> list[str]:
    """Return what this run has written."""
    run_id = durable.attempt().run_id
    rows = await tx.fetch_all("SELECT label FROM entry WHERE run_id = ? ORDER BY id", run_id)
    return [row["label"] for row in rows]


TOLD: Final = "INSERT INTO told (run_id, outcome, value) VALUES (?, ?, ?)"


@durable.mutation(name="tell_by_mutation")
async def tell_by_mutation(tx: Transaction, completion: Completion) -> None:
    times = stage.witness.completed(completion)
    await tx.execute(TOLD, completion.run_id, completion.outcome.kind, str(times))
    if times < int(str(completion.context)):
        raise ValueError(times)


@durable.action(name="tell_by_action")
async def tell_by_action(completion: Completion) -> None:
    if stage.witness.completed(completion) < int(str(completion.context)):
        raise ValueError(completion.run_id)


@durable.workflow(name="tell_by_workflow")
async def tell_by_workflow(step: Step, completion: Completion) -> None:
    await tell_by_mutation(completion)


# --- the body ------------------------------------------------------------------------------------


class Body:
    """One execution of a program's body."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.notes: list[str] = []

    def note(self, label: str, what: object) -> None:
        """See a value."""
        now = self.step.now().timestamp()
        self.notes.append(f"{label}={what}@{now:.3f}")

    @property
    def seen(self) -> int:
        """What was seen so far, as a number."""
        return zlib.crc32("\n".join(self.notes).encode())

    async def run(self, node: Node) -> None:
        """Run one node, of any kind."""
        kind, label, *rest = node
        await KINDS[kind](self, label, *rest)


KINDS: dict[str, Callable[..., Awaitable[None]]] = {}


def kind(function: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    KINDS[function.__name__.rstrip("_")] = function
    return function


def _retry(attempts: int | bool) -> Retry | bool | None:
    if isinstance(attempts, bool):
        return attempts
    return Retry(max_attempts=attempts, initial_backoff=0.4, base=3.0) if attempts > 1 else None


@kind
async def act_(  # noqa: PLR0917
    body: Body,
    label: str,
    plan: list[str],
    attempts: int | bool,
    seconds: float,
    timeout: float | None,  # noqa: ASYNC109
    delay: float | None,
) -> None:
    call = act(label, body.seen, cleaning.get(), plan, seconds)
    retry = _retry(attempts)
    body.note(label, await body.step.run(call, retry=retry, timeout=timeout, run_after=delay))


@kind
async def work_(body: Body, label: str, plan: list[str], attempts: int) -> None:
    call = work(label, body.seen, cleaning.get(), plan)
    body.note(label, await body.step.run(call, retry=_retry(attempts)))


@kind
async def deposit_(body: Body, label: str, plan: list[str], seconds: float) -> None:
    body.note(label, await deposit(label, body.seen, cleaning.get(), plan, seconds))


@kind
async def look_(body: Body, label: str) -> None:
    body.note(label, ",".join(await look(label, body.seen)))


@kind
async def sleep_(body: Body, label: str, seconds: float) -> None:
    await body.step.sleep(seconds, name=label)
    body.note(label, "slept")


@kind
async def nap_(body: Body, label: str, seconds: float) -> None:
    await asyncio.sleep(seconds)
    body.note(label, "napped")


@kind
async def event_(body: Body, label: str, name: str, seconds: float | None) -> None:
    try:
        value: Any = await body.step.wait_event(name, timeout=seconds)
    except TimeoutError:
        value = "late"
    body.note(label, value)


@kind
async def event_id_(body: Body, label: str, seconds: float | None) -> None:
    event_id = await body.step.run(make(label, body.seen))
    try:
        value: Any = await body.step.wait_event(event_id, timeout=seconds)
    except TimeoutError:
        value = "late"
    body.note(label, value)


@kind
async def child_(body: Body, label: str, node: Node, delay: float | None, bounded_: bool) -> None:
    call = (bounded if bounded_ else program)(node)
    try:
        value: Any = await body.step.run(call, name=label, run_after=delay)
    except (RunFailed, RunCanceled) as exc:
        value = [type(exc).__name__, exc.run_id]
    body.note(label, zlib.crc32(repr(value).encode()))


# --- what is around steps ------------------------------------------------------------------------


@kind
async def seq_(body: Body, _label: str, nodes: list[Node]) -> None:
    for node in nodes:
        await body.run(node)


@kind
async def gather_(body: Body, _label: str, nodes: list[Node]) -> None:
    await asyncio.gather(*(body.run(node) for node in nodes))


@kind
async def group_(body: Body, label: str, nodes: list[Node]) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            for node in nodes:
                group.create_task(body.run(node))
    except* ValueError as errors:
        body.note(label, len(errors.exceptions))


@kind
async def race_(body: Body, label: str, nodes: list[Node]) -> None:
    """Go on with the first; the others are withdrawn."""
    tasks = [asyncio.create_task(body.run(node)) for node in nodes]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        body.note(label, [task in done for task in tasks])
    finally:
        for task in tasks:
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@kind
async def bound_(body: Body, label: str, node: Node, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await body.run(node)
    except TimeoutError:
        body.note(label, "timed out")


@kind
async def attempt_(body: Body, label: str, node: Node, otherwise: Node) -> None:
    try:
        await body.run(node)
    except Exception as exc:  # noqa: BLE001  whatever it is
        body.note(label, type(exc).__name__)
        await body.run(otherwise)


@kind
async def at_last_(body: Body, _label: str, node: Node, last: Node) -> None:
    try:
        await body.run(node)
    except BaseException:
        token = cleaning.set(True)
        await body.run(last)
        cleaning.reset(token)
        raise
    await body.run(last)


@durable.workflow(name="simulated")
async def program(step: Step, node: list[Any]) -> list[str]:
    body = Body(step)
    await body.run(node)
    return body.notes


@durable.workflow(name="simulated_bounded", timeout=timedelta(seconds=BOUND_S))
async def bounded(step: Step, node: list[Any]) -> list[str]:
    body = Body(step)
    await body.run(node)
    return body.notes
