"""Time that a test holds: the test kit's clock, moved by hand."""

from durable.testing.clock import START_MS
from durable.testing.clock import VirtualClock as ManualClock

__all__ = ["START_MS", "ManualClock"]
