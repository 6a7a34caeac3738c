"""Packed weights: numpy arrays in the order in which the native kernels read them (`linear.h`).

A matrix is cut into panels of NR output columns. A panel stores its K segments, runs of consecutive
VNNI groups that hold weights, one behind the other.

numpy arrays, since torch moves a tensor to shared memory when it is pickled for another process,
and frees the memory that the kernels' pointers refer to.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from . import abi
from .abi import GROUP_SIZE, TILE_DEPTH


@dataclass(frozen=True)
class PackedMatrix:
    """Block-sparse matrix in panels of NR columns: the arrays of an `abi.Panels`.

    int8: scales per column, (panels, 2, NR) fp32, of the weights that multiply x and of those that
    multiply x v^T, and their zero-point compensation (panels, 2, NR) int32; empty for other dtypes.
    """

    values: np.ndarray  # (groups, NR) int32: bits of VNNI groups
    group_offsets: np.ndarray  # (panels + 1,) int64: first group of each panel
    segment_offsets: np.ndarray  # (panels + 1,) int32: first K segment of each panel
    segment_starts: np.ndarray  # (segments,) int32: group of x where a segment starts
    segment_lengths: np.ndarray  # (segments,) int32: in groups
    scales: np.ndarray
    compensation: np.ndarray

    def __len__(self) -> int:
        """Number of panels."""
        return len(self.group_offsets) - 1

    @property
    def nr(self) -> int:
        """Columns of a panel."""
        return self.values.shape[1]

    def struct(self) -> abi.Panels:
        """Structure that points into the arrays, which must outlive it."""
        addresses = (array.ctypes.data for array in self.arrays)
        return abi.Panels(*addresses, len(self), self.nr, self._tail)

    @functools.cached_property
    def _tail(self) -> int:
        """Depth of the AMX tiles for what is left of each segment after whole tiles."""
        return math.gcd(*(self.segment_lengths % TILE_DEPTH).tolist())

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """Arrays in the order of the fields."""
        return tuple(getattr(self, field.name) for field in fields(self))

    def slice_panels(self, begin: int, end: int, shift_from: int, shift: int) -> PackedMatrix:
        """Panels `begin` to `end`, over the same values.

        Segments that start at group `shift_from` of x or later start `shift` groups later.
        """
        starts = self.segment_starts
        starts = np.where(starts < shift_from, starts, starts + shift).astype(np.int32)
        ends, own = slice(begin, end + 1), slice(begin, end)
        offsets = self.group_offsets[ends], self.segment_offsets[ends]
        segments = starts, self.segment_lengths
        return PackedMatrix(
            self.values, *offsets, *segments, self.scales[own], self.compensation[own]
        )

    def to_dense(self, groups: int, dtype: torch.dtype) -> Tensor:
        """Dense matrix (panels * NR, groups * group size), 0 outside the segments; not scaled."""
        size = GROUP_SIZE[dtype]
        dense = torch.zeros(len(self), groups, self.nr, size, dtype=dtype, device="cpu")
        for panel in range(len(self)):
            group = int(self.group_offsets[panel])
            for i in range(int(self.segment_offsets[panel]), int(self.segment_offsets[panel + 1])):
                start, length = int(self.segment_starts[i]), int(self.segment_lengths[i])
                values = torch.from_numpy(self.values[group : group + length]).view(dtype)
                dense[panel, start : start + length] = values.view(length, self.nr, size)
                group += length
        return dense.transpose(1, 2).reshape(len(self) * self.nr, groups * size)


@dataclass(frozen=True)
class PackedWeight:
    """Weights of one linear, or of several side by side that share x, and their bias.

    ``y = [x | x v^T] sparse_u^T + bias``, where sparse_u is ``[sparse | u]``.
    """

    v: PackedMatrix  # (in_features, rank)
    sparse_u: PackedMatrix  # (in_features + rank, out_features)
    bias: np.ndarray  # fp32, padded to whole panels
    in_features: int
    out_sizes: tuple[int, ...]  # out_features of each weight
    ranks: tuple[int, ...]  # of each weight, 0 without u and v
    dtype: torch.dtype  # of the weights

    @property
    def out_features(self) -> int:
        return sum(self.out_sizes)

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """Arrays of the weights, their indices and the bias."""
        return *self.v.arrays, *self.sparse_u.arrays, self.bias

    @property
    def nbytes(self) -> int:
        """Bytes of the weights and their indices."""
        return sum(array.nbytes for array in self.arrays) - self.bias.nbytes

    def struct(self, activation: str = "none") -> abi.Linear:
        """Structure that points into the arrays, which must outlive it."""
        code = abi.ACTIVATIONS[activation]
        structs = self.v.struct(), self.sparse_u.struct()
        sizes = self.in_features, self.out_features
        return abi.Linear(*structs, self.bias.ctypes.data, *sizes, code)

    def part(self, i: int) -> PackedWeight:
        """Weight `i` alone, over the same memory."""
        out_begin, out_end = _panel_range(self.out_sizes, i, self.sparse_u.nr)
        rank_begin, rank_end = _panel_range(self.ranks, i, self.v.nr)
        rank_groups = rank_begin * self.v.nr // GROUP_SIZE[self.dtype]
        columns = slice(out_begin * self.sparse_u.nr, out_end * self.sparse_u.nr)
        return PackedWeight(
            self.v.slice_panels(rank_begin, rank_end, self._x_groups, 0),
            self.sparse_u.slice_panels(out_begin, out_end, self._x_groups, -rank_groups),
            self.bias[columns],
            self.in_features,
            self.out_sizes[i : i + 1],
            self.ranks[i : i + 1],
            self.dtype,
        )

    @property
    def io_dtype(self) -> torch.dtype:
        """Dtype of x and y."""
        return torch.float32 if self.dtype == torch.int8 else self.dtype

    def unpacked(self) -> tuple[Tensor, Tensor, Tensor]:
        """u (out, rank), v (rank, in) and the sparse part, dense, (out, in), of a single weight."""
        (rank,), out, size = self.ranks, self.out_features, GROUP_SIZE[self.dtype]
        groups = self._x_groups + len(self.v) * self.v.nr // size
        sparse_u = self.sparse_u.to_dense(groups, self.dtype)[:out]
        padded_in = self._x_groups * size
        v = self.v.to_dense(self._x_groups, self.dtype)[:rank, : self.in_features]
        u, sparse = sparse_u[:, padded_in : padded_in + rank], sparse_u[:, : self.in_features]
        if self.dtype == torch.int8:
            scales = torch.from_numpy(self.sparse_u.scales).transpose(0, 1)
            scales = scales.flatten(1)[:, :out, None]
            if rank:
                v = v * torch.from_numpy(self.v.scales)[:, 0].flatten()[:rank, None]
            sparse, u = sparse * scales[0], u * scales[1]
        return u, v, sparse

    @property
    def _x_groups(self) -> int:
        """VNNI groups of a row of x."""
        return -(-self.in_features // GROUP_SIZE[self.dtype])


def _panel_range(sizes: Sequence[int], i: int, nr: int) -> tuple[int, int]:
    """First panel and end of part i, where each part has `sizes` columns in whole panels."""
    counts = [-(-size // nr) for size in sizes[: i + 1]]
    return sum(counts[:-1]), sum(counts)
