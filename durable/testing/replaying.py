"""Whether a replay of a finished run does what the run did, and comes to the same."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from durable.core.commands import Returned, Stuck
from durable.core.execution import Execution
from durable.core.failures import decode_error, store_error
from durable.core.records import RunState

if TYPE_CHECKING:
    from durable.catalog import BoundWorkflow
    from durable.core.commands import Raised
    from durable.core.records import RunRecord, StepRecord
    from durable.engine import Engine


async def check_replay(engine: Engine, run_id: str) -> None:
    """Replay a run that is over, with nothing executed and nothing written.

    Raises:
        AssertionError: It does not do what its journal says it did.
    """
    _, journal = engine._opened("a replay")
    found = await journal.load_history(run_id)
    if found is None or found[0].started_at_ms is None:
        return
    record, steps = found
    spec: Any = engine._catalog.find(record.name, record.version)
    loop = asyncio.get_running_loop()
    done: asyncio.Future[str | None] = loop.create_future()

    def work() -> None:
        done.set_result(_difference(spec, record, steps))

    loop.call_soon(work)  # A body runs where no task does.
    difference = await done
    if difference is not None:
        msg = f"a replay of its journal differs: {difference}"
        raise AssertionError(msg)


def _difference(spec: BoundWorkflow, record: RunRecord, steps: list[StepRecord]) -> str | None:
    assert record.started_at_ms is not None
    # As after a restart from its end: so the body may come to its end in the replay.
    again = replace(record, restarted_from=len(steps))
    execution = Execution(again, steps, started_at_ms=record.started_at_ms)
    try:
        execution.begin(spec.open)
        while execution.replay(len(steps) + 1):
            pass
        anew = [command for command, _ in execution.issued_anew]
        if anew:
            return f"the body issues what is not recorded: {anew[0]!r}"
        end = execution.early_end
        if end is None:
            is_told = record.state is RunState.CANCELED
            return None if is_told else "the body does not come to its end"
        return _difference_of_ends(spec, record, end)
    except Stuck as exc:
        return str(exc)
    finally:
        execution.close()


def _difference_of_ends(
    spec: BoundWorkflow, record: RunRecord, end: Returned | Raised
) -> str | None:
    result, error = None, None if isinstance(end, Returned) else end.error
    if isinstance(end, Returned):
        try:
            result = spec.encode_result(end.value)
        except Exception as exc:  # noqa: BLE001  a user's decoding hook may raise anything
            error = exc
    if record.state is RunState.CANCELED:
        is_same = isinstance(error, asyncio.CancelledError)
        return None if is_same else f"it was cancelled, and now ends with {result or error!r}"
    if record.state is RunState.COMPLETED:
        is_same = error is None and result == record.result
        return None if is_same else f"it returned {record.result}, and now {result or repr(error)}"
    recorded = decode_error(record.error or "")
    now = None if error is None else store_error(error)
    if now is not None and (now.type_name, now.message) == (recorded.type_name, recorded.message):
        return None
    return f"it failed with {recorded.type_name}: {recorded.message}, and now {result or error!r}"
