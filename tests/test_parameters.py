"""Parameters and results: by annotation, checked where it counts."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from clock import ManualClock
from faults import MONTH_S, opened
from waiting import WAIT_S_MAX, until_parked, until_state

import durable
from durable import (
    ArgumentError,
    Engine,
    PayloadTooLarge,
    ReturnTypeError,
    RunState,
    Step,
    StepKind,
    registry,
)
from durable.parameters import Parameters, check_size

if TYPE_CHECKING:
    from collections.abc import Callable
    from decimal import Decimal

BYTES_MAX = 1_000

Everything = tuple[int, int, tuple[int, ...], int, int, dict[str, str]]


@durable.action
async def everything(
    a: int, /, b: int = 2, *rest: int, c: int, d: int = 4, **named: str
) -> Everything:
    return a, b, rest, c, d, named


@durable.action
async def positional(a: int = 1, b: int = 2, /, c: int = 3) -> tuple[int, int, int]:
    return a, b, c


CALLS = [
    (everything(1, c=3), (1, 2, (), 3, 4, {}), {"a": 1, "c": 3}),
    (everything(1, 5, c=3, d=6), (1, 5, (), 3, 6, {}), {"a": 1, "b": 5, "c": 3, "d": 6}),
    (everything(1, c=3, b=5), (1, 5, (), 3, 4, {}), {"a": 1, "b": 5, "c": 3}),
    (
        everything(1, 5, 7, 8, c=3, a="x", b2="y"),
        (1, 5, (7, 8), 3, 4, {"a": "x", "b2": "y"}),
        {"a": 1, "b": 5, "rest": [7, 8], "c": 3, "named": {"a": "x", "b2": "y"}},
    ),
    (positional(), (1, 2, 3), {}),
    (positional(5), (5, 2, 3), {"a": 5}),
    (positional(c=7), (1, 2, 7), {"c": 7}),
    (positional(5, c=7), (5, 2, 7), {"a": 5, "c": 7}),
]


@durable.workflow
async def calling(_step: Step, number: int) -> object:
    return await CALLS[number][0]


@pytest.mark.parametrize("number", range(len(CALLS)))
async def test_parameters_of_all_kinds_arrive(number: int, path: Path) -> None:
    call, expected, arguments = CALLS[number]
    assert await call == expected
    async with Engine(path) as engine:
        run = await engine.start(calling(number))
        assert await run.result(timeout=5) == list(expected[:2]) + [
            list(value) if isinstance(value, tuple) else value for value in expected[2:]
        ]
        assert [step.args async for step in run.steps()] == [arguments]


async def test_defaults_belong_to_the_code(path: Path) -> None:
    """What is stored is what the caller wrote: a changed default is no other call."""
    async with Engine(path) as engine:
        first = await engine.start(with_default(), id="r")
        assert await first.result(timeout=5) == 5
        assert (await first.status()).args == {}
        second = await engine.start(with_default(), id="r")
        assert await second.result(timeout=5) == 5


@durable.workflow
async def with_default(_step: Step, number: int = 5) -> int:
    return number


async def test_a_default_need_not_be_encodable(path: Path) -> None:
    marker = object()

    @durable.action
    async def act(value: Any = marker) -> bool:  # noqa: ANN401
        return value is marker

    @durable.workflow
    async def flow(_step: Step) -> bool:
        return await act()

    async with Engine(path) as engine:
        assert await engine.run(flow())


# --- checks --------------------------------------------------------------------------------------


@dataclass
class Item:
    name: str
    count: int = 1


@durable.action
async def buy(items: list[Item], note: str | None = None, *more: Item, **options: int) -> int:
    return len(items) + len(more) + len(options) + len(note or "")


WRONG_CALLS = [
    (buy([Item(1)]), r"test_parameters:buy: Expected `str`, got `int` - at `\$\.items\[0\]\.name`"),  # type: ignore[arg-type]
    (buy(5), r"at `\$\.items`"),  # type: ignore[arg-type]
    (buy([], 5), r"Expected `str \| null`, got `int` - at `\$\.note`"),  # type: ignore[arg-type]
    (buy([], None, Item("a"), 5), r"at `\$\.more\[1\]`"),  # type: ignore[arg-type]
    (buy([], speed="high"), r"at `\$\.options"),  # type: ignore[arg-type]
    (buy([Item("a", float("nan"))]), r"at `\$\.items\[0\]\.count`"),  # type: ignore[arg-type]
    (buy([Item("\ud800")]), "surrogates not allowed"),
]


@durable.workflow
async def buying(_step: Step, number: int) -> str:
    try:
        await WRONG_CALLS[number][0]
    except ArgumentError as exc:
        return str(exc)
    return "nothing was raised"


@pytest.mark.parametrize("number", range(len(WRONG_CALLS)))
async def test_an_argument_that_does_not_fit_is_told_to_who_awaits_it(
    number: int, path: Path
) -> None:
    async with Engine(path) as engine:
        run = await engine.start(buying(number))
        assert re.search(WRONG_CALLS[number][1], await run.result(timeout=5))
        assert [step async for step in run.steps()] == []


@durable.workflow
async def counting(_step: Step, item: Item, *, by: int = 1) -> int:
    return item.count + by


async def test_a_start_with_a_wrong_argument_writes_nothing(path: Path) -> None:
    async with Engine(path) as engine:
        for call in (counting("a"), counting(Item("a"), by="1"), counting({"name": 1})):  # type: ignore[arg-type]
            with pytest.raises(ArgumentError, match=r"test_parameters:counting: .* - at `\$"):
                await engine.start(call)
        assert [run async for run in engine.iter_runs()] == []
        assert await engine.run(counting(Item("a", 2), by=3)) == 5


@durable.action(name="parameters.tightened")
async def loose(value: Any) -> str:  # noqa: ANN401
    return f"done {value}"


async def tight(value: int) -> str:
    return f"done {value}"


code: dict[str, Any] = {}


@durable.workflow
async def tightened(step: Step) -> str:
    done: str = await code["action"]("text")
    await step.sleep(MONTH_S)
    try:
        await code["action"]("again")
    except ArgumentError:
        return f"{done}, and refused from now on"
    return done


async def test_a_tightened_type_breaks_no_run_that_is_past_it(
    path: Path, clock: ManualClock, forget: Callable[[Any], None]
) -> None:
    """A step's arguments are checked when it is issued, and not again on replay."""
    code["action"] = loose
    async with opened(path, clock) as engine:
        run = await engine.start(tightened(), id="it")
        await until_parked(engine)
    forget(loose)
    code["action"] = durable.action(name="parameters.tightened")(tight)
    clock.advance(MONTH_S)
    async with opened(path, clock) as engine:
        run = engine.get(run.id)
        assert await run.result(timeout=WAIT_S_MAX) == "done text, and refused from now on"


