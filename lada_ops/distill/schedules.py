"""How much is kept at each step of a training run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """The part of a run in which pruning happens: shares of its steps, 0 <= begin < end <= 1.

    Before it nothing is pruned, after it no more is: what is left recovers.
    """

    begin: float
    end: float

    def __post_init__(self) -> None:
        if not 0 <= self.begin < self.end <= 1:
            raise ValueError(
                f"Span: begin {self.begin}, end {self.end}; expected 0 <= begin < end <= 1"
            )

    def progress(self, step: int, steps: int) -> float:
        """0 before the span to 1 after it, at `step` of `steps`."""
        done = (step / steps - self.begin) / (self.end - self.begin)
        return min(max(done, 0.0), 1.0)


def cubic(start: float, end: float, progress: float) -> float:
    """From `start` to `end`, fast at first (Zhu and Gupta, 2017, equation 1)."""
    return end + (start - end) * (1 - progress) ** 3


def geometric(end: float, increment: int, increments: int) -> float:
    """The share ``end^(increment / increments)`` that is kept, from 1 to `end` (LadaBERT)."""
    return end ** (increment / increments)
