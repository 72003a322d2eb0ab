"""A deterministic simulation of whole engines: one integer decides all that happens, and when.

``loop`` is the machine: virtual time, processes, threads. ``disk`` is what they share: a database
file, its locks, and its faults. ``program`` makes random workflows, ``driver`` is the world outside
that starts, sends to, cancels and restarts them, and ``oracle`` says what is wrong. ``planted`` are
the bugs that it has to find.
"""
