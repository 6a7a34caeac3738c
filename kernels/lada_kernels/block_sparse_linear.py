"""Block-sparse linear: ``y = LN(act(x @ S.T + bias) + residual)``, S (N, K) in BSR.

Each program owns BLOCK_M rows of x and up to one block row of S. Several narrow blocks are packed
into one dot of depth BLOCK_K by gathering their columns of x, so a block 16 columns wide costs no
more per weight than one 64 wide; only the height of a block matters. With few rows of x, the
weights are the left operand, whose tensor-core tile is 64 high however few the tokens.
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl

from .add_norm import add_norm_fwd, dense_fwd
from .block_tiles import add_blocks, first_column, zero_tile
from .dependent_launch import wait_for_predecessor
from .epilogue import Epilogue, apply_epilogue, store_tile
from .programs import MIN_PROGRAMS, cdiv, next_power_of_2
from .tuning import fastest
from .variants import TileConfig, Variant, VariantName, check_block_tiles
from .weight_names import sparse_name, token_bucket

PACK_WIDTH = 64
"""Columns of x that one step of the kernel multiplies: those of a pack of blocks."""

_BLOCK_SIZES = (16, 32, 64, 128)


@triton.jit
def _block_sparse_linear_fwd_kernel(
    x_ptr,  # (M, K)
    crow_ptr,  # (N / BSR_ROWS + 1,)
    col_ptr,  # (nnz,)
    values_ptr,  # (nnz, BSR_ROWS, BSR_COLS)
    order_ptr,  # (N / BSR_ROWS,)
    bias_ptr,  # (N,)
    residual_ptr,  # (M, N)
    y_ptr,  # (M, N)
    M,
    N,
    stride_xm,
    stride_vb,
    stride_vr,
    stride_vc,
    stride_rm,
    stride_ym,
    BSR_ROWS: tl.constexpr,
    BSR_COLS: tl.constexpr,
    HAS_ORDER: tl.constexpr,
    WHOLE_PACKS: tl.constexpr,
    SWAP_AB: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_predecessor(PDL)
    # programs that share rows of x are neighbours, to meet in L2
    n_tiles = N // BLOCK_N
    first_n = first_column(order_ptr, tl.program_id(0) % n_tiles, BSR_ROWS, BLOCK_N, HAS_ORDER)
    offs_m = (tl.program_id(0) // n_tiles).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    acc = add_blocks(
        zero_tile(BLOCK_M, BLOCK_N, SWAP_AB),
        *(x_ptr, crow_ptr, col_ptr, values_ptr, offs_m, first_n, M),
        *(stride_xm, stride_vb, stride_vr, stride_vc),
        *(BSR_ROWS, BSR_COLS, BLOCK_N, BLOCK_K, WHOLE_PACKS, SWAP_AB),
    )
    if SWAP_AB:
        acc = tl.trans(acc)
    offs_n = first_n + tl.arange(0, BLOCK_N)
    y = apply_epilogue(
        *(acc, bias_ptr, residual_ptr, offs_m, offs_n, M, N, stride_rm),
        *(HAS_BIAS, HAS_RESIDUAL, ACTIVATION),
    )
    store_tile(y, y_ptr, offs_m, offs_n, M, N, stride_ym)


def supports_block(block_rows: int, block_cols: int) -> bool:
    """True if the kernels run blocks of this shape."""
    return block_rows in _BLOCK_SIZES and block_cols in _BLOCK_SIZES


def default_tiles(
    m: int,
    n: int,
    block_rows: int,
    block_cols: int,
    dtype: torch.dtype,
    high_pressure: bool = False,
    swap_ab: bool = False,
) -> TileConfig:
    """Tiles for `m` rows and `n` columns that fit every supported target without spilling.

    high_pressure: a residual or masks need registers too. BLOCK_N divides `block_rows`, and BLOCK_K
    is a multiple of `block_cols`.
    """
    if dtype == torch.float32:  # no tensor cores: the tiles live in registers
        block_k = max(32, block_cols)
        block_n = min(block_rows, 8192 // block_k)
        return TileConfig(32, block_n, block_k, 4 if block_n <= 32 else 8, num_stages=2)
    block_k = max(PACK_WIDTH, block_cols)
    block_m = min(128, max(16, next_power_of_2(m)))
    if swap_ab:
        return TileConfig(min(block_m, 64), 64, block_k, 4, 4 if block_k == PACK_WIDTH else 2)
    few = cdiv(m, 128) * (n // block_rows) < MIN_PROGRAMS
    # more registers, or more shared memory, would leave room for one program
    if few or (block_rows == 128 and (high_pressure or block_k > PACK_WIDTH)):
        block_m = min(block_m, 64)
    num_warps = 8 if block_m * block_rows >= 8192 else 4
    num_stages = 2 if block_k > PACK_WIDTH else 4 if block_m <= 32 else 3
    return TileConfig(block_m, block_rows, block_k, num_warps, num_stages)


def guess(
    m: int,
    n: int,
    k: int,
    rank: int,
    groups: int,
    block_rows: int,
    block_cols: int,
    nnz: int,
    dtype: torch.dtype,
    dense: bool,
) -> Variant:
    """The variant expected to be fastest for ``x (u v + S)^T``, where no table has the case.

    u v: `groups` pairs of factors of this rank, each for N / groups rows; rank 0 for S alone.
    """
    # a stored weight costs as much as 256 / block_rows weights of a dense product
    if dense and nnz * block_cols * 256 + rank * (n + groups * k) > n * k:
        return Variant(VariantName.DENSE)
    if m <= 64 and block_rows >= 64 and dtype != torch.float32:
        return Variant(VariantName.SWAP_AB)
    return Variant(VariantName.ONE_LAUNCH)


def variants(block_rows: int, dense: bool) -> tuple[VariantName, ...]:
    """Variants for blocks of this height, dense only if the caller keeps the dense weight."""
    swap_ab = (VariantName.SWAP_AB,) if block_rows >= 64 else ()
    return (VariantName.ONE_LAUNCH, *swap_ab, *((VariantName.DENSE,) if dense else ()))


@functools.lru_cache(maxsize=4096)
def choose(
    m: int,
    n: int,
    k: int,
    block_rows: int,
    block_cols: int,
    nnz: int,
    dtype: torch.dtype,
    epilogue: str,
    dense: bool,
    device_index: int,
) -> Variant:
    """The fastest variant by the tuned tables, or else `guess`.

    dense: True if the caller keeps the dense weight. epilogue: an `EpilogueKind`.
    """
    name = sparse_name(block_rows, block_cols, nnz * block_rows * block_cols / (n * k))
    allowed = variants(block_rows, dense)
    key = (dtype, k, n, name, epilogue, m, device_index, allowed)
    return fastest("block_sparse_linear", *key) or guess(
        m, n, k, 0, 1, block_rows, block_cols, nnz, dtype, dense
    )


def block_arguments(
    crow_indices: torch.Tensor,
    col_indices: torch.Tensor,
    values: torch.Tensor,
    order: torch.Tensor | None,
    swap_ab: bool,
    tiles: TileConfig,
) -> dict[str, Any]:
    """Arguments of a kernel that multiplies by S, see `block_sparse_linear_fwd`.

    Raises ValueError on tiles that would leave columns of y unwritten.
    """
    _, block_rows, block_cols = values.shape
    check_block_tiles("block_arguments", tiles, block_rows, block_cols)
    whole = block_cols if order is None else max(PACK_WIDTH, block_cols)
    stride_vb, stride_vr, stride_vc = values.stride()
    return {
        "crow_ptr": crow_indices,
        "col_ptr": col_indices,
        "values_ptr": values,
        "order_ptr": order,
        "stride_vb": stride_vb,
        "stride_vr": stride_vr,
        "stride_vc": stride_vc,
        "BSR_ROWS": block_rows,
        "BSR_COLS": block_cols,
        "HAS_ORDER": order is not None,
        "WHOLE_PACKS": whole % tiles.BLOCK_K == 0,
        "SWAP_AB": swap_ab,
    }


def block_sparse_linear_fwd(
    x: torch.Tensor,
    crow_indices: torch.Tensor,
    col_indices: torch.Tensor,
    values: torch.Tensor,
    epilogue: Epilogue,
    order: torch.Tensor | None = None,
    dense: torch.Tensor | None = None,
    variant: Variant | None = None,
) -> torch.Tensor:
    """``LN(act(x @ S.T + bias) + residual)`` with S (N, K) given by its non-zero blocks.

    Operands are checked by the caller: one device, one dtype (fp16, bf16 or fp32) but for the
    indices.

    Args:
        x: (M, K), contiguous in the last dimension, any row stride.
        crow_indices: (N / br + 1,) int32; block row i owns blocks crow[i] to crow[i + 1].
        col_indices: (nnz,) int32, in units of blocks.
        values: (nnz, br, bc), both of 16, 32, 64 or 128; any strides, and fastest if each block is
            column-major.
        epilogue: its norm is a launch of its own.
        order: (N / br,) int32, the block rows by descending number of blocks, or None. Given, it
            promises that each of them holds whole packs, a multiple of PACK_WIDTH / bc blocks.
        dense: S (N, K) as a dense weight, if the caller keeps it; else None.
        variant: ONE_LAUNCH, SWAP_AB (br >= 64) or DENSE; chosen by `choose` if None.

    Returns:
        (M, N), contiguous, in x's dtype.
    """
    (m, k), (nnz, block_rows, block_cols) = x.shape, values.shape
    n = (crow_indices.numel() - 1) * block_rows
    if m == 0 or n == 0:
        return x.new_empty(m, n)
    if variant is None:
        variant = choose(
            *(token_bucket(m), n, k, block_rows, block_cols, nnz, x.dtype),
            *(epilogue.kind, dense is not None, x.get_device()),
        )
    if variant.name == VariantName.DENSE:
        assert dense is not None, "variant 'dense' needs the dense weight"
        return dense_fwd(x, dense, epilogue)
    y = x.new_empty(m, n)
    swap_ab = variant.name == VariantName.SWAP_AB
    high_pressure = epilogue.residual is not None
    tiles = variant.tiles or default_tiles(
        m, n, block_rows, block_cols, x.dtype, high_pressure, swap_ab
    )
    _block_sparse_linear_fwd_kernel[(cdiv(m, tiles.BLOCK_M) * (n // tiles.BLOCK_N),)](
        x_ptr=x,
        y_ptr=y,
        M=m,
        N=n,
        stride_xm=x.stride(0),
        stride_ym=y.stride(0),
        **block_arguments(crow_indices, col_indices, values, order, swap_ab, tiles),
        **epilogue.tile_arguments(x.dtype),
        **tiles.kwargs(),
    )
    return add_norm_fwd(y, epilogue.norm_only, variant.pdl)
