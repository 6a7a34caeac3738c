"""The least time that work takes on a GPU, whatever the kernel: an estimate, not a measurement."""

from __future__ import annotations

from dataclasses import dataclass

from .targets import Target


@dataclass(frozen=True)
class Work:
    """What an op must do: its FLOPs, and the bytes it must read and write at least once."""

    flops: int
    bytes: int

    def seconds(self, target: Target) -> float:
        """Both at the peak rates of the target's GPU, each hidden behind the other.

        No cache, no launch: nothing is as fast, and small work is slower by far.
        """
        return max(self._compute(target), self._traffic(target))

    def bound(self, target: Target) -> str:
        """What takes longer: "compute" or "memory"."""
        return "compute" if self._compute(target) > self._traffic(target) else "memory"

    def _compute(self, target: Target) -> float:
        return self.flops / (target.teraflops * 1e12)

    def _traffic(self, target: Target) -> float:
        return self.bytes / (target.gigabytes_per_second * 1e9)
