"""The products of a frozen layer: each a call of an op, of all the linears that share its x."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..formats import Bsr, panel_major
from ..modules.block_sparse_linear import BlockSparseLinear
from ..modules.low_rank_linear import LowRankLinear
from ..modules.packed_linear import Source
from ..modules.sparse_low_rank_linear import SparseLowRankLinear
from ..ops.block_sparse_linear import block_sparse_linear
from ..ops.low_rank_ffn import low_rank_ffn
from ..ops.low_rank_linear import low_rank_linear
from ..ops.sparse_low_rank_linear import sparse_low_rank_linear
from ..reference import Norm, epilogue_ref

ONE_LAUNCH_RANK = 128  # up to this one the feed-forward's hidden features stay on chip


class Product(nn.Module, ABC):
    """``LN(act(x W^T + bias) + residual)`` with W the weights of `linears` one below the other.

    Its tensors are in no state dict, and those of the linears become views of them: nothing is
    stored twice.
    """

    kind: str
    bias: Tensor | None
    norm_weight: Tensor | None
    norm_bias: Tensor | None

    def __init__(
        self, linears: Sequence[Any], activation: str = "none", norm: nn.LayerNorm | None = None
    ) -> None:
        super().__init__()
        self.in_features = linears[0].in_features
        self.widths = [linear.out_features for linear in linears]
        self.activation, self.eps = activation, 0.0 if norm is None else norm.eps
        self.hold(
            bias=_joined_biases(linears),
            norm_weight=None if norm is None else norm.weight.detach(),
            norm_bias=None if norm is None else norm.bias.detach(),
        )

    def hold(self, **tensors: Tensor | None) -> None:
        """Register buffers that are in no state dict."""
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)

    @property
    def norm(self) -> Norm | None:
        if self.norm_weight is None or self.norm_bias is None:
            return None
        return Norm(self.norm_weight, self.norm_bias, self.eps)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x (..., in), residual (..., out) -> (..., out)."""
        return self.multiply(x, activation=self.activation, residual=residual, norm=self.norm)

    @abstractmethod
    def multiply(self, x: Tensor, **epilogue: Any) -> Tensor:
        """The op on x, with activation, residual and norm as given."""

    def extra_repr(self) -> str:
        text = f"in_features={self.in_features}, out_features={self.widths}"
        text += "" if self.activation == "none" else f", activation={self.activation!r}"
        return text + ("" if self.norm is None else ", norm")


class DenseProduct(Product):
    kind = "dense"
    weight: Tensor

    def __init__(self, linears: Sequence[nn.Linear], *epilogue: Any) -> None:
        super().__init__(linears, *epilogue)
        self.hold(weight=_joined([linear.weight for linear in linears]))

    def multiply(self, x: Tensor, **epilogue: Any) -> Tensor:
        return epilogue_ref(F.linear(x, self.weight, self.bias), **epilogue)


class LowRankProduct(Product):
    """The lower ranks among several are filled up with zeros; then the tensors are copies."""

    kind = "low rank"
    u: Tensor
    v: Tensor

    def __init__(self, linears: Sequence[LowRankLinear], *epilogue: Any) -> None:
        super().__init__(linears, *epilogue)
        us, vs = [linear.u for linear in linears], [linear.v for linear in linears]
        rank = max(linear.rank for linear in linears)
        if all(linear.rank == rank for linear in linears):
            self.hold(u=_joined(us), v=_joined(vs))
        else:
            filled_us = [F.pad(u.detach(), (0, rank - u.shape[1])) for u in us]
            filled_vs = [F.pad(v.detach(), (0, 0, 0, rank - v.shape[0])) for v in vs]
            self.hold(u=torch.cat(filled_us), v=torch.cat(filled_vs))

    def multiply(self, x: Tensor, **epilogue: Any) -> Tensor:
        return low_rank_linear(x, self.u, self.v, self.bias, **epilogue, groups=len(self.widths))


class BlockSparseProduct(Product):
    kind = "block sparse"
    crow_indices: Tensor
    col_indices: Tensor
    values: Tensor
    order: Tensor | None

    def __init__(self, linears: Sequence[BlockSparseLinear], *epilogue: Any) -> None:
        super().__init__(linears, *epilogue)
        counts = torch.cat([linear.crow_indices.diff() for linear in linears])
        bsr = Bsr(
            F.pad(counts.cumsum(0), (1, 0)),
            torch.cat([linear.col_indices for linear in linears]),
            _joined([linear.values for linear in linears]),
            (sum(self.widths), self.in_features),
        )
        order = bsr.order if bsr.whole_packs else None
        self.hold(crow_indices=bsr.crow_indices, col_indices=bsr.col_indices, order=order)
        self.hold(values=bsr.values)

    def multiply(self, x: Tensor, **epilogue: Any) -> Tensor:
        bsr = self.crow_indices, self.col_indices, self.values
        return block_sparse_linear(x, *bsr, self.bias, **epilogue, order=self.order)


