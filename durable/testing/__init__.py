"""What tests of workflows are made with."""

from durable.testing.histories import DivergenceError, replay

__all__ = ["DivergenceError", "replay"]
