"""Whether a replay of a finished run does what the run did, and comes to the same."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from durable.core.commands import Stuck
from durable.core.replaying import replay_run

if TYPE_CHECKING:
    from durable.engine import Engine


async def check_replay(engine: Engine, run_id: str) -> None:
    """Replay a run that is over, with nothing executed and nothing written.

    Raises:
        AssertionError: It does not do what its journal says it did.
    """
    runner, journal = engine._opened("a replay")
    found = await journal.load_history(run_id)
    if found is None:
        return
    record, steps = found
    spec = engine._catalog.find(record.name, record.version)
    assert spec is not None
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Stuck | None] = loop.create_future()

    def work() -> None:
        try:
            replay_run(record, steps, spec, guard=runner.guard)
        except Stuck as stuck:
            done.set_result(stuck)
        except BaseException as exc:  # noqa: BLE001  raised below
            done.set_exception(exc)
        else:
            done.set_result(None)

    loop.call_soon(work)  # A body runs where no task does.
    stuck = await done
    if stuck is not None:
        msg = f"a replay of its journal differs: {stuck}\n\n{stuck.diff}"
        raise AssertionError(msg)