class SparseLowRankProduct(Product):
    """Of one linear: the op joins none."""

    kind = "sparse + low rank"
    u: Tensor
    v: Tensor
    crow_indices: Tensor
    col_indices: Tensor
    values: Tensor
    order: Tensor | None

    def __init__(self, linears: Sequence[SparseLowRankLinear], *epilogue: Any) -> None:
        super().__init__(linears, *epilogue)
        (linear,) = linears
        self.hold(u=linear.u.detach(), v=linear.v.detach(), values=linear.values.detach())
        self.hold(crow_indices=linear.crow_indices, col_indices=linear.col_indices)
        self.hold(order=linear.order)

    def multiply(self, x: Tensor, **epilogue: Any) -> Tensor:
        bsr = self.crow_indices, self.col_indices, self.values
        return sparse_low_rank_linear(
            x, self.u, self.v, *bsr, self.bias, **epilogue, order=self.order
        )


class Projections(nn.Module):
    """Several linears of one x, such as query, key and value: as few products as can be."""

    def __init__(self, linears: Sequence[Source]) -> None:
        super().__init__()
        runs = [list(run) for _, run in groupby(linears, key=_joins_with)]
        self.products: Any = nn.ModuleList(product_of(run) for run in runs)

    @property
    def how(self) -> list[str]:
        """By linear, what computes it."""
        texts: list[str] = []
        for product in self.products:
            joined = len(product.widths)
            text = product.kind if joined == 1 else f"{product.kind}, {joined} in one product"
            texts += [text] * joined
        return texts

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (..., in) -> the output (..., out) of each linear."""
        outputs: list[Tensor] = []
        for product in self.products:
            outputs += product(x).split(product.widths, -1)
        return outputs


class FeedForward(nn.Module):
    """``LN(down(act(up(x))) + x)`` in two products."""

    up: Any
    down: Any

    def __init__(self, up: Source, down: Source, activation: str, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.up, self.down = product_of([up], activation), product_of([down], "none", norm)

    @property
    def how(self) -> list[str]:
        """By linear, up and down, what computes it."""
        return [self.up.kind, self.down.kind]

    def forward(self, x: Tensor) -> Tensor:
        """x (..., features) -> (..., features)."""
        return self.down(self.up(x), residual=x)


class LowRankFeedForward(FeedForward):
    """The same by one op, which need not write the features between them."""

    @property
    def how(self) -> list[str]:
        return ["low rank, the feed-forward in one op"] * 2

    def forward(self, x: Tensor) -> Tensor:
        up, down = self.up, self.down
        return low_rank_ffn(
            *(x, up.u, up.v, up.bias, down.u, down.v, down.bias),
            activation=up.activation,
            residual=x,
            norm=down.norm,
        )


def feed_forward_of(up: Source, down: Source, activation: str, norm: nn.LayerNorm) -> FeedForward:
    """The feed-forward half of a layer, by one op where its ranks let it be one launch."""
    ranks = [linear.rank for linear in (up, down) if isinstance(linear, LowRankLinear)]
    one_launch = len(ranks) == 2 and max(ranks) <= ONE_LAUNCH_RANK
    kind = LowRankFeedForward if one_launch else FeedForward
    return kind(up, down, activation, norm)


def product_of(
    linears: Sequence[Source], activation: str = "none", norm: nn.LayerNorm | None = None
) -> Product:
    """The product of linears that `_joins_with` each other."""
    kinds = {
        nn.Linear: DenseProduct,
        LowRankLinear: LowRankProduct,
        BlockSparseLinear: BlockSparseProduct,
        SparseLowRankLinear: SparseLowRankProduct,
    }
    return kinds[type(linears[0])](linears, activation, norm)


def _joins_with(linear: Source) -> object:
    """Equal for linears that can be one product."""
    if isinstance(linear, SparseLowRankLinear):
        return linear
    return type(linear), linear.block if isinstance(linear, BlockSparseLinear) else None


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """One below the other, in the layout of the first; the tensors become views of it."""
    if len(tensors) == 1:
        return tensors[0].detach()
    joined = torch.cat([t.detach() for t in tensors])
    if joined.ndim == 3:
        joined = panel_major(joined)
    for t, part in zip(tensors, joined.split([len(t) for t in tensors]), strict=True):
        t.data = part
    return joined


def _joined_biases(linears: Sequence[Source]) -> Tensor | None:
    biases = [linear.bias for linear in linears if linear.bias is not None]
    if not biases:
        return None
    if len(biases) == len(linears):
        return _joined(biases)
    zeros = biases[0].new_zeros
    return torch.cat(
        [zeros(x.out_features) if x.bias is None else x.bias.detach() for x in linears]
    )
