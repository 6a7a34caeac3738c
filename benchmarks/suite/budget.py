"""Time budget of the suite: seconds left, and the expected seconds of a row."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence

FIRST = 30.0  # seconds of a first row, which compiles
MARGIN = 1.5
WINDOW = 8  # rows

# share of the remaining time that a stage may take; the last one takes all
SHARES = {"tests": 0.35, "ceilings": 1.0, "kernels": 0.75, "tune": 1.0}


class Budget:
    """Seconds until `deadline` by the clock `now`, by default since the epoch."""

    def __init__(self, deadline: float, now: Callable[[], float] = time.time) -> None:
        self._deadline = deadline
        self._now = now

    def left(self) -> float:
        return self._deadline - self._now()

    def fits(self, seconds: float) -> bool:
        return seconds <= self.left()


class Pace:
    """Expected seconds of a row by kind: the slowest of the last rows, times a margin."""

    def __init__(self) -> None:
        self._seconds: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=WINDOW))

    def took(self, kind: str, seconds: float) -> None:
        self._seconds[kind].append(seconds)

    def expected(self, kind: str) -> float:
        last = self._seconds.get(kind)
        return MARGIN * max(last) if last else FIRST


def seconds_for(stage: str, stages: Sequence[str], left: float) -> float:
    """Seconds of `left` that `stage` may take, so that the `stages` behind it get theirs."""
    return left if stage == stages[-1] else SHARES[stage] * left
