"""Low rank: a weight as the product of two factors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check_float, check_rank
from .counts import Counts


@dataclass(frozen=True, eq=False)
class LowRank:
    """``weight = u @ v`` with u (out, rank) and v (rank, in), of one dtype and device.

    Raises ValueError or TypeError where the factors don't fit, or the rank is not within
    1 .. min(out, in).
    """

    u: Tensor
    v: Tensor

    def __post_init__(self) -> None:
        check_float("LowRank", u=self.u, v=self.v)
        if self.u.ndim != 2 or self.v.ndim != 2 or self.u.shape[1] != self.v.shape[0]:
            raise ValueError(
                f"LowRank: u {tuple(self.u.shape)} and v {tuple(self.v.shape)}; "
                "expected u (out, rank) and v (rank, in)"
            )
        check_rank("LowRank", self.rank, self.shape)

    @property
    def rank(self) -> int:
        return self.u.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        return self.u.shape[0], self.v.shape[1]

    def to_dense(self) -> Tensor:
        """The weight (out, in)."""
        return self.u @ self.v

    def to(self, dtype: torch.dtype) -> LowRank:
        """The same in another dtype."""
        return LowRank(self.u.to(dtype), self.v.to(dtype))

    def scaled(self, rows: Tensor) -> LowRank:
        """The weight whose rows are multiplied by ``rows (out,)``."""
        return LowRank(self.u * rows[:, None], self.v)

    def counts(self) -> Counts:
        return Counts.of(self.u) + Counts.of(self.v)
