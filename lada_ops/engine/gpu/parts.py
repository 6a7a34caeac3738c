"""The parts of a fused layer around its attention, and what tuned tables know of them."""

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
from .merged_linear import Product, joint_kind, product_of

ONE_LAUNCH_RANK = 128  # up to this one the feed-forward's hidden features stay on chip


class Projections(nn.Module):
    """Several linears of one x, such as query, key and value: as few products as can be."""

    def __init__(self, linears: Sequence[Source]) -> None:
        super().__init__()
        runs = [list(run) for _, run in groupby(linears, key=joint_kind)]
        self.products: Any = nn.ModuleList(product_of(run) for run in runs)

    @property
    def how(self) -> list[str]:
        """By linear, what computes it."""
        texts: list[str] = []
        for product in self.products:
            joined = len(product.widths)
            text = product.how if joined == 1 else f"{product.how}, {joined} in one product"
            texts += [text] * joined
        return texts

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (..., in) -> the output (..., out) of each linear."""
        outputs: list[Tensor] = []
        for product in self.products:
            outputs += product(x).split(product.widths, -1)
        return outputs


class FeedForward(nn.Module):
    """``LN(down(act(up(x))) + residual)`` in two products; without norm there is no LN."""

    up: Any
    down: Any

    def __init__(
        self, up: Source, down: Source, activation: str, norm: nn.LayerNorm | None
    ) -> None:
        super().__init__()
        self.up, self.down = product_of([up], activation), product_of([down], "none", norm)

    @property
    def how(self) -> list[str]:
        """By linear, up and down, what computes it."""
        return [self.up.how, self.down.how]

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """x and residual (..., features) -> (..., features)."""
        return self.down(self.up(x), residual=residual)


class GatedFeedForward(FeedForward):
    """``LN(down(act(a) * b) + residual)``, with a and b the halves of up(x)."""

    def __init__(
        self, up: Source, down: Source, activation: str, norm: nn.LayerNorm | None
    ) -> None:
        super().__init__(up, down, "none", norm)
        self.activation = activation

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        first, second = self.up(x).chunk(2, -1)
        return self.down(ACTIVATIONS[self.activation](first) * second, residual=residual)


class LowRankFeedForward(FeedForward):
    """`FeedForward` by one op, which need not write the features between its products."""

    @property
    def how(self) -> list[str]:
        return [f"{product.how}, the feed-forward in one op" for product in (self.up, self.down)]

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        up, down = self.up, self.down
        dense: Any = up.dense, down.dense
        return low_rank_ffn(
            *(x, up.u, up.v, up.bias, down.u, down.v, down.bias),
            activation=up.activation,
            residual=residual,
            norm=down.norm,
            dense=None if any(weight is None for weight in dense) else dense,
        )

    @property
    def weight_name(self) -> str:
        """How tuned tables name the weights."""
        from lada_kernels.weight_names import ffn_name

        return ffn_name(self.up.u.shape[1], len(self.up.u), self.down.u.shape[1])


def feed_forward_of(
    up: Source, down: Source, activation: str, norm: nn.LayerNorm | None, gated: bool = False
) -> FeedForward:
    """The feed-forward half of a layer, by one op where its ranks let it be one launch."""
    if gated:
        return GatedFeedForward(up, down, activation, norm)
    ranks = [linear.rank for linear in (up, down) if isinstance(linear, LowRankLinear)]
    one_launch = len(ranks) == 2 and max(ranks) <= ONE_LAUNCH_RANK
    kind = LowRankFeedForward if one_launch else FeedForward
    return kind(up, down, activation, norm)


class HeldNorm(nn.Module):
    """A LayerNorm over the last dimension, its tensors in no state dict."""

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
        # autocast would leave it in fp32
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps).to(x.dtype)


class Tuned(NamedTuple):
    """What tuned tables know of one call of an op: x (tokens, k) -> y (tokens, n)."""

    weight: str
    k: int
    n: int
    epilogue: str
    products: list[Product]

    @property
    def dtype(self) -> torch.dtype:
        return self._floats.dtype

    @property
    def device_index(self) -> int:
        """Of its GPU; -1 is the CPU."""
        return self._floats.get_device()

    @property
    def _floats(self) -> Tensor:
        return next(t for t in self.products[0].buffers() if t.is_floating_point())


def tuned_parts(module: nn.Module) -> list[Tuned]:
    """The calls of ops that `module` makes, and of those of a feed-forward its two linears too."""
    found = []
    for part in module.modules():
        if isinstance(part, LowRankFeedForward):
            sizes = part.up.in_features, sum(part.down.widths)
            found.append(Tuned(part.weight_name, *sizes, "norm", [part.up, part.down]))
        elif isinstance(part, Product) and part.weight_name is not None:
            plain = "plain" if part.activation == "none" else "fused"
            epilogue = plain if part.norm is None else "norm"
            sizes = part.in_features, sum(part.widths)
            found.append(Tuned(part.weight_name, *sizes, epilogue, [part]))
    return found


@torch.no_grad()
def keep_dense(module: nn.Module) -> None:
    """Keep dense weights too where a tuned table of this GPU has seen them faster.

    The ops then choose by the number of tokens.
    """
    from lada_kernels.tuning import dense_is_ever_fastest
    from lada_kernels.weight_names import Weight

    use_user_tables()
    for part in tuned_parts(module):
        stem, size = Weight.parse(part.weight).stem, (part.dtype, part.k, part.n)
        if dense_is_ever_fastest(stem, part.weight, *size, part.device_index):
            for product in part.products:
                product.hold(dense=product.to_dense())
