"""Sparse + low-rank linear: ``y = activate(x @ (u @ v + S).T + bias) + residual``, S in BSR.

``t = x @ v.T`` is a plain product, left to torch. Then one kernel runs ``[t | gathered x]`` against
``[u | S]`` into a single accumulator, so the two branches cost one epilogue and one pass over y.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from .activations import store_output
from .block_sparse_linear import accumulate_blocks, default_config
from .tuning import TileConfig


@triton.jit
def _sparse_low_rank_linear_fwd_kernel(
    x_ptr,  # (M, K)
    t_ptr,  # (M, RANK)
    u_ptr,  # (N, RANK)
    crow_ptr,  # (N / BSR_ROWS + 1,)
    col_ptr,  # (nnz,)
    values_ptr,  # (nnz, BSR_ROWS, BSR_COLS)
    bias_ptr,  # (N,)
    residual_ptr,  # (M, N)
    y_ptr,  # (M, N)
    M,
    N,
    RANK,
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
    offs_n = first_n + tl.arange(0, BLOCK_N)
    offs_r = tl.arange(0, BLOCK_K)

    t_ptrs = t_ptr + tl.minimum(offs_m, M - 1)[:, None] * RANK + offs_r[None, :]
    ut_ptrs = u_ptr + offs_r[:, None] + offs_n[None, :] * RANK
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for r in range(0, RANK, BLOCK_K):
        mask_r = offs_r < RANK - r
        t = tl.load(t_ptrs + r, mask=mask_r[None, :], other=0.0)
        ut = tl.load(ut_ptrs + r, mask=mask_r[:, None], other=0.0)
        acc = tl.dot(t, ut, acc, input_precision="ieee")
    acc = accumulate_blocks(
        acc,
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
        offs_n,
        M,
        N,
        stride_rm,
        stride_ym,
        HAS_BIAS,
        HAS_RESIDUAL,
        ACTIVATION,
    )


def sparse_low_rank_linear_fwd(
    x: torch.Tensor,
    u: torch.Tensor,
    v: torch.Tensor,
    crow_indices: torch.Tensor,
    col_indices: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None = None,
    activation: str = "none",
    config: TileConfig | None = None,
) -> torch.Tensor:
    """``activation(x @ (u @ v + S).T + bias) + residual``, with x @ v.T rounded to x's dtype.

    Operands are checked by the caller: one device, one dtype (fp16, bf16 or fp32) but for the
    indices.

    Args:
        x: (M, K), contiguous in the last dimension, any row stride.
        u: (N, R), contiguous, R >= 1.
        v: (R, K), contiguous.
        crow_indices, col_indices, values: S (N, K), as in `block_sparse_linear_fwd`.
        bias: (N,) or None.
        residual: (M, N), any row stride, or None; added after the activation.
        activation: a name known to `activations.activate`.
        config: tiles; `default_config` if None.

    Returns:
        (M, N), contiguous, in x's dtype.
    """
    m, (n, rank), (_, block_rows, block_cols) = x.shape[0], u.shape, values.shape
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
    _sparse_low_rank_linear_fwd_kernel[(triton.cdiv(m, config.BLOCK_M) * (n // config.BLOCK_N),)](
        x,
        F.linear(x, v),
        u,
        crow_indices,
        col_indices,
        values,
        bias,
        residual,
        y,
        m,
        n,
        rank,
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
