#!/usr/bin/env python3
"""Onboard everybody who signed up: a welcome mail, a pause, some tips, a second mail a day later.

Each sign-up of a CSV file becomes one run of the workflow below. The effects are real: mails in
``outbox/`` and rows in ``customers.db``, both in the state directory. Stop it whenever you like,
with Ctrl-C or ``kill -9``, and start the same command again: it goes on where it was.

The mail server and the writing service are stand-ins on this machine, which take their time; the
service refuses one request in four.
"""

import argparse
import asyncio
import math
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from _onboarding.office import Mail, Office
from _onboarding.report import examine, was_unfinished
from _onboarding.screen import Progress, Show, complain, live_progress, say
from _onboarding.signups import COLUMNS, InputError, SignUp, Skipped, read_signups
from _onboarding.texts import (
    WriterBusyError,
    follow_up_mail,
    plain_tips,
    welcome_mail,
    write_tips,
)

import durable
from durable import Engine, Retry, Run, RunState, Step

WORKFLOW = "onboarding"
SIGNUPS = Path(__file__).parent / "data" / "signups.csv"
REDRAW_EVERY_S = 0.125
SKIPPED_MAX = 5  # so many skipped rows are printed; the file skipped.txt has them all

office = Office()  # where the effects go; main() opens it


# --- The steps: ordinary functions that do something in the world. ---------------------------


@durable.action(name=Mail.WELCOME)
def send_welcome(signup: SignUp) -> None:
    subject, body = welcome_mail(signup)
    office.send(signup, Mail.WELCOME, subject, body)


@durable.action(name="tips", retry=Retry(max_attempts=6, initial_backoff=0.2))
async def ask_for_tips(signup: SignUp) -> str:
    attempt = durable.attempt()
    try:
        tips = await write_tips(signup, seed=f"{attempt.idempotency_key} {attempt.number}")
    except WriterBusyError:
        office.count("refusal")
        raise
    office.count("tips")
    return tips


@durable.action(name=Mail.FOLLOW_UP)
def send_follow_up(signup: SignUp, tips: str) -> None:
    subject, body = follow_up_mail(signup, tips)
    office.send(signup, Mail.FOLLOW_UP, subject, body)


@durable.action(name="save")
def save_customer(signup: SignUp, tips: str) -> None:
    office.save(signup, tips)


# --- The workflow: what happens to one sign-up, however many processes it takes. -------------


@durable.workflow(name=WORKFLOW)
async def onboarding(step: Step, signup: SignUp, day: float) -> None:
    await send_welcome(signup)
    await step.sleep(day / 4)
    try:
        tips = await ask_for_tips(signup)
    except WriterBusyError:  # refused six times: a follow-up without their help beats none
        tips = plain_tips(signup)
    await step.run(send_follow_up(signup, tips), run_after=day)
    await save_customer(signup, tips)


# --- The command. ----------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Onboard the sign-ups of a file, and return the exit status."""
    options = command_line().parse_args(argv)
    try:
        signups, skipped = read_signups(options.csv)
        office.open(options.state, fresh=options.fresh)
        say(f"{options.csv.name}: {len(signups)} sign-ups, {len(skipped)} rows skipped")
        report_skipped(skipped, options.state / "skipped.txt")
        return asyncio.run(onboard(signups, options.state, options.day, options.parallelism))
    except KeyboardInterrupt:
        say("stopped; start the same command again to go on")
        return 130
    except InputError as exc:
        complain(f"onboarding: {exc}")
        return 2
    except (OSError, durable.DurableError) as exc:
        complain(f"onboarding: {exc}")
        return 1


async def onboard(signups: list[SignUp], state: Path, day: float, parallelism: int) -> int:
    """Start a run for each sign-up, or join the one there is, and see all of them through."""
    opened_at = now()
    begun = time.monotonic()
    async with Engine(state / "journal.db", max_parallelism=parallelism) as engine:
        known = [run async for run in engine.iter_runs(name=WORKFLOW)]
        unfinished = [run.id for run in known if was_unfinished(run, opened_at)]
        if known:
            finished = len(known) - len(unfinished)
            say(f"resuming {len(unfinished)} unfinished runs; {finished} are finished already")
        say(f"process {os.getpid()}: press Ctrl-C or kill -9 it, then start the same command again")
        try:
            started = await start_runs(engine, signups, day)
            runs = [engine.get(run_id) for run_id in {*unfinished, *started}]
            with live_progress() as show:
                await see_through(engine, runs, show)
        except asyncio.CancelledError:
            say("stopping: the steps that are running may finish")
            raise
        report = await examine(engine, office, WORKFLOW, opened_at)
    say(f"{len(signups)} sign-ups, done in {time.monotonic() - begun:.1f} s")
    for line in report.lines():
        say(line)
    return 0 if report.ok else 1


