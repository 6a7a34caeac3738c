"""Parts of a fused layer besides attention, and their calls of ops that tuned tables know."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...host.user_tables import use_user_tables
from ...modules.low_rank_linear import LowRankLinear
from ...modules.packed_linear import Source
from ...ops.low_rank_ffn import low_rank_ffn
from ...ops.reference import ACTIVATIONS
from .merged_linear import MergedLinear, merge, merge_key

ONE_LAUNCH_RANK = 128  # largest rank at which the feed-forward's hidden features stay on chip


class Projections(nn.Module):
    """Linears of one input, such as query, key and value, merged into as few as possible."""

    def __init__(self, linears: Sequence[Source]) -> None:
        super().__init__()
        runs = [list(run) for _, run in groupby(linears, key=merge_key)]
        self.merged: Any = nn.ModuleList(merge(run) for run in runs)

    @property
    def how(self) -> list[str]:
        """Format of each linear's weight, and with how many others it is merged."""
        texts: list[str] = []
        for merged in self.merged:
            count = len(merged.widths)
            text = merged.how if count == 1 else f"{merged.how}, {count} in one product"
            texts += [text] * count
        return texts

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (..., in) -> the output (..., out) of each linear."""
        outputs: list[Tensor] = []
        for merged in self.merged:
            outputs += merged(x).split(merged.widths, -1)
        return outputs


class FeedForward(nn.Module):
    """``LN(output(act(intermediate(x))) + residual)`` in two calls; LN is left out without norm."""

    intermediate: Any
    output: Any

    def __init__(
        self, intermediate: Source, output: Source, activation: str, norm: nn.LayerNorm | None
    ) -> None:
        super().__init__()
        self.intermediate = merge([intermediate], activation)
        self.output = merge([output], "none", norm)

    @property
    def how(self) -> list[str]:
        """Format of the weights of intermediate and output."""
        return [self.intermediate.how, self.output.how]

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """x and residual (..., features) -> (..., features)."""
        return self.output(self.intermediate(x), residual=residual)


class GatedFeedForward(FeedForward):
    """``LN(output(act(a) * b) + residual)``, with a and b the halves of intermediate(x)."""

    def __init__(
        self, intermediate: Source, output: Source, activation: str, norm: nn.LayerNorm | None
    ) -> None:
        super().__init__(intermediate, output, "none", norm)
        self.activation = activation

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        hidden, gate = self.intermediate(x).chunk(2, -1)
        return self.output(ACTIVATIONS[self.activation](hidden) * gate, residual=residual)


class LowRankFeedForward(FeedForward):
    """`FeedForward` by one op, which can keep the hidden features on chip."""

    @property
    def how(self) -> list[str]:
        return [f"{how}, the feed-forward in one op" for how in super().how]

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        first, second = self.intermediate, self.output
        dense = None if first.dense is None or second.dense is None else (first.dense, second.dense)
        return low_rank_ffn(
            *(x, first.u, first.v, first.bias, second.u, second.v, second.bias),
            activation=first.activation,
            residual=residual,
            norm=second.norm,
            dense=dense,
        )

    @property
    def weight_name(self) -> str:
        """Name of the weights in tuned tables."""
        from lada_kernels.weight_names import ffn_name

        u = self.intermediate.u
        return ffn_name(u.shape[1], len(u), self.output.u.shape[1])


def feed_forward_of(
    intermediate: Source,
    output: Source,
    activation: str,
    norm: nn.LayerNorm | None,
    gated: bool = False,
) -> FeedForward:
    """Feed-forward of a layer, by one op if both ranks are at most `ONE_LAUNCH_RANK`."""
    if gated:
        return GatedFeedForward(intermediate, output, activation, norm)
    both = intermediate, output
    one_launch = all(isinstance(x, LowRankLinear) and x.rank <= ONE_LAUNCH_RANK for x in both)
    kind = LowRankFeedForward if one_launch else FeedForward
    return kind(intermediate, output, activation, norm)


class FrozenLayerNorm(nn.Module):
    """LayerNorm over the last dimension, with tensors that are in no state dict."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        bias = None if norm.bias is None else norm.bias.detach()
        self.register_buffer("weight", norm.weight.detach(), persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """x (..., features) -> (..., features)."""
        # autocast would leave the result in fp32
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps).to(x.dtype)


class TunedCall(NamedTuple):
    """Call of an op as tuned tables know it: x (tokens, k) -> y (tokens, n)."""

    weight: str
    k: int
    n: int
    epilogue: str
    linears: list[MergedLinear]

    @property
    def dtype(self) -> torch.dtype:
        return self._floats.dtype

    @property
    def device_index(self) -> int:
        """Index of the GPU; -1 is the CPU."""
        return self._floats.get_device()

    @property
    def _floats(self) -> Tensor:
        return next(t for t in self.linears[0].buffers() if t.is_floating_point())


def tuned_calls(module: nn.Module) -> list[TunedCall]:
    """Calls of ops that `module` makes; for a feed-forward in one op also those of its linears."""
    calls = []
    for part in module.modules():
        if isinstance(part, LowRankFeedForward):
            sizes = part.intermediate.in_features, sum(part.output.widths)
            linears = [part.intermediate, part.output]
            calls.append(TunedCall(part.weight_name, *sizes, "norm", linears))
        elif isinstance(part, MergedLinear) and part.weight_name is not None:
            plain = "plain" if part.activation == "none" else "fused"
            epilogue = plain if part.norm is None else "norm"
            sizes = part.in_features, sum(part.widths)
            calls.append(TunedCall(part.weight_name, *sizes, epilogue, [part]))
    return calls


@torch.no_grad()
def keep_dense(module: nn.Module) -> None:
    """Keep dense weights as well where this GPU's tuned table measured them faster.

    The ops then choose by the number of tokens.
    """
    from lada_kernels.tuning import dense_is_ever_fastest
    from lada_kernels.weight_names import WeightName

    use_user_tables()
    for call in tuned_calls(module):
        stem, size = WeightName.parse(call.weight).stem, (call.dtype, call.k, call.n)
        if dense_is_ever_fastest(stem, call.weight, *size, call.device_index):
            for linear in call.linears:
                linear.register_tensors(dense=linear.to_dense())
