"""Products with low-rank factors whose inner one stays on chip, as several kernels need them."""

import triton
import triton.language as tl

from .epilogue import merge_moments, normalize, store_tile
from .low_rank_linear import low_rank_tile


@triton.jit
def sweep(
    h1,  # (BLOCK_M, RANK1)
    h2,  # (BLOCK_M, RANK2), or anything where RANK2 is 0
    u_ptr,  # (N, RANK)
    bias_ptr,  # (N,)
    residual_ptr,  # (M, N)
    norm_weight_ptr,  # (N,)
    norm_bias_ptr,  # (N,)
    y_ptr,  # (M, N)
    offs_m,
    first_n,
    end_n,
    M,
    N,
    stride_rm,
    stride_ym,
    eps,
    RANK: tl.constexpr,
    RANK1: tl.constexpr,
    RANK2: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_NORM: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Write ``LN(act([h1 | h2] @ u.T + bias) + residual)`` to rows offs_m, first_n to end_n."""
    if HAS_NORM:
        mean = tl.zeros((BLOCK_M,), dtype=tl.float32)
        m2 = tl.zeros((BLOCK_M,), dtype=tl.float32)
        for n in range(0, N, BLOCK_N):  # the program owns whole rows
            offs_n = n + tl.arange(0, BLOCK_N)
            y = low_rank_tile(
                *(h1, h2, u_ptr, bias_ptr, residual_ptr, offs_m, offs_n, M, end_n, stride_rm),
                *(RANK, RANK1, RANK2, HAS_BIAS, HAS_RESIDUAL, ACTIVATION),
            )
            mean, m2 = merge_moments(y, n, N, mean, m2)
        rstd = tl.rsqrt(m2 / N + eps)

    for n in range(first_n, end_n, BLOCK_N):
        offs_n = n + tl.arange(0, BLOCK_N)
        y = low_rank_tile(
            *(h1, h2, u_ptr, bias_ptr, residual_ptr, offs_m, offs_n, M, end_n, stride_rm),
            *(RANK, RANK1, RANK2, HAS_BIAS, HAS_RESIDUAL, ACTIVATION),
        )
        if HAS_NORM:
            y = normalize(y, mean, rstd, norm_weight_ptr, norm_bias_ptr, offs_n, end_n)
        store_tile(y, y_ptr, offs_m, offs_n, M, end_n, stride_ym)
