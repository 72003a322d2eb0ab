"""The diff of a divergence: what the journal has beside what the code does, line by line.

It is made when a run has become stuck, and looks at what is there anyway: the records, the commands
of the turn, and the frames of the suspended body.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, final

from durable.core.codec import safe_utf8
from durable.core.places import frame_of_command, frame_of_task, place_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from durable.core.commands import Command, Stuck
    from durable.core.loop import WorkflowLoop
    from durable.core.places import Place
    from durable.core.records import RunRecord, StepRecord

NEIGHBOURS = 2
"""How many steps are shown before and after the one that differs."""

SHOWN_CHARS_MAX = 400
"""How much of a step's arguments, or of its error, a sentence shows."""

ARGS_CHARS_MAX = 120
"""How much of them a line of the diff shows."""

SHOWN_BEFORE_DIFFERENCE = 40
"""How much of them is shown before the first difference."""

WAYS_OUT = (
    "Guard what has changed by step.patched(), or keep the workflow as it was and give the changed "
    "one a new version."
)
"""What can be done about code that does not fit runs under way."""

SAME, RECORDED, NOW, LATER = " ", "-", "+", "."
LEGEND = '"-" is recorded, "+" is what the code does now, "." is recorded, and not reached by it.'


def no_workflow(run: RunRecord) -> str:
    """Return that the code does not have a run's workflow."""
    wanted = f"{run.name!r} version {run.version}"  # It may have others.
    return f"the code has no workflow {wanted}, which run {run.run_id!r} is of"


@final
class _Row(NamedTuple):
    mark: str
    number: str
    kind: str
    name: str
    text: str


def diff_of(
    stuck: Stuck,
    recorded: Sequence[StepRecord],
    left: Mapping[str, StepRecord],
    issued: Sequence[Command],
    *,
    loop: WorkflowLoop,
    place: Place | None,
) -> str:
    """Return both sides of a divergence.

    Args:
        stuck: What it is about.
        recorded: All that is recorded of the run.
        left: What the body has not issued again, by key.
        issued: What the body has issued in its last turn.
        loop: The body's, with its suspended tasks.
        place: Where the body has ended, if it has.
    """
    rows = _rows(stuck, recorded, left, issued)
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(1, 4)]
    lines = [
        f"  {row.mark} "
        + "  ".join(
            [row.number.rjust(widths[0]), row.kind.ljust(widths[1]), row.name.ljust(widths[2])]
        )
        + f"  {row.text}"
        for row in rows
    ]
    where = _where(stuck, loop, place)
    return safe_utf8("\n".join([where, "", *(line.rstrip() for line in lines), "", LEGEND]))


def _where(stuck: Stuck, loop: WorkflowLoop, place: Place | None) -> str:
    step = stuck.command or stuck.record
    key = "0:0" if step is None else step.key
    path = key.rpartition(":")[0] or "0"
    if place is None and stuck.command is None:
        place = place_of(frame_of_task(loop, path))
    elif place is None:
        place = place_of(frame_of_command(loop, key))
    return f"In task {path}" + ("" if place is None else f", at {place}") + ":"


def _rows(
    stuck: Stuck,
    recorded: Sequence[StepRecord],
    left: Mapping[str, StepRecord],
    issued: Sequence[Command],
) -> list[_Row]:
    steps = sorted((step for step in recorded if step.number >= 0), key=lambda step: step.number)
    at = _place_in_order(stuck, steps, left)
    is_pair = stuck.record is not None
    before = steps[max(0, at - NEIGHBOURS) : at]
    after = steps[at + is_pair : at + is_pair + NEIGHBOURS + (not is_pair)]
    now = {command.key: command for command in issued if command is not stuck.command}
    rows = [_row(LATER if step.key in left else SAME, step) for step in before]
    rows += _differing_rows(stuck)
    # Beside the step that the code does not issue, or at the end.
    now_rows = [_Row(NOW, "", "", "", stuck.now)] if stuck.now else []
    if is_pair:
        rows += now_rows
        now_rows = []
    is_next = stuck.record is None
    for step in after:
        command = now.get(step.key)
        if command is not None:
            rows += _pair(step, command)
        elif step.key not in left:
            rows.append(_row(SAME, step))
        else:
            rows.append(_row(RECORDED if is_next else LATER, step))
            if is_next:
                rows += now_rows
            is_next, now_rows = False, []
    rows += now_rows
    more = len(steps) - (after[-1].number + 1 if after else at + is_pair)
    if more > 0:
        rows.append(_Row(LATER, "", "", "", f"and {more} more"))
    return rows


