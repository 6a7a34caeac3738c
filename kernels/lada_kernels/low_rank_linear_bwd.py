"""Gradients of the low-rank linear ``y = x @ v.T @ u.T``: to the input, and to the factors.

The first is a low-rank linear itself, ``dx = dt @ v`` with ``dt = dy @ u``; dt is kept. The others,
``du = dy.T @ t`` and ``dv = dt.T @ x``, are sums over all rows, computed in one launch: a program
takes some columns of dy or of x and the whole rank, and sums over a share of the rows. So the wide
operands are read once, and the bias's gradient costs one product more. The shares are added in a
second, ordered sum: the gradients are the same every time.
"""

import math
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl

from .dependent_launch import wait_for_predecessor
from .epilogue import store_tile
from .low_rank_linear import choose, default_tiles
from .low_rank_tiles import rank_arguments
from .programs import cdiv, columns_per_program, split_rows
from .variants import EpilogueKind, TileConfig, Variant, VariantName
from .weight_names import token_bucket

_MAX_RANK = 128  # beyond, the sums, (128, rank) each, leave the registers
_MIN_PROGRAMS = 128  # one per multiprocessor of a large GPU, since partial sums are large


@triton.jit
def _load(ptrs, mask, MASKED: tl.constexpr):
    if MASKED:
        return tl.load(ptrs, mask=mask, other=0.0)
    return tl.load(ptrs)


