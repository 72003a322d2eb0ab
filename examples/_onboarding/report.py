"""The end report, and the check that no recorded send was ever made again.

Two witnesses are compared that know nothing of each other: the journal says when a send was
recorded as done, and the log of sends says when each one was begun. Both read the same clock, so
the check can only be wrong if somebody sets that clock back while the runs are on.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from operator import attrgetter

from _onboarding.office import Mail, MailFile, Office, Send
from durable import Engine, RunState, RunStatus, StepInfo, StepState

StepId = tuple[str, str]  # a run's id and a step's key
LINES_MAX = 5  # so many errors or violations are printed: the first ones tell the story


@dataclass(frozen=True)
class Report:
    """What the journal and the effects say.

    Attributes:
        opened_at: When this process opened the journal.
        sends_repeated: How many sends were begun once more, because the process died during them.
    """

    runs: list[RunStatus]
    opened_at: datetime
    steps_retried: int
    attempts_failed: int
    sends_recorded: int
    sends_repeated: int
    mails: int
    rows: int
    violations: list[str]

    @property
    def ok(self) -> bool:
        """Whether everybody was onboarded, and nothing happened that must not."""
        return not self.violations and not self._incomplete

    @property
    def _incomplete(self) -> list[RunStatus]:
        return [run for run in self.runs if run.state is not RunState.COMPLETED]

    def lines(self) -> Iterator[str]:
        """Yield the report for the terminal."""
        completed = [run for run in self.runs if run.state is RunState.COMPLETED]
        earlier = sum(was_finished(run, self.opened_at) for run in completed)
        resumed = sum(was_unfinished(run, self.opened_at) for run in completed)
        for what, count, remark in (
            ("runs finished now", len(completed) - earlier, f"{resumed} of them resumed"),
            ("runs finished earlier", earlier, ""),
            ("runs failed or stuck", len(self._incomplete), ""),
            ("steps retried", self.steps_retried, f"{self.attempts_failed} failed attempts"),
            ("mails in the outbox", self.mails, ""),
            ("rows in the table", self.rows, ""),
            ("sends repeated by a crash", self.sends_repeated, "same file, same Message-ID"),
        ):
            yield f"  {what:26} {count:5}  {remark}".rstrip()
        for run in self._incomplete[:LINES_MAX]:
            yield f"{run.id} is {run.state}: {run.error.message if run.error else 'no error'}"
        for violation in self.violations[:LINES_MAX]:
            yield f"VIOLATION: {violation}"
        if self.violations:
            yield f"CHECK FAILED: {len(self.violations)} violations"
        else:
            yield f"CHECK PASSED: {self.sends_recorded} sends are recorded as done; none was begun"
            yield "again after that, nobody has two mails of one kind, and none is missing"


def was_unfinished(run: RunStatus, at: datetime) -> bool:
    """Say whether ``run`` was under way at that time."""
    return run.created_at < at and (run.finished_at is None or run.finished_at >= at)


def was_finished(run: RunStatus, at: datetime) -> bool:
    """Say whether ``run`` was over at that time."""
    return run.finished_at is not None and run.finished_at < at


async def examine(engine: Engine, office: Office, workflow: str, opened_at: datetime) -> Report:
    """Read the journal, the log, the outbox and the table, and compare them."""
    runs = [run async for run in engine.iter_runs(name=workflow)]
    steps = {(run.id, step.key): step for run in runs async for step in engine.iter_steps(run.id)}
    log = list(office.sends())
    sends = by_step(log)
    mails = list(office.mails())
    customers = list(office.customers())
    completed = [run.id for run in runs if run.state is RunState.COMPLETED]
    return Report(
        runs=runs,
        opened_at=opened_at,
        steps_retried=sum(step.attempts > 1 for step in steps.values()),
        attempts_failed=sum(max(step.attempts - 1, 0) for step in steps.values()),
        sends_recorded=sum(is_recorded_send(step) for step in steps.values()),
        sends_repeated=sum(len(begun) - 1 for begun in sends.values()),
        mails=len(mails),
        rows=len(customers),
        violations=[
            *unjust_processes(log),
            *unjust_sends(steps, sends),
            *unjust_mails(steps, sends, mails),
            *unjust_rows(completed, customers),
        ],
    )


def by_step(sends: Iterable[Send]) -> dict[StepId, list[Send]]:
    """Group the sends by the step that made them."""
    grouped = defaultdict[StepId, list[Send]](list)
    for send in sends:
        grouped[send.run_id, send.step_key].append(send)
    return dict(grouped)


def is_recorded_send(step: StepInfo) -> bool:
    """Say whether the journal holds ``step`` as a mail that was sent."""
    return step.name in set(Mail) and step.state is StepState.COMPLETED


def unjust_processes(log: list[Send]) -> Iterator[str]:
    """Find processes that went on sending after another one had taken over."""
    turns = Counter(session for session, _ in groupby(log, key=attrgetter("session")))
    for session, count in turns.items():
        if count > 1:
            yield f"session {session} was sending while another one was"


def unjust_sends(steps: dict[StepId, StepInfo], sends: dict[StepId, list[Send]]) -> Iterator[str]:
    """Find sends that were begun after they were recorded, or twice by one living process."""
    for step_id, begun in sends.items():
        step = steps.get(step_id)
        who = f"{begun[0].kind} to {begun[0].recipient}"
        if step is None:
            yield f"{who} was sent by a step that the journal does not know"
        elif is_recorded_send(step) and step.finished_at is not None:
            late = [send for send in begun if send.begun_at > step.finished_at]
            for send in late:
                yield f"{who} was recorded at {step.finished_at}, yet begun at {send.begun_at}"
        if len({(send.session, send.attempt) for send in begun}) < len(begun):
            yield f"{who} was begun twice by one process"
        if len({send.message_id for send in begun}) > 1:
            yield f"{who} was begun again under another Message-ID"


def unjust_mails(
    steps: dict[StepId, StepInfo], sends: dict[StepId, list[Send]], mails: list[MailFile]
) -> Iterator[str]:
    """Find mails that somebody has twice, and recorded ones that nobody has."""
    for (recipient, kind), count in Counter(mail[:2] for mail in mails).items():
        if count > 1:
            yield f"{recipient} has {count} files of the kind {kind}"
    sent = {mail.message_id for mail in mails}
    for step_id, step in steps.items():
        begun = sends.get(step_id, [])
        if is_recorded_send(step) and not any(send.message_id in sent for send in begun):
            yield f"{step.name} of {step_id[0]} is recorded as sent, and not in the outbox"


def unjust_rows(completed: list[str], customers: list[tuple[str, str]]) -> Iterator[str]:
    """Find customers saved twice, and completed runs without a row."""
    for email, count in Counter(email for _, email in customers).items():
        if count > 1:
            yield f"{email} has {count} rows in the table"
    for run_id in sorted(set(completed) - {run_id for run_id, _ in customers}):
        yield f"{run_id} is completed, and has no row in the table"
