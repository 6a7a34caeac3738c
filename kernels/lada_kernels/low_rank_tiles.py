"""Tiles of the kernels on low-rank weights: ``h = x @ v.T``, kept on chip, and a sweep by u.

A rank that is no power of two is the sum of two that are: h is held in two pieces, and no product
is padded by more than it must.
"""

from typing import Any

import triton
import triton.language as tl

from .activations import activate
from .epilogue import apply_epilogue, merge_moments, normalize, store_tile
from .programs import next_power_of_2


def split_rank(rank: int) -> tuple[int, int]:
    """Two powers of two, the second perhaps 0, whose sum is `rank` or as little more as can be."""
    whole = max(16, next_power_of_2(rank))
    half = whole // 2
    rest = max(16, next_power_of_2(rank - half)) if 16 <= half < rank else whole
    return (half, rest) if half + rest < whole else (whole, 0)


def rank_arguments(
    rank: int, names: tuple[str, str, str] = ("RANK", "RANK1", "RANK2")
) -> dict[str, Any]:
    """Constants of a kernel on factors of this rank: the rank and its `split_rank`."""
    return dict(zip(names, (rank, *split_rank(rank)), strict=True))


@triton.jit
def _load_vt(v_rows, offs_k, k, K, EVEN_K: tl.constexpr):
    if EVEN_K:
        return tl.load(v_rows + (k + offs_k)[:, None])
    return tl.load(v_rows + (k + offs_k)[:, None], mask=(offs_k < K - k)[:, None], other=0.0)


@triton.jit
def _load_ut(u_rows, offs_r, RANK: tl.constexpr, PADDED: tl.constexpr):
    if PADDED:
        return tl.load(u_rows + offs_r[:, None], mask=(offs_r < RANK)[:, None], other=0.0)
    return tl.load(u_rows + offs_r[:, None])


@triton.jit
def times_ut(
    h1,  # (BLOCK_M, RANK1)
    h2,  # (BLOCK_M, RANK2), or anything where RANK2 is 0
    u_ptr,  # (N, RANK)
    offs_n,
    N,
    RANK: tl.constexpr,
    RANK1: tl.constexpr,
    RANK2: tl.constexpr,
):
    """``[h1 | h2] @ u[offs_n].T``, fp32; columns past N repeat the last one."""
    PADDED: tl.constexpr = RANK1 + RANK2 != RANK
    u_rows = u_ptr + tl.minimum(offs_n, N - 1)[None, :] * RANK
    ut = _load_ut(u_rows, tl.arange(0, RANK1), RANK, PADDED)
    y = tl.dot(h1, ut, input_precision="ieee")
    if RANK2 > 0:
        ut = _load_ut(u_rows, RANK1 + tl.arange(0, RANK2), RANK, PADDED)
        y = tl.dot(h2, ut, y, input_precision="ieee")
    return y


