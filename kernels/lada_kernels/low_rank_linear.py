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

from .activations import kernel_activation
from .add_norm import add_norm_fwd
from .dependent_launch import wait_for_predecessor
from .epilogue import Norm, epilogue_kind
from .linear import linear_fwd
from .low_rank_tiles import split_rank, sweep, times_vt
from .tuning import TileConfig, Way, fastest
from .weight_names import low_rank_name, token_bucket

MAX_RANK = 256
"""Largest rank whose (BLOCK_M, RANK) tile fits in registers."""

_MIN_PROGRAMS = 256  # about two per multiprocessor of a large GPU


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
    block_m = min(64, max(16, 1 << max(rows - 1, 0).bit_length()))  # next power of two
    return TileConfig(block_m, BLOCK_N=64, BLOCK_K=64, num_warps=4, num_stages=3)


def columns_per_program(n: int, block_n: int, row_tiles: int) -> int:
    """How many of n columns a program sweeps, whole tiles, so that there are enough programs."""
    n_tiles = -(-n // block_n)
    splits = min(n_tiles, -(-_MIN_PROGRAMS // row_tiles))
    return -(-n_tiles // splits) * block_n


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
) -> Way:
    """The fastest way by the tuned tables, or else by rule; "dense" only if the caller has it."""
    fits = rank <= MAX_RANK and (groups == 1 or epilogue != "norm")
    ways = "two_launches", *(["one_launch"] if fits else []), *(["dense"] if dense else [])
    name = low_rank_name(rank, groups)
    way = fastest("low_rank_linear", dtype, k, n, name, epilogue, m, device_index, ways)
    if way is not None:
        return way
    if dense and m <= 256:  # two dependent products cost more than one, however small
        return Way("dense")
    # one launch reads u and v once per row tile; and fp32 has no tensor cores to keep busy
    cheap = rank <= 128 and (epilogue != "plain" or m * rank < 2**20)
    return Way("one_launch" if fits and cheap and dtype != torch.float32 else "two_launches")


def low_rank_linear_fwd(
    x: torch.Tensor,
    u: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None = None,
    activation: str = "none",
    norm: Norm | None = None,
    groups: int = 1,
    exact: bool = False,
    dense: torch.Tensor | None = None,
    way: Way | None = None,
) -> torch.Tensor:
    """``LN(activation(x @ v.T @ u.T + bias) + residual)``, x @ v.T rounded to x's dtype.

    Operands are checked by the caller: one device, one dtype (fp16, bf16 or fp32), contiguous in
    the last dimension.

    Args:
        x: (M, K), any row stride.
        u: (N, R), contiguous; its rows are `groups` equal runs.
        v: (groups * R, K), contiguous; run g of u is multiplied by run g of v.
        bias: (N,) or None.
        residual: (M, N), any row stride, or None; added after the activation.
        activation: a name known to `activations.activate`.
        norm: LayerNorm's weight (N,), bias (N,) and eps, or None; over all N, whatever the groups.
        groups: how many low-rank pairs share x, such as 3 for query, key and value.
        exact: gelu by erf in 16-bit dtypes too, see `activations.kernel_activation`.
        dense: the weight (N, K), multiplied out, if the caller keeps it; else None.
        way: "one_launch" (R <= MAX_RANK, and groups = 1 if there is a norm), "two_launches" or
            "dense"; chosen by `choose` if None.

    Returns:
        (M, N), contiguous, in x's dtype.
    """
    (m, k), (n, rank) = x.shape, u.shape
    kind = epilogue_kind(activation, residual, norm)
    if m == 0 or n == 0:
        return x.new_empty(m, n)
    if way is None:
        tokens, kept = token_bucket(m), dense is not None
        way = choose(tokens, n, k, rank, groups, x.dtype, kind, kept, x.get_device())
    if way.name == "dense":
        assert dense is not None, "way 'dense' needs the dense weight"
        return add_norm_fwd(F.linear(x, dense, bias), activation, residual, norm)
    if way.name == "two_launches":
        t = F.linear(x, v)
        if groups == 1 and (kind == "plain" or x.dtype == torch.float32):
            return add_norm_fwd(F.linear(t, u, bias), activation, residual, norm)
        y = linear_fwd(t, u, bias, residual, activation, groups, exact, way.tiles)
        return add_norm_fwd(y, "none", None, norm, way.pdl)
    return _one_launch(x, u, v, bias, residual, activation, norm, groups, exact, way.tiles)


def _one_launch(x, u, v, bias, residual, activation, norm, groups, exact, tiles):
    (m, k), (n, rank) = x.shape, u.shape
    y = x.new_empty(m, n)
    tiles = tiles or default_tiles(m, rank, x.dtype, norm is not None)
    row_tiles = -(-m // tiles.BLOCK_M)
    n_per_program = n
    if norm is None:
        n_per_program = columns_per_program(n // groups, tiles.BLOCK_N, row_tiles * groups)
    rank1, rank2 = split_rank(rank)
    norm_weight, norm_bias, eps = (None, None, 0.0) if norm is None else norm
    constants: dict[str, Any] = {
        "RANK": rank,
        "RANK1": rank1,
        "RANK2": rank2,
        "GROUPS": groups,
        "EVEN_K": k % tiles.BLOCK_K == 0,
        "HAS_BIAS": bias is not None,
        "HAS_RESIDUAL": residual is not None,
        "HAS_NORM": norm is not None,
        "ACTIVATION": kernel_activation(activation, x.dtype, exact),
    }
    n_programs = row_tiles * groups * triton.cdiv(n // groups, n_per_program)
    _low_rank_linear_fwd_kernel[(n_programs,)](
        x,
        u,
        v,
        bias,
        residual,
        norm_weight,
        norm_bias,
        y,
        m,
        n,
        k,
        n // groups,
        n_per_program,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        y.stride(0),
        eps,
        **constants,
        **tiles.kwargs(),
    )
    return y
