"""Events for an operator. The only module that knows structlog, and it imports it late.

A host that has configured structlog gets the events there. One that has not gets them through the
standard library's ``logging``, under the name ``durable``, which shows warnings and hides the rest
by default: nothing is configured here.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping


def engine_logger() -> Any:  # noqa: ANN401  structlog's own type is a proxy
    """Return the logger of an engine's events."""
    import structlog  # noqa: PLC0415  40 ms that `import durable` does not have to take

    if structlog.is_configured():
        return structlog.get_logger("durable")
    return structlog.wrap_logger(
        logging.getLogger("durable"),
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.add_log_level,
            structlog.processors.ExceptionRenderer(),
            structlog.dev.ConsoleRenderer(colors=False),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def body_logger(is_silent: Callable[[], bool], **fields: object) -> Any:  # noqa: ANN401
    """Return the logger of a workflow's body: as the host configured it, silent during replay."""
    import structlog  # noqa: PLC0415

    def drop_during_replay(
        _logger: object, _method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        if is_silent():
            raise structlog.DropEvent
        return event

    processors = [drop_during_replay, *structlog.get_config()["processors"]]
    return structlog.wrap_logger(None, processors=processors).bind(**fields)
