"""Gradients of the block-sparse linear ``y = x @ S.T``: dy @ S, and dy.T @ x where S has blocks.

The first is a block-sparse linear itself, by the transposed pattern. For the second a program owns
a pack of blocks of one block row: it gathers their columns of x and sums over a share of the rows,
so that only stored blocks are computed. The shares are added in a second, ordered sum: the gradient
is the same every time.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from .block_sparse_linear import PACK_WIDTH, block_sparse_linear_fwd, choose, guess
from .dependent_launch import wait_for_predecessor
from .epilogue import Epilogue
from .programs import MIN_PROGRAMS, next_power_of_2, split_rows
from .variants import EpilogueKind, TileConfig, VariantName, check_block_tiles
from .weight_names import token_bucket


@triton.jit
def _block_sparse_linear_dvalues_kernel(
    dy_ptr,  # (M, N)
    x_ptr,  # (M, K)
    crow_ptr,  # (block_rows + 1,)
    col_ptr,  # (nnz,)
    out_ptr,  # (splits, nnz * BSR_COLS * BSR_ROWS)
    M,
    nnz,
    block_rows,
    m_per_program,
    stride_ym,
    stride_xm,
    BSR_ROWS: tl.constexpr,
    BSR_COLS: tl.constexpr,
    ALL_ROWS: tl.constexpr,
    EVEN_M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_predecessor(PDL)
    tl.static_assert(BSR_ROWS % BLOCK_N == 0 and BLOCK_K % BSR_COLS == 0)
    PACK: tl.constexpr = BLOCK_K // BSR_COLS
    TILES: tl.constexpr = BSR_ROWS // BLOCK_N
    pack = tl.program_id(0) // TILES

    # the block row of this pack, and its place in it, by counting the packs of the rows before
    every_row = tl.arange(0, ALL_ROWS)
    is_row = every_row < block_rows
    starts = tl.load(crow_ptr + every_row, mask=is_row, other=0)
    packs = (tl.load(crow_ptr + every_row + 1, mask=is_row, other=0) - starts + PACK - 1) // PACK
    is_before = tl.cumsum(packs, 0) <= pack
    rows_before = tl.sum(tl.where(is_before, 1, 0), 0)
    block_row = tl.minimum(rows_before, block_rows - 1)
    first = tl.load(crow_ptr + block_row)
    first += (pack - tl.sum(tl.where(is_before, packs, 0), 0)) * PACK
    # the programs past the last pack have no blocks
    end = tl.where(rows_before < block_rows, tl.load(crow_ptr + block_row + 1), first)

    lane = tl.arange(0, BLOCK_K) // BSR_COLS
    live = lane < end - first
    col = tl.load(col_ptr + first + lane, mask=live, other=0)
    offs_k = col * BSR_COLS + tl.arange(0, BLOCK_K) % BSR_COLS
    offs_r = tl.program_id(0) % TILES * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_n = block_row * BSR_ROWS + offs_r

    split = tl.program_id(1)
    first_m = split * m_per_program
    end_m = tl.where(first < end, tl.minimum(first_m + m_per_program, M), first_m)
    rows = first_m.to(tl.int64) + tl.arange(0, BLOCK_M)
    xt_ptrs = x_ptr + (rows * stride_xm)[None, :] + offs_k[:, None]
    dy_ptrs = dy_ptr + (rows * stride_ym)[:, None] + offs_n[None, :]
    x_step = tl.cast(stride_xm, tl.int64) * BLOCK_M
    dy_step = tl.cast(stride_ym, tl.int64) * BLOCK_M
    acc = tl.zeros((BLOCK_K, BLOCK_N), dtype=tl.float32)
    for m in range(first_m, end_m, BLOCK_M):
        if EVEN_M:
            xt = tl.load(xt_ptrs)
            dy = tl.load(dy_ptrs)
        else:
            mask_m = tl.arange(0, BLOCK_M) < end_m - m
            xt = tl.load(xt_ptrs, mask=mask_m[None, :], other=0.0)
            dy = tl.load(dy_ptrs, mask=mask_m[:, None], other=0.0)
        acc = tl.dot(xt, dy, acc, input_precision="ieee")
        xt_ptrs += x_step
        dy_ptrs += dy_step

    offs_out = (split.to(tl.int64) * nnz + first) * BSR_COLS + tl.arange(0, BLOCK_K)
    out_ptrs = out_ptr + offs_out[:, None] * BSR_ROWS + offs_r[None, :]
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=live[:, None])


def default_dvalues_tiles(block_rows: int, block_cols: int, dtype: torch.dtype) -> TileConfig:
    """Tiles that fit every supported target without spilling."""
    if dtype == torch.float32:  # no tensor cores: the tiles live in registers
        block_k = max(32, block_cols)
        return TileConfig(32, min(block_rows, 4096 // block_k), block_k, 4, num_stages=2)
    # a tile of 64 x 128 fits in the registers of four warps; eight would wait on each other
    block_k = max(2 * PACK_WIDTH if block_rows == 64 else PACK_WIDTH, block_cols)
    return TileConfig(64, min(block_rows, 8192 // block_k), block_k, num_warps=4, num_stages=3)


def block_sparse_linear_dx(
    dy: torch.Tensor,
    crow_indices: torch.Tensor,
    col_indices: torch.Tensor,
    values: torch.Tensor,
    in_features: int,
) -> torch.Tensor:
    """``dy @ S`` (M, K), in dy's dtype; dy (M, N), and S as in `block_sparse_linear_fwd`.

    By a dense copy of S where that is faster. Nothing here waits for the GPU.
    """
    m, (nnz, block_rows, block_cols) = dy.shape[0], values.shape
    out_features = (crow_indices.numel() - 1) * block_rows
    if m == 0 or nnz == 0:
        return dy.new_zeros(m, in_features)
    variant = choose(
        *(token_bucket(m), in_features, out_features, block_cols, block_rows, nnz, dy.dtype),
        *(EpilogueKind.PLAIN, True, dy.get_device()),
    )
    transposed = transpose_bsr(crow_indices, col_indices, values, in_features)
    by_dense = variant.name == VariantName.DENSE
    dense = dense_blocks(*transposed, out_features) if by_dense else None
    return block_sparse_linear_fwd(dy, *transposed, Epilogue(), dense=dense, variant=variant)


def block_sparse_linear_dvalues(
    dy: torch.Tensor,
    x: torch.Tensor,
    crow_indices: torch.Tensor,
    col_indices: torch.Tensor,
    block_rows: int,
    block_cols: int,
    tiles: TileConfig | None = None,
) -> torch.Tensor:
    """The stored blocks (nnz, block_rows, block_cols) of ``dy.T @ x``, the gradient of values.

    Summed in fp32, in dy's dtype, column-major within each block; by the whole product where that
    is faster, unless `tiles` are given.

    Args:
        dy, x: (M, N) and (M, K), contiguous in the last dimension, any row stride.
        crow_indices, col_indices: as in `block_sparse_linear_fwd`.
        tiles: BLOCK_N divides block_rows, block_cols divides BLOCK_K; `default_dvalues_tiles` if
            None.
    """
    (m, n), k, nnz = dy.shape, x.shape[1], col_indices.numel()
    if m == 0 or nnz == 0:
        return dy.new_zeros(nnz, block_cols, block_rows).transpose(1, 2)
    if tiles is None:
        variant = guess(m, n, k, 0, 1, block_rows, block_cols, nnz, dy.dtype, dense=True)
        if variant.name == VariantName.DENSE:
            blocks = (x.T @ dy).view(k // block_cols, block_cols, n // block_rows, block_rows)
            rows = rows_of_blocks(crow_indices, nnz)
            return blocks[col_indices, :, rows].transpose(1, 2)
        tiles = default_dvalues_tiles(block_rows, block_cols, dy.dtype)
    check_block_tiles("block_sparse_linear_dvalues", tiles, block_rows, block_cols)
    grid_rows = crow_indices.numel() - 1
    pack = tiles.BLOCK_K // block_cols
    # an upper bound: the number of packs in the block rows is known on the GPU only
    packs = (nnz + grid_rows * (pack - 1)) // pack * (block_rows // tiles.BLOCK_N)
    splits, m_per_program = split_rows(m, tiles.BLOCK_M, packs, MIN_PROGRAMS)
    dtype = torch.float32 if splits > 1 else dy.dtype
    out = dy.new_empty(splits, nnz * block_cols * block_rows, dtype=dtype)
    sizes = {"M": m, "nnz": nnz, "block_rows": grid_rows, "m_per_program": m_per_program}
    constants: dict[str, Any] = {
        "BSR_ROWS": block_rows,
        "BSR_COLS": block_cols,
        "ALL_ROWS": next_power_of_2(grid_rows),
        "EVEN_M": m % tiles.BLOCK_M == 0,
    }
    _block_sparse_linear_dvalues_kernel[(packs, splits)](
        dy_ptr=dy,
        x_ptr=x,
        crow_ptr=crow_indices,
        col_ptr=col_indices,
        out_ptr=out,
        **sizes,
        stride_ym=dy.stride(0),
        stride_xm=x.stride(0),
        **constants,
        **tiles.kwargs(),
    )
    total = out.sum(0).to(dy.dtype) if splits > 1 else out
    return total.view(nnz, block_cols, block_rows).transpose(1, 2)


def rows_of_blocks(crow_indices: torch.Tensor, nnz: int) -> torch.Tensor:
    """Block row (nnz,) of each stored block."""
    blocks = torch.arange(nnz, dtype=crow_indices.dtype, device=crow_indices.device)
    return torch.searchsorted(crow_indices, blocks, right=True) - 1


def transpose_bsr(
    crow_indices: torch.Tensor, col_indices: torch.Tensor, values: torch.Tensor, in_features: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """BSR tensors (crow_indices, col_indices, values) of S.T, with S (N, in_features)."""
    cols = torch.arange(
        in_features // values.shape[2] + 1, dtype=col_indices.dtype, device=col_indices.device
    )
    sorted_cols, order = col_indices.sort(stable=True)
    rows = rows_of_blocks(crow_indices, col_indices.numel())[order].to(col_indices.dtype)
    crow = torch.searchsorted(sorted_cols, cols, out_int32=True)
    return crow, rows, values.transpose(1, 2)[order]


def dense_blocks(
    crow_indices: torch.Tensor, col_indices: torch.Tensor, values: torch.Tensor, in_features: int
) -> torch.Tensor:
    """Dense weight (N, in_features) of BSR tensors."""
    nnz, block_rows, block_cols = values.shape
    grid = crow_indices.numel() - 1, in_features // block_cols
    blocks = values.new_zeros(grid[0], block_rows, grid[1], block_cols)
    blocks[rows_of_blocks(crow_indices, nnz), :, col_indices] = values
    return blocks.view(grid[0] * block_rows, in_features)
