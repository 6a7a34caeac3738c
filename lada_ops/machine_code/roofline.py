"""Roofline model: the least time in which a device can do the work of an op.

Williams, Waterman and Patterson, "Roofline", CACM 52(4), 2009. An estimate, not a measurement.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ceilings:
    """Peak rates of a device, from its data sheet or measured on it."""

    flops_per_second: float
    bytes_per_second: float


@dataclass(frozen=True)
class Work:
    """FLOPs of an op, and the bytes that it must read and write at least once."""

    flops: int
    bytes: int

    def seconds(self, ceilings: Ceilings) -> float:
        """Seconds at the peak rates, arithmetic and memory traffic fully overlapped.

        Without launch latency or cache misses: a lower bound, far below the time of small work.
        """
        return max(self._compute(ceilings), self._traffic(ceilings))

    def bound(self, ceilings: Ceilings) -> str:
        """ "compute" or "memory", whichever takes longer."""
        return "compute" if self._compute(ceilings) > self._traffic(ceilings) else "memory"

    def _compute(self, ceilings: Ceilings) -> float:
        return self.flops / ceilings.flops_per_second

    def _traffic(self, ceilings: Ceilings) -> float:
        return self.bytes / ceilings.bytes_per_second
