"""Low-rank linear: ``y = LN(act(x @ v.T @ u.T + bias) + residual)`` in one launch.

Each program reduces BLOCK_M rows of x over K into a (BLOCK_M, RANK) tile h that never leaves the
chip, then sweeps its share of N with it. With few rows, N is split over programs, which repeat the
cheap first product rather than leave the device idle.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from .add_norm import add_norm_fwd, dense_fwd
from .dependent_launch import wait_for_predecessor
from .epilogue import Epilogue
from .linear import linear_fwd
from .low_rank_tiles import rank_arguments, sweep, times_vt
from .programs import cdiv, columns_per_program, next_power_of_2
from .tuning import fastest
from .variants import EpilogueKind, TileConfig, Variant, VariantName
from .weight_names import low_rank_name, token_bucket

MAX_RANK = 256
"""Largest rank whose (BLOCK_M, RANK) tile fits in registers."""


@triton.jit
def _low_rank_linear_fwd_kernel(
    x_ptr,  # (M, K)
    u_ptr,  # (N, RANK)
    v_ptr,  # (GROUPS * RANK, K)
    bias_ptr,  # (N,)
    residual_ptr,  # (M, N)
    norm_weight_ptr,  # (N,)
    norm_bias_ptr,  # (N,)
    y_ptr,  # (M, N)
    M,
    N,
    K,
    n_group,
    n_per_program,
    stride_xm,
    stride_rm,
    stride_ym,
    eps,
    RANK: tl.constexpr,
    RANK1: tl.constexpr,
    RANK2: tl.constexpr,
    GROUPS: tl.constexpr,
    EVEN_K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_NORM: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    # programs that share rows of x are neighbours, to meet in L2; the columns of one lie in a group
    splits = tl.cdiv(n_group, n_per_program)
    pid_n = tl.program_id(0) % (splits * GROUPS)
    group = pid_n // splits
    first_n = group * n_group + pid_n % splits * n_per_program
    end_n = tl.minimum(first_n + n_per_program, (group + 1) * n_group)
    offs_m = (tl.program_id(0) // (splits * GROUPS)).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)

    v_ptr += group * RANK * K
    wait_for_predecessor(PDL)
    h1, h2 = times_vt(
        x_ptr, v_ptr, offs_m, M, K, stride_xm, RANK, RANK1, RANK2, BLOCK_M, BLOCK_K, EVEN_K
    )

    sweep(
        *(h1, h2, u_ptr, bias_ptr, residual_ptr, norm_weight_ptr, norm_bias_ptr, y_ptr),
        *(offs_m, first_n, end_n, M, N, stride_rm, stride_ym, eps, RANK, RANK1, RANK2),
        *(HAS_BIAS, HAS_RESIDUAL, HAS_NORM, ACTIVATION, BLOCK_M, BLOCK_N),
    )


def default_tiles(m: int, rank: int, dtype: torch.dtype, norm: bool = False) -> TileConfig:
    """Tiles for `m` rows that fit every supported target without spilling."""
    if dtype == torch.float32:  # no tensor cores: the tiles live in registers
        block_m, block_n = (32, 64) if rank <= 128 else (16, 32)
        return TileConfig(block_m, block_n, BLOCK_K=32, num_warps=4, num_stages=2)
    if rank > 128:
        return TileConfig(BLOCK_M=64, BLOCK_N=64, BLOCK_K=64, num_warps=8, num_stages=2)
    if m >= 16384 and rank > 64:  # higher tiles, so that u and v are read less often from L2
        return TileConfig(BLOCK_M=128, BLOCK_N=64, BLOCK_K=64, num_warps=8, num_stages=3)
    # a program that normalises owns whole rows: the tiles are low rather than the device idle
    rows = m // 128 if norm else m
    block_m = min(64, max(16, next_power_of_2(rows)))
    return TileConfig(block_m, BLOCK_N=64, BLOCK_K=64, num_warps=4, num_stages=3)


@functools.lru_cache(maxsize=4096)
def choose(
    m: int,
    n: int,
    k: int,
    rank: int,
    groups: int,
    dtype: torch.dtype,
    epilogue: str,
    dense: bool,
    device_index: int,
) -> Variant:
    """The fastest variant by the tuned tables, or else by rule.

    dense: True if the caller keeps the dense weight. epilogue: an `EpilogueKind`.
    """
    one_launch, two_launches = VariantName.ONE_LAUNCH, VariantName.TWO_LAUNCHES
    fits = rank <= MAX_RANK and (groups == 1 or epilogue != EpilogueKind.NORM)
    allowed = two_launches, *([one_launch] if fits else []), *([VariantName.DENSE] if dense else [])
    name = low_rank_name(rank, groups)
    variant = fastest("low_rank_linear", dtype, k, n, name, epilogue, m, device_index, allowed)
    if variant is not None:
        return variant
    if dense and m <= 256:  # two dependent products cost more than one, however small
        return Variant(VariantName.DENSE)
    # one launch reads u and v once per row tile; and fp32 has no tensor cores to keep busy
    cheap = rank <= 128 and (epilogue != EpilogueKind.PLAIN or m * rank < 2**20)
    return Variant(one_launch if fits and cheap and dtype != torch.float32 else two_launches)


def low_rank_linear_fwd(
    x: torch.Tensor,
    u: torch.Tensor,
    v: torch.Tensor,
    epilogue: Epilogue,
    groups: int = 1,
    dense: torch.Tensor | None = None,
    variant: Variant | None = None,
) -> torch.Tensor:
    """``LN(act(x @ v.T @ u.T + bias) + residual)``, x @ v.T rounded to x's dtype.

    Operands are checked by the caller: one device, one dtype (fp16, bf16 or fp32), contiguous in
    the last dimension.

    Args:
        x: (M, K), any row stride.
        u: (N, R), contiguous, in groups of N / groups rows.
        v: (groups * R, K), contiguous; group g of u is multiplied by group g of v.
        epilogue: its norm is over all N, whatever the groups.
        groups: low-rank pairs that share x, such as 3 for query, key and value.
        dense: the weight (N, K), multiplied out, if the caller keeps it; else None.
        variant: ONE_LAUNCH (R <= MAX_RANK, and groups = 1 if there is a norm), TWO_LAUNCHES or
            DENSE; chosen by `choose` if None.

    Returns:
        (M, N), contiguous, in x's dtype.
    """
    (m, k), (n, rank) = x.shape, u.shape
    if m == 0 or n == 0:
        return x.new_empty(m, n)
    if variant is None:
        size, has_dense = (token_bucket(m), n, k, rank, groups), dense is not None
        variant = choose(*size, x.dtype, epilogue.kind, has_dense, x.get_device())
    if variant.name == VariantName.DENSE:
        assert dense is not None, "variant 'dense' needs the dense weight"
        return dense_fwd(x, dense, epilogue)
    if variant.name == VariantName.ONE_LAUNCH:
        return _one_launch(x, u, v, epilogue, groups, variant.tiles)
    t = F.linear(x, v)
    if groups == 1 and (epilogue.kind == EpilogueKind.PLAIN or x.dtype == torch.float32):
        return dense_fwd(t, u, epilogue)
    y = linear_fwd(t, u, epilogue, groups, variant.tiles)
    return add_norm_fwd(y, epilogue.norm_only, variant.pdl)


def _one_launch(
    x: torch.Tensor,
    u: torch.Tensor,
    v: torch.Tensor,
    epilogue: Epilogue,
    groups: int,
    tiles: TileConfig | None,
) -> torch.Tensor:
    (m, k), (n, rank) = x.shape, u.shape
    y = x.new_empty(m, n)
    has_norm = epilogue.norm is not None
    tiles = tiles or default_tiles(m, rank, x.dtype, has_norm)
    row_tiles, n_per_program = cdiv(m, tiles.BLOCK_M), n
    if not has_norm:
        n_per_program = columns_per_program(n // groups, tiles.BLOCK_N, row_tiles * groups)
    programs = row_tiles * groups * cdiv(n // groups, n_per_program)
    constants: dict[str, Any] = {"GROUPS": groups, "EVEN_K": k % tiles.BLOCK_K == 0}
    _low_rank_linear_fwd_kernel[(programs,)](
        x_ptr=x,
        u_ptr=u,
        v_ptr=v,
        y_ptr=y,
        M=m,
        N=n,
        K=k,
        n_group=n // groups,
        n_per_program=n_per_program,
        stride_xm=x.stride(0),
        stride_ym=y.stride(0),
        **constants,
        **rank_arguments(rank),
        **epilogue.row_arguments(x.dtype),
        **tiles.kwargs(),
    )
    return y
