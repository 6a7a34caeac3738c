"""Time: what is left, and whether a row still fits into it."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence

FIRST = 30.0  # seconds: compiling, beside all else
MARGIN = 1.5
MEMORY = 8  # rows

# of the time that is left when a stage begins, how much it may take; the last one takes the rest
SHARES = {"tests": 0.35, "ceilings": 1.0, "kernels": 0.75, "tune": 1.0}


class Budget:
    """The seconds until `deadline`, on the clock `now` (by default seconds since the epoch)."""

    def __init__(self, deadline: float, now: Callable[[], float] = time.time) -> None:
        self._deadline = deadline
        self._now = now

    def left(self) -> float:
        return self._deadline - self._now()

    def fits(self, seconds: float) -> bool:
        return seconds <= self.left()


class Pace:
    """How long rows take, by kind: the slowest of the last few, and a margin."""

    def __init__(self) -> None:
        self._seconds: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=MEMORY))

    def took(self, kind: str, seconds: float) -> None:
        self._seconds[kind].append(seconds)

    def expected(self, kind: str) -> float:
        seen = self._seconds.get(kind)
        return MARGIN * max(seen) if seen else FIRST


def seconds_for(stage: str, stages: Sequence[str], left: float) -> float:
    """What `stage` may take of `left` seconds, if those of `stages` behind it want the rest."""
    return left if stage == stages[-1] else SHARES[stage] * left
