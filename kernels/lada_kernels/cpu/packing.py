"""`pack`: dense, low-rank and block-sparse weights into panels for the native kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .abi import GROUP_SIZE, MAX_NR, MIN_NR
from .packed import PackedMatrix, PackedWeight


@dataclass(frozen=True)
class Weight:
    """Weight ``u @ v + sparse`` (out, in) of a linear; either part may be missing.

    u (out, rank), v (rank, in). sparse (out, in) is given dense; mask (out / block_rows,
    in / block_cols) says which of its blocks are stored, all of them if None.
    """

    out_features: int
    in_features: int
    u: Tensor | None = None
    v: Tensor | None = None
    sparse: Tensor | None = None
    mask: Tensor | None = None

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of a block; a weight without mask is one block."""
        if self.mask is None:
            return self.out_features, self.in_features
        return self.out_features // self.mask.shape[0], self.in_features // self.mask.shape[1]


def panel_width(weights: Sequence[Weight]) -> int:
    """Columns of a panel (NR): 32, or 16 where 32 would put several block rows into one panel."""
    wide = all(w.mask is None or w.block[0] % MAX_NR == 0 for w in weights)
    return MAX_NR if wide else MIN_NR


def pack(
    weights: Sequence[Weight], biases: Sequence[Tensor | None], dtype: torch.dtype
) -> PackedWeight:
    """`weights` side by side: their outputs are the columns of one matrix.

    All have the same in_features; the out_features of all but the last are multiples of
    `panel_width`. int8: quantized symmetrically, one scale per output column and per row of v.
    """
    nr, size = panel_width(weights), GROUP_SIZE[dtype]
    ranks = [0 if w.v is None else len(w.v) for w in weights]
    # narrow panels are a little slower, but cheaper than padding a rank to a whole wide panel
    rank_nr = MIN_NR if any(0 < rank % MAX_NR <= MIN_NR for rank in ranks) else MAX_NR
    in_features = weights[0].in_features
    rank_start = x_groups = -(-in_features // size)  # where x v^T of the next weight starts
    v_panels, sparse_u_panels, padded_biases = [], [], []
    for weight, bias in zip(weights, biases, strict=True):
        sparse_u, stored = _sparse_u(weight, nr, size)
        positions = torch.arange(stored.shape[1], device="cpu")
        positions[x_groups:] += rank_start - x_groups
        sparse_u_panels += _pack_panels(sparse_u, stored, positions, nr, dtype, x_groups)
        if weight.v is not None:
            v = _padded(weight.v, rank_nr, size)
            stored = v.new_ones(len(v) // rank_nr, x_groups, dtype=torch.bool)
            v_panels += _pack_panels(v, stored, positions[:x_groups], rank_nr, dtype, x_groups)
            rank_start += len(v) // size
        padded_bias = torch.zeros(len(sparse_u), dtype=torch.float32, device="cpu")
        if bias is not None:
            padded_bias[: weight.out_features] = bias
        padded_biases.append(padded_bias)
    return PackedWeight(
        _concatenated(v_panels, rank_nr),
        _concatenated(sparse_u_panels, nr),
        torch.cat(padded_biases).numpy(),
        in_features,
        tuple(w.out_features for w in weights),
        tuple(ranks),
        dtype,
    )


@dataclass(frozen=True)
class _Panel:
    values: Tensor  # (groups, NR) int32
    segment_starts: Tensor
    segment_lengths: Tensor
    scales: Tensor  # (2, NR), or empty
    compensation: Tensor  # (2, NR), or empty


def _sparse_u(weight: Weight, nr: int, size: int) -> tuple[Tensor, Tensor]:
    """``[sparse | u]`` padded to whole panels and groups, and the groups that each panel stores.

    The latter are (panels, groups), bool.
    """
    out, x_groups = weight.out_features, -(-weight.in_features // size)
    sparse = weight.sparse
    if sparse is None:
        sparse = torch.zeros(out, weight.in_features, dtype=torch.float32, device="cpu")
    sparse = _padded(sparse, nr, size)
    panels = len(sparse) // nr
    if weight.mask is None:
        stored = sparse.new_full((panels, x_groups), weight.sparse is not None, dtype=torch.bool)
    else:
        elements = weight.mask.repeat_interleave(weight.block[0], 0)
        elements = elements.repeat_interleave(weight.block[1], 1)
        stored = _padded(elements, nr, size).view(panels, nr, x_groups, size).any(3).any(1)
    if weight.u is None:
        return sparse, stored
    u = _padded(weight.u, nr, size)
    u_stored = stored.new_ones(panels, u.shape[1] // size)
    return torch.cat([sparse.to(u.dtype), u], 1), torch.cat([stored, u_stored], 1)


def _pack_panels(
    matrix: Tensor, stored: Tensor, positions: Tensor, nr: int, dtype: torch.dtype, x_groups: int
) -> list[_Panel]:
    """Panels of a padded matrix (panels * NR, groups * size).

    stored: (panels, groups) bool. positions: (groups,), of each group of the matrix the group of
    ``[x | x v^T]`` that it multiplies; the first x_groups multiply x.
    """
    size = GROUP_SIZE[dtype]
    scales = compensation = matrix.new_empty(len(stored), 0, dtype=torch.float32)
    if dtype == torch.int8:
        matrix, scales, compensation = _quantized(matrix, x_groups * size, nr)
    dense = matrix.to(dtype).view(len(stored), nr, -1, size).transpose(1, 2)
    panels = []
    for i, (panel, mask) in enumerate(zip(dense, stored, strict=True)):
        values = panel[mask].view(torch.int32).view(-1, nr)
        groups = mask.nonzero()[:, 0]
        starts = torch.ones_like(groups, dtype=torch.bool)
        # no segment spans both x and x v^T
        starts[1:] = (groups[1:] != groups[:-1] + 1) | (groups[1:] == x_groups)
        first = starts.nonzero()[:, 0]
        lengths = torch.diff(first, append=groups.new_tensor([len(groups)])).int()
        segment_starts = positions[groups[first]].int()
        panels.append(_Panel(values, segment_starts, lengths, scales[i], compensation[i]))
    return panels


def _quantized(matrix: Tensor, padded_in: int, nr: int) -> tuple[Tensor, Tensor, Tensor]:
    """Integers of at most 127, and by panel their scales and 128 times their sums.

    The latter compensate the zero point 128 of x and x v^T. Columns from `padded_in` on, which
    multiply x v^T, have scales of their own.
    """
    integers, scales, compensation = [], [], []
    for part in (matrix[:, :padded_in], matrix[:, padded_in:]):
        largest = part.abs().amax(1) if part.shape[1] else part.new_zeros(len(matrix))
        scale = torch.where(largest > 0, largest / 127, 1.0)
        integers.append((part / scale[:, None]).round())
        scales.append(scale)
        compensation.append(128 * integers[-1].sum(1))

    def by_panel(parts: list[Tensor]) -> Tensor:
        return torch.stack(parts).view(2, -1, nr).transpose(0, 1).contiguous()

    return torch.cat(integers, 1), by_panel(scales), by_panel(compensation).int()


def _concatenated(panels: Sequence[_Panel], nr: int) -> PackedMatrix:
    none = torch.empty(0, dtype=torch.int32, device="cpu")
    # an empty panel before them, so that the cumulative sums are offsets
    padded = [_Panel(none.view(0, nr), none, none, none, none), *panels]
    groups = torch.tensor([len(p.values) for p in padded], dtype=torch.long, device="cpu")
    segments = torch.tensor([len(p.segment_starts) for p in padded], dtype=torch.long, device="cpu")
    tensors = (
        torch.cat([p.values for p in padded]),
        groups.cumsum(0),
        segments.cumsum(0).int(),
        torch.cat([p.segment_starts for p in padded]),
        torch.cat([p.segment_lengths for p in padded]),
        torch.stack([p.scales for p in panels]) if panels else none,
        torch.stack([p.compensation for p in panels]) if panels else none,
    )
    return PackedMatrix(*(t.numpy() for t in tensors))


def _padded(t: Tensor, row_multiple: int, column_multiple: int) -> Tensor:
    """`t` with zeros up to these multiples of rows and columns."""
    rows = -(-t.shape[0] // row_multiple) * row_multiple
    columns = -(-t.shape[1] // column_multiple) * column_multiple
    padded = t.new_zeros(rows, columns)
    padded[: t.shape[0], : t.shape[1]] = t
    return padded
