"""Pruning schedules: the share of weights kept at each step of a training run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """Part of a run in which pruning happens, as shares of its steps: 0 <= begin < end <= 1.

    Nothing is pruned before it; after it the remaining weights recover.

    Raises ValueError unless begin and end are in that order.
    """

    begin: float
    end: float

    def __post_init__(self) -> None:
        if not 0 <= self.begin < self.end <= 1:
            raise ValueError(
                f"Span: begin {self.begin}, end {self.end}; expected 0 <= begin < end <= 1"
            )

    def progress(self, step: int, steps: int) -> float:
        """Progress through the span at `step` of `steps`: 0 before it, 1 after it."""
        done = (step / steps - self.begin) / (self.end - self.begin)
        return min(max(done, 0.0), 1.0)


def cubic(start: float, end: float, progress: float) -> float:
    """Cubic decay from `start` to `end`, fast at first (Zhu and Gupta, 2017, equation 1)."""
    return end + (start - end) * (1 - progress) ** 3


def geometric(end: float, increment: int, increments: int) -> float:
    """Share kept after `increment` of `increments`: ``end^(increment / increments)`` (LadaBERT)."""
    return end ** (increment / increments)
