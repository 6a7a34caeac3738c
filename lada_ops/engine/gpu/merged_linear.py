"""Merged linears of a frozen layer: one call of an op for all linears that share their input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...formats.bsr import Bsr, bsr_to_dense, panel_major
from ...modules.block_sparse_linear import BlockSparseLinear, BsrLinear
from ...modules.low_rank_linear import LowRankFactors, LowRankLinear
from ...modules.packed_linear import Source
from ...modules.sparse_low_rank_linear import SparseLowRankLinear
from ...ops.add_norm import add_norm
from ...ops.block_sparse_linear import block_sparse_linear
from ...ops.low_rank_linear import low_rank_linear
from ...ops.reference import Norm
from ...ops.sparse_low_rank_linear import sparse_low_rank_linear


class MergedLinear(nn.Module, ABC):
    """``LN(act(x W^T + bias) + residual)``, with the weights of `linears` stacked in W (out, in).

    The merged tensors are in no state dict; the linears' own become views of them, so that nothing
    is stored twice. dense: W, where `keep_dense` keeps it. kind: name of the format, for `how`.
    """

    kind: str
    bias: Tensor | None
    dense: Tensor | None
    norm_weight: Tensor | None
    norm_bias: Tensor | None

    def __init__(
        self, linears: Sequence[Any], activation: str = "none", norm: nn.LayerNorm | None = None
    ) -> None:
        super().__init__()
        self.in_features = linears[0].in_features
        self.widths = [linear.out_features for linear in linears]
        self.activation, self.eps = activation, 0.0 if norm is None else norm.eps
        self.register_tensors(
            bias=_merge_biases(linears),
            norm_weight=None if norm is None else norm.weight.detach(),
            norm_bias=None if norm is None else norm.bias.detach(),
            dense=None,
        )

    def register_tensors(self, **tensors: Tensor | None) -> None:
        """Register the tensors as buffers that are in no state dict."""
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
        """Output of the op for x, with the given activation, residual and norm."""

    @abstractmethod
    def to_dense(self) -> Tensor:
        """Dense W (out, in)."""

    @property
    def how(self) -> str:
        """Format of the weight, for `paths`."""
        return self.kind if self.dense is None else f"{self.kind} or dense, as tuned tables say"

    @property
    def weight_name(self) -> str | None:
        """Name of W in tuned tables; None for a weight that torch computes."""
        return None

    def extra_repr(self) -> str:
        text = f"in_features={self.in_features}, out_features={self.widths}"
        text += "" if self.activation == "none" else f", activation={self.activation!r}"
        return text + ("" if self.norm is None else ", norm")


class MergedDense(MergedLinear):
    kind = "dense"
    weight: Tensor

    def __init__(self, linears: Sequence[nn.Linear], *epilogue: Any) -> None:
        super().__init__(linears, *epilogue)
        self.register_tensors(weight=_stack([linear.weight for linear in linears]))

    def multiply(self, x: Tensor, **epilogue: Any) -> Tensor:
        return add_norm(F.linear(x, self.weight, self.bias), **epilogue)

    def to_dense(self) -> Tensor:
        return self.weight


class MergedLowRank(MergedLinear):
    """Merged low-rank linears; lower ranks are padded with zeros, in which case u, v are copies."""

    kind = "low rank"
    u: Tensor
    v: Tensor

    def __init__(self, linears: Sequence[LowRankLinear], *epilogue: Any) -> None:
        super().__init__(linears, *epilogue)
        self.register_tensors(**_merge_factors(linears))

    def multiply(self, x: Tensor, **epilogue: Any) -> Tensor:
        groups = len(self.widths)
        return low_rank_linear(
            x, self.u, self.v, self.bias, **epilogue, groups=groups, dense=self.dense
        )

    def to_dense(self) -> Tensor:
        return _multiply_factors(self.u, self.v, len(self.widths))

    @property
    def weight_name(self) -> str:
        from lada_kernels.weight_names import low_rank_name

        return low_rank_name(self.u.shape[1], len(self.widths))


class MergedBlockSparse(MergedLinear):
    kind = "block sparse"
    crow_indices: Tensor
    col_indices: Tensor
    values: Tensor
    order: Tensor | None

    def __init__(self, linears: Sequence[BlockSparseLinear], *epilogue: Any) -> None:
        super().__init__(linears, *epilogue)
        self.register_tensors(**_merge_blocks(linears))

    def multiply(self, x: Tensor, **epilogue: Any) -> Tensor:
        bsr = self.crow_indices, self.col_indices, self.values
        return block_sparse_linear(
            x, *bsr, self.bias, **epilogue, order=self.order, dense=self.dense
        )

    def to_dense(self) -> Tensor:
        return bsr_to_dense(self.crow_indices, self.col_indices, self.values, self.in_features)

    @property
    def weight_name(self) -> str:
        from lada_kernels.weight_names import sparse_name

        density = self.values.numel() / (sum(self.widths) * self.in_features)
        _, rows, cols = self.values.shape
        return sparse_name(rows, cols, density)


class MergedSparseLowRank(MergedLinear):
    """Merged sparse + low-rank linears, with factors as in `MergedLowRank`."""

    kind = "sparse + low rank"
    u: Tensor
    v: Tensor
    crow_indices: Tensor
    col_indices: Tensor
    values: Tensor
    order: Tensor | None

    def __init__(self, linears: Sequence[SparseLowRankLinear], *epilogue: Any) -> None:
        super().__init__(linears, *epilogue)
        self.register_tensors(**_merge_factors(linears), **_merge_blocks(linears))

    def multiply(self, x: Tensor, **epilogue: Any) -> Tensor:
        factors, bsr = (self.u, self.v), (self.crow_indices, self.col_indices, self.values)
        more = {"groups": len(self.widths), "order": self.order, "dense": self.dense}
        return sparse_low_rank_linear(x, *factors, *bsr, self.bias, **epilogue, **more)

    def to_dense(self) -> Tensor:
        bsr = self.crow_indices, self.col_indices, self.values
        low_rank = _multiply_factors(self.u, self.v, len(self.widths))
        return low_rank + bsr_to_dense(*bsr, self.in_features)

    @property
    def weight_name(self) -> str:
        from lada_kernels.weight_names import sparse_low_rank_name

        density = self.values.numel() / (sum(self.widths) * self.in_features)
        _, rows, cols = self.values.shape
        return sparse_low_rank_name(self.u.shape[1], rows, cols, density, len(self.widths))


def merge(
    linears: Sequence[Source], activation: str = "none", norm: nn.LayerNorm | None = None
) -> MergedLinear:
    """Merged linear of linears that have the same `merge_key`."""
    classes = {
        nn.Linear: MergedDense,
        LowRankLinear: MergedLowRank,
        BlockSparseLinear: MergedBlockSparse,
        SparseLowRankLinear: MergedSparseLowRank,
    }
    return classes[type(linears[0])](linears, activation, norm)


def merge_key(linear: Source) -> object:
    """Key that is equal for linears that can be merged: type, width with factors, block."""
    has_factors = isinstance(linear, LowRankFactors)
    has_blocks = isinstance(linear, BsrLinear)
    width, block = linear.out_features if has_factors else 0, linear.block if has_blocks else None
    return type(linear), width, block


def _merge_factors(linears: Sequence[LowRankFactors]) -> dict[str, Tensor]:
    us, vs = [linear.u for linear in linears], [linear.v for linear in linears]
    rank = max(linear.rank for linear in linears)
    if all(linear.rank == rank for linear in linears):
        return {"u": _stack(us), "v": _stack(vs)}
    us = [F.pad(u.detach(), (0, rank - u.shape[1])) for u in us]
    vs = [F.pad(v.detach(), (0, 0, 0, rank - v.shape[0])) for v in vs]
    return {"u": torch.cat(us), "v": torch.cat(vs)}


def _multiply_factors(u: Tensor, v: Tensor, groups: int) -> Tensor:
    pairs = zip(u.chunk(groups), v.chunk(groups), strict=True)
    return torch.cat([a @ b for a, b in pairs])


def _merge_blocks(
    linears: Sequence[BsrLinear],
) -> dict[str, Tensor | None]:
    counts = torch.cat([linear.crow_indices.diff() for linear in linears])
    bsr = Bsr(
        F.pad(counts.cumsum(0), (1, 0)),
        torch.cat([linear.col_indices for linear in linears]),
        _stack([linear.values for linear in linears]),
        (sum(linear.out_features for linear in linears), linears[0].in_features),
    )
    order = bsr.order if bsr.whole_packs else None
    indices = {"crow_indices": bsr.crow_indices, "col_indices": bsr.col_indices}
    return {**indices, "values": bsr.values, "order": order}


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenation along the first dimension; the given tensors become views of it."""
    if len(tensors) == 1:
        return tensors[0].detach()
    stacked = torch.cat([t.detach() for t in tensors])
    if stacked.ndim == 3:
        stacked = panel_major(stacked)
    for t, part in zip(tensors, stacked.split([len(t) for t in tensors]), strict=True):
        t.data = part
    return stacked


def _merge_biases(linears: Sequence[Source]) -> Tensor | None:
    biases = [linear.bias for linear in linears if linear.bias is not None]
    if not biases:
        return None
    if len(biases) == len(linears):
        return _stack(biases)
    zeros = biases[0].new_zeros
    return torch.cat(
        [zeros(x.out_features) if x.bias is None else x.bias.detach() for x in linears]
    )
