"""Which state may follow which."""

from itertools import product

import msgspec
import pytest

from durable import ErrorInfo, RunState, StepKind, StepState
from durable.core.records import (
    RunRecord,
    StepRecord,
    StoredError,
    advance_run,
    advance_step,
)

RUN_PAIRS = {
    "pending": "running stuck completed failed canceled",
    "running": "canceling stuck completed failed canceled",
    "canceling": "stuck completed failed canceled",
    "stuck": "pending running canceling completed failed canceled",
    "completed": "",
    "failed": "",
    "canceled": "",
}
STEP_PAIRS = {
    "pending": "running completed failed canceled",
    "running": "pending completed failed canceled",
    "completed": "",
    "failed": "",
    "canceled": "",
}


@pytest.mark.parametrize(("before", "after"), list(product(RunState, RunState)))
def test_a_run_changes_state_by_the_table_only(before: RunState, after: RunState) -> None:
    if after is before or after in RUN_PAIRS[before].split():
        assert advance_run(before, after) is after
    else:
        with pytest.raises(ValueError, match=f"a run that is {before} cannot become {after}"):
            advance_run(before, after)


@pytest.mark.parametrize(("before", "after"), list(product(StepState, StepState)))
def test_a_step_changes_state_by_the_table_only(before: StepState, after: StepState) -> None:
    if after is before or after in STEP_PAIRS[before].split():
        assert advance_step(before, after) is after
    else:
        with pytest.raises(ValueError, match=f"a step that is {before} cannot become {after}"):
            advance_step(before, after)


def test_final_is_what_nothing_follows() -> None:
    assert {state for state in RunState if state.is_final} == {"completed", "failed", "canceled"}
    assert {state for state in StepState if state.is_final} == {"completed", "failed", "canceled"}


def test_every_open_state_can_reach_every_end() -> None:
    for state, end in product(RunState, ("completed", "failed", "canceled")):
        assert state.is_final or end in RUN_PAIRS[state].split()
    for step, end in product(StepState, ("completed", "failed", "canceled")):
        assert step.is_final or end in STEP_PAIRS[step].split()


def test_stored_names_do_not_change() -> None:
    """A journal outlives the code that wrote it: the rows of old journals have these names."""
    assert list(RunState) == list(RUN_PAIRS)
    assert list(StepState) == list(STEP_PAIRS)
    kinds = ["action", "query", "mutation", "workflow", "sleep", "event", "cancel", "patch"]
    assert list(StepKind) == kinds
    assert StoredError.__struct_fields__ == (
        "type_name",
        "message",
        "traceback",
        "args",
        "attributes",
    )


@pytest.mark.parametrize(
    "record",
    [
        RunRecord(run_id="r", name="n"),
        StepRecord(number=0, key="0:0", kind=StepKind.ACTION, name="n"),
        ErrorInfo("ValueError", "text"),
    ],
)
def test_records_are_frozen(record: msgspec.Struct) -> None:
    field = record.__struct_fields__[0]
    with pytest.raises(AttributeError):
        setattr(record, field, "changed")


def test_a_stored_error_shows_users_its_texts() -> None:
    stored = StoredError(type_name="t", message="m", traceback="tb", args=[1], attributes={"a": 1})
    assert stored.info == ErrorInfo("t", "m", "tb")
