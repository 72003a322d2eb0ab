"""The pytest plugin of durable: a fixture that gives each test an engine of its own.

It is imported by every run of pytest where durable is installed. So it imports durable late, when a
test asks for the fixture, and does nothing else.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from durable.engine import Engine
    from durable.testing import Environment


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known that gives the fixture its options."""
    config.addinivalue_line(
        "markers", "durable(url, **options): what durable.testing.engine() gets for durable_env"
    )


@pytest.fixture
def durable_env(request: pytest.FixtureRequest) -> Iterator[Environment]:
    """Give the test a ``durable.testing.Environment``, open as long as the test function runs.

    Its options are those of ``@pytest.mark.durable(...)``. The test has to be async: it is opened
    and closed in the test's own task, whichever plugin runs that.
    """
    from durable import testing  # noqa: PLC0415  late: see above

    marker = request.node.get_closest_marker("durable")
    env = testing.engine() if marker is None else testing.engine(*marker.args, **marker.kwargs)
    test: Any = request.node.obj
    if inspect.iscoroutinefunction(test):

        @functools.wraps(test)
        async def in_environment(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  a test's
            async with env:
                return await test(*args, **kwargs)

        request.node.obj = in_environment
    yield env
    request.node.obj = test


@pytest.fixture
def durable_engine(durable_env: Environment) -> Engine:
    """Give the test the engine of its ``durable_env``."""
    return durable_env.engine
