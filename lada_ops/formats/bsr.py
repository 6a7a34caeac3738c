"""Block-sparse rows (BSR): the kept blocks of a weight and their positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check_float
from .counts import Counts
from .grid import check_block, grid_of, pack_of

INDEX_DTYPE = torch.int32


@dataclass(frozen=True, eq=False)
class Bsr:
    """Block-sparse rows, with `torch.sparse_bsr_tensor`'s names and rectangular blocks.

    crow_indices (out / block_rows + 1,) and col_indices (nnz,): int32 or int64, kept as int32;
    values (nnz, block_rows, block_cols); shape (out, in). Within a block row the column indices
    ascend strictly.

    Raises ValueError or TypeError where a tensor breaks one of these rules.
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
        """Rows and columns of a block."""
        return self.values.shape[1], self.values.shape[2]

    @property
    def grid(self) -> tuple[int, int]:
        """Number of block rows and block columns."""
        return grid_of(self.shape, self.block)

    @property
    def nnz(self) -> int:
        """Number of stored blocks."""
        return self.values.shape[0]

    @property
    def density(self) -> float:
        """Share of the blocks that are stored, 0 to 1."""
        return self.nnz / (self.grid[0] * self.grid[1])

    @property
    def row_indices(self) -> Tensor:
        """Block row (nnz,) int64 of each stored block."""
        return block_row_indices(self.crow_indices, self.nnz)

    @property
    def mask(self) -> Tensor:
        """Mask (block rows, block columns) bool of the stored blocks."""
        mask = torch.zeros(self.grid, dtype=torch.bool, device=self.values.device)
        mask[self.row_indices, self.col_indices.long()] = True
        return mask

    @property
    def whole_packs(self) -> bool:
        """True if every block row holds a multiple of `pack_of(block)` blocks; False on meta."""
        if self.values.is_meta:
            return False
        return not (self.crow_indices.diff() % pack_of(self.block)).any()

    @property
    def order(self) -> Tensor:
        """Block rows (block rows,) int32, the ones with most blocks first."""
        return self.crow_indices.diff().argsort(descending=True, stable=True).to(INDEX_DTYPE)

    @classmethod
    def from_dense(cls, weight: Tensor, block: tuple[int, int], keep: Tensor | None = None) -> Bsr:
        """BSR of the blocks of ``weight (out, in)`` that the bool mask `keep` names.

        keep: (block rows, block columns); by default the blocks that hold a non-zero.

        Raises ValueError where `block` does not tile the weight or `keep` is no such mask.
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
        """BSR of a 2-D tensor of layout `torch.sparse_bsr`, in block rows that are sorted.

        Raises TypeError on another layout, ValueError on unsorted rows.
        """
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
        """Tensor of layout `torch.sparse_bsr` with the same weight."""
        return torch.sparse_bsr_tensor(
            self.crow_indices,
            self.col_indices,
            self.values.contiguous(),
            self.shape,
            check_invariants=False,  # done in __post_init__
        )

    def to_dense(self) -> Tensor:
        """Dense weight (out, in)."""
        return bsr_to_dense(self.crow_indices, self.col_indices, self.values, self.shape[1])

    def to(self, dtype: torch.dtype) -> Bsr:
        """BSR with values in another dtype."""
        return Bsr(self.crow_indices, self.col_indices, self.values.to(dtype), self.shape)

    def scaled(self, rows: Tensor) -> Bsr:
        """BSR with the rows of the weight multiplied by ``rows (out,)``."""
        factors = rows.view(-1, self.block[0])[self.row_indices]
        values = panel_major(self.values * factors[:, :, None])
        return Bsr(self.crow_indices, self.col_indices, values, self.shape)

    def padded(self) -> Bsr:
        """BSR of the same weight, each block row filled up to whole packs by blocks of zeros.

        Returns `self` where the packs are whole, cannot become so, or are on meta.
        """
        pack = pack_of(self.block)
        if self.whole_packs or self.grid[1] % pack or self.values.is_meta:
            return self
        mask = self.mask
        lacking = -self.crow_indices.diff() % pack
        keep = mask | ((~mask).cumsum(1) <= lacking[:, None])
        return Bsr.from_dense(self.to_dense(), self.block, keep)

    @staticmethod
    def block_bytes(block: tuple[int, int], dtype: torch.dtype) -> int:
        """Stored bytes of one more block: its values and its column index."""
        return block[0] * block[1] * dtype.itemsize + INDEX_DTYPE.itemsize

    @staticmethod
    def pointer_bytes(shape: tuple[int, int], block: tuple[int, int]) -> int:
        """Stored bytes of crow_indices, whatever the number of blocks."""
        return (grid_of(shape, block)[0] + 1) * INDEX_DTYPE.itemsize

    def counts(self) -> Counts:
        """Costs of storing and applying the weight."""
        itemsize = self.values.element_size()
        nonzeros = int(torch.count_nonzero(self.values))
        blocks_bytes = self.nnz * self.block_bytes(self.block, self.values.dtype)
        return Counts(
            parameters=self.values.numel(),
            nonzeros=nonzeros,
            masked_bytes=nonzeros * itemsize + (self.shape[0] * self.shape[1] + 7) // 8,
            stored_bytes=blocks_bytes + self.pointer_bytes(self.shape, self.block),
            flops_per_token=2 * self.values.numel(),
        )


def split_blocks(weight: Tensor, block: tuple[int, int]) -> Tensor:
    """View of ``weight (out, in)`` as (block rows, block columns, *block)."""
    (out, cols), (rows, width) = weight.shape, block
    return weight.reshape(out // rows, rows, cols // width, width).transpose(1, 2)


def gather_blocks(
    weight: Tensor, crow_indices: Tensor, col_indices: Tensor, block: tuple[int, int]
) -> Tensor:
    """Blocks (nnz, *block) of ``weight (out, in)`` at the positions of a BSR weight."""
    row_indices = block_row_indices(crow_indices, col_indices.numel())
    return split_blocks(weight, block)[row_indices, col_indices.long()]


def panel_major(values: Tensor) -> Tensor:
    """Copy of ``values (nnz, rows, cols)`` that is column-major within each block.

    The blocks of a block row then form one dense panel (columns of its blocks, rows) in memory,
    which a single matrix product reads without a copy.
    """
    return values.transpose(1, 2).contiguous().transpose(1, 2)


def block_row_indices(crow_indices: Tensor, nnz: int) -> Tensor:
    """Block row (nnz,) int64 of each stored block; static in shape, since `nnz` is given."""
    # row starts are summed up, since ONNX and OpenVINO lack repeat_interleave and searchsorted
    starts = crow_indices[1:-1].long()
    steps = starts.new_zeros(nnz + 1).scatter_add(0, starts, torch.ones_like(starts))
    return steps.cumsum(0)[:nnz]


def bsr_to_dense(
    crow_indices: Tensor, col_indices: Tensor, values: Tensor, in_features: int
) -> Tensor:
    """Dense weight (out, in) of valid BSR tensors; differentiable in `values`, static in shape."""
    nnz, rows, cols = values.shape
    grid = crow_indices.numel() - 1, in_features // cols
    cells = block_row_indices(crow_indices, nnz) * grid[1] + col_indices
    # the block of each cell, from 1, or 0 for the block of zeros, so that nnz may be 0
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
