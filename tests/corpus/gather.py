"""``asyncio.gather``: order of results, order of completions, failures and cancellation."""

import asyncio

import durable
from durable import Step

from .actions import CorpusError, boom, double, echo, guarded, traced
from .case import case


@case()
@durable.workflow(name="corpus.gather_calls")
async def gather_calls(step: Step) -> list[str]:
    """Results come in the order given, whatever completes first."""
    first = await asyncio.gather(echo("a"), echo("b"), echo("c"))
    second = await asyncio.gather(*(step.run(echo(v), name=f"again {v}") for v in first))
    return [*first, *second]


@case()
@durable.workflow(name="corpus.gather_traced")
async def gather_traced(_step: Step) -> list[str]:
    """The order in which branches go on is the order of their completions."""
    trace: list[str] = []
    await asyncio.gather(*(traced(trace, echo(v)) for v in "abcdefgh"))
    return trace


@case()
@durable.workflow(name="corpus.gather_same_names")
async def gather_same_names(step: Step) -> list[str]:
    """Branches whose steps have the same names never get each other's results."""
    trace: list[str] = []

    async def branch(label: str) -> str:
        loaded = await step.run(echo(label), name="load")
        trace.append(f"{label}: {loaded}")
        saved = await step.run(echo(f"saved {loaded}"), name="save")
        trace.append(f"{label}: {saved}")
        return saved

    results = await asyncio.gather(branch("A"), branch("B"), branch("C"))
    return [*results, *trace]


@case()
@durable.workflow(name="corpus.gather_uneven")
async def gather_uneven(_step: Step) -> list[str]:
    """Branches of different lengths with the same function and arguments stay apart."""
    trace: list[str] = []

    async def branch(label: str, length: int) -> None:
        for position in range(length):
            await echo("same")
            trace.append(f"{label}{position}")

    await asyncio.gather(branch("a", 1), branch("b", 3), branch("c", 2))
    return trace


@case()
@durable.workflow(name="corpus.gather_nested")
async def gather_nested(_step: Step) -> list[str]:
    """Gathers within gathers, with a step after each level."""
    trace: list[str] = []

    async def pair(label: str) -> str:
        await asyncio.gather(traced(trace, echo(f"{label}1")), traced(trace, echo(f"{label}2")))
        return await traced(trace, echo(label))

    await asyncio.gather(asyncio.gather(pair("a"), pair("b")), pair("c"))
    return trace


@case()
@durable.workflow(name="corpus.gather_one_fails")
async def gather_one_fails(_step: Step) -> list[str]:
    """Without return_exceptions the error comes at once and the siblings go on."""
    trace: list[str] = []
    siblings = [asyncio.create_task(traced(trace, echo(v))) for v in "ab"]
    try:
        await asyncio.gather(*siblings, boom("value"))
    except ValueError as error:
        trace.append(f"caught {error}")
    return [*await asyncio.gather(*siblings), *trace]


@case()
@durable.workflow(name="corpus.gather_two_fail")
async def gather_two_fail(_step: Step) -> str:
    """Of two failures the one that completes first is raised."""
    try:
        await asyncio.gather(boom("key"), echo("fine"), boom("index"))
    except LookupError as error:
        return await echo(type(error).__name__)
    return "no error"


@case()
@durable.workflow(name="corpus.gather_exceptions")
async def gather_exceptions(_step: Step) -> list[str]:
    """With return_exceptions failures are values, in their places."""
    outcomes = await asyncio.gather(
        echo("a"), boom("key"), boom("corpus"), double(4), return_exceptions=True
    )
    assert isinstance(outcomes[2], CorpusError)
    return [await echo(repr(outcome)) for outcome in outcomes]


@case()
@durable.workflow(name="corpus.gather_exceptions_nested")
async def gather_exceptions_nested(_step: Step) -> list[str]:
    """A failing inner gather is one value of the outer; its siblings' steps still count."""
    trace: list[str] = []
    inner = asyncio.gather(boom("lookup"), traced(trace, echo("sibling")))
    outcomes = await asyncio.gather(inner, traced(trace, echo("outer")), return_exceptions=True)
    await echo("after")
    return [*(type(outcome).__name__ for outcome in outcomes), *trace]


@case()
@durable.workflow(name="corpus.gather_duplicates")
async def gather_duplicates(_step: Step) -> list[str]:
    """Equal calls are different steps; one call given twice to gather is one step."""
    same = echo("same")
    return list(await asyncio.gather(same, echo("equal"), same, echo("equal")))


@case()
@durable.workflow(name="corpus.gather_cancelled")
async def gather_cancelled(_step: Step) -> list[str]:
    """A cancelled gather cancels its children, each of which cleans up with a step."""
    trace: list[str] = []
    both = asyncio.gather(guarded(trace, "a"), guarded(trace, "b"))
    await traced(trace, echo("meanwhile"))
    trace.append(f"cancelled {both.cancel()}")
    try:
        await both
    except asyncio.CancelledError:
        trace.append("gone")
    return trace


@case()
@durable.workflow(name="corpus.gather_child_cancelled")
async def gather_child_cancelled(_step: Step) -> list[str]:
    """A child that is cancelled alone is a CancelledError among the results."""
    victim = asyncio.create_task(echo("victim"))
    whole = asyncio.gather(victim, echo("other"), return_exceptions=True)
    await echo("first")
    victim.cancel()
    return [type(outcome).__name__ for outcome in await whole]


@case()
@durable.workflow(name="corpus.gather_mixed")
async def gather_mixed(_step: Step) -> list[str]:
    """Tasks, calls, coroutines and futures in one gather."""
    trace: list[str] = []
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(traced(trace, echo("task")))
    task.add_done_callback(lambda _: future.set_result("future"))
    values = await asyncio.gather(task, echo("call"), traced(trace, echo("coroutine")), future)
    return [*values, *trace]


@case()
@durable.workflow(name="corpus.gather_empty")
async def gather_empty(_step: Step) -> list[str]:
    """A gather of nothing needs no completion, before, between and after steps."""
    none: list[asyncio.Task[str]] = []
    before = await asyncio.gather(*none)
    value = await echo("a")
    return [*before, value, *await asyncio.gather(*none)]


@case(24)
@durable.workflow(name="corpus.gather_wide")
async def gather_wide(_step: Step, width: int) -> list[int]:
    """Many branches whose second step depends on how many were there before."""
    arrived: list[int] = []

    async def branch(position: int) -> int:
        value = await double(position)
        arrived.append(value)
        return await double(len(arrived))

    return [*await asyncio.gather(*(branch(n) for n in range(width))), *arrived]
