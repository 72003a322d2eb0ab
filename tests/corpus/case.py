"""What the corpus is made of: a body, its arguments and its theme."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

PREFIX = "corpus."


class Workflow(Protocol):
    """A decorated workflow, as far as the corpus and its readers need it."""

    @property
    def name(self) -> str: ...

    @property
    def fn(self) -> Callable[..., Awaitable[object]]: ...

    # Any: each body takes arguments of its own, which the case carries as plain objects.
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...  # noqa: ANN401 - see above


@dataclass(frozen=True)
class Case:
    """One body to run live and to replay.

    Attributes:
        id: The workflow's name without the prefix, unique in the corpus.
        theme: The module the body is in.
        raises: What leaves the body, in every order of completions; None when it returns.
    """

    id: str
    workflow: Workflow
    args: tuple[object, ...]
    theme: str
    raises: type[BaseException] | None = None


W = TypeVar("W", bound=Workflow)
_cases: list[Case] = []


def case(*args: object, raises: type[BaseException] | None = None) -> Callable[[W], W]:
    """Add the workflow below to the corpus, to be started with ``args``."""

    def add(workflow: W) -> W:
        case_id = workflow.name.removeprefix(PREFIX)
        theme = workflow.fn.__module__.rpartition(".")[2]
        _cases.append(Case(case_id, workflow, args, theme, raises))
        return workflow

    return add


def collected() -> tuple[Case, ...]:
    """Return the cases of the modules imported so far, in order of definition."""
    return tuple(_cases)
