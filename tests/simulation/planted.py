"""Bugs that the simulation has to find: each is a change of durable's source, made in a copy of it.

A change names the text that it replaces, so that one whose place has moved is noticed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]


class Edit(NamedTuple):
    """Text of a file of durable's, and what stands there instead."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Bug:
    """A planted bug."""

    name: str
    edits: tuple[Edit, ...]


@dataclass(frozen=True)
class Found:
    """What came of looking for a bug: after how many seeds, and which invariant broke."""

    bug: Bug
    seeds: int | None
    broken: str


def _bug(name: str, *edits: tuple[str, str, str]) -> Bug:
    return Bug(name, tuple(Edit(*edit) for edit in edits))


COMMITTED: Final = """\
            taken = await self._journal.commit([change for change, _, _ in batch])
            self.commits_count += 1
            for change, submitter, after in batch:
                taken_by = taken.get(change.run_id) if change.is_start else None
                submitter.on_committed(change, after, taken_by)
"""
WRITE: Final = "        db.execute(COMMIT, _with_descendants(db, changes, rows))\n    except"


def _in_two(part: str) -> tuple[str, str, str]:
    """Return the edit by which one part of a commit gets a transaction of its own."""
    new = f"""\
        from durable.journal.commits import COMMIT_PARTS
        place = COMMIT_PARTS.index({part!r})
        rows = _with_descendants(db, changes, rows)
        db.execute(COMMIT, (*rows[:place], None, *rows[place + 1 :]))
        if rows[place] is not None:
            alone = [None] * len(rows)
            alone[0], alone[place] = rows[0], rows[place]
            db.execute(COMMIT, alone)
    except"""
    return "journal/writes.py", WRITE, new