async def start_runs(engine: Engine, signups: list[SignUp], day: float) -> list[str]:
    """Start a run for each sign-up whose id is new, and return the ids of all."""

    async def start(signup: SignUp) -> bool:
        try:
            await engine.start(onboarding(signup, day), id=run_id(signup))
        except durable.RunConflictError:
            return False
        return True

    agreed = await asyncio.gather(*map(start, signups))
    if changed := agreed.count(False):
        say(f"{changed} runs keep the details, and the --day, that they were first started with")
    return [run_id(signup) for signup in signups]


def run_id(signup: SignUp) -> str:
    """Name the one run that somebody gets, however often the command is started."""
    return f"onboard-{signup.email}"


async def see_through(engine: Engine, runs: list[Run[None]], show: Show) -> None:
    """Show the progress until every run has ended, or those left cannot go on."""
    waiting = {asyncio.create_task(wait_for_end(run)) for run in runs}
    try:
        while waiting:
            ended, waiting = await asyncio.wait(waiting, timeout=REDRAW_EVERY_S)
            for task in ended:
                task.result()  # raises when the journal cannot be read any more
            progress = measure(engine, len(runs), finished=len(runs) - len(waiting))
            show(progress)
            if progress.asleep and progress.asleep == len(waiting):
                stuck = [run async for run in engine.iter_runs(name=WORKFLOW, state=RunState.STUCK)]
                if len(stuck) == len(waiting):
                    return
    finally:
        for task in waiting:
            task.cancel()


async def wait_for_end(run: Run[None]) -> None:
    """Wait until ``run`` has ended; how it ended is for the report to say."""
    with suppress(durable.RunFailed):
        await run.result()


def measure(engine: Engine, runs: int, finished: int) -> Progress:
    """Say how the runs stand, from counters alone."""
    pool = engine.statistics()
    mails = office.done[Mail.WELCOME] + office.done[Mail.FOLLOW_UP]
    return Progress(
        runs=runs,
        finished=finished,
        working=pool.running_actions,
        queued=pool.queued_actions,
        mails=mails,
        steps=mails + office.done["tips"] + office.done["row"],
        retries=office.done["refusal"],
    )


def report_skipped(skipped: list[Skipped], path: Path) -> None:
    """Print the first rows that were skipped, and write all of them to ``path``."""
    path.write_text("".join(f"{row}\n" for row in skipped), encoding="utf-8")
    for row in skipped[:SKIPPED_MAX]:
        say(f"  {row}")
    if len(skipped) > SKIPPED_MAX:
        say(f"  and {len(skipped) - SKIPPED_MAX} more, see {path}")


def command_line() -> argparse.ArgumentParser:
    """Describe the options."""
    parser = argparse.ArgumentParser(
        description="Onboard everybody in a CSV file of sign-ups. Stop it at any moment, even with "
        "kill -9, and start the same command again: it goes on where it was.",
        epilog="Exit status: 0 everybody is onboarded and the check passed; 1 it did not, or a run "
        "failed; 2 the file or an option cannot be used; 130 stopped by Ctrl-C.",
    )
    parser.add_argument(
        "csv",
        metavar="CSV",
        nargs="?",
        type=Path,
        default=SIGNUPS,
        help=f"a file with the columns {', '.join(COLUMNS)} (default: the one shipped along)",
    )
    parser.add_argument(
        "--state",
        metavar="DIR",
        type=Path,
        default=Path("onboarding-state"),
        help="where the journal, the mails and the table are kept (default: ./%(default)s)",
    )
    parser.add_argument(
        "--day",
        metavar="SECONDS",
        type=seconds,
        default=8.0,
        help="how long the simulated day before the second mail is (default: %(default)g)",
    )
    parser.add_argument(
        "--parallelism",
        metavar="N",
        type=whole_number,
        default=25,
        help="how many steps run at the same time (default: %(default)d)",
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="forget what an earlier onboarding left in DIR; not while another one works there",
    )
    return parser


def seconds(text: str) -> float:
    """Read a number above zero."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return value


def whole_number(text: str) -> int:
    """Read a whole number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def now() -> datetime:
    """Return the time in whole milliseconds, as the journal has it."""
    return datetime.fromtimestamp(time.time_ns() // 1_000_000 / 1000, UTC)


if __name__ == "__main__":
    sys.exit(main())
