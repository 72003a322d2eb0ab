"""To whoever looks at a definition it is a coroutine function, of what callers see of it."""

from __future__ import annotations

import asyncio
import functools
import inspect
import typing
from dataclasses import dataclass
from typing import Annotated, Any
from unittest.mock import AsyncMock, patch

import pytest

import durable
from durable import Step, Transaction


@dataclass
class Order:
    cents: int


async def _charge(order: Order, *notes: str, days: int = 3, **more: float) -> Order | None: ...


charge = durable.action(name="introspection.charge")(_charge)


@durable.action
def charge_in_a_thread(order: Order) -> Order:
    return order


@durable.workflow(version=2)
async def checkout(step: Step, order: Order, /, gift: bool = False) -> list[Order]:  # noqa: FBT002
    return [order]


@durable.query
async def look(tx: Transaction, order: Annotated[Order, "a note"]) -> dict[str, Order]:
    return {"1": order}


@durable.mutation(name="introspection.change")
async def change(tx: Transaction) -> None: ...


@durable.action
async def bare(order, days=1):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    return order, days


@durable.action
async def early(late: Late) -> Late:
    return late


@dataclass
class Late:
    cents: int


class Shop:
    async def charge(self, order: Order) -> str:
        return str(order)

    async def __call__(self, order: Order) -> str:
        return str(order)


bound = durable.action(name="introspection.bound")(Shop().charge)
called = durable.action(name="introspection.called")(Shop())
applied = durable.action(name="introspection.applied")(functools.partial(_charge, days=7))
cached = durable.action(functools.cache(lambda order: order), name="introspection.cached")  # type: ignore[call-overload]

ORDER = {"order": Order}
SEEN: list[tuple[Any, list[str], dict[str, Any]]] = [
    (
        charge,
        ["order", "notes", "days", "more"],
        {**ORDER, "notes": str, "days": int, "more": float, "return": Order | None},
    ),
    (charge_in_a_thread, ["order"], {**ORDER, "return": Order}),
    (checkout, ["order", "gift"], {**ORDER, "gift": bool, "return": list[Order]}),
    (look, ["order"], {**ORDER, "return": dict[str, Order]}),
    (change, [], {"return": type(None)}),
    (bare, ["order", "days"], {}),
    (early, ["late"], {"late": Late, "return": Late}),
    (bound, ["order"], {**ORDER, "return": str}),
    (called, ["order"], {**ORDER, "return": str}),
    (
        applied,
        ["order", "notes", "days", "more"],
        {**ORDER, "notes": str, "days": int, "more": float, "return": Order | None},
    ),
    (cached, ["order"], {}),
]


@pytest.mark.parametrize(
    ("definition", "names", "hints"), SEEN, ids=[each.name for each, _, _ in SEEN]
)
def test_it_shows_the_parameters_that_callers_see(
    definition: Any,  # noqa: ANN401
    names: list[str],
    hints: dict[str, Any],
) -> None:
    assert list(inspect.signature(definition).parameters) == names
    assert list(inspect.signature(definition, eval_str=True).parameters) == names
    assert typing.get_type_hints(definition) == hints
    assert inspect.get_annotations(definition, eval_str=True).keys() == hints.keys()
    assert inspect.iscoroutinefunction(definition)
    assert inspect.iscoroutinefunction(functools.partial(definition))


def test_defaults_kinds_and_annotations_are_those_of_the_function() -> None:
    assert str(inspect.signature(change)) == "() -> None"
    shown = inspect.signature(checkout)
    assert shown.parameters["gift"].default is False
    assert shown.parameters["order"].kind is inspect.Parameter.POSITIONAL_ONLY
    assert shown.parameters["order"].annotation is Order
    assert shown.return_annotation == list[Order]
    assert inspect.signature(bare).parameters["order"].annotation is inspect.Parameter.empty
    assert inspect.signature(bare).return_annotation is inspect.Signature.empty
    assert inspect.signature(early).parameters["late"].annotation is Late
    hints = typing.get_type_hints(look, include_extras=True)
    assert hints["order"] == Annotated[Order, "a note"]


def test_annotations_that_cannot_be_resolved_are_shown_as_they_are() -> None:
    @durable.action
    async def unresolved(order: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    assert str(inspect.signature(unresolved)) == "(order: 'Nowhere') -> 'None'"
    with pytest.raises(NameError):
        typing.get_type_hints(unresolved)


def test_annotations_that_name_local_classes_are_resolved() -> None:
    @dataclass
    class Local:
        cents: int

    @durable.workflow
    async def flow(step: Step, local: Local) -> Local:
        return local

    assert typing.get_type_hints(flow) == {"local": Local, "return": Local}
    assert inspect.signature(flow).parameters["local"].annotation is Local


def test_the_classes_of_definitions_can_be_looked_at() -> None:
    for definition in (charge, checkout, look, change):
        cls = type(definition)
        assert "fn" in inspect.signature(cls).parameters
        assert not inspect.iscoroutinefunction(cls)


def test_a_definition_cannot_be_decorated_again() -> None:
    decorators: list[Any] = [durable.action, durable.workflow, durable.query, durable.mutation]
    for decorate in decorators:
        with pytest.raises(TypeError, match=r"function"):
            decorate(charge)


def test_what_is_patched_in_its_place_can_be_awaited() -> None:
    with patch(f"{__name__}.charge_in_a_thread") as fake:
        assert isinstance(fake, AsyncMock)
        fake.return_value = Order(1)
        assert asyncio.run(pay()) == Order(1)


async def pay() -> Order:
    return await charge_in_a_thread(Order(5))
