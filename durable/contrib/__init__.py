"""An engine inside other frameworks' applications."""

from __future__ import annotations

from durable.engine import Engine


def check_engine(engine: Engine) -> None:
    """Raise ``TypeError`` now, and not when the application starts, for what is no engine."""
    if not isinstance(engine, Engine):
        msg = f"it takes an Engine that is not open yet, not {engine!r}"
        raise TypeError(msg)
