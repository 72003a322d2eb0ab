"""``check``: which of the runs under way would get stuck with the code at hand."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, TextIO, final

import msgspec

from durable.catalog import find_workflow
from durable.cli.loading import import_code, journal_path
from durable.cli.progress import Progress
from durable.core.codec import safe_text
from durable.core.commands import Stuck
from durable.core.diff import WAYS_OUT, way_of
from durable.core.errors import JournalCorruptError
from durable.core.records import StepKind
from durable.core.replaying import replay_run
from durable.core.versions import explain_versions
from durable.journal.reader import JournalReader

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from durable.core.histories import RecordedRun

FITS, DIFFERS, UNKNOWN = 0, 1, 2

IDS_SHOWN_MAX = 10
"""How many runs a text names of those that get stuck in one way."""


@final
class Finding(msgspec.Struct, kw_only=True):
    """Runs of a workflow that would get stuck at one point of it.

    Attributes:
        runs: Their ids.
        message: Why, of the first of them.
        diff: Both sides line by line, of the first of them.
        versions: That it was begun with other versions than these, if it was.
    """

    workflow: str
    version: int
    runs: list[str]
    message: str
    diff: str
    versions: str
    way_out: str = WAYS_OUT


@final
class Missing(msgspec.Struct, kw_only=True):
    """A workflow that the code does not have, and how many runs of it are under way."""

    workflow: str
    version: int
    count: int


@final
class Report(msgspec.Struct, kw_only=True):
    """What a check has found.

    Attributes:
        unfinished: How many runs are under way.
        checked: How many of them were looked at.
        unreadable: What could not be read, and why.
    """

    journal: str
    unfinished: int
    checked: int = 0
    stuck: list[Finding] = []
    missing: list[Missing] = []
    unreadable: list[str] = []

    @property
    def status(self) -> int:
        """The exit status of the command."""
        if self.stuck or self.missing:
            return DIFFERS
        return UNKNOWN if self.unreadable else FITS


def run_check(url: str | None, code: Sequence[str], *, sample: int | None, is_json: bool) -> int:
    """Check a journal, and print what was found; return the exit status."""
    path = journal_path(url)
    import_code(code)
    with JournalReader(path) as reader:
        report = check_journal(reader, str(path), sample)
    if is_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n")
    else:
        write_report(report, sys.stdout)
    return report.status


def check_journal(reader: JournalReader, name: str, sample: int | None) -> Report:
    """Execute the bodies of the runs under way again, and return what differs.

    Args:
        reader: The journal.
        name: What the report calls it.
        sample: How many at most; ``None`` for all.
    """
    counts = reader.count_unfinished()
    report = Report(journal=name, unfinished=sum(count for _, _, count in counts))
    for workflow, version, count in counts:
        if find_workflow(workflow, version) is None:
            report.missing.append(Missing(workflow=workflow, version=version, count=count))
    run_ids: Iterable[str]
    if sample is not None and sample < report.unfinished:
        run_ids, total = reader.draw_unfinished(sample), sample
    else:
        run_ids, total = reader.iter_unfinished(), report.unfinished
    findings: dict[tuple[object, ...], Finding] = {}
    # What bodies print is of no interest here.
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # noqa: PTH123
        for run_id in Progress(total, "runs").over(run_ids):
            try:
                recorded = reader.read_run(run_id)
            except JournalCorruptError as exc:
                report.unreadable.append(str(exc))
                continue
            if recorded is not None and not recorded.run.state.is_final:
                _check_run(recorded, findings)
                report.checked += 1
    report.stuck = list(findings.values())
    return report


def _check_run(recorded: RecordedRun, findings: dict[tuple[object, ...], Finding]) -> None:
    run = recorded.run
    spec = find_workflow(run.name, run.version)
    if spec is None or _is_asked_to_end(recorded):
        return
    try:
        replay_run(run, recorded.steps, spec)
    except Stuck as stuck:
        message, diff, point = str(stuck), stuck.diff, _point(stuck)
    except Exception as exc:  # noqa: BLE001  a user's decoding hook may raise anything
        message, diff, point = f"{type(exc).__name__}: {safe_text(exc)}", "", (type(exc),)
    else:
        return
    finding = findings.get((run.name, run.version, *point))
    if finding is not None:
        finding.runs.append(run.run_id)
        return
    begun_with = recorded.begun_with
    findings[run.name, run.version, *point] = Finding(
        workflow=run.name,
        version=run.version,
        runs=[run.run_id],
        message=message,
        diff=diff,
        versions="" if begun_with is None else explain_versions(begun_with),
    )


def _is_asked_to_end(recorded: RecordedRun) -> bool:
    """Whether the run ends in any case: an engine cancels it, or removes it, with any code."""
    return any(
        step.kind in (StepKind.CANCEL, StepKind.CLEANUP) and step.position is None
        for step in recorded.steps
    )


def _point(stuck: Stuck) -> tuple[object, ...]:
    """Return where and how a run differs, the same for runs that differ in the same way."""
    sides = (stuck.record, stuck.command)
    if stuck.way or any(sides):
        return (*(None if side is None else way_of(side) for side in sides), stuck.way)
    return (str(stuck),)


# --- text ----------------------------------------------------------------------------------------


def write_report(report: Report, stream: TextIO) -> None:
    """Write what was found for a reader."""
    of = "" if report.checked >= report.unfinished else f" (of {report.unfinished:,})"
    checked = f"{_runs(report.checked, 'unfinished ')}{of} of {report.journal}"
    stuck_count = sum(len(finding.runs) for finding in report.stuck)
    for finding in report.stuck:
        _write_finding(finding, stream)
    for missing in report.missing:
        what = _name(missing.workflow, missing.version)
        stream.write(
            f"The code has no workflow {what}: {_runs(missing.count)} under way. Name the module "
            "that defines it too, or keep its definition.\n\n"
        )
    stream.writelines(f"{error}\n\n" for error in report.unreadable)
    if stuck_count:
        stream.write(f"{stuck_count:,} would get stuck, of {checked}. {WAYS_OUT}\n")
    elif report.status == FITS:
        stream.write(f"All is well: with this code, none would get stuck of {checked}.\n")
    else:
        stream.write(f"Not all is well with {checked}.\n")


def _write_finding(finding: Finding, stream: TextIO) -> None:
    shown = ", ".join(finding.runs[:IDS_SHOWN_MAX])
    more = len(finding.runs) - IDS_SHOWN_MAX
    if more > 0:
        shown += f" and {more:,} more"
    stream.write(
        f"{_name(finding.workflow, finding.version)}: {_runs(len(finding.runs))}: {shown}\n"
    )
    if len(finding.runs) > 1:
        stream.write(f"  {finding.runs[0]}, for example:\n")
    for text in (finding.message, finding.diff, finding.versions):
        if text:
            stream.write("".join(f"  {line}".rstrip() + "\n" for line in text.splitlines()))
            stream.write("\n")


def _name(workflow: str, version: int) -> str:
    return f"{workflow} version {version}" if version else workflow


def _runs(count: int, which: str = "") -> str:
    return f"1 {which}run" if count == 1 else f"{count:,} {which}runs"
