"""Low-rank linear: ``y = activate(x @ v.T @ u.T + bias) + residual`` in one launch.

Each program reduces BLOCK_M rows of x over K into a (BLOCK_M, RANK) tile that never leaves the
chip, then sweeps its share of N with it. With few rows, N is split over programs, which repeat the
cheap first product rather than leave the device idle.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from .activations import store_output
from .tuning import TileConfig

MAX_RANK = 256
"""Largest rank whose (BLOCK_M, RANK) tile fits in registers."""

_MIN_PROGRAMS = 256  # about two per multiprocessor of a large GPU


@triton.jit
def _low_rank_linear_fwd_kernel(
    x_ptr,  # (M, K)
    u_ptr,  # (N, RANK)
    v_ptr,  # (RANK, K)
    bias_ptr,  # (N,)
    residual_ptr,  # (M, N)
    y_ptr,  # (M, N)
    M,
    N,
    K,
    stride_xm,
    stride_rm,
    stride_ym,
    n_per_program,
    RANK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # programs that share rows of x are neighbours, to meet in L2
    splits = tl.cdiv(N, n_per_program)
    pid_m = tl.program_id(0) // splits
    first_n = tl.program_id(0) % splits * n_per_program

    offs_m = pid_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_r = tl.arange(0, BLOCK_R)
    offs_k = tl.arange(0, BLOCK_K)
    mask_r = offs_r < RANK

    # rows past the end repeat the last one: cheaper than a mask in the loop, and never stored
    x_ptrs = x_ptr + tl.minimum(offs_m, M - 1)[:, None] * stride_xm + offs_k[None, :]
    vt_ptrs = v_ptr + offs_k[:, None] + offs_r[None, :] * K
    h = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        mask_k = offs_k < K - k
        x = tl.load(x_ptrs + k, mask=mask_k[None, :], other=0.0)
        vt = tl.load(vt_ptrs + k, mask=mask_k[:, None] & mask_r[None, :], other=0.0)
        h = tl.dot(x, vt, h, input_precision="ieee")
    h = h.to(x_ptr.dtype.element_ty)

    for n in range(first_n, tl.minimum(first_n + n_per_program, N), BLOCK_N):
        offs_n = n + tl.arange(0, BLOCK_N)
        ut = tl.load(
            u_ptr + offs_r[:, None] + offs_n[None, :] * RANK,
            mask=mask_r[:, None] & (offs_n < N)[None, :],
            other=0.0,
        )
        store_output(
            tl.dot(h, ut, input_precision="ieee"),
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


def default_config(m: int, rank: int, dtype: torch.dtype) -> TileConfig:
    """Tiles that fit the shared memory of sm_80, sm_90, sm_100 and gfx942 without spilling."""
    if dtype == torch.float32:  # no tensor cores: the tiles live in registers
        block_m, block_n = (32, 64) if rank <= 128 else (16, 32)
        return TileConfig(block_m, block_n, BLOCK_K=32, num_warps=4, num_stages=2)
    if rank > 128:
        return TileConfig(BLOCK_M=64, BLOCK_N=64, BLOCK_K=64, num_warps=8, num_stages=2)
    block_m = min(64, max(16, 1 << (m - 1).bit_length()))  # next power of two
    return TileConfig(block_m, BLOCK_N=64, BLOCK_K=64, num_warps=4, num_stages=3)


def low_rank_linear_fwd(
    x: torch.Tensor,
    u: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None = None,
    activation: str = "none",
    config: TileConfig | None = None,
) -> torch.Tensor:
    """``activation(x @ v.T @ u.T + bias) + residual``, the inner product rounded to x's dtype.

    Operands are checked by the caller: one device, one dtype (fp16, bf16 or fp32), contiguous in
    the last dimension.

    Args:
        x: (M, K), any row stride.
        u: (N, R), contiguous, 1 <= R <= MAX_RANK.
        v: (R, K), contiguous.
        bias: (N,) or None.
        residual: (M, N), any row stride, or None; added after the activation.
        activation: a name known to `activations.activate`.
        config: tiles; `default_config` if None.

    Returns:
        (M, N), contiguous, in x's dtype.
    """
    (m, k), (n, rank) = x.shape, u.shape
    y = x.new_empty(m, n)
    if m == 0:
        return y
    config = config or default_config(m, rank, x.dtype)
    row_tiles = triton.cdiv(m, config.BLOCK_M)
    n_tiles = triton.cdiv(n, config.BLOCK_N)
    splits = min(n_tiles, triton.cdiv(_MIN_PROGRAMS, row_tiles))
    n_per_program = triton.cdiv(n_tiles, splits) * config.BLOCK_N
    constants: dict[str, Any] = {
        "RANK": rank,
        "BLOCK_R": max(16, triton.next_power_of_2(rank)),
        "HAS_BIAS": bias is not None,
        "HAS_RESIDUAL": residual is not None,
        "ACTIVATION": activation,
    }
    _low_rank_linear_fwd_kernel[(row_tiles * triton.cdiv(n, n_per_program),)](
        x,
        u,
        v,
        bias,
        residual,
        y,
        m,
        n,
        k,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        y.stride(0),
        n_per_program,
        **constants,
        **config.kwargs(),
    )
    return y