@durable.workflow(name="parameters.narrowed")
async def of_any(step: Step, value: Any) -> str:  # noqa: ANN401
    await step.sleep(MONTH_S)
    return f"done {value}"


async def of_int(step: Step, value: int) -> str:
    await step.sleep(MONTH_S)
    return f"done {value}"


async def test_a_run_whose_own_arguments_no_longer_fit_waits_for_code_that_they_fit(
    path: Path, clock: ManualClock, forget: Callable[[Any], None]
) -> None:
    async with opened(path, clock) as engine:
        await engine.start(of_any("text"), id="it")
        await until_parked(engine)
    forget(of_any)
    narrowed = durable.workflow(name="parameters.narrowed")(of_int)
    clock.advance(MONTH_S)
    async with opened(path, clock) as engine:
        status = await until_state(engine.get("it"), RunState.STUCK)
        assert status.error is not None
        assert "Expected `int`, got `str` - at `$.value`" in status.error.message
    forget(narrowed)
    registry.register(of_any)
    async with opened(path, clock) as engine:
        assert await engine.get("it").result(timeout=WAIT_S_MAX) == "done text"


@durable.action
def wrong_result(kind: str) -> int:
    results: dict[str, Any] = {"str": "5", "none": None, "float": 5.5, "ok": 5}
    return results[kind]  # type: ignore[no-any-return]


@durable.workflow
async def wrongly_returning(_step: Step, kind: str, in_step: bool) -> int:
    if in_step:
        return await wrong_result(kind)
    return cast("int", wrong_result.fn(kind))


@pytest.mark.parametrize("in_step", [True, False])
@pytest.mark.parametrize("kind", ["str", "none", "float"])
async def test_a_result_that_does_not_fit_fails_the_step_or_the_run(
    kind: str, in_step: bool, path: Path
) -> None:
    async with Engine(path) as engine:
        run = await engine.start(wrongly_returning(kind, in_step))
        with pytest.raises(durable.RunFailed) as info:
            await run.result(timeout=5)
        assert info.value.error.type_name == "durable.ReturnTypeError"
        assert isinstance(info.value.__cause__, ReturnTypeError)
        assert "the result of test_parameters:wrong" in info.value.error.message
        assert "Expected `int`" in info.value.error.message
        assert [step.state async for step in run.steps()] == (["failed"] if in_step else [])


