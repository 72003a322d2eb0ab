"""What a test fails with."""

from __future__ import annotations

from typing import final


@final
class StalledError(AssertionError):
    """A test waits for the end of a run that nothing can bring about any more.

    Everything is idle, and no time that could pass makes anything due. It is raised where time
    passes by itself: not with ``engine(auto=False)``. The message says what each
    run waits for.
    """
