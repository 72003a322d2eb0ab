"""The pure core: no I/O, clock, thread, randomness or logging; it can be tested with lists."""