def test_sizes_are_counted_in_bytes() -> None:
    check_size("x" * BYTES_MAX, BYTES_MAX, "it")
    check_size("\N{SNOWMAN}" * (BYTES_MAX // 3), BYTES_MAX, "it")
    for text in ("x" * (BYTES_MAX + 1), "\N{SNOWMAN}" * (BYTES_MAX // 3 + 1)):
        with pytest.raises(PayloadTooLarge, match=r"it: 1,00. bytes are more than .*1,000"):
            check_size(text, BYTES_MAX, "it")


# --- annotations ---------------------------------------------------------------------------------


@durable.action
async def ahead(value: Later) -> Later:
    return value


@dataclass
class Later:
    number: int


@durable.workflow
async def looking_ahead(_step: Step, value: Later) -> Later:
    return await ahead(value)


async def test_an_annotation_may_name_what_is_defined_further_down(path: Path) -> None:
    async with Engine(path) as engine:
        assert await engine.run(looking_ahead(Later(5))) == Later(5)


async def test_annotations_may_name_local_classes_however_it_is_decorated(path: Path) -> None:
    @dataclass
    class Local:
        number: int

    @durable.action
    async def bare(value: Local) -> Local:
        return value

    @durable.action()
    async def parenthesised(value: Local) -> Local:
        return value

    @durable.workflow
    async def flow(_step: Step, value: Local) -> Local:
        return await bare(await parenthesised(value))

    @durable.workflow(name="local classes")
    async def named(_step: Step, value: Local) -> Local:
        return await bare(await parenthesised(value))

    async with Engine(path) as engine:
        assert await engine.run(flow(Local(5))) == Local(5)
        assert await engine.run(named(Local(6))) == Local(6)


@durable.workflow
async def typing_only(_step: Step, price: Decimal) -> None: ...


@durable.action
async def typing_only_action(price: Decimal) -> None: ...


@durable.workflow
async def calling_typing_only(_step: Step) -> str:
    try:
        await typing_only_action("1")  # type: ignore[arg-type]
    except TypeError as exc:
        return str(exc)
    return "nothing"


async def test_a_name_for_type_checkers_only_is_a_clear_error(path: Path) -> None:
    expected = (
        r"an annotation of test_parameters:typing_only\w* cannot be resolved: name 'Decimal' is "
        r"not defined\. Import the name at run time, not only under TYPE_CHECKING\."
    )
    async with Engine(path) as engine:
        with pytest.raises(TypeError, match=expected):
            await engine.start(typing_only("1"))  # type: ignore[arg-type]
        assert re.search(expected, await engine.run(calling_typing_only()))


async def _event_argument(event: asyncio.Event) -> None: ...
async def _events_result() -> list[asyncio.Event]: ...  # type: ignore[empty-body]
async def _path_argument(path: Path) -> None: ...
async def _event_of_workflow(_step: Step, *, event: asyncio.Event | None = None) -> None: ...


@pytest.mark.parametrize(
    ("decorator", "fn", "message"),
    [
        (durable.action, _event_argument, "parameter 'event' of test_parameters:_event_argument"),
        (durable.action, _events_result, "the result of test_parameters:_events_result"),
        (durable.action, _path_argument, "Path.* is neither a type that msgspec encodes nor"),
        (durable.workflow, _event_of_workflow, "parameter 'event'"),
    ],
)
def test_an_annotation_without_json_is_refused_at_decoration(
    decorator: Any,  # noqa: ANN401
    fn: Any,  # noqa: ANN401
    message: str,
) -> None:
    with pytest.raises(TypeError, match=f"the annotation of .*{message}|{message}"):
        decorator(fn)
    for kind in StepKind:
        assert registry.find(kind, f"test_parameters:{fn.__name__}") is None


def test_no_annotation_and_object_mean_any_value() -> None:
    def unannotated(a, *b, **c):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN002, ANN003, ANN202
        return a, b, c

    def of_objects(a: object, *b: object, **c: object) -> object:
        return a, b, c

    for fn in (unannotated, of_objects):
        parameters = Parameters(fn, "fn", injected=None, frame=None)
        text = parameters.encode({"a": [1, {"x": None}], "b": (1,), "c": {"d": "e"}}, BYTES_MAX)
        assert parameters.decode(text) == ([[1, {"x": None}], 1], {"d": "e"})
        assert parameters.encode_result({1: (2,)}, BYTES_MAX) == ('{"1":[2]}', {"1": [2]})


def test_equal_arguments_are_stored_as_equal_text() -> None:
    def fn(a: dict[str, int], b: set[str]) -> None: ...

    parameters = Parameters(fn, "fn", injected=None, frame=None)
    one = parameters.encode({"a": {"x": 1, "y": 2}, "b": {"p", "q"}}, BYTES_MAX)
    other = parameters.encode({"b": {"q", "p"}, "a": {"y": 2, "x": 1}}, BYTES_MAX)
    assert one == other == '{"a":{"x":1,"y":2},"b":["p","q"]}'


def test_a_parameter_that_is_gone_from_the_code_does_not_fit() -> None:
    def fn(a: int) -> None: ...

    parameters = Parameters(fn, "fn", injected=None, frame=None)
    with pytest.raises(Exception, match="unknown field `gone`"):
        parameters.decode('{"a":1,"gone":2}')
