"""Block-sparse rows (BSR): the blocks of a weight that are kept, and where they stand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check_float
from .counts import Counts
from .grid import check_block, pack_of

INDEX_DTYPE = torch.int32


@dataclass(frozen=True, eq=False)
class Bsr:
    """Block-sparse rows, with `torch.sparse_bsr_tensor`'s names and rectangular blocks.

    crow_indices (out / block_rows + 1,) and col_indices (nnz,): int32 or int64, kept as int32;
    values (nnz, block_rows, block_cols); shape (out, in). Within a block row the column indices
    ascend strictly. Raises ValueError or TypeError where one of this does not hold.
    """

    crow_indices: Tensor
    col_indices: Tensor
    values: Tensor
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        check_float("Bsr", values=self.values)
        if self.values.ndim != 3:
            raise ValueError(
                f"Bsr: values {tuple(self.values.shape)}; "
                "expected 3 dimensions (nnz, block_rows, block_cols)"
            )
        check_block("Bsr", self.block, self.shape)
        rows, cols = self.grid
        for name, tensor, length in (
            ("crow_indices", self.crow_indices, rows + 1),
            ("col_indices", self.col_indices, self.values.shape[0]),
        ):
            if tensor.dtype not in (torch.int32, torch.int64):
                raise TypeError(f"Bsr: {name} is {tensor.dtype}; expected int32 or int64")
            if tensor.device != self.values.device:
                raise ValueError(
                    f"Bsr: {name} on {tensor.device}, values on {self.values.device}; "
                    "expected one device"
                )
            if tuple(tensor.shape) != (length,):
                raise ValueError(f"Bsr: {name} {tuple(tensor.shape)}; expected ({length},)")
        if not self.values.is_meta:
            _check_indices(self.crow_indices, self.col_indices, cols)
        object.__setattr__(self, "shape", (int(self.shape[0]), int(self.shape[1])))
        object.__setattr__(self, "crow_indices", self.crow_indices.to(INDEX_DTYPE))
        object.__setattr__(self, "col_indices", self.col_indices.to(INDEX_DTYPE))

    @property
    def block(self) -> tuple[int, int]:
        return self.values.shape[1], self.values.shape[2]

    @property
    def grid(self) -> tuple[int, int]:
        """The number of block rows and block columns."""
        return self.shape[0] // self.block[0], self.shape[1] // self.block[1]

    @property
    def nnz(self) -> int:
        """The number of stored blocks."""
        return self.values.shape[0]

    @property
    def density(self) -> float:
        return self.nnz / (self.grid[0] * self.grid[1])

    @property
    def whole_packs(self) -> bool:
        """Whether every block row holds a multiple of `pack_of(block)` blocks; False on meta."""
        if self.values.is_meta:
            return False
        return not (self.crow_indices.diff() % pack_of(self.block)).any()

    @property
    def order(self) -> Tensor:
        """The block rows (block rows,) int32, those of most blocks first."""
        return self.crow_indices.diff().argsort(descending=True, stable=True).to(INDEX_DTYPE)

    @classmethod
    def from_dense(cls, weight: Tensor, block: tuple[int, int], keep: Tensor | None = None) -> Bsr:
        """The blocks of ``weight (out, in)`` where ``keep (block rows, block columns)`` is true.

        Without `keep`, the blocks that hold a non-zero.
        """
        if weight.ndim != 2:
            raise ValueError(f"Bsr.from_dense: weight {tuple(weight.shape)}; expected (out, in)")
        shape = weight.shape[0], weight.shape[1]
        check_block("Bsr.from_dense", block, shape)
        blocks = split_blocks(weight, block)
        if keep is None:
            keep = (blocks != 0).any(-1).any(-1)
        elif keep.shape != blocks.shape[:2] or keep.dtype != torch.bool:
            raise ValueError(
                f"Bsr.from_dense: keep {tuple(keep.shape)} {keep.dtype}; "
                f"expected {tuple(blocks.shape[:2])} torch.bool"
            )
        crow_indices = torch.zeros(keep.shape[0] + 1, dtype=INDEX_DTYPE, device=weight.device)
        crow_indices[1:] = keep.sum(1).cumsum(0)
        col_indices = keep.nonzero()[:, 1].to(INDEX_DTYPE)
        return cls(crow_indices, col_indices, panel_major(blocks[keep]), shape)

    @classmethod
    def from_torch(cls, tensor: Tensor) -> Bsr:
        """From a 2-D tensor of layout `torch.sparse_bsr`; unsorted rows are refused."""
        if tensor.layout != torch.sparse_bsr or tensor.ndim != 2:
            raise TypeError(
                f"Bsr.from_torch: {tensor.ndim}-D tensor of layout {tensor.layout}; "
                "expected 2-D torch.sparse_bsr"
            )
        return cls(
            tensor.crow_indices(),
            tensor.col_indices(),
            panel_major(tensor.values()),
            (tensor.shape[0], tensor.shape[1]),
        )

    def to_torch(self) -> Tensor:
        """The same weight as a `torch.sparse_bsr` tensor."""
        return torch.sparse_bsr_tensor(
            self.crow_indices,
            self.col_indices,
            self.values.contiguous(),
            self.shape,
            check_invariants=False,  # done in __post_init__
        )

    def to_dense(self) -> Tensor:
        """The weight (out, in)."""
        return bsr_to_dense(self.crow_indices, self.col_indices, self.values, self.shape[1])

    def to(self, dtype: torch.dtype) -> Bsr:
        """The same in another dtype."""
        return Bsr(self.crow_indices, self.col_indices, self.values.to(dtype), self.shape)

    def scaled(self, rows: Tensor) -> Bsr:
        """The weight whose rows are multiplied by ``rows (out,)``."""
        factors = rows.view(-1, self.block[0])[block_row_indices(self.crow_indices, self.nnz)]
        values = panel_major(self.values * factors[:, :, None])
        return Bsr(self.crow_indices, self.col_indices, values, self.shape)

    def padded(self) -> Bsr:
        """The same weight, with zero blocks that fill every block row up to whole packs.

        This one itself where its packs are whole, cannot become so, or are on meta.
        """
        pack, (rows, cols) = pack_of(self.block), self.grid
        if self.whole_packs or cols % pack or self.values.is_meta:
            return self
        row_indices = block_row_indices(self.crow_indices, self.nnz)
        free = torch.ones(rows, cols, dtype=torch.bool, device=self.values.device)
        free[row_indices, self.col_indices.long()] = False
        lacking = -self.crow_indices.diff() % pack
        keep = ~free | (free.cumsum(1) <= lacking[:, None])
        return Bsr.from_dense(self.to_dense(), self.block, keep)

    def counts(self) -> Counts:
        itemsize = self.values.element_size()
        nonzeros = int(torch.count_nonzero(self.values))
        indices = self.crow_indices.numel() + self.col_indices.numel()
        return Counts(
            parameters=self.values.numel(),
            nonzeros=nonzeros,
            masked_bytes=nonzeros * itemsize + (self.shape[0] * self.shape[1] + 7) // 8,
            stored_bytes=self.values.numel() * itemsize + indices * INDEX_DTYPE.itemsize,
            flops_per_token=2 * self.values.numel(),
        )


def split_blocks(weight: Tensor, block: tuple[int, int]) -> Tensor:
    """A view of ``weight (out, in)`` as (block rows, block columns, *block)."""
    (out, cols), (rows, width) = weight.shape, block
    return weight.reshape(out // rows, rows, cols // width, width).transpose(1, 2)


def panel_major(values: Tensor) -> Tensor:
    """``values (nnz, rows, cols)`` laid out column-major within each block.

    The blocks of a block row then form one dense (cols of its blocks, rows) panel in memory, which
    a single product can read without a copy.
    """
    return values.transpose(1, 2).contiguous().transpose(1, 2)


def block_row_indices(crow_indices: Tensor, nnz: int) -> Tensor:
    """The block row (nnz,) of each stored block; static in shape, since `nnz` is given."""
    # one more wherever a row starts: ONNX and OpenVINO have no repeat_interleave, nor searchsorted
    starts = crow_indices[1:-1].long()
    steps = starts.new_zeros(nnz + 1).scatter_add(0, starts, torch.ones_like(starts))
    return steps.cumsum(0)[:nnz]


def bsr_to_dense(
    crow_indices: Tensor, col_indices: Tensor, values: Tensor, in_features: int
) -> Tensor:
    """The weight (out, in) of valid BSR tensors; differentiable in `values`, static in shape."""
    nnz, rows, cols = values.shape
    grid = crow_indices.numel() - 1, in_features // cols
    cells = block_row_indices(crow_indices, nnz) * grid[1] + col_indices
    # which block each cell takes, 0 for one of zeros: a gather, which takes no blocks at all, too
    numbers = torch.arange(1, nnz + 1, device=cells.device)
    taken = cells.new_zeros(grid[0] * grid[1]).scatter(0, cells, numbers)
    blocks = torch.cat([values.new_zeros(1, rows, cols), values]).index_select(0, taken)
    return blocks.view(*grid, rows, cols).transpose(1, 2).reshape(grid[0] * rows, in_features)


def _check_indices(crow_indices: Tensor, col_indices: Tensor, cols: int) -> None:
    crow, col = crow_indices.cpu().long(), col_indices.cpu().long()
    counts = crow.diff()
    if crow[0] != 0 or crow[-1] != len(col) or (counts < 0).any():
        raise ValueError(
            f"Bsr: crow_indices {crow.tolist()}; expected 0 first, never descending, "
            f"and {len(col)} (the number of blocks) last"
        )
    outside = (col < 0) | (col >= cols)
    if outside.any():
        raise ValueError(f"Bsr: col_indices holds {int(col[outside][0])}; expected 0 to {cols - 1}")
    rows = block_row_indices(crow, len(col))
    unsorted = (rows.diff() == 0) & (col.diff() <= 0)
    if unsorted.any():
        row = int(rows[1:][unsorted][0])
        raise ValueError(
            f"Bsr: col_indices of block row {row} are {col[crow[row] : crow[row + 1]].tolist()}; "
            "expected strictly ascending"
        )
