"""`LowRankLinear`: linear with a low-rank weight ``u @ v``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..approximation.svd import truncated_svd
from ..formats.checks import check_rank
from ..formats.low_rank import LowRank
from ..ops.low_rank_linear import low_rank_linear
from .compressed_linear import CompressedLinear, copied


class LowRankFactors(CompressedLinear):
    """Base of the linears with a low-rank part ``u @ v``."""

    def _init_factors(
        self, rank: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        check_rank(type(self).__name__, rank, (self.out_features, self.in_features))
        self.u = nn.Parameter(torch.empty(self.out_features, rank, device=device, dtype=dtype))
        self.v = nn.Parameter(torch.empty(rank, self.in_features, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Draw u and v so that the output keeps the scale of the input; the bias is 0."""
        super().reset_parameters()
        nn.init.normal_(self.u, std=self.rank**-0.5)
        nn.init.normal_(self.v, std=self.in_features**-0.5)

    @property
    def rank(self) -> int:
        return self.u.shape[1]


class LowRankLinear(LowRankFactors):
    """``act(x v^T u^T + bias) + residual`` with u (out, rank) and v (rank, in)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        activation: str = "none",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, activation, device, dtype)
        self._init_factors(rank, device, dtype)
        self.reset_parameters()

    @classmethod
    def from_format(
        cls, weight: LowRank, bias: Tensor | None = None, activation: str = "none"
    ) -> LowRankLinear:
        """Module with copies of the given factors and bias."""
        out_features, in_features = weight.shape
        module = cls(
            in_features, out_features, weight.rank, bias is not None, activation, device="meta"
        )
        module.u = copied(weight.u)
        module.v = copied(weight.v)
        module._set_bias(bias, weight.u)
        return module

    @classmethod
    def from_linear(cls, linear: nn.Linear, rank: int, activation: str = "none") -> LowRankLinear:
        """Module with the truncated SVD of `linear` at `rank`, in its dtype and on its device."""
        return cls.from_format(truncated_svd(linear.weight, rank), linear.bias, activation)

    @property
    def format(self) -> LowRank:
        return LowRank(self.u.detach(), self.v.detach())

    def _compute_dense(self) -> Tensor:
        return self.u @ self.v

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x (..., in), residual (..., out) -> (..., out)."""
        return low_rank_linear(
            x,
            self.u,
            self.v,
            self.bias,
            activation=self.activation,
            residual=residual,
            dense=self.dense_for(x),
        )

    def _table_names(self) -> tuple[str, str]:
        from lada_kernels.weight_names import low_rank_name

        return "low_rank_linear", low_rank_name(self.rank)

    def _format_repr(self) -> str:
        return f", rank={self.rank}"
