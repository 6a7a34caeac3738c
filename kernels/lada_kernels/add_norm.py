"""Epilogue of a product that another kernel wrote: ``y = LN(act(x + bias) + residual)``.

One launch reads and writes each element once. A program that normalises holds whole rows; without a
norm, rows are cut into tiles.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from .dependent_launch import wait_for_predecessor
from .epilogue import Epilogue, apply_epilogue, merge_moments, normalize, store_tile
from .programs import cdiv, next_power_of_2
from .variants import EpilogueKind, pdl_kwargs

_TILE = 1024  # elements: 16 bytes of a 16-bit dtype for each thread of four warps


@triton.jit
def _add_norm_kernel(
    x_ptr,  # (M, N)
    bias_ptr,  # (N,)
    residual_ptr,  # (M, N)
    norm_weight_ptr,  # (N,)
    norm_bias_ptr,  # (N,)
    y_ptr,  # (M, N)
    M,
    N,
    stride_xm,
    stride_rm,
    stride_ym,
    eps,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_NORM: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,  # N or more, if HAS_NORM
    PDL: tl.constexpr,
):
    n_tiles = tl.cdiv(N, BLOCK_N)
    offs_m = (tl.program_id(0) // n_tiles).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(0) % n_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (offs_m < M)[:, None] & (offs_n < N)[None, :]
    wait_for_predecessor(PDL)
    x = tl.load(x_ptr + offs_m[:, None] * stride_xm + offs_n[None, :], mask=mask, other=0.0)
    y = apply_epilogue(
        *(x.to(tl.float32), bias_ptr, residual_ptr, offs_m, offs_n, M, N, stride_rm),
        *(HAS_BIAS, HAS_RESIDUAL, ACTIVATION),
    )
    if HAS_NORM:
        zero = tl.zeros((BLOCK_M,), dtype=tl.float32)
        mean, m2 = merge_moments(y, 0, N, zero, zero)
        rstd = tl.rsqrt(m2 / N + eps)
        y = normalize(y, mean, rstd, norm_weight_ptr, norm_bias_ptr, offs_n, N)
    store_tile(y, y_ptr, offs_m, offs_n, M, N, stride_ym)


def add_norm_fwd(x: torch.Tensor, epilogue: Epilogue, pdl: bool = False) -> torch.Tensor:
    """``LN(act(x + bias) + residual)``, in fp32 inside; x itself if the epilogue is empty.

    Operands are checked by the caller: one device, one dtype (fp16, bf16 or fp32), contiguous in
    the last dimension.

    Args:
        x: (M, N), any row stride; N up to 2^20 if there is a norm.
        epilogue: its gelu is erf's in any dtype, which costs less than the memory traffic.
        pdl: launch programmatically dependent, see `dependent_launch`.

    Returns:
        (M, N), contiguous, in x's dtype.
    """
    if epilogue.kind == EpilogueKind.PLAIN and epilogue.bias is None:
        return x
    m, n = x.shape
    y = x.new_empty(m, n)
    if y.numel() == 0:
        return y
    width = next_power_of_2(n)
    block_n = width if epilogue.norm is not None else min(width, _TILE)
    block_m = max(1, _TILE // block_n)
    tiles: dict[str, Any] = {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "num_warps": min(16, max(4, 4 * block_n // _TILE)),
    }
    _add_norm_kernel[(cdiv(m, block_m) * cdiv(n, block_n),)](
        x_ptr=x,
        y_ptr=y,
        M=m,
        N=n,
        stride_xm=x.stride(0),
        stride_ym=y.stride(0),
        **tiles,
        **epilogue._replace(exact_gelu=True).row_arguments(x.dtype),
        **pdl_kwargs(pdl),
    )
    return y


def dense_fwd(x: torch.Tensor, weight: torch.Tensor, epilogue: Epilogue) -> torch.Tensor:
    """``LN(act(x @ weight.T + bias) + residual)``: product and bias by torch, then one launch."""
    return add_norm_fwd(F.linear(x, weight, epilogue.bias), epilogue.after_bias)
