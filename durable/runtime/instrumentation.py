"""Events for an operator. The only module that knows structlog, and it imports it late.

A host that has configured structlog gets the events there. One that has not gets them through the
standard library's ``logging``, under the name ``durable``, which shows warnings and hides the rest
by default: nothing is configured here.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping


@final
class EngineLog:
    """The events of an engine: a dotted past-tense name, and fields."""

    def __init__(self) -> None:
        import structlog  # noqa: PLC0415  40 ms that `import durable` does not have to take

        self._stdlib: logging.Logger | None = None
        if structlog.is_configured():
            # Bound once: each event of the unbound one would configure a logger anew.
            self._log: Any = structlog.get_logger("durable").bind()
        else:
            self._stdlib = logging.getLogger("durable")
            self._log = _through_stdlib(self._stdlib)

    def info(self, event: str, **fields: object) -> None:
        """A run's change of state."""
        # Asked first: a run takes two of these, and most hosts do not want them.
        if self._stdlib is None or self._stdlib.isEnabledFor(logging.INFO):
            self._write("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Something to look at."""
        self._write("warning", event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Something to act on."""
        self._write("error", event, fields)

    def _write(self, level: str, event: str, fields: dict[str, object]) -> None:
        # The host's processors may raise anything: a run must not stop because of its log.
        with contextlib.suppress(Exception):
            getattr(self._log, level)(event, **fields)


def _through_stdlib(logger: logging.Logger) -> Any:  # noqa: ANN401  structlog's own type is a proxy
    import structlog  # noqa: PLC0415  40 ms that `import durable` does not have to take

    return structlog.wrap_logger(
        logger,
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.add_log_level,
            structlog.processors.ExceptionRenderer(),
            _show_lines,
            structlog.dev.ConsoleRenderer(colors=False),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _show_lines(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Show a diff below its event, line by line, as the renderer shows a stack."""
    diff = event.pop("diff", None)
    if diff is not None:
        event["stack"] = diff
    return event


def body_logger(is_silent: Callable[[], bool], **fields: object) -> Any:  # noqa: ANN401
    """Return the logger of a workflow's body: as the host configured it, silent during replay."""
    import structlog  # noqa: PLC0415  40 ms that `import durable` does not have to take

    def drop_during_replay(
        _logger: object, _method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        if is_silent():
            raise structlog.DropEvent
        return event

    processors = [drop_during_replay, *structlog.get_config()["processors"]]
    return structlog.wrap_logger(None, processors=processors).bind(**fields)
