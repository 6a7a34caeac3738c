"""Block-sparse linear: ``y = LN(act(x @ S.T + bias) + residual)``, S (N, K) in BSR.

Each program owns BLOCK_M rows of x and up to one block row of S. Several narrow blocks are packed
into one dot of depth BLOCK_K by gathering their columns of x, so a block 16 columns wide costs no
more per weight than one 64 wide; only the height of a block matters. With few rows of x, the
weights are the left operand, whose tensor-core tile is 64 high however few the tokens.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from .activations import kernel_activation
from .add_norm import add_norm_fwd
from .block_tiles import add_blocks, first_column, zero_tile
from .dependent_launch import wait_for_predecessor
from .epilogue import Norm, epilogue, epilogue_kind, store_tile
from .table import check_block_tiles
from .tuning import TileConfig, Way, fastest
from .weight_names import sparse_name, token_bucket

PACK_WIDTH = 64
"""Columns of the blocks that fill one step of the kernel."""

_MIN_PROGRAMS = 256  # about two per multiprocessor of a large GPU


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
    WEIGHTS_LEFT: tl.constexpr,
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
        zero_tile(BLOCK_M, BLOCK_N, WEIGHTS_LEFT),
        *(x_ptr, crow_ptr, col_ptr, values_ptr, offs_m, first_n, M),
        *(stride_xm, stride_vb, stride_vr, stride_vc),
        *(BSR_ROWS, BSR_COLS, BLOCK_N, BLOCK_K, WHOLE_PACKS, WEIGHTS_LEFT),
    )
    if WEIGHTS_LEFT:
        acc = tl.trans(acc)
    offs_n = first_n + tl.arange(0, BLOCK_N)
    y = epilogue(
        *(acc, bias_ptr, residual_ptr, offs_m, offs_n, M, N, stride_rm),
        *(HAS_BIAS, HAS_RESIDUAL, ACTIVATION),
    )
    store_tile(y, y_ptr, offs_m, offs_n, M, N, stride_ym)


def supports_block(block_rows: int, block_cols: int) -> bool:
    """Whether the kernels here run blocks of this shape."""
    return block_rows in (16, 32, 64, 128) and block_cols in (16, 32, 64, 128)


def default_tiles(
    m: int,
    n: int,
    block_rows: int,
    block_cols: int,
    dtype: torch.dtype,
    crowded: bool = False,
    weights_left: bool = False,
) -> TileConfig:
    """Tiles for `m` rows and `n` columns that fit every supported target without spilling.

    `crowded` where a residual or masks need registers too. Tiles must keep BLOCK_N a divisor of
    `block_rows`, and BLOCK_K a multiple of `block_cols`.
    """
    if dtype == torch.float32:  # no tensor cores: the tiles live in registers
        block_k = max(32, block_cols)
        block_n = min(block_rows, 8192 // block_k)
        return TileConfig(32, block_n, block_k, 4 if block_n <= 32 else 8, num_stages=2)
    block_k = max(PACK_WIDTH, block_cols)
    block_m = min(128, max(16, 1 << (m - 1).bit_length()))  # next power of two
    if weights_left:
        return TileConfig(min(block_m, 64), 64, block_k, 4, 4 if block_k == PACK_WIDTH else 2)
    few = triton.cdiv(m, 128) * (n // block_rows) < _MIN_PROGRAMS
    # more registers, or more shared memory, would leave room for one program
    if few or (block_rows == 128 and (crowded or block_k > PACK_WIDTH)):
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
) -> Way:
    """The way expected to be fastest for ``x (u v + S)^T``, where no table knows.

    u v: of `groups` pairs of factors, each for as many rows.
    """
    # a stored weight costs as much as 256 / block_rows weights of a dense product
    if dense and nnz * block_cols * 256 + rank * (n + groups * k) > n * k:
        return Way("dense")
    if m <= 64 and block_rows >= 64 and dtype != torch.float32:
        return Way("weights_left")
    return Way("one_launch")


def ways(block_rows: int, dense: bool) -> tuple[str, ...]:
    """The names of the ways there are for blocks of this height."""
    left = ("weights_left",) if block_rows >= 64 else ()
    return ("one_launch", *left, *(("dense",) if dense else ()))


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
) -> Way:
    """The fastest way for `m` tokens, "dense" only where the caller has the dense weight."""
    name = sparse_name(block_rows, block_cols, nnz * block_rows * block_cols / (n * k))
    allowed = ways(block_rows, dense)
    key = (dtype, k, n, name, epilogue, m, device_index, allowed)
    return fastest("block_sparse_linear", *key) or guess(
        m, n, k, 0, 1, block_rows, block_cols, nnz, dtype, dense
    )


def block_constants(
    block_rows: int,
    block_cols: int,
    order: torch.Tensor | None,
    weights_left: bool,
    tiles: TileConfig,
) -> dict[str, Any]:
    """The constexprs that the functions of `block_tiles` take.

    Raises ValueError on tiles that would leave columns of y unwritten.
    """
    check_block_tiles("block_constants", tiles, block_rows, block_cols)
    whole = block_cols if order is None else max(PACK_WIDTH, block_cols)
    return {
        "BSR_ROWS": block_rows,
        "BSR_COLS": block_cols,
        "HAS_ORDER": order is not None,
        "WHOLE_PACKS": whole % tiles.BLOCK_K == 0,
        "WEIGHTS_LEFT": weights_left,
    }


def block_sparse_linear_fwd(
    x: torch.Tensor,
    crow_indices: torch.Tensor,
    col_indices: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None = None,
    activation: str = "none",
    norm: Norm | None = None,
    order: torch.Tensor | None = None,
    exact: bool = False,
    dense: torch.Tensor | None = None,
    way: Way | None = None,
) -> torch.Tensor:
    """``LN(activation(x @ S.T + bias) + residual)`` with S (N, K) given by its non-zero blocks.

    Operands are checked by the caller: one device, one dtype (fp16, bf16 or fp32) but for the
    indices.

    Args:
        x: (M, K), contiguous in the last dimension, any row stride.
        crow_indices: (N / br + 1,) int32; block row i owns blocks crow[i] to crow[i + 1].
        col_indices: (nnz,) int32, in units of blocks.
        values: (nnz, br, bc), both of 16, 32, 64 or 128; any strides, and fastest if each block is
            column-major.
        bias: (N,) or None.
        residual: (M, N), any row stride, or None; added after the activation.
        activation: a name known to `activations.activate`.
        norm: LayerNorm's weight (N,), bias (N,) and eps, or None; a launch of its own.
        order: (N / br,) int32, the block rows by descending number of blocks, or None. Given, it
            promises that each of them holds whole packs, a multiple of PACK_WIDTH / bc blocks.
        exact: gelu by erf in 16-bit dtypes too, see `activations.kernel_activation`.
        dense: S (N, K) as a dense weight, if the caller keeps it; else None.
        way: "one_launch", "weights_left" (br >= 64) or "dense"; chosen by `choose` if None.

    Returns:
        (M, N), contiguous, in x's dtype.
    """
    (m, k), (nnz, block_rows, block_cols) = x.shape, values.shape
    n = (crow_indices.numel() - 1) * block_rows
    if m == 0 or n == 0:
        return x.new_empty(m, n)
    if way is None:
        way = choose(
            *(token_bucket(m), n, k, block_rows, block_cols, nnz, x.dtype),
            *(epilogue_kind(activation, residual, norm), dense is not None, x.get_device()),
        )
    if way.name == "dense":
        assert dense is not None, "way 'dense' needs the dense weight"
        return add_norm_fwd(F.linear(x, dense, bias), activation, residual, norm)
    y = x.new_empty(m, n)
    left = way.name == "weights_left"
    tiles = way.tiles or default_tiles(
        m, n, block_rows, block_cols, x.dtype, residual is not None, left
    )
    constants: dict[str, Any] = {
        **block_constants(block_rows, block_cols, order, left, tiles),
        "HAS_BIAS": bias is not None,
        "HAS_RESIDUAL": residual is not None,
        "ACTIVATION": kernel_activation(activation, x.dtype, exact),
    }
    _block_sparse_linear_fwd_kernel[(triton.cdiv(m, tiles.BLOCK_M) * (n // tiles.BLOCK_N),)](
        x,
        crow_indices,
        col_indices,
        values,
        order,
        bias,
        residual,
        y,
        m,
        n,
        x.stride(0),
        values.stride(0),
        values.stride(1),
        values.stride(2),
        0 if residual is None else residual.stride(0),
        y.stride(0),
        **constants,
        **tiles.kwargs(),
    )
    return add_norm_fwd(y, "none", None, norm, way.pdl)
