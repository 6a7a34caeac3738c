"""What follows a product that another kernel wrote: ``y = LN(act(x) + residual)`` in one launch.

Each element is read once and written once. A program that normalises holds whole rows; without a
norm, rows are cut into tiles.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from .dependent_launch import wait_for_predecessor
from .epilogue import Norm, epilogue, epilogue_kind, merge_moments, normalize, store_tile
from .table import pdl_kwargs

_TILE = 1024  # elements: 16 bytes of 16-bit ones for each thread of four warps


@triton.jit
def _add_norm_kernel(
    x_ptr,  # (M, N)
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
    y = epilogue(
        *(x.to(tl.float32), None, residual_ptr, offs_m, offs_n, M, N, stride_rm),
        *(False, HAS_RESIDUAL, ACTIVATION),
    )
    if HAS_NORM:
        zero = tl.zeros((BLOCK_M,), dtype=tl.float32)
        mean, m2 = merge_moments(y, 0, N, zero, zero)
        rstd = tl.rsqrt(m2 / N + eps)
        y = normalize(y, mean, rstd, norm_weight_ptr, norm_bias_ptr, offs_n, N)
    store_tile(y, y_ptr, offs_m, offs_n, M, N, stride_ym)


def add_norm_fwd(
    x: torch.Tensor,
    activation: str,
    residual: torch.Tensor | None,
    norm: Norm | None,
    pdl: bool = False,
) -> torch.Tensor:
    """``LN(activation(x) + residual)``, in fp32 inside; x itself where nothing is to be done.

    Operands are checked by the caller: one device, one dtype (fp16, bf16 or fp32), contiguous in
    the last dimension.

    Args:
        x: (M, N), any row stride.
        activation: a name known to `activations.activate`; a gelu is erf's in any dtype, for it
            costs less than the memory.
        residual: (M, N), any row stride, or None; added after the activation.
        norm: LayerNorm's weight (N,), bias (N,) and eps, or None; N up to 2^20.
        pdl: whether the launch is a programmatic dependent one, see `dependent_launch`.

    Returns:
        (M, N), contiguous, in x's dtype.
    """
    if epilogue_kind(activation, residual, norm) == "plain":
        return x
    m, n = x.shape
    y = x.new_empty(m, n)
    if y.numel() == 0:
        return y
    width = 1 << (n - 1).bit_length()  # next power of two
    block_n = width if norm is not None else min(width, _TILE)
    block_m = max(1, _TILE // block_n)
    norm_weight, norm_bias, eps = (None, None, 0.0) if norm is None else norm
    constants: dict[str, Any] = {
        "HAS_RESIDUAL": residual is not None,
        "HAS_NORM": norm is not None,
        "ACTIVATION": activation,
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "num_warps": min(16, max(4, 4 * block_n // _TILE)),
    }
    _add_norm_kernel[(triton.cdiv(m, block_m) * triton.cdiv(n, block_n),)](
        *(x, residual, norm_weight, norm_bias, y, m, n, x.stride(0)),
        *(0 if residual is None else residual.stride(0), y.stride(0), eps),
        **constants,
        **pdl_kwargs(pdl),
    )
    return y
