"""Linear: ``y = act(x @ w.T + bias) + residual``, for epilogues that cuBLAS lacks.

With groups, each block of columns of y is the product of its own block of columns of x, as in the
second product of several low-rank pairs.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from .dependent_launch import wait_for_predecessor
from .epilogue import Epilogue, apply_epilogue, store_tile
from .programs import cdiv, next_power_of_2
from .variants import TileConfig


@triton.jit
def accumulate_product(
    acc,  # (BLOCK_M, BLOCK_N) fp32
    x_ptr,  # (M, K)
    w_ptr,  # (N, K)
    offs_m,
    offs_n,
    M,
    N,
    K,
    stride_xm,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """``acc + x[offs_m] @ w[offs_n].T``; EVEN_K promises that BLOCK_K divides K."""
    offs_k = tl.arange(0, BLOCK_K)
    # rows past the end repeat the last one: cheaper than a mask in the loop, and never stored
    x_ptrs = x_ptr + tl.minimum(offs_m, M - 1)[:, None] * stride_xm + offs_k[None, :]
    wt_ptrs = w_ptr + tl.minimum(offs_n, N - 1)[None, :] * K + offs_k[:, None]
    for k in range(0, K, BLOCK_K):
        if EVEN_K:
            x = tl.load(x_ptrs + k)
            wt = tl.load(wt_ptrs + k)
        else:
            mask_k = offs_k < K - k
            x = tl.load(x_ptrs + k, mask=mask_k[None, :], other=0.0)
            wt = tl.load(wt_ptrs + k, mask=mask_k[:, None], other=0.0)
        acc = tl.dot(x, wt, acc, input_precision="ieee")
    return acc


@triton.jit
def _linear_fwd_kernel(
    x_ptr,  # (M, GROUPS * K)
    w_ptr,  # (N, K), N = GROUPS * n_group
    bias_ptr,  # (N,)
    residual_ptr,  # (M, N)
    y_ptr,  # (M, N)
    M,
    n_group,
    K,
    stride_xm,
    stride_rm,
    stride_ym,
    GROUPS: tl.constexpr,
    EVEN_K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    # programs that share rows of x are neighbours, to meet in L2; a tile lies in one group
    tiles = tl.cdiv(n_group, BLOCK_N)
    pid_n = tl.program_id(0) % (tiles * GROUPS)
    group = pid_n // tiles
    end_n = (group + 1) * n_group
    offs_m = (tl.program_id(0) // (tiles * GROUPS)).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = group * n_group + pid_n % tiles * BLOCK_N + tl.arange(0, BLOCK_N)

    wait_for_predecessor(PDL)
    acc = accumulate_product(
        *(tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32), x_ptr + group * K, w_ptr),
        *(offs_m, offs_n, M, end_n, K, stride_xm, BLOCK_K, EVEN_K),
    )
    y = apply_epilogue(
        *(acc, bias_ptr, residual_ptr, offs_m, offs_n, M, end_n, stride_rm),
        *(HAS_BIAS, HAS_RESIDUAL, ACTIVATION),
    )
    store_tile(y, y_ptr, offs_m, offs_n, M, end_n, stride_ym)


def default_tiles(m: int, k: int, dtype: torch.dtype) -> TileConfig:
    """Tiles for `m` rows and `k` terms that fit every supported target without spilling."""
    if dtype == torch.float32:  # no tensor cores: the tiles live in registers
        return TileConfig(BLOCK_M=32, BLOCK_N=64, BLOCK_K=32, num_warps=4, num_stages=2)
    block_m = min(128, max(16, next_power_of_2(m)))
    num_warps, num_stages = (8, 3) if block_m == 128 else (4, 3)
    return TileConfig(block_m, 128 if block_m == 128 else 64, 64, num_warps, num_stages)


def linear_fwd(
    x: torch.Tensor,
    w: torch.Tensor,
    epilogue: Epilogue,
    groups: int = 1,
    tiles: TileConfig | None = None,
) -> torch.Tensor:
    """``act(x @ w.T + bias) + residual``; the norm of the epilogue is left to the caller.

    Operands are checked by the caller: one device, one dtype (fp16, bf16 or fp32), contiguous in
    the last dimension.

    Args:
        x: (M, groups * K), any row stride.
        w: (N, K), contiguous; group g is multiplied by columns g * K to (g + 1) * K of x.
        tiles: `default_tiles` if None.

    Returns:
        (M, N), contiguous, in x's dtype.
    """
    m, (n, k) = x.shape[0], w.shape
    y = x.new_empty(m, n)
    if y.numel() == 0:
        return y
    tiles = tiles or default_tiles(m, k, x.dtype)
    constants: dict[str, Any] = {"GROUPS": groups, "EVEN_K": k % tiles.BLOCK_K == 0}
    n_tiles = groups * cdiv(n // groups, tiles.BLOCK_N)
    _linear_fwd_kernel[(cdiv(m, tiles.BLOCK_M) * n_tiles,)](
        x_ptr=x,
        w_ptr=w,
        y_ptr=y,
        M=m,
        n_group=n // groups,
        K=k,
        stride_xm=x.stride(0),
        stride_ym=y.stride(0),
        **constants,
        **epilogue.tile_arguments(x.dtype),
        **tiles.kwargs(),
    )
    return y
