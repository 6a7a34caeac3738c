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

    Raises ValueError or TypeError where the factors do not fit, or the rank is not within
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
        """Columns of u and rows of v."""
        return self.u.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (out, in) of the weight."""
        return self.u.shape[0], self.v.shape[1]

    def to_dense(self) -> Tensor:
        """Dense weight (out, in)."""
        return self.u @ self.v

    def to(self, dtype: torch.dtype) -> LowRank:
        """Factors in another dtype."""
        return LowRank(self.u.to(dtype), self.v.to(dtype))

    def scaled(self, rows: Tensor) -> LowRank:
        """Factors of the weight with its rows multiplied by ``rows (out,)``."""
        return LowRank(self.u * rows[:, None], self.v)

    @staticmethod
    def parameters(shape: tuple[int, int], rank: int) -> int:
        """Values in the factors of a weight of that shape (out, in)."""
        return rank * sum(shape)

    @staticmethod
    def rank_bytes(shape: tuple[int, int], dtype: torch.dtype) -> int:
        """Stored bytes of one more rank: a column of u and a row of v."""
        return LowRank.parameters(shape, 1) * dtype.itemsize

    @staticmethod
    def break_even(shape: tuple[int, int]) -> int:
        """Highest rank whose factors are no larger, and no slower, than the dense weight."""
        return shape[0] * shape[1] // LowRank.parameters(shape, 1)

    def counts(self) -> Counts:
        """Costs of storing and applying the weight."""
        return Counts.of(self.u) + Counts.of(self.v)