def _place_in_order(
    stuck: Stuck, steps: Sequence[StepRecord], left: Mapping[str, StepRecord]
) -> int:
    """Return the index of the step that differs, or before which something is new."""
    if stuck.record is not None:
        numbers = [step.number for step in steps]
        return numbers.index(stuck.record.number) if stuck.record.number in numbers else len(steps)
    return next((index for index, step in enumerate(steps) if step.key in left), len(steps))


def _differing_rows(stuck: Stuck) -> list[_Row]:
    record, command = stuck.record, stuck.command
    if record is not None and command is not None:
        return _pair(record, command)
    rows: list[_Row] = []
    if record is not None:
        rows.append(_row(RECORDED, record))
    if command is not None:
        rows.append(_row(NOW, command))
    return rows


def _pair(record: StepRecord, command: Command) -> list[_Row]:
    is_same = (record.kind, record.name) == (command.kind, command.name)
    if is_same and (record.args == command.args or not command.compares_args):
        return [_row(SAME, record)]
    before, now = shorten_pair(record.args, command.args, ARGS_CHARS_MAX)
    number = str(record.number)
    return [
        _Row(RECORDED, number, record.kind, record.name, before),
        _Row(NOW, number, command.kind, command.name, now),
    ]


def _row(mark: str, step: StepRecord | Command) -> _Row:
    number = str(step.number) if step.number >= 0 else ""
    return _Row(mark, number, step.kind, step.name, shorten(step.args, ARGS_CHARS_MAX))


def shorten(text: str, chars_max: int = SHOWN_CHARS_MAX) -> str:
    """Return as much of a text as a message shows."""
    return text if len(text) <= chars_max else text[:chars_max] + "[...]"


def shorten_pair(one: str, other: str, chars_max: int = SHOWN_CHARS_MAX) -> tuple[str, str]:
    """Return as much of two texts as a message shows: around the first difference."""
    if max(len(one), len(other)) <= chars_max:
        return one, other
    pairs = enumerate(zip(one, other, strict=False))
    differs_at = next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))
    start = max(0, differs_at - SHOWN_BEFORE_DIFFERENCE)
    if start <= len("[...]"):
        start = 0
    return _window(one, start, chars_max), _window(other, start, chars_max)


def _window(text: str, start: int, chars_max: int) -> str:
    return ("[...]" if start else "") + shorten(text[start:], chars_max)


def message_of(stuck: Stuck, way_out: str, versions: str) -> str:
    """Return what is said of a divergence: a line that says why, and below it what else is known.

    Args:
        stuck: What it is about.
        way_out: What can be done about it.
        versions: That the run was begun with others than these, if it was.
    """
    return "\n\n".join(filter(None, [f"{stuck} {way_out}", stuck.diff, versions]))


def describe(step: StepRecord | Command, args: str | None = None) -> str:
    """Return what a sentence says of a step.

    Args:
        step: The step.
        args: Its arguments, if they are shown otherwise than by their beginning.
    """
    args = shorten(step.args) if args is None else args
    number = f"{step.number} " if step.number >= 0 else ""
    return f"step {number}{step.name!r} ({step.kind}, key {step.key}) with arguments {args}"


def way_of(step: StepRecord | Command) -> tuple[str, str, str]:
    """Return what tells a step from the others of its run, the same in all runs."""
    return step.key, step.kind, step.name
