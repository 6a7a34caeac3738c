"""Low-rank feed-forward: ``y = LN(act(x @ v1.T @ u1.T + bias1) @ v2.T @ u2.T + bias2 + residual)``.

The intermediate of width F is never written: a program reduces BLOCK_M rows of x to R1 columns,
computes F from them a tile at a time, and reduces each tile to R2 columns, all that outlives it.
With few rows, F is split over programs, which repeat the cheap first product and leave partial
sums; a second launch adds them up, always in the same order.
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl

from .activations import activate, kernel_activation
from .add_norm import add_norm_fwd
from .dependent_launch import wait_for_predecessor
from .epilogue import Norm, epilogue_kind, store_tile
from .low_rank_linear import low_rank_linear_fwd
from .low_rank_tiles import split_rank, sweep, times_ut, times_vt
from .table import pdl_kwargs
from .tuning import TileConfig, Way, fastest
from .weight_names import ffn_name, token_bucket

MAX_RANK = 128
"""Largest rank that "one_launch" and "split" take: beyond, the tiles leave the registers."""

_MIN_PROGRAMS = 256  # about two per multiprocessor of a large GPU
_MAX_SPLITS = 16  # beyond, the first product that each repeats outweighs its share of F
# low, for there are few rows
_SUM_TILES: dict[str, Any] = {"BLOCK_M": 16, "BLOCK_N": 64, "num_warps": 4, "num_stages": 2}


@triton.jit
def _load_v2t(v2_rows, offs_f, F, EVEN_F: tl.constexpr):
    if EVEN_F:
        return tl.load(v2_rows + offs_f[:, None])
    return tl.load(v2_rows + offs_f[:, None], mask=(offs_f < F)[:, None], other=0.0)


@triton.jit
def _reduce_rows(
    x_ptr,
    u1_ptr,
    v1_ptr,
    bias1_ptr,
    v2_ptr,
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
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``act(x[offs_m] v1.T u1.T + bias1) v2.T`` over first_f to end_f, fp32: R2A columns and R2B.

    Columns past R2 repeat the last one, as in `times_vt`; without R2B the second is nothing.
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
        h = activate(h, ACTIVATION).to(x_ptr.dtype.element_ty)
        s1 = tl.dot(h, _load_v2t(v2_rows1, offs_f, F, EVEN_F), s1, input_precision="ieee")
        if R2B > 0:
            s2 = tl.dot(h, _load_v2t(v2_rows2, offs_f, F, EVEN_F), s2, input_precision="ieee")
    return s1, s2


@triton.jit
def _low_rank_ffn_fwd_kernel(
    x_ptr,  # (M, K)
    u1_ptr,  # (F, R1)
    v1_ptr,  # (R1, K)
    bias1_ptr,  # (F,)
    v2_ptr,  # (R2, F)
    u2_ptr,  # (N, R2)
    bias2_ptr,  # (N,)
    residual_ptr,  # (M, N)
    norm_weight_ptr,  # (N,)
    norm_bias_ptr,  # (N,)
    y_ptr,  # (M, N), or for SPLIT the partial sums: (splits * M, R2A + R2B) fp32
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
    HAS_BIAS2: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_NORM: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SPLIT: tl.constexpr,
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
    s1, s2 = _reduce_rows(
        *(x_ptr, u1_ptr, v1_ptr, bias1_ptr, v2_ptr, offs_m, first_f, end_f, M, F, K, stride_xm),
        *(R1, R1A, R1B, R2, R2A, R2B, EVEN_K, EVEN_F, HAS_BIAS1, ACTIVATION),
        *(BLOCK_M, BLOCK_N, BLOCK_K),
    )
    if SPLIT:
        y_ptr += (tl.program_id(0) % splits).to(tl.int64) * M * stride_ym
        store_tile(s1, y_ptr, offs_m, tl.arange(0, R2A), M, R2A, stride_ym)
        if R2B > 0:
            store_tile(s2, y_ptr + R2A, offs_m, tl.arange(0, R2B), M, R2B, stride_ym)
    else:
        s1 = s1.to(u2_ptr.dtype.element_ty)
        s2 = s2.to(u2_ptr.dtype.element_ty)
        sweep(
            *(s1, s2, u2_ptr, bias2_ptr, residual_ptr, norm_weight_ptr, norm_bias_ptr, y_ptr),
            *(offs_m, 0, N, M, N, stride_rm, stride_ym, eps, R2, R2A, R2B),
            *(HAS_BIAS2, HAS_RESIDUAL, HAS_NORM, "none", BLOCK_M, BLOCK_N),
        )


@triton.jit
def _low_rank_ffn_sum_kernel(
    partial_ptr,  # (splits * M, R2A + R2B) fp32
    u2_ptr,  # (N, R2)
    bias2_ptr,  # (N,)
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
    HAS_BIAS2: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_NORM: tl.constexpr,
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
        *(s1, s2, u2_ptr, bias2_ptr, residual_ptr, norm_weight_ptr, norm_bias_ptr, y_ptr),
        *(offs_m, 0, N, M, N, stride_rm, stride_ym, eps, R2, R2A, R2B),
        *(HAS_BIAS2, HAS_RESIDUAL, HAS_NORM, "none", BLOCK_M, BLOCK_N),
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
) -> Way:
    """The fastest way by the tuned tables, or else by rule; "dense" only if the caller has it."""
    two_launches = max(rank1, rank2) > MAX_RANK or dtype == torch.float32
    ways = "two_launches", *(() if two_launches else ("one_launch", "split"))
    weight, allowed = ffn_name(rank1, f, rank2), (*ways, *(("dense",) if dense else ()))
    way = fastest("low_rank_ffn", dtype, k, n, weight, epilogue, m, device_index, allowed)
    if way is not None:
        return way
    if dense and m <= 256:  # fewer products that wait for each other, however small these are
        return Way("dense")
    if two_launches:  # fp32 has no tensor cores to keep busy
        return Way("two_launches")
    return Way("split" if m < 2048 else "one_launch")


def low_rank_ffn_fwd(
    x: torch.Tensor,
    u1: torch.Tensor,
    v1: torch.Tensor,
    bias1: torch.Tensor | None,
    u2: torch.Tensor,
    v2: torch.Tensor,
    bias2: torch.Tensor | None,
    residual: torch.Tensor | None = None,
    activation: str = "gelu",
    norm: Norm | None = None,
    exact: bool = False,
    dense1: torch.Tensor | None = None,
    dense2: torch.Tensor | None = None,
    way: Way | None = None,
) -> torch.Tensor:
    """``LN(activation(x v1.T u1.T + bias1) v2.T u2.T + bias2 + residual)``, no product formed.

    What comes out of each product is rounded to x's dtype. Operands are checked by the caller: one
    device, one dtype (fp16, bf16 or fp32), contiguous in the last dimension.

    Args:
        x: (M, K), any row stride.
        u1: (F, R1), contiguous.
        v1: (R1, K), contiguous.
        bias1: (F,) or None.
        u2: (N, R2), contiguous.
        v2: (R2, F), contiguous.
        bias2: (N,) or None.
        residual: (M, N), any row stride, or None.
        activation: a name known to `activations.activate`.
        norm: LayerNorm's weight (N,), bias (N,) and eps, or None.
        exact: gelu by erf in 16-bit dtypes too, see `activations.kernel_activation`.
        dense1, dense2: u1 @ v1 (F, K) and u2 @ v2 (N, F), if the caller keeps them; both or none.
        way: "one_launch" or "split" (R1 and R2 <= MAX_RANK), "two_launches" or "dense"; chosen by
            `choose` if None.

    Returns:
        (M, N), contiguous, in x's dtype.
    """
    (m, k), (f, rank1), (n, rank2) = x.shape, u1.shape, u2.shape
    if m == 0 or n == 0:
        return x.new_empty(m, n)
    if way is None:
        kind = epilogue_kind(activation, residual, norm)
        sizes, kept = (token_bucket(m), n, f, k, rank1, rank2), dense1 is not None
        way = choose(*sizes, x.dtype, kind, kept, x.get_device())
    if way.name == "dense":
        assert dense1 is not None, "way 'dense' needs the dense weights"
        assert dense2 is not None, "way 'dense' needs the dense weights"
        linear = torch.nn.functional.linear
        h = add_norm_fwd(linear(x, dense1, bias1), activation, None, None)
        return add_norm_fwd(linear(h, dense2, bias2), "none", residual, norm)
    if way.name == "two_launches":
        h = low_rank_linear_fwd(x, u1, v1, bias1, None, activation, exact=exact, dense=dense1)
        return low_rank_linear_fwd(h, u2, v2, bias2, residual, norm=norm, dense=dense2)

    tiles = way.tiles or default_tiles(m, x.dtype)
    row_tiles, f_tiles = -(-m // tiles.BLOCK_M), -(-f // tiles.BLOCK_N)
    programs = _MIN_PROGRAMS if way.name == "split" else 1
    splits = max(1, min(f_tiles, _MAX_SPLITS, programs // row_tiles))
    f_per_program = -(-f_tiles // splits) * tiles.BLOCK_N
    splits = -(-f // f_per_program)
    (r1a, r1b), (r2a, r2b) = split_rank(rank1), split_rank(rank2)
    norm_weight, norm_bias, eps = (None, None, 0.0) if norm is None else norm
    stride_rm = 0 if residual is None else residual.stride(0)
    first: dict[str, Any] = {
        **{"R1": rank1, "R1A": r1a, "R1B": r1b},
        "EVEN_K": k % tiles.BLOCK_K == 0,
        "EVEN_F": f % tiles.BLOCK_N == 0,
        "HAS_BIAS1": bias1 is not None,
        "ACTIVATION": kernel_activation(activation, x.dtype, exact),
        "SPLIT": splits > 1,
    }
    second: dict[str, Any] = {
        **{"R2": rank2, "R2A": r2a, "R2B": r2b},
        "HAS_BIAS2": bias2 is not None,
        "HAS_RESIDUAL": residual is not None,
        "HAS_NORM": norm is not None,
    }
    expand = u2, bias2, residual, norm_weight, norm_bias
    y = x.new_empty(m, n)
    out = x.new_empty(splits * m, r2a + r2b, dtype=torch.float32) if splits > 1 else y
    _low_rank_ffn_fwd_kernel[(row_tiles * splits,)](
        *(x, u1, v1, bias1, v2, *expand, out),
        *(m, n, f, k, x.stride(0), stride_rm, out.stride(0), f_per_program, eps),
        **first,
        **second,
        **tiles.kwargs(),
    )
    if splits > 1:
        _low_rank_ffn_sum_kernel[(-(-m // _SUM_TILES["BLOCK_M"]),)](
            *(out, *expand, y, m, n, splits, stride_rm, y.stride(0), eps),
            **(second | _SUM_TILES | pdl_kwargs(tiles.pdl)),
        )
    return y