BUGS: Final = (
    _bug(
        "acknowledged before the commit",
        (
            "runtime/writer.py",
            COMMITTED,
            """\
            for change, submitter, after in batch:
                submitter.on_committed(change, after, None)
            await self._journal.commit([change for change, _, _ in batch])
            self.commits_count += 1
""",
        ),
    ),
    _bug("a run's row in a second transaction", _in_two("runs")),
    _bug("an event consumed in a second transaction", _in_two("consumed")),
    _bug(
        "the number of attempts is not written",
        (
            "journal/commits.py",
            "    UPDATE durable_step SET {_assign(STEP_CHANGES)} FROM (",
            "    UPDATE durable_step SET {_assign([n for n in STEP_CHANGES if n != 'attempts'])} FROM (",
        ),
    ),
    _bug(
        "a timer begins again at recovery",
        (
            "runtime/open_steps.py",
            "            after.append((self._set_alarm, step))\n            return step\n        work: Any = command.work\n        if step.state is RUNNING:",
            """\
            if step.kind is SLEEP and step.due_at_ms is not None:
                step = replace(step, due_at_ms=now_ms + step.due_at_ms - (step.started_at_ms or 0))
            after.append((self._set_alarm, step))
            return step
        work: Any = command.work
        if step.state is RUNNING:""",
        ),
    ),
    _bug(
        "a body hears of its cancel when it is loaded, and not before",
        (
            "runtime/live.py",
            "            self._deliveries.append((asked, UNSET))\n            self._host.schedule(self)\n        return True",
            """\
            self._cancel = None
            change = Change(run_id=self.record.run_id, asked=asked)
            self.submit(change, [(self._host.on_canceled, self)])
        return True""",
        ),
    ),
    _bug(
        "a removal leaves the children",
        ("journal/writes.py", "                removed |= tree\n", "                removed.add(change.run_id)\n"),
    ),
    _bug(
        "a child is removed that its parent waits for",
        (
            "runtime/control.py",
            "if tree is None or (tree.is_awaited and not is_asked):",
            "if tree is None:",
        ),
    ),
    _bug(
        "a late result replaces a final one",
        (
            "journal/commits.py",
            "      AND (durable_step.state IN {OPEN_STATES}\n           OR durable_step.state = new.state AND durable_step.position IS NULL);",
            "      ;",
        ),
    ),
    _bug(
        "a commit of unknown outcome is taken for lost",
        (
            "runtime/mutations.py",
            "        await self._host.commit(self._writing, [change for _, change, _ in self._done])\n        self._writing = None\n",
            """\
        try:
            await self._host.commit(self._writing, [change for _, change, _ in self._done])
        except JournalError:
            await self._begin_again()
            await self.run()
            return
        self._writing = None
""",
        ),
    ),
    _bug(
        "a commit of unknown outcome is taken for made",
        (
            "runtime/writer.py",
            "            taken = await self._journal.commit([change for change, _, _ in batch])\n",
            """\
            try:
                taken = await self._journal.commit([change for change, _, _ in batch])
            except JournalError as error:
                self._failure, taken = error, {}
""",
        ),
    ),
    _bug(
        "deliveries are replayed in the order of completion",
        (
            "core/history.py",
            "self.deliveries.sort(key=_position_of, reverse=True)",
            "self.deliveries.sort(key=lambda step: (step.finished_at_ms, step.number), reverse=True)",
        ),
    ),
    _bug(
        "a wait that is over takes the next event all the same",
        (
            "runtime/mailbox.py",
            "        step = self._waits.pop(number, None)\n        if step is None:\n            return\n",
            "        step = self._waits.get(number)\n        if step is None:\n            return\n",
        ),
    ),
    _bug(
        "on_complete is owed by a later commit",
        (
            "runtime/children.py",
            "        _children_of(change).started.append((callback, Parked(now_ms)))\n        after.append((self._host.claim_at, now_ms))\n",
            """\
        owed = Change(run_id=callback.run_id, run=callback, is_start=True, parked=Parked(now_ms))
        after.append((lambda change: self._host.writer.submit(change, self, []), owed))
""",
        ),
    ),
    _bug(
        "claims do not look at the due time",
        (
            "journal/claims.py",
            "        WHERE wake_at_ms <= :now_ms ORDER BY wake_at_ms, seq LIMIT :limit",
            "        WHERE wake_at_ms IS NOT NULL ORDER BY wake_at_ms, seq LIMIT :limit",
        ),
    ),
    _bug(
        "a restart keeps the later steps",
        (
            "journal/commits.py",
            "    WHERE run_id IN (SELECT run_id FROM ({_restarts()})) AND number >= (\n",
            "    WHERE run_id IN (SELECT run_id FROM ({_restarts()})) AND number > (\n",
        ),
    ),
    _bug(
        "a child is started again at recovery",
        (
            "runtime/open_steps.py",
            "        if not is_child_started(step):\n            work",
            "        if step.child_run_id not in self._ended:\n            step = replace(step, child_run_id=new_run_id(now_ms))\n            work",
        ),
    ),
    _bug(
        "a failed mutation is not undone",
        (
            "journal/connections.py",
            "                db.execute(sql.ROLLBACK_TO)\n",
            "                pass\n",
        ),
    ),
    _bug(
        "a parked run forgets when it is due",
        (
            "runtime/live.py",
            "        change.parked = Parked(wake_at_ms)\n",
            "        change.parked = Parked(None)\n",
        ),
    ),
    _bug(
        "commits are not fenced by the epoch",
        (
            "journal/commits.py",
            "    WHERE NEW.epoch IS NOT NULL AND NEW.epoch IS NOT (SELECT epoch FROM durable_owner);",
            "    WHERE 0;",
        ),
        ("journal/fence.py", "    if present != epoch:", "    if False:"),
        ("journal/fence.py", "    if 0 < epoch < owner[0] - 1:", "    if False:"),
    ),
    _bug(
        "time goes back with the machine's clock",
        ("runtime/clock.py", "if jump_ns < -JUMP_NS_MIN or (", "if ("),
    ),
    _bug(
        "a crash forgets the back-off",
        (
            "runtime/open_steps.py",
            "        if step.kind is SLEEP or (step.state is StepState.PENDING and not is_due):",
            "        if step.kind is SLEEP:",
        ),
    ),
    _bug(
        "at most once is twice after a crash",
        (
            "runtime/open_steps.py",
            "                    is_at_most_once=work.is_at_most_once,",
            "                    is_at_most_once=False,",
        ),
    ),
    _bug(
        "one action more than max_parallelism",
        (
            "runtime/workpool.py",
            "if self._is_paused or self._used >= self._max or self._queue:",
            "if self._is_paused or self._used > self._max or self._queue:",
        ),
    ),
    _bug(
        "who parks does not look for events",
        (
            "journal/commits.py",
            "        SELECT json_extract(value, '$[0]') FROM json_each(NEW.parked)\n        UNION ALL\n",
            "",
        ),
    ),
    _bug(
        "a parent that leaves memory misses the end of its child",
        (
            "runtime/children.py",
            "            self._host.writer.submit(Change(run_id=record.run_id, run=record), self, [])\n",
            "            pass\n",
        ),
    ),
)


def plant(bug: Bug, directory: Path) -> None:
    """Copy the source, with the bug.

    Raises:
        ValueError: The source has moved: the bug's text is not there, or not once.
    """
    shutil.copytree(ROOT / "durable", directory / "durable")
    for edit in bug.edits:
        path = directory / "durable" / edit.file
        source = path.read_text()
        if source.count(edit.old) != 1:
            msg = f"{bug.name}: {edit.file} has {source.count(edit.old)} times {edit.old!r}"
            raise ValueError(msg)
        path.write_text(source.replace(edit.old, edit.new))


def hunt(bug: Bug, seeds: int) -> Found:
    """Look for a bug, by so many seeds at most."""
    with tempfile.TemporaryDirectory() as directory:
        plant(bug, Path(directory))
        paths = os.pathsep.join([directory, str(ROOT / "tests")])
        command = [sys.executable, "-m", "simulation", "--until-found", "--seeds", str(seeds)]
        found = subprocess.run(
            command,
            cwd=directory,
            env=os.environ | {"PYTHONPATH": paths},
            capture_output=True,
            text=True,
            check=False,
        )
    if found.returncode not in (0, 1):
        raise RuntimeError(found.stderr)
    seed, broken = json.loads(found.stdout.splitlines()[-1])
    return Found(bug, None if seed is None else seed + 1, broken)


def hunt_all(seeds: int, jobs: int) -> Iterator[Found]:
    """Look for all of them."""
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda bug: hunt(bug, seeds), BUGS)
