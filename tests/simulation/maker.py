"""Makes random programs: small, with much that fails, waits, is withdrawn, or cleans up.

A step's label ends in ``x`` and the number of attempts that its policy allows, where that matters;
with 0 it is at most once.
"""

from __future__ import annotations

from typing import Final

from simulation.loop import stream
from simulation.program import EVENT_NAMES, Node

NODES_MAX: Final = 12
DEPTH_MAX: Final = 4


class Maker:
    """Makes random programs."""

    def __init__(self, seed: str) -> None:
        self.random = stream(seed, "programs")
        self._labels_count = 0
        self._left = 0

    def make(self) -> Node:
        """Return a new program."""
        self._left = self.random.randint(2, NODES_MAX)
        return self._branch(0)

    def _label(self, suffix: str = "") -> str:
        self._labels_count += 1
        return f"n{self._labels_count}{suffix}"

    def _node(self, depth: int) -> Node:
        self._left -= 1
        if depth < DEPTH_MAX and self._left > 1 and self.random.random() < 0.45:
            return self._branch(depth)
        return self._leaf(depth)

    def _nodes(self, depth: int) -> list[Node]:
        return [self._node(depth + 1) for _ in range(self.random.randint(2, 4))]

    def _branch(self, depth: int) -> Node:
        label = self._label()
        match self.random.choice(
            ("seq", "seq", "seq", "gather", "group", "race", "bound", "attempt", "at_last")
        ):
            case "bound":
                return ["bound", label, self._node(depth + 1), self.random.uniform(0.05, 6)]
            case "attempt":
                return ["attempt", label, self._node(depth + 1), self._node(depth + 1)]
            case "at_last":
                inner: Node = ["seq", self._label(), self._nodes(depth + 1)]
                return ["at_last", label, inner, self._safe()]
            case other:
                return [other, label, self._nodes(depth)]

    def _leaf(self, depth: int) -> Node:
        leaf = self.random.choices(LEAVES, WEIGHTS)[0]
        node = getattr(self, f"_{leaf}")(depth)
        fails = "fail" in repr(node) or "fatal" in repr(node) or "odd" in repr(node)
        if fails and self.random.random() < 0.7:
            return ["attempt", self._label(), node, self._safe()]
        return node  # type: ignore[no-any-return]

    def _safe(self) -> Node:
        """Return a step that does not fail."""
        if self.random.random() < 0.3:
            return ["deposit", self._label(), ["ok"], 0]
        return ["act", self._label(), ["ok"], 1, self._short(), None, None]

    def _short(self) -> float:
        return self.random.choice((0, 0, 0.01, 0.1, 1.0))

    def _act(self, _depth: int) -> Node:
        delay = self.random.choice((None, None, None, 0.2, 5.0))
        seconds = self.random.choice((0, 0, 0.02, 0.2, 0.2, 2.0))
        return ["act", self._label(), ["ok"], 1, seconds, None, delay]

    def _flaky(self, _depth: int) -> Node:
        attempts = self.random.randint(2, 4)
        plan = ["fail"] * self.random.randint(1, attempts)
        plan.append(self.random.choice(("ok", "ok", "fatal")))
        timeout = self.random.choice((None, None, 0.15))
        return ["act", self._label(f"x{attempts}"), plan, attempts, self._short(), timeout, None]

    def _failing(self, _depth: int) -> Node:
        plan = [self.random.choice(("fail", "odd", "fatal"))]
        return ["act", self._label(), plan, 1, self._short(), None, None]

    def _once(self, _depth: int) -> Node:
        plan = [self.random.choice(("ok", "fail"))]
        return ["act", self._label("x0"), plan, False, self._short(), None, None]

    def _work(self, _depth: int) -> Node:
        plan = self.random.choice((["ok"], ["fail", "ok"]))
        return ["work", self._label(), plan, self.random.randint(1, 2)]

    def _deposit(self, _depth: int) -> Node:
        plan = [self.random.choice(("ok", "ok", "ok", "fail"))]
        return ["deposit", self._label(), plan, self.random.choice((0, 0, 0, 0.02, 0.3))]

    def _look(self, _depth: int) -> Node:
        return ["look", self._label()]

    def _sleep(self, _depth: int) -> Node:
        return ["sleep", self._label(), self.random.choice((0.05, 0.5, 3.0, 12.0, 45.0))]

    def _nap(self, _depth: int) -> Node:
        return ["nap", self._label(), self.random.choice((0, 0.1, 2.0))]

    def _event(self, _depth: int) -> Node:
        name = self.random.choice(EVENT_NAMES)
        return ["event", self._label(), name, self.random.choice((None, 0.3, 3.0, 20.0))]

    def _event_id(self, _depth: int) -> Node:
        return ["event_id", self._label(), self.random.choice((None, 2.0, 20.0))]

    def _child(self, depth: int) -> Node:
        label = self._label()
        node = self._node(depth + 1) if depth < DEPTH_MAX else self._safe()
        delay = self.random.choice((None, None, None, 1.0))
        return ["child", label, node, delay, self.random.random() < 0.2]


LEAVES, WEIGHTS = zip(
    ("act", 6),
    ("flaky", 4),
    ("failing", 2),
    ("once", 1),
    ("work", 1),
    ("deposit", 6),
    ("look", 1),
    ("sleep", 3),
    ("nap", 1),
    ("event", 4),
    ("event_id", 1),
    ("child", 3),
    strict=True,
)
