"""Workflow bodies on which replay is tested: each must be exact in any order of completions.

Every body ends, whatever the order in which its open steps and its timers complete, and uses no
clock, randomness or I/O of its own. A module is a theme; most results are traces of what happened
in which order, so that a replay which gets the order wrong gives another result.
"""

from importlib import import_module

from .case import Case, collected

THEMES = (
    "anyio_groups",
    "anyio_scopes",
    "cancelling",
    "contexts",
    "endings",
    "gather",
    "generators",
    "groups",
    "locks",
    "plain_groups",
    "plain_locks",
    "plain_queues",
    "plain_tasks",
    "queues",
    "races",
    "shapes",
    "shields",
    "sleeps",
    "tasks",
    "timeouts",
    "values",
)
for theme in THEMES:
    import_module(f".{theme}", __name__)  # This adds its bodies.

CORPUS: tuple[Case, ...] = collected()

__all__ = ["CORPUS", "Case"]
