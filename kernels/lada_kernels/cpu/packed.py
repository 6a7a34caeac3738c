"""Weights in the order in which the native kernels meet them, and back.

Columns of the output are stripes of 16 or 32; of each, the runs of rows that hold weights lie one
behind the other, in units of 32 bits: one fp32, two bf16 or four int8 (see `linear.h`).

They are numpy's arrays: torch moves its tensors to shared memory when they are pickled for another
process, and frees what the kernels' pointers point to.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from . import native

TERMS = {torch.float32: 1, torch.bfloat16: 2, torch.int8: 4}
"""Elements in a unit."""
DEPTH = 16
"""Units that the matrix unit takes at a time, where there is one."""


@dataclass(frozen=True)
class Weight:
    """What a linear multiplies x by, ``u @ v + sparse`` (out, in); either part may be missing.

    u (out, rank), v (rank, in). sparse (out, in) is given dense; mask (out / block_rows,
    in / block_cols) says which of its blocks are stored, all of it if None.
    """

    out_features: int
    in_features: int
    u: Tensor | None = None
    v: Tensor | None = None
    sparse: Tensor | None = None
    mask: Tensor | None = None

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of a block; a weight without blocks is one."""
        if self.mask is None:
            return self.out_features, self.in_features
        return self.out_features // self.mask.shape[0], self.in_features // self.mask.shape[1]


@dataclass(frozen=True)
class Stripes:
    """The arrays of a `native.Stripes`: weights (units, width) int32, where they are, and runs.

    int8: scales (stripes, 2, width) fp32, of the columns for x and for x v^T, and offsets
    (stripes, 2, width) int32; empty for other dtypes.
    """

    weights: np.ndarray
    first: np.ndarray
    runs: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    scales: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.first) - 1

    @property
    def width(self) -> int:
        return self.weights.shape[1]

    def struct(self) -> native.Stripes:
        addresses = (array.ctypes.data for array in self.arrays)
        return native.Stripes(*addresses, len(self), self.width, self._rest)

    @functools.cached_property
    def _rest(self) -> int:
        """The units that the matrix unit takes of what is left of each run."""
        return math.gcd(*(self.lengths % DEPTH).tolist())

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))

    def part(self, begin: int, end: int, moved_from: int, moved_by: int) -> Stripes:
        """Some of the stripes, over the same weights; units from `moved_from` on move."""
        starts = np.where(self.starts < moved_from, self.starts, self.starts + moved_by)
        ends, own = slice(begin, end + 1), slice(begin, end)
        where = self.first[ends], self.runs[ends], starts.astype(np.int32), self.lengths
        return Stripes(self.weights, *where, self.scales[own], self.offsets[own])

    def rows(self, units: int, dtype: torch.dtype) -> Tensor:
        """The dense matrix (stripes * width, units * terms), 0 outside the runs; not scaled."""
        terms = TERMS[dtype]
        size = len(self), units, self.width, terms
        dense = torch.zeros(size, dtype=dtype, device="cpu")
        for stripe in range(len(self)):
            unit = int(self.first[stripe])
            for run in range(int(self.runs[stripe]), int(self.runs[stripe + 1])):
                start, length = int(self.starts[run]), int(self.lengths[run])
                weights = torch.from_numpy(self.weights[unit : unit + length]).view(dtype)
                dense[stripe, start : start + length] = weights.view(length, self.width, terms)
                unit += length
        return dense.transpose(1, 2).reshape(len(self) * self.width, units * terms)


