"""Sparse plus low rank: the sum of a low-rank and a block-sparse weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .bsr import Bsr
from .checks import check_float
from .counts import Counts
from .low_rank import LowRank


@dataclass(frozen=True, eq=False)
class SparseLowRank:
    """``weight = u @ v + S`` with S block sparse; both of one shape, dtype and device.

    Raises ValueError or TypeError where they are not.
    """

    low_rank: LowRank
    bsr: Bsr

    def __post_init__(self) -> None:
        if self.low_rank.shape != self.bsr.shape:
            raise ValueError(
                f"SparseLowRank: low_rank {self.low_rank.shape}, bsr {self.bsr.shape}; "
                "expected one shape (out, in)"
            )
        check_float("SparseLowRank", u=self.low_rank.u, values=self.bsr.values)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (out, in) of the weight."""
        return self.bsr.shape

    def to_dense(self) -> Tensor:
        """Dense weight (out, in)."""
        return self.low_rank.to_dense() + self.bsr.to_dense()

    def to(self, dtype: torch.dtype) -> SparseLowRank:
        """Sum of the parts in another dtype."""
        return SparseLowRank(self.low_rank.to(dtype), self.bsr.to(dtype))

    def scaled(self, rows: Tensor) -> SparseLowRank:
        """Sum of the parts with their rows multiplied by ``rows (out,)``."""
        return SparseLowRank(self.low_rank.scaled(rows), self.bsr.scaled(rows))

    def counts(self) -> Counts:
        """Costs of storing and applying the weight."""
        return self.low_rank.counts() + self.bsr.counts()


Format: TypeAlias = LowRank | Bsr | SparseLowRank
