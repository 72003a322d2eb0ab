"""What comes of an await, in words that are the same in a body and on CPython's own loop."""

import asyncio
from collections.abc import Awaitable

MOMENT_S = 0.002
"""Long enough to be waited for, by real loops too."""


async def outcome(work: Awaitable[object]) -> str:
    """Return what comes of ``work``: its value, or the type of what it raises."""
    try:
        return str(await work)
    except BaseExceptionGroup as errors:
        inner = ", ".join(type(error).__name__ for error in errors.exceptions)
        return f"{type(errors).__name__}[{inner}]"
    except BaseException as error:  # noqa: BLE001 - cancellations too
        return type(error).__name__


async def never() -> None:
    """Wait for what does not come."""
    await asyncio.get_running_loop().create_future()


async def ticks(count: int) -> None:
    """Let the others have so many turns."""
    for _ in range(count):
        await asyncio.sleep(0)


def counts() -> str:
    """Return how many cancellations of this task are asked for."""
    task = asyncio.current_task()
    assert task is not None
    return f"cancelling {task.cancelling()}"
