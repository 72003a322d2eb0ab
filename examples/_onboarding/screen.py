"""Live progress: a table that redraws itself where ``rich`` can draw, else a line a second."""

import sys
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

LINE_EVERY_S = 1.0
RATE_OVER_S = 2.0


@dataclass(frozen=True)
class Progress:
    """How the runs stand at one moment, and what this process did for them so far."""

    runs: int
    finished: int
    working: int
    queued: int
    mails: int
    steps: int
    retries: int

    @property
    def asleep(self) -> int:
        """How many runs wait for a timer or a back-off."""
        return max(self.runs - self.finished - self.working - self.queued, 0)


Show = Callable[[Progress], None]


def say(text: str) -> None:
    """Write a line to the terminal, at once."""
    print(text, flush=True)


def complain(text: str) -> None:
    """Write a line to standard error."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def live_progress() -> Generator[Show, None, None]:
    """Open the display, and yield the function that shows a ``Progress`` on it."""
    pace = Pace()
    if not (sys.stdout.isatty() and find_spec("rich")):
        yield line_printer(pace)
        return
    from rich.live import Live  # noqa: PLC0415 - rich is optional

    with Live() as live:
        live.console.show_cursor(show=True)  # a hidden one would stay hidden after kill -9
        yield lambda progress: live.update(drawing(progress, pace.rate(progress)))


def line_printer(pace: "Pace") -> Show:
    """Return a function that prints a line a second, however often it is called."""
    due = time.monotonic()

    def show(progress: Progress) -> None:
        nonlocal due
        rate = pace.rate(progress)
        now = time.monotonic()
        if now >= due or progress.finished == progress.runs:
            due = now + LINE_EVERY_S
            say(
                f"{progress.finished:4}/{progress.runs} finished {progress.asleep:4} asleep"
                f" {progress.queued:4} queued {progress.working:3} working |"
                f" {progress.mails:4} mails {progress.retries:4} retries {rate:4.0f} steps/s"
            )

    return show


def drawing(progress: Progress, rate: float) -> "RenderableType":
    """Draw the display: a bar, and the numbers below it."""
    from rich.console import Group  # noqa: PLC0415 - rich is optional
    from rich.progress_bar import ProgressBar  # noqa: PLC0415 - rich is optional
    from rich.table import Table  # noqa: PLC0415 - rich is optional

    cells = {
        "finished": f"{progress.finished}/{progress.runs}",
        "asleep": f"{progress.asleep}",
        "queued": f"{progress.queued}",
        "working": f"{progress.working}",
        "mails": f"{progress.mails}",
        "retries": f"{progress.retries}",
        "steps/s": f"{rate:.0f}",
    }
    table = Table(*cells)
    for column in table.columns:
        column.justify = "right"
        column.min_width = 7  # so that the table stands still while the numbers grow
    table.add_row(*cells.values())
    return Group(table, ProgressBar(total=progress.runs, completed=progress.finished, width=70))


class Pace:
    """Measures how many steps were made in a second, of late."""

    def __init__(self) -> None:
        self._readings: deque[tuple[float, int]] = deque()

    def rate(self, progress: Progress) -> float:
        """Take a reading, and return the rate over the last ``RATE_OVER_S`` seconds."""
        now = time.monotonic()
        self._readings.append((now, progress.steps))
        while now - self._readings[0][0] > RATE_OVER_S:
            self._readings.popleft()
        then, steps = self._readings[0]
        return (progress.steps - steps) / (now - then) if now > then else 0.0