@triton.jit
def _low_rank_linear_dx_kernel(
    dy_ptr,  # (M, N)
    u_ptr,  # (N, RANK)
    v_ptr,  # (RANK, K)
    dt_ptr,  # (M, RANK)
    dx_ptr,  # (M, K)
    M,
    N,
    K,
    k_per_program,
    stride_ym,
    RANK: tl.constexpr,
    RANK1: tl.constexpr,
    RANK2: tl.constexpr,
    EVEN_N: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_predecessor(PDL)
    splits = tl.cdiv(K, k_per_program)
    first_k = tl.program_id(0) % splits * k_per_program
    end_k = tl.minimum(first_k + k_per_program, K)
    offs_m = (tl.program_id(0) // splits).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    offs_r1 = tl.arange(0, RANK1)
    offs_r2 = RANK1 + tl.arange(0, RANK2 if RANK2 > 0 else 1)
    PADDED: tl.constexpr = RANK1 + RANK2 != RANK

    # rows past the end repeat the last one: cheaper than a mask in the loop, and never stored
    dy_rows = dy_ptr + tl.minimum(offs_m, M - 1)[:, None] * stride_ym
    dt1 = tl.zeros((BLOCK_M, RANK1), dtype=tl.float32)
    if RANK2 > 0:
        dt2 = tl.zeros((BLOCK_M, RANK2), dtype=tl.float32)
    for n in range(0, N, BLOCK_N):
        mask_n = offs_n < N - n
        dy = _load(dy_rows + (n + offs_n)[None, :], mask_n[None, :], not EVEN_N)
        u_rows = u_ptr + (n + offs_n)[:, None] * RANK
        mask = mask_n[:, None] & (offs_r1 < RANK)[None, :]
        u = _load(u_rows + offs_r1[None, :], mask, not EVEN_N or RANK1 > RANK)
        dt1 = tl.dot(dy, u, dt1, input_precision="ieee")
        if RANK2 > 0:
            mask = mask_n[:, None] & (offs_r2 < RANK)[None, :]
            u = _load(u_rows + offs_r2[None, :], mask, not EVEN_N or PADDED)
            dt2 = tl.dot(dy, u, dt2, input_precision="ieee")

    h1 = dt1.to(dt_ptr.dtype.element_ty)
    if RANK2 > 0:
        h2 = dt2.to(dt_ptr.dtype.element_ty)
    if first_k == 0:  # the other programs of these rows compute the same dt
        store_tile(h1, dt_ptr, offs_m, offs_r1, M, RANK, RANK)
        if RANK2 > 0:
            store_tile(h2, dt_ptr, offs_m, offs_r2, M, RANK, RANK)

    # rows of v past the end repeat the last one, and are multiplied by columns of dt that are 0
    v_rows1 = v_ptr + tl.minimum(offs_r1, RANK - 1)[:, None] * K
    v_rows2 = v_ptr + tl.minimum(offs_r2, RANK - 1)[:, None] * K
    for k in range(first_k, end_k, BLOCK_K):
        offs_k = k + tl.arange(0, BLOCK_K)
        mask_k = (offs_k < K)[None, :]
        v = _load(v_rows1 + offs_k[None, :], mask_k, not EVEN_K)
        dx = tl.dot(h1, v, input_precision="ieee")
        if RANK2 > 0:
            v = _load(v_rows2 + offs_k[None, :], mask_k, not EVEN_K)
            dx = tl.dot(h2, v, dx, input_precision="ieee")
        store_tile(dx, dx_ptr, offs_m, offs_k, M, K, K)


@triton.jit
def _sum_over_rows(
    wide_ptr,  # (M, end_w)
    thin_ptr,  # (M, RANK)
    sum_ptr,  # (end_w, RANK) by the strides, for ``wide.T @ thin``
    ones_sum_ptr,  # (end_w,), for ``wide.T @ 1``
    offs_w,
    end_w,
    first_m,
    end_m,
    stride_wm,
    stride_tm,
    stride_sw,
    stride_sr,
    RANK: tl.constexpr,
    RANK1: tl.constexpr,
    RANK2: tl.constexpr,
    ONES: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Write columns offs_w of ``wide.T @ thin`` and ``wide.T @ 1``, over rows first_m to end_m."""
    BLOCK_W: tl.constexpr = offs_w.shape[0]
    PADDED: tl.constexpr = RANK1 + RANK2 != RANK
    rows = first_m.to(tl.int64) + tl.arange(0, BLOCK_M)
    mask_w = (offs_w < end_w)[:, None]
    offs_r1 = tl.arange(0, RANK1)
    offs_r2 = RANK1 + tl.arange(0, RANK2 if RANK2 > 0 else 1)
    wide_ptrs = wide_ptr + (rows * stride_wm)[None, :] + offs_w[:, None]
    thin_rows = thin_ptr + (rows * stride_tm)[:, None]
    acc1 = tl.zeros((BLOCK_W, RANK1), dtype=tl.float32)
    if RANK2 > 0:
        acc2 = tl.zeros((BLOCK_W, RANK2), dtype=tl.float32)
    if ONES:  # 16 columns, the fewest that tensor cores take
        ones = tl.full((BLOCK_M, 16), 1.0, wide_ptr.dtype.element_ty)
        ones_acc = tl.zeros((BLOCK_W, 16), dtype=tl.float32)
    for m in range(first_m, end_m, BLOCK_M):
        mask_m = tl.arange(0, BLOCK_M) < end_m - m
        wide = _load(wide_ptrs, mask_w & mask_m[None, :], not EVEN)
        mask = mask_m[:, None] & (offs_r1 < RANK)[None, :]
        thin = _load(thin_rows + offs_r1[None, :], mask, not EVEN or RANK1 > RANK)
        acc1 = tl.dot(wide, thin, acc1, input_precision="ieee")
        if RANK2 > 0:
            mask = mask_m[:, None] & (offs_r2 < RANK)[None, :]
            thin = _load(thin_rows + offs_r2[None, :], mask, not EVEN or PADDED)
            acc2 = tl.dot(wide, thin, acc2, input_precision="ieee")
        if ONES:
            ones_acc = tl.dot(wide, ones, ones_acc, input_precision="ieee")
        wide_ptrs += tl.cast(stride_wm, tl.int64) * BLOCK_M
        thin_rows += tl.cast(stride_tm, tl.int64) * BLOCK_M

    sum_rows = sum_ptr + offs_w[:, None] * stride_sw
    mask = mask_w & (offs_r1 < RANK)[None, :]
    tl.store(sum_rows + offs_r1[None, :] * stride_sr, acc1, mask=mask)
    if RANK2 > 0:
        mask = mask_w & (offs_r2 < RANK)[None, :]
        tl.store(sum_rows + offs_r2[None, :] * stride_sr, acc2, mask=mask)
    if ONES:
        first = (tl.arange(0, 16) == 0)[None, :]
        ones_ptrs = ones_sum_ptr + offs_w[:, None] + tl.arange(0, 16)[None, :]
        tl.store(ones_ptrs, ones_acc, mask=mask_w & first)


@triton.jit
def _low_rank_linear_dfactors_kernel(
    dy_ptr,  # (M, N)
    x_ptr,  # (M, K)
    t_ptr,  # (M, GROUPS * RANK)
    dt_ptr,  # (M, GROUPS * RANK)
    out_ptr,  # (splits, size) fp32: du (N, RANK), dv (GROUPS * RANK, K) and dbias (N,)
    M,
    N,
    K,
    n_group,
    size,
    m_per_program,
    stride_ym,
    stride_xm,
    stride_tm,
    stride_dm,
    RANK: tl.constexpr,
    RANK1: tl.constexpr,
    RANK2: tl.constexpr,
    GROUPS: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_predecessor(PDL)
    du_tiles = tl.cdiv(n_group, BLOCK_N)  # per group
    tile = tl.program_id(0)
    first_m = tl.program_id(1) * m_per_program
    end_m = tl.minimum(first_m + m_per_program, M)
    du_ptr = out_ptr + tl.program_id(1).to(tl.int64) * size
    dv_ptr = du_ptr + N * RANK
    dbias_ptr = dv_ptr + GROUPS * RANK * K
    if tile < du_tiles * GROUPS:
        group = tile // du_tiles
        offs_n = group * n_group + tile % du_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
        _sum_over_rows(
            *(dy_ptr, t_ptr + group * RANK, du_ptr, dbias_ptr, offs_n, (group + 1) * n_group),
            *(first_m, end_m, stride_ym, stride_tm, RANK, 1),
            *(RANK, RANK1, RANK2, True, EVEN, BLOCK_M),
        )
    else:
        group = (tile - du_tiles * GROUPS) % GROUPS
        offs_k = (tile - du_tiles * GROUPS) // GROUPS * BLOCK_K + tl.arange(0, BLOCK_K)
        _sum_over_rows(
            *(x_ptr, dt_ptr + group * RANK, dv_ptr + group * RANK * K, None, offs_k, K),
            *(first_m, end_m, stride_xm, stride_dm, 1, K),
            *(RANK, RANK1, RANK2, False, EVEN, BLOCK_M),
        )


def default_dfactors_tiles(rank: int) -> TileConfig:
    """Tiles that fit every supported target without spilling."""
    num_warps = 4 if rank <= 64 else 8
    return TileConfig(BLOCK_M=64, BLOCK_N=128, BLOCK_K=128, num_warps=num_warps, num_stages=3)


def low_rank_linear_dx(
    dy: torch.Tensor,
    u: torch.Tensor,
    v: torch.Tensor,
    groups: int = 1,
    variant: Variant | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients dx (M, K) of x and dt (M, groups * R) of ``t = x @ v.T``, in dy's dtype.

    Args:
        dy: (M, N), any row stride.
        u, v: as in `low_rank_linear_fwd`.
        variant: ONE_LAUNCH, for one group of a rank up to `low_rank_linear.MAX_RANK`, or
            TWO_LAUNCHES, two products of torch; that of ``dy @ (u @ v)`` by `choose` if None.
    """
    (m, n), (rank, k) = dy.shape, (u.shape[1], v.shape[1])
    if m == 0:
        return dy.new_empty(0, k), dy.new_empty(0, groups * rank)
    if variant is None:
        size = token_bucket(m), k, n, rank, groups
        variant = choose(*size, dy.dtype, EpilogueKind.PLAIN, False, dy.get_device())
    if variant.name == VariantName.TWO_LAUNCHES or groups > 1:
        pairs = zip(dy.chunk(groups, 1), u.chunk(groups), strict=True)
        dt = torch.cat([a @ b for a, b in pairs], 1) if groups > 1 else dy @ u
        return dt @ v, dt
    tiles = variant.tiles or default_tiles(max(m, 64), rank, dy.dtype)  # few train on fewer rows
    row_tiles = cdiv(m, tiles.BLOCK_M)
    # tiles are those of the product that gives dx: its N is K here
    tiles = replace(tiles, BLOCK_N=tiles.BLOCK_K, BLOCK_K=tiles.BLOCK_N)
    k_per_program = columns_per_program(k, tiles.BLOCK_K, row_tiles)
    dx, dt = dy.new_empty(m, k), dy.new_empty(m, rank)
    constants: dict[str, Any] = {
        "EVEN_N": n % tiles.BLOCK_N == 0,
        "EVEN_K": k % tiles.BLOCK_K == 0,
    }
    _low_rank_linear_dx_kernel[(row_tiles * cdiv(k, k_per_program),)](
        dy_ptr=dy,
        u_ptr=u,
        v_ptr=v,
        dt_ptr=dt,
        dx_ptr=dx,
        M=m,
        N=n,
        K=k,
        k_per_program=k_per_program,
        stride_ym=dy.stride(0),
        **constants,
        **rank_arguments(rank),
        **tiles.kwargs(),
    )
    return dx, dt


def low_rank_linear_dfactors(
    dy: torch.Tensor,
    x: torch.Tensor,
    t: torch.Tensor,
    dt: torch.Tensor,
    groups: int = 1,
    tiles: TileConfig | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of u (N, R), v (groups * R, K) and bias (N,), in dy's dtype, summed in fp32.

    Unless `tiles` are given, torch computes them in fp32, which has no tensor cores to keep busy,
    and where the rank is too large for registers.

    Args:
        dy, x: (M, N) and (M, K), contiguous in the last dimension, any row stride.
        t, dt: ``x @ v.T`` and its gradient, (M, groups * R), likewise.
        tiles: BLOCK_M rows a step, BLOCK_N columns of dy and BLOCK_K of x for a program;
            `default_dfactors_tiles` if None.
    """
    (m, n), k, rank = dy.shape, x.shape[1], t.shape[1] // groups
    shapes = (n, rank), (groups * rank, k), (n,)
    if m == 0:
        return dy.new_zeros(shapes[0]), dy.new_zeros(shapes[1]), dy.new_zeros(n)
    if tiles is None and (dy.dtype == torch.float32 or rank > _MAX_RANK):
        pairs = zip(dy.chunk(groups, 1), t.chunk(groups, 1), strict=True)
        return torch.cat([a.T @ b for a, b in pairs]), dt.T @ x, dy.sum(0)
    tiles = tiles or default_dfactors_tiles(rank)
    n_group = n // groups
    programs = groups * (cdiv(n_group, tiles.BLOCK_N) + cdiv(k, tiles.BLOCK_K))
    splits, m_per_program = split_rows(m, tiles.BLOCK_M, programs, _MIN_PROGRAMS)
    sizes = [math.prod(shape) for shape in shapes]
    out = dy.new_empty(splits, sum(sizes), dtype=torch.float32)
    whole_tiles = (m % tiles.BLOCK_M, n_group % tiles.BLOCK_N, k % tiles.BLOCK_K) == (0, 0, 0)
    constants: dict[str, Any] = {"GROUPS": groups, "EVEN": whole_tiles}
    _low_rank_linear_dfactors_kernel[(programs, splits)](
        dy_ptr=dy,
        x_ptr=x,
        t_ptr=t,
        dt_ptr=dt,
        out_ptr=out,
        M=m,
        N=n,
        K=k,
        n_group=n_group,
        size=sum(sizes),
        m_per_program=m_per_program,
        stride_ym=dy.stride(0),
        stride_xm=x.stride(0),
        stride_tm=t.stride(0),
        stride_dm=dt.stride(0),
        **constants,
        **rank_arguments(rank),
        **tiles.kwargs(),
    )
    total = out.sum(0) if splits > 1 else out[0]
    du, dv, dbias = (part.to(dy.dtype, copy=True) for part in total.split(sizes))
    return du.view(shapes[0]), dv.view(shapes[1]), dbias
