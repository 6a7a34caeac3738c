"""`SparseLowRankLinear`: linear with weight ``u @ v + S``, S block sparse."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..approximation.sparse_low_rank import alternate
from ..formats.low_rank import LowRank
from ..formats.sparse_low_rank import SparseLowRank
from ..ops.sparse_low_rank_linear import sparse_low_rank_linear
from .block_sparse_linear import BsrLinear
from .compressed_linear import copied
from .low_rank_linear import LowRankFactors


class SparseLowRankLinear(LowRankFactors, BsrLinear):
    """``act(x v^T u^T + x S^T + bias) + residual``.

    Tensors as in `LowRankLinear` and `BlockSparseLinear`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        block: tuple[int, int],
        density: float,
        bias: bool = True,
        activation: str = "none",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, activation, device, dtype)
        self._init_factors(rank, device, dtype)
        self._init_bsr(block, density, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw u and v so that the output keeps the scale of the input, and set S to 0.

        The bias is 0, too, and the blocks of S are spread evenly.
        """
        super().reset_parameters()
        nn.init.zeros_(self.values)

    @classmethod
    def from_format(
        cls, weight: SparseLowRank, bias: Tensor | None = None, activation: str = "none"
    ) -> SparseLowRankLinear:
        """Module with copies of the given factors, blocks (`Bsr.padded`) and bias."""
        out_features, in_features = weight.shape
        module = cls(
            in_features,
            out_features,
            weight.low_rank.rank,
            weight.bsr.block,
            weight.bsr.density,
            bias is not None,
            activation,
            device="meta",
        )
        module.u = copied(weight.low_rank.u)
        module.v = copied(weight.low_rank.v)
        module._set_bsr(weight.bsr)
        module._set_bias(bias, weight.bsr.values)
        return module

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        rank: int,
        block: tuple[int, int],
        density: float,
        activation: str = "none",
    ) -> SparseLowRankLinear:
        """Module with ``u @ v + S`` near `linear`'s weight, in its dtype and on its device."""
        weight = alternate(linear.weight, rank, block, density)
        return cls.from_format(weight, linear.bias, activation)

    @property
    def format(self) -> SparseLowRank:
        return SparseLowRank(LowRank(self.u.detach(), self.v.detach()), self.bsr)

    def _compute_dense(self) -> Tensor:
        return self.u @ self.v + super()._compute_dense()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x (..., in), residual (..., out) -> (..., out)."""
        return sparse_low_rank_linear(
            x,
            self.u,
            self.v,
            self.crow_indices,
            self.col_indices,
            self.values,
            self.bias,
            activation=self.activation,
            residual=residual,
            order=self.order,
            dense=self.dense_for(x),
        )

    def _table_names(self) -> tuple[str, str]:
        from lada_kernels.weight_names import sparse_low_rank_name

        return "sparse_low_rank_linear", sparse_low_rank_name(self.rank, *self.block, self.density)

    def _format_repr(self) -> str:
        return f", rank={self.rank}{super()._format_repr()}"
