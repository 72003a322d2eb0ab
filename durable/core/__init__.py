"""The pure core: no I/O, clock, thread, randomness or logging. All of it can be tested with lists."""