@dataclass(frozen=True)
class PackedLinear:
    """One or several weights side by side that share x, and their bias, ready for the kernels.

    ranks and columns: of each weight, 0 where it has no u and v. bias: fp32, padded to whole
    stripes. dtype: of the weights, and of x and y unless it is int8.
    """

    down: Stripes
    up: Stripes
    bias: np.ndarray
    in_features: int
    columns: tuple[int, ...]
    ranks: tuple[int, ...]
    dtype: torch.dtype

    @property
    def out_features(self) -> int:
        return sum(self.columns)

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """Weights, their indices, and the bias."""
        return *self.down.arrays, *self.up.arrays, self.bias

    @property
    def nbytes(self) -> int:
        """Size of the weights and their indices."""
        return sum(array.nbytes for array in self.arrays) - self.bias.nbytes

    def struct(self, activation: str = "none") -> native.Linear:
        """What the library takes. It points into the arrays, which must outlive it."""
        code = native.ACTIVATIONS[activation]
        structs = self.down.struct(), self.up.struct()
        sizes = self.in_features, self.out_features
        return native.Linear(*structs, self.bias.ctypes.data, *sizes, code)

    def part(self, i: int) -> PackedLinear:
        """The weight `i` alone, over the same memory."""
        up_begin, up_end = _range_of(self.columns, i, self.up.width)
        down_begin, down_end = _range_of(self.ranks, i, self.down.width)
        rank_units = down_begin * self.down.width // TERMS[self.dtype]
        rows = slice(up_begin * self.up.width, up_end * self.up.width)
        return PackedLinear(
            self.down.part(down_begin, down_end, self._x_units, 0),
            self.up.part(up_begin, up_end, self._x_units, -rank_units),
            self.bias[rows],
            self.in_features,
            self.columns[i : i + 1],
            self.ranks[i : i + 1],
            self.dtype,
        )

    @property
    def io_dtype(self) -> torch.dtype:
        """Of x and y."""
        return torch.float32 if self.dtype == torch.int8 else self.dtype

    def unpacked(self) -> tuple[Tensor, Tensor, Tensor]:
        """u (out, rank), v (rank, in) and the sparse part, dense, (out, in), of a single weight."""
        (rank,), out, terms = self.ranks, self.out_features, TERMS[self.dtype]
        units = self._x_units + len(self.down) * self.down.width // terms
        up = self.up.rows(units, self.dtype)[:out]
        x_terms = self._x_units * terms
        v = self.down.rows(self._x_units, self.dtype)[:rank, : self.in_features]
        u, sparse = up[:, x_terms : x_terms + rank], up[:, : self.in_features]
        if self.dtype == torch.int8:
            scales = torch.from_numpy(self.up.scales).transpose(0, 1).flatten(1)[:, :out, None]
            if rank:
                v = v * torch.from_numpy(self.down.scales)[:, 0].flatten()[:rank, None]
            sparse, u = sparse * scales[0], u * scales[1]
        return u, v, sparse

    @property
    def _x_units(self) -> int:
        return -(-self.in_features // TERMS[self.dtype])


def stripe_width(weights: Sequence[Weight]) -> int:
    """Columns of a stripe: 32, or 16 where block rows would share stripes of 32."""
    return 32 if all(w.mask is None or w.block[0] % 32 == 0 for w in weights) else 16


def pack(
    weights: Sequence[Weight], biases: Sequence[Tensor | None], dtype: torch.dtype
) -> PackedLinear:
    """`weights` side by side: their outputs are the columns of one.

    int8: quantized symmetrically, with a scale for each column of the output and row of v.

    All have the same in_features; the out_features of all but the last are multiples of
    `stripe_width`.
    """
    width, terms = stripe_width(weights), TERMS[dtype]
    ranks = [0 if w.v is None else len(w.v) for w in weights]
    # narrow stripes are a little slower, but less than what they would have to be padded by
    rank_width = 16 if any(0 < rank % 32 <= 16 for rank in ranks) else 32
    in_features = weights[0].in_features
    first_rank = x_units = -(-in_features // terms)
    downs, ups, columns = [], [], []
    for weight, bias in zip(weights, biases, strict=True):
        rows, masks = _up(weight, width, terms)
        places = torch.arange(masks.shape[1], device="cpu")
        places[x_units:] += first_rank - x_units
        ups += _packed_rows(rows, masks, places, width, dtype, x_units)
        if weight.v is not None:
            down = _padded(weight.v, rank_width, terms)
            masks = down.new_ones(len(down) // rank_width, x_units, dtype=torch.bool)
            downs += _packed_rows(down, masks, places[:x_units], rank_width, dtype, x_units)
            first_rank += len(down) // terms
        column = torch.zeros(len(rows), dtype=torch.float32, device="cpu")
        if bias is not None:
            column[: weight.out_features] = bias
        columns.append(column)
    return PackedLinear(
        _joined(downs, rank_width),
        _joined(ups, width),
        torch.cat(columns).numpy(),
        in_features,
        tuple(w.out_features for w in weights),
        tuple(ranks),
        dtype,
    )


@dataclass(frozen=True)
class _Stripe:
    weights: Tensor  # (units, width) int32
    starts: Tensor
    lengths: Tensor
    scales: Tensor  # (2, width), or empty
    offsets: Tensor


def _up(weight: Weight, width: int, terms: int) -> tuple[Tensor, Tensor]:
    """``[sparse | u]`` in whole stripes and units, and which units each stripe stores."""
    out, x_units = weight.out_features, -(-weight.in_features // terms)
    sparse = weight.sparse
    if sparse is None:
        sparse = torch.zeros(out, weight.in_features, dtype=torch.float32, device="cpu")
    rows = _padded(sparse, width, terms)
    stripes = len(rows) // width
    if weight.mask is None:
        masks = rows.new_full((stripes, x_units), weight.sparse is not None, dtype=torch.bool)
    else:
        elements = weight.mask.repeat_interleave(weight.block[0], 0)
        elements = elements.repeat_interleave(weight.block[1], 1)
        cells = _padded(elements, width, terms).view(stripes, width, x_units, terms)
        masks = cells.any(3).any(1)
    if weight.u is None:
        return rows, masks
    u = _padded(weight.u, width, terms)
    whole = masks.new_ones(stripes, u.shape[1] // terms)
    return torch.cat([rows.to(u.dtype), u], 1), torch.cat([masks, whole], 1)


def _packed_rows(
    rows: Tensor, masks: Tensor, places: Tensor, width: int, dtype: torch.dtype, x_units: int
) -> list[_Stripe]:
    """The units of each stripe that `masks` (stripes, units) names.

    places: of units in a panel, of which the first x_units are of x.
    """
    terms = TERMS[dtype]
    scales = offsets = rows.new_empty(len(masks), 0, dtype=torch.float32)
    if dtype == torch.int8:
        rows, scales, offsets = _quantized(rows, x_units * terms, width)
    stripes = rows.to(dtype).view(len(masks), width, -1, terms).transpose(1, 2)
    packed = []
    for i, (stripe, mask) in enumerate(zip(stripes, masks, strict=True)):
        weights = stripe[mask].view(torch.int32).view(-1, width)
        met = mask.nonzero()[:, 0]
        begins = torch.ones_like(met, dtype=torch.bool)
        begins[1:] = (met[1:] != met[:-1] + 1) | (met[1:] == x_units)  # no run meets both parts
        first = begins.nonzero()[:, 0]
        lengths = torch.diff(first, append=met.new_tensor([len(met)]))
        starts = places[met[first]].int()
        packed.append(_Stripe(weights, starts, lengths.int(), scales[i], offsets[i]))
    return packed


def _quantized(rows: Tensor, x_terms: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Whole numbers up to 127, and by stripe their scales and 128 times their sums."""
    scales, sums, whole = [], [], []
    for part in (rows[:, :x_terms], rows[:, x_terms:]):
        top = part.abs().amax(1) if part.shape[1] else part.new_zeros(len(rows))
        scale = torch.where(top > 0, top / 127, 1.0)
        whole.append((part / scale[:, None]).round())
        scales.append(scale)
        sums.append(128 * whole[-1].sum(1))

    def by_stripe(parts: list[Tensor]) -> Tensor:
        return torch.stack(parts).view(2, -1, width).transpose(0, 1).contiguous()

    return torch.cat(whole, 1), by_stripe(scales), by_stripe(sums).int()


def _joined(stripes: Sequence[_Stripe], width: int) -> Stripes:
    none = torch.empty(0, dtype=torch.int32, device="cpu")
    every = [_Stripe(none.view(0, width), none, none, none, none), *stripes]
    units = torch.tensor([len(s.weights) for s in every], dtype=torch.long, device="cpu")
    runs = torch.tensor([len(s.starts) for s in every], dtype=torch.long, device="cpu")
    tensors = (
        torch.cat([s.weights for s in every]),
        units.cumsum(0),
        runs.cumsum(0).int(),
        torch.cat([s.starts for s in every]),
        torch.cat([s.lengths for s in every]),
        torch.stack([s.scales for s in stripes]) if stripes else none,
        torch.stack([s.offsets for s in stripes]) if stripes else none,
    )
    return Stripes(*(t.numpy() for t in tensors))


def _range_of(sizes: Sequence[int], i: int, width: int) -> tuple[int, int]:
    """The stripes of part i, of parts that have `sizes` columns each."""
    counts = [-(-size // width) for size in sizes[: i + 1]]
    return sum(counts[:-1]), sum(counts)


def _padded(t: Tensor, width: int, terms: int) -> Tensor:
    """`t` with zeros up to whole stripes of rows and units of columns."""
    rows, columns = -(-t.shape[0] // width) * width, -(-t.shape[1] // terms) * terms
    padded = t.new_zeros(rows, columns)
    padded[: t.shape[0], : t.shape[1]] = t
    return padded
