"""Block-sparse linear: ``y = activate(x @ W.T + bias) + residual``, W (N, K) in BSR.

Each program owns BLOCK_M rows of x and up to one block row of W. Several narrow blocks are packed
into one dot of depth BLOCK_K by gathering their columns of x, so a block 16 columns wide costs no
more per weight than one 64 wide; only the height of a block matters.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from .activations import store_output
from .tuning import TileConfig


@triton.jit
def accumulate_blocks(
    acc,  # (BLOCK_M, BLOCK_N) fp32
    x_ptr,  # (M, K)
    crow_ptr,  # (N / BSR_ROWS + 1,)
    col_ptr,  # (nnz,)
    values_ptr,  # (nnz, BSR_ROWS, BSR_COLS)
    offs_m,
    first_n,
    M,
    stride_xm,
    stride_vb,
    stride_vr,
    stride_vc,
    BSR_ROWS: tl.constexpr,
    BSR_COLS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``acc + x[offs_m] @ W[first_n : first_n + BLOCK_N].T``; the rows lie in one block row."""
    tl.static_assert(BSR_ROWS % BLOCK_N == 0 and BLOCK_K % BSR_COLS == 0)
    PACK: tl.constexpr = BLOCK_K // BSR_COLS
    block_row = first_n // BSR_ROWS
    start = tl.load(crow_ptr + block_row)
    end = tl.load(crow_ptr + block_row + 1)

    lane = tl.arange(0, BLOCK_K) // BSR_COLS
    within = tl.arange(0, BLOCK_K) % BSR_COLS
    # Triton 3.6 cannot derive this multiple, and without it loads the values one by one
    offs_r = tl.multiple_of(first_n % BSR_ROWS, BLOCK_N) + tl.arange(0, BLOCK_N)
    # rows past the end repeat the last one: cheaper than a mask in the loop, and never stored
    x_rows = x_ptr + tl.minimum(offs_m, M - 1)[:, None] * stride_xm
    values_ptr += start.to(tl.int64) * stride_vb
    w_offs = (lane * stride_vb + within * stride_vc)[:, None] + (offs_r * stride_vr)[None, :]

    # the index is fetched one step ahead, so that no copy of x waits for it
    col = tl.load(col_ptr + start + lane, mask=lane < end - start, other=0)
    for p in range(start, end, PACK):
        offs_k = col * BSR_COLS + within
        live = lane < end - p
        col = tl.load(col_ptr + p + PACK + lane, mask=lane < end - p - PACK, other=0)
        x = tl.load(x_rows + offs_k[None, :], mask=live[None, :], other=0.0)
        w = tl.load(values_ptr + w_offs, mask=live[:, None], other=0.0)
        values_ptr += PACK * stride_vb
        acc = tl.dot(x, w, acc, input_precision="ieee")
    return acc


@triton.jit
def _block_sparse_linear_fwd_kernel(
    x_ptr,  # (M, K)
    crow_ptr,  # (N / BSR_ROWS + 1,)
    col_ptr,  # (nnz,)
    values_ptr,  # (nnz, BSR_ROWS, BSR_COLS)
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
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # programs that share rows of x are neighbours, to meet in L2
    n_tiles = N // BLOCK_N
    first_n = tl.program_id(0) % n_tiles * BLOCK_N
    offs_m = (tl.program_id(0) // n_tiles).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)

    acc = accumulate_blocks(
        tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32),
        x_ptr,
        crow_ptr,
        col_ptr,
        values_ptr,
        offs_m,
        first_n,
        M,
        stride_xm,
        stride_vb,
        stride_vr,
        stride_vc,
        BSR_ROWS,
        BSR_COLS,
        BLOCK_N,
        BLOCK_K,
    )
    store_output(
        acc,
        bias_ptr,
        residual_ptr,
        y_ptr,
        offs_m,
        first_n + tl.arange(0, BLOCK_N),
        M,
        N,
        stride_rm,
        stride_ym,
        HAS_BIAS,
        HAS_RESIDUAL,
        ACTIVATION,
    )


def supports_block(block_rows: int, block_cols: int) -> bool:
    """Whether the kernels here run blocks of this shape."""
    return block_rows in (16, 32, 64, 128) and block_cols in (16, 32, 64)


def default_config(m: int, block_rows: int, block_cols: int, dtype: torch.dtype) -> TileConfig:
    """Tiles that fit the shared memory of sm_80, sm_90, sm_100 and gfx942 without spilling.

    A config must keep BLOCK_N a divisor of `block_rows` and BLOCK_K a multiple of `block_cols`.
    """
    if dtype == torch.float32:  # no tensor cores: the tiles live in registers
        num_warps = 4 if block_rows <= 32 else 8
        return TileConfig(32, block_rows, max(32, block_cols), num_warps, num_stages=2)
    largest = 128 if m >= 2048 and block_rows <= 64 else 64
    block_m = min(largest, max(16, 1 << (m - 1).bit_length()))  # next power of two
    num_warps, num_stages = (4, 4) if block_m * block_rows <= 4096 else (8, 3)
    return TileConfig(block_m, block_rows, 64, num_warps, num_stages)


def block_sparse_linear_fwd(
    x: torch.Tensor,
    crow_indices: torch.Tensor,
    col_indices: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None = None,
    activation: str = "none",
    config: TileConfig | None = None,
) -> torch.Tensor:
    """``activation(x @ W.T + bias) + residual`` with W (N, K) given by its non-zero blocks.

    Operands are checked by the caller: one device, one dtype (fp16, bf16 or fp32) but for the
    indices.

    Args:
        x: (M, K), contiguous in the last dimension, any row stride.
        crow_indices: (N / br + 1,) int32; block row i owns blocks crow[i] to crow[i + 1].
        col_indices: (nnz,) int32, in units of blocks.
        values: (nnz, br, bc), br in {16, 32, 64, 128}, bc in {16, 32, 64}; any strides, and
            fastest if each block is column-major.
        bias: (N,) or None.
        residual: (M, N), any row stride, or None; added after the activation.
        activation: a name known to `activations.activate`.
        config: tiles; `default_config` if None.

    Returns:
        (M, N), contiguous, in x's dtype.
    """
    m, block_rows, block_cols = x.shape[0], *values.shape[1:]
    n = (crow_indices.numel() - 1) * block_rows
    y = x.new_empty(m, n)
    if m == 0:
        return y
    config = config or default_config(m, block_rows, block_cols, x.dtype)
    stride_vb, stride_vr, stride_vc = values.stride()
    constants: dict[str, Any] = {
        "BSR_ROWS": block_rows,
        "BSR_COLS": block_cols,
        "HAS_BIAS": bias is not None,
        "HAS_RESIDUAL": residual is not None,
        "ACTIVATION": activation,
    }
    _block_sparse_linear_fwd_kernel[(triton.cdiv(m, config.BLOCK_M) * (n // config.BLOCK_N),)](
        x,
        crow_indices,
        col_indices,
        values,
        bias,
        residual,
        y,
        m,
        n,
        x.stride(0),
        stride_vb,
        stride_vr,
        stride_vc,
        0 if residual is None else residual.stride(0),
        y.stride(0),
        **constants,
        **config.kwargs(),
    )
    return y
