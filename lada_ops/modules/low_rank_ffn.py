"""`LowRankFFN`: feed-forward of two low-rank linears, with residual and LayerNorm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.low_rank_ffn import low_rank_ffn
from ..ops.reference import ACTIVATIONS, Norm
from .low_rank_linear import LowRankLinear


class LowRankFFN(nn.Module):
    """``LN(down(act(up(x))) + residual)``, the feed-forward of a transformer layer.

    up and down are `LowRankLinear`s, norm is an `nn.LayerNorm` or None. They hold the weights, but
    one op computes all of them, so hooks on them do not run. There is no dropout.
    """

    norm: nn.LayerNorm | None

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        rank1: int,
        rank2: int,
        bias: bool = True,
        activation: str = "gelu",
        norm_eps: float | None = 1e-12,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """norm_eps: eps of the LayerNorm, or None for no LayerNorm."""
        super().__init__()
        kind = {"device": device, "dtype": dtype}
        norm = None if norm_eps is None else nn.LayerNorm(out_features, norm_eps, **kind)
        self._set(
            LowRankLinear(in_features, hidden_features, rank1, bias, **kind),
            LowRankLinear(hidden_features, out_features, rank2, bias, **kind),
            norm,
            activation,
        )

    @classmethod
    def from_linears(
        cls,
        up: LowRankLinear,
        down: LowRankLinear,
        norm: nn.LayerNorm | None = None,
        activation: str = "gelu",
    ) -> LowRankFFN:
        """Module with the given modules as children, not copied.

        Raises ValueError unless they fit each other, up and down have no activation of their own,
        and norm has a weight and a bias.
        """
        module = cls.__new__(cls)
        nn.Module.__init__(module)
        module._set(up, down, norm, activation)
        return module.train(up.training)

    def _set(self, up, down, norm, activation):
        name = type(self).__name__
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"{name}: activation {activation!r}; expected one of {list(ACTIVATIONS)}"
            )
        for child, linear in (("up", up), ("down", down)):
            if linear.activation != "none":
                raise ValueError(
                    f"{name}: {child} has activation {linear.activation!r}; expected 'none'"
                )
        if up.out_features != down.in_features:
            raise ValueError(
                f"{name}: down takes {down.in_features} features; "
                f"expected {up.out_features}, as up gives"
            )
        if norm is not None:
            _check_norm(name, norm, down.out_features)
        self.up, self.down, self.norm, self.activation = up, down, norm, activation

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x (..., in), residual (..., out) -> (..., out)."""
        up, down, norm = self.up, self.down, self.norm
        return low_rank_ffn(
            x,
            up.u,
            up.v,
            up.bias,
            down.u,
            down.v,
            down.bias,
            activation=self.activation,
            residual=residual,
            norm=None if norm is None else Norm(norm.weight, norm.bias, norm.eps),
        )

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}"


def _check_norm(name: str, norm: nn.LayerNorm, out_features: int) -> None:
    shape = norm.normalized_shape
    if shape != (out_features,):
        raise ValueError(f"{name}: norm is over {shape}; expected ({out_features},), as down gives")
    if norm.weight is None or norm.bias is None:
        raise ValueError(f"{name}: norm has no weight or no bias; expected both")