@triton.jit
def times_vt(
    x_ptr,  # (M, K)
    v_ptr,  # (RANK, K)
    offs_m,
    M,
    K,
    stride_xm,
    RANK: tl.constexpr,
    RANK1: tl.constexpr,
    RANK2: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """``x[offs_m] @ v.T`` in x's dtype, as its first RANK1 columns and the other RANK2.

    Columns past RANK repeat the last one; `times_ut` meets them with zeros.
    """
    offs_k = tl.arange(0, BLOCK_K)
    # rows past the end repeat the last one: cheaper than a mask in the loop, and never stored
    x_rows = x_ptr + tl.minimum(offs_m, M - 1)[:, None] * stride_xm
    v_rows1 = v_ptr + tl.minimum(tl.arange(0, RANK1), RANK - 1)[None, :] * K
    h1 = tl.zeros((BLOCK_M, RANK1), dtype=tl.float32)
    if RANK2 > 0:
        v_rows2 = v_ptr + tl.minimum(RANK1 + tl.arange(0, RANK2), RANK - 1)[None, :] * K
        h2 = tl.zeros((BLOCK_M, RANK2), dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        if EVEN_K:
            x = tl.load(x_rows + (k + offs_k)[None, :])
        else:
            x = tl.load(x_rows + (k + offs_k)[None, :], mask=(offs_k < K - k)[None, :], other=0.0)
        h1 = tl.dot(x, _load_vt(v_rows1, offs_k, k, K, EVEN_K), h1, input_precision="ieee")
        if RANK2 > 0:
            h2 = tl.dot(x, _load_vt(v_rows2, offs_k, k, K, EVEN_K), h2, input_precision="ieee")
    h1 = h1.to(x_ptr.dtype.element_ty)
    if RANK2 > 0:
        return h1, h2.to(x_ptr.dtype.element_ty)
    else:
        return h1, h1


@triton.jit
def _load_v2t(v2_rows, offs_f, F, EVEN_F: tl.constexpr):
    if EVEN_F:
        return tl.load(v2_rows + offs_f[:, None])
    return tl.load(v2_rows + offs_f[:, None], mask=(offs_f < F)[:, None], other=0.0)


@triton.jit
def times_ffn(
    x_ptr,  # (M, K)
    u1_ptr,  # (F, R1)
    v1_ptr,  # (R1, K)
    bias1_ptr,  # (F,)
    v2_ptr,  # (R2, F)
    offs_m,
    first_f,
    end_f,
    M,
    F,
    K,
    stride_xm,
    R1: tl.constexpr,
    R1A: tl.constexpr,
    R1B: tl.constexpr,
    R2: tl.constexpr,
    R2A: tl.constexpr,
    R2B: tl.constexpr,
    EVEN_K: tl.constexpr,
    EVEN_F: tl.constexpr,
    HAS_BIAS1: tl.constexpr,
    ACTIVATION1: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``act(x[offs_m] v1.T u1.T + bias1) v2.T`` over first_f to end_f: R2A and R2B columns, fp32.

    Columns past R2 repeat the last one, as in `times_vt`; where R2B is 0, the second is unused.
    """
    s1 = tl.zeros((BLOCK_M, R2A), dtype=tl.float32)
    s2 = s1
    if R2B > 0:
        s2 = tl.zeros((BLOCK_M, R2B), dtype=tl.float32)
    t1, t2 = times_vt(
        x_ptr, v1_ptr, offs_m, M, K, stride_xm, R1, R1A, R1B, BLOCK_M, BLOCK_K, EVEN_K
    )
    v2_rows1 = v2_ptr + tl.minimum(tl.arange(0, R2A), R2 - 1)[None, :] * F
    if R2B > 0:
        v2_rows2 = v2_ptr + tl.minimum(R2A + tl.arange(0, R2B), R2 - 1)[None, :] * F
    if HAS_BIAS1:  # fetched one step ahead, so that no product waits for it
        offs_f = first_f + tl.arange(0, BLOCK_N)
        bias = tl.load(bias1_ptr + offs_f, mask=offs_f < F, other=0.0)
    for f in range(first_f, end_f, BLOCK_N):
        offs_f = f + tl.arange(0, BLOCK_N)
        h = times_ut(t1, t2, u1_ptr, offs_f, F, R1, R1A, R1B)
        if HAS_BIAS1:
            h += bias.to(tl.float32)[None, :]
            bias = tl.load(bias1_ptr + BLOCK_N + offs_f, mask=offs_f < F - BLOCK_N, other=0.0)
        h = activate(h, ACTIVATION1).to(x_ptr.dtype.element_ty)
        s1 = tl.dot(h, _load_v2t(v2_rows1, offs_f, F, EVEN_F), s1, input_precision="ieee")
        if R2B > 0:
            s2 = tl.dot(h, _load_v2t(v2_rows2, offs_f, F, EVEN_F), s2, input_precision="ieee")
    return s1, s2


@triton.jit
def _finished_tile(
    h1,
    h2,
    u_ptr,
    bias_ptr,
    residual_ptr,
    offs_m,
    offs_n,
    M,
    N,
    stride_rm,
    RANK: tl.constexpr,
    RANK1: tl.constexpr,
    RANK2: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """``act([h1 | h2] @ u[offs_n].T + bias) + residual``, fp32."""
    acc = times_ut(h1, h2, u_ptr, offs_n, N, RANK, RANK1, RANK2)
    return apply_epilogue(
        *(acc, bias_ptr, residual_ptr, offs_m, offs_n, M, N, stride_rm),
        *(HAS_BIAS, HAS_RESIDUAL, ACTIVATION),
    )


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
            y = _finished_tile(
                *(h1, h2, u_ptr, bias_ptr, residual_ptr, offs_m, offs_n, M, end_n, stride_rm),
                *(RANK, RANK1, RANK2, HAS_BIAS, HAS_RESIDUAL, ACTIVATION),
            )
            mean, m2 = merge_moments(y, n, N, mean, m2)
        rstd = tl.rsqrt(m2 / N + eps)

    for n in range(first_n, end_n, BLOCK_N):
        offs_n = n + tl.arange(0, BLOCK_N)
        y = _finished_tile(
            *(h1, h2, u_ptr, bias_ptr, residual_ptr, offs_m, offs_n, M, end_n, stride_rm),
            *(RANK, RANK1, RANK2, HAS_BIAS, HAS_RESIDUAL, ACTIVATION),
        )
        if HAS_NORM:
            y = normalize(y, mean, rstd, norm_weight_ptr, norm_bias_ptr, offs_n, end_n)
        store_tile(y, y_ptr, offs_m, offs_n, M, end_n, stride_ym)
