"""Benchmarks of the library, each beside what the machine itself gives.

Absolute times do not carry from one machine to another, ratios do. A bar on a ratio is therefore
judged against a baseline measured in the same process, on the same disk, in the same round; what
counts is the median of the rounds. Run them with ``python -m benchmarks --help``.
"""
