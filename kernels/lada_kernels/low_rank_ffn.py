"""Low-rank feed-forward: ``y = LN(act(x @ v1.T @ u1.T + bias1) @ v2.T @ u2.T + bias2 + residual)``.

The intermediate features, F of them, are never written: a program reduces BLOCK_M rows of x to R1
columns, computes a tile of the intermediate from them, and reduces it to R2 columns before the
next. With few rows, F is split over programs (split K), which repeat the cheap first product and
write partial sums; a second launch adds them up, always in the same order.
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl

from .activations import kernel_activation
from .add_norm import dense_fwd
from .dependent_launch import wait_for_predecessor
from .epilogue import Epilogue, store_tile
from .low_rank_linear import low_rank_linear_fwd
from .low_rank_tiles import rank_arguments, sweep, times_ffn
from .programs import MIN_PROGRAMS, cdiv
from .tuning import fastest
from .variants import EpilogueKind, TileConfig, Variant, VariantName, pdl_kwargs
from .weight_names import ffn_name, token_bucket

MAX_RANK = 128
"""Largest rank of ONE_LAUNCH and SPLIT_K: beyond, the tiles leave the registers."""

_MAX_SPLITS = 16  # beyond, the first product that each repeats outweighs its share of F
# tiles of few rows, since SPLIT_K is for few rows
_SUM_TILES: dict[str, Any] = {"BLOCK_M": 16, "BLOCK_N": 64, "num_warps": 4, "num_stages": 2}


@triton.jit
def _low_rank_ffn_fwd_kernel(
    x_ptr,  # (M, K)
    u1_ptr,  # (F, R1)
    v1_ptr,  # (R1, K)
    bias1_ptr,  # (F,)
    v2_ptr,  # (R2, F)
    u2_ptr,  # (N, R2)
    bias_ptr,  # (N,)
    residual_ptr,  # (M, N)
    norm_weight_ptr,  # (N,)
    norm_bias_ptr,  # (N,)
    y_ptr,  # (M, N), or for SPLIT_K the partial sums: (splits * M, R2A + R2B) fp32
    M,
    N,
    F,
    K,
    stride_xm,
    stride_rm,
    stride_ym,
    f_per_program,
    eps,
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
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_NORM: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SPLIT_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    # programs that share rows of x are neighbours, to meet in L2
    splits = tl.cdiv(F, f_per_program)
    first_f = tl.program_id(0) % splits * f_per_program
    end_f = tl.minimum(first_f + f_per_program, F)
    offs_m = (tl.program_id(0) // splits).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    wait_for_predecessor(PDL)
    s1, s2 = times_ffn(
        *(x_ptr, u1_ptr, v1_ptr, bias1_ptr, v2_ptr, offs_m, first_f, end_f, M, F, K, stride_xm),
        *(R1, R1A, R1B, R2, R2A, R2B, EVEN_K, EVEN_F, HAS_BIAS1, ACTIVATION1),
        *(BLOCK_M, BLOCK_N, BLOCK_K),
    )
    if SPLIT_K:
        y_ptr += (tl.program_id(0) % splits).to(tl.int64) * M * stride_ym
        store_tile(s1, y_ptr, offs_m, tl.arange(0, R2A), M, R2A, stride_ym)
        if R2B > 0:
            store_tile(s2, y_ptr + R2A, offs_m, tl.arange(0, R2B), M, R2B, stride_ym)
    else:
        s1 = s1.to(u2_ptr.dtype.element_ty)
        s2 = s2.to(u2_ptr.dtype.element_ty)
        sweep(
            *(s1, s2, u2_ptr, bias_ptr, residual_ptr, norm_weight_ptr, norm_bias_ptr, y_ptr),
            *(offs_m, 0, N, M, N, stride_rm, stride_ym, eps, R2, R2A, R2B),
            *(HAS_BIAS, HAS_RESIDUAL, HAS_NORM, ACTIVATION, BLOCK_M, BLOCK_N),
        )


@triton.jit
def _low_rank_ffn_sum_kernel(
    partial_ptr,  # (splits * M, R2A + R2B) fp32
    u2_ptr,  # (N, R2)
    bias_ptr,  # (N,)
    residual_ptr,  # (M, N)
    norm_weight_ptr,  # (N,)
    norm_bias_ptr,  # (N,)
    y_ptr,  # (M, N)
    M,
    N,
    splits,
    stride_rm,
    stride_ym,
    eps,
    R2: tl.constexpr,
    R2A: tl.constexpr,
    R2B: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_NORM: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
):
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    WIDTH: tl.constexpr = R2A + R2B
    rows = partial_ptr + tl.minimum(offs_m, M - 1)[:, None] * WIDTH
    s1 = tl.zeros((BLOCK_M, R2A), dtype=tl.float32)
    s2 = s1
    if R2B > 0:
        s2 = tl.zeros((BLOCK_M, R2B), dtype=tl.float32)
    wait_for_predecessor(PDL)
    # unrolled, so that the loads do not wait for each other
    for _ in tl.range(0, splits, loop_unroll_factor=6):
        s1 += tl.load(rows + tl.arange(0, R2A)[None, :])
        if R2B > 0:
            s2 += tl.load(rows + R2A + tl.arange(0, R2B)[None, :])
        rows += tl.cast(M, tl.int64) * WIDTH
    s1 = s1.to(u2_ptr.dtype.element_ty)
    s2 = s2.to(u2_ptr.dtype.element_ty)
    sweep(
        *(s1, s2, u2_ptr, bias_ptr, residual_ptr, norm_weight_ptr, norm_bias_ptr, y_ptr),
        *(offs_m, 0, N, M, N, stride_rm, stride_ym, eps, R2, R2A, R2B),
        *(HAS_BIAS, HAS_RESIDUAL, HAS_NORM, ACTIVATION, BLOCK_M, BLOCK_N),
    )


def default_tiles(m: int, dtype: torch.dtype) -> TileConfig:
    """Tiles for `m` rows that fit every supported target; in 16-bit dtypes nothing spills.

    BLOCK_N is the width of the tiles of F as well as of y.
    """
    if dtype == torch.float32:  # no tensor cores: the tiles live in registers
        return TileConfig(BLOCK_M=16, BLOCK_N=32, BLOCK_K=32, num_warps=4, num_stages=2)
    if m <= 32:
        return TileConfig(BLOCK_M=16, BLOCK_N=64, BLOCK_K=64, num_warps=4, num_stages=3)
    return TileConfig(BLOCK_M=64, BLOCK_N=64, BLOCK_K=64, num_warps=4, num_stages=2)


@functools.lru_cache(maxsize=4096)
def choose(
    m: int,
    n: int,
    f: int,
    k: int,
    rank1: int,
    rank2: int,
    dtype: torch.dtype,
    epilogue: str,
    dense: bool,
    device_index: int,
) -> Variant:
    """The fastest variant by the tuned tables, or else by rule.

    dense: True if the caller keeps the dense weights. epilogue: an `EpilogueKind`, which counts the
    activation between the products.
    """
    one_launch, split_k = VariantName.ONE_LAUNCH, VariantName.SPLIT_K
    two_launches = max(rank1, rank2) > MAX_RANK or dtype == torch.float32
    allowed = VariantName.TWO_LAUNCHES, *(() if two_launches else (one_launch, split_k))
    allowed = *allowed, *((VariantName.DENSE,) if dense else ())
    weight = ffn_name(rank1, f, rank2)
    variant = fastest("low_rank_ffn", dtype, k, n, weight, epilogue, m, device_index, allowed)
    if variant is not None:
        return variant
    if dense and m <= 256:  # fewer products that wait for each other, however small these are
        return Variant(VariantName.DENSE)
    if two_launches:  # fp32 has no tensor cores to keep busy
        return Variant(VariantName.TWO_LAUNCHES)
    return Variant(split_k if m < 2048 else one_launch)


def low_rank_ffn_fwd(
    x: torch.Tensor,
    u1: torch.Tensor,
    v1: torch.Tensor,
    u2: torch.Tensor,
    v2: torch.Tensor,
    epilogue1: Epilogue,
    epilogue2: Epilogue,
    dense: tuple[torch.Tensor, torch.Tensor] | None = None,
    variant: Variant | None = None,
) -> torch.Tensor:
    """``LN(act(x v1.T u1.T + bias1) v2.T u2.T + bias2 + residual)``, without a dense weight.

    The output of each product is rounded to x's dtype. Operands are checked by the caller: one
    device, one dtype (fp16, bf16 or fp32), contiguous in the last dimension.

    Args:
        x: (M, K), any row stride.
        u1, v1: (F, R1) and (R1, K), contiguous.
        u2, v2: (N, R2) and (R2, F), contiguous.
        epilogue1: bias1 (F,) and activation between the products.
        epilogue2: bias2 (N,), residual and norm of the output.
        dense: u1 @ v1 (F, K) and u2 @ v2 (N, F), if the caller keeps them; else None.
        variant: ONE_LAUNCH or SPLIT_K (R1 and R2 <= MAX_RANK), TWO_LAUNCHES or DENSE; chosen by
            `choose` if None.

    Returns:
        (M, N), contiguous, in x's dtype.
    """
    (m, k), (f, rank1), (n, rank2) = x.shape, u1.shape, u2.shape
    if m == 0 or n == 0:
        return x.new_empty(m, n)
    if variant is None:
        residual, norm = epilogue2.residual is not None, epilogue2.norm is not None
        kind = EpilogueKind.of(epilogue1.activation, residual, norm)
        size, has_dense = (token_bucket(m), n, f, k, rank1, rank2), dense is not None
        variant = choose(*size, x.dtype, kind, has_dense, x.get_device())
    if variant.name == VariantName.DENSE:
        assert dense is not None, "variant 'dense' needs the dense weights"
        return dense_fwd(dense_fwd(x, dense[0], epilogue1), dense[1], epilogue2)
    if variant.name == VariantName.TWO_LAUNCHES:
        dense1, dense2 = dense or (None, None)
        h = low_rank_linear_fwd(x, u1, v1, epilogue1, dense=dense1)
        return low_rank_linear_fwd(h, u2, v2, epilogue2, dense=dense2)

    tiles = variant.tiles or default_tiles(m, x.dtype)
    row_tiles, f_tiles = cdiv(m, tiles.BLOCK_M), cdiv(f, tiles.BLOCK_N)
    programs = MIN_PROGRAMS if variant.name == VariantName.SPLIT_K else 1
    splits = max(1, min(f_tiles, _MAX_SPLITS, programs // row_tiles))
    f_per_program = cdiv(f_tiles, splits) * tiles.BLOCK_N
    splits = cdiv(f, f_per_program)
    expand: dict[str, Any] = {  # the second product's expansion to N columns, in either kernel
        "u2_ptr": u2,
        **rank_arguments(rank2, ("R2", "R2A", "R2B")),
        **epilogue2.row_arguments(x.dtype),
    }
    constants: dict[str, Any] = {
        "EVEN_K": k % tiles.BLOCK_K == 0,
        "EVEN_F": f % tiles.BLOCK_N == 0,
        "HAS_BIAS1": epilogue1.bias is not None,
        "ACTIVATION1": kernel_activation(epilogue1.activation, x.dtype, epilogue1.exact_gelu),
        "SPLIT_K": splits > 1,
    }
    y = x.new_empty(m, n)
    out = y
    if splits > 1:
        out = x.new_empty(splits * m, expand["R2A"] + expand["R2B"], dtype=torch.float32)
    _low_rank_ffn_fwd_kernel[(row_tiles * splits,)](
        x_ptr=x,
        u1_ptr=u1,
        v1_ptr=v1,
        bias1_ptr=epilogue1.bias,
        v2_ptr=v2,
        y_ptr=out,
        M=m,
        N=n,
        F=f,
        K=k,
        stride_xm=x.stride(0),
        stride_ym=out.stride(0),
        f_per_program=f_per_program,
        **constants,
        **rank_arguments(rank1, ("R1", "R1A", "R1B")),
        **expand,
        **tiles.kwargs(),
    )
    if splits > 1:
        _low_rank_ffn_sum_kernel[(cdiv(m, _SUM_TILES["BLOCK_M"]),)](
            partial_ptr=out,
            y_ptr=y,
            M=m,
            N=n,
            splits=splits,
            stride_ym=y.stride(0),
            **expand,
            **_SUM_TILES,
            **pdl_kwargs(tiles.pdl),
        )
    return y
