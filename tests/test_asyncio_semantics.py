"""A body does what CPython's asyncio does: the same function runs on both, and comes to the same.

The bodies are the corpus's whose themes are called ``plain_...``. Their results do not depend on
which step completes first. That they replay, and do the same in an engine, is shown with the rest
of the corpus, by ``test_replay`` and ``test_replay_engine``.
"""

from __future__ import annotations

import asyncio

import pytest
from corpus import CORPUS, Case
from player import EngineOrder
from replay_driver import run_live

from durable.core.commands import Returned

CASES = [case for case in CORPUS if case.theme.startswith("plain_")]


@pytest.mark.both_loops
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
async def test_a_body_does_what_asyncio_does(case: Case) -> None:
    """An action that is awaited outside of a body is an ordinary call, so a body runs anywhere."""
    async with asyncio.timeout(10):
        plain = await asyncio.create_task(as_coroutine(case))
    player = run_live(case.workflow(*case.args), EngineOrder(), run_id=case.id)
    assert isinstance(player.outcome, Returned), player.outcome
    assert player.outcome.value == plain


async def as_coroutine(case: Case) -> object:
    return await case.workflow.fn(None, *case.args)


def test_there_are_many() -> None:
    assert len(CASES) >= 25
