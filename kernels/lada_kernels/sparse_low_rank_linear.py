"""Sparse + low-rank linear: ``y = LN(act(x @ (u @ v + S).T + bias) + residual)``, S in BSR.

``t = x @ v.T`` is a plain product, left to torch. Then one kernel runs ``[t | gathered x]`` against
``[u | S]`` into a single accumulator, so the two branches cost one epilogue and one pass over y.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from .add_norm import add_norm_fwd, dense_fwd
from .block_sparse_linear import block_arguments, default_tiles, guess, variants
from .block_tiles import add_blocks, add_product, first_column, zero_tile
from .dependent_launch import wait_for_predecessor
from .epilogue import Epilogue, apply_epilogue, store_tile
from .programs import cdiv
from .tuning import fastest
from .variants import Variant, VariantName
from .weight_names import sparse_low_rank_name, token_bucket


@triton.jit
def _sparse_low_rank_linear_fwd_kernel(
    x_ptr,  # (M, K)
    t_ptr,  # (M, GROUPS * RANK)
    u_ptr,  # (N, RANK)
    crow_ptr,  # (N / BSR_ROWS + 1,)
    col_ptr,  # (nnz,)
    values_ptr,  # (nnz, BSR_ROWS, BSR_COLS)
    order_ptr,  # (N / BSR_ROWS,)
    bias_ptr,  # (N,)
    residual_ptr,  # (M, N)
    y_ptr,  # (M, N)
    M,
    N,
    n_group,
    rank,
    stride_xm,
    stride_vb,
    stride_vr,
    stride_vc,
    stride_rm,
    stride_ym,
    RANK: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BSR_ROWS: tl.constexpr,
    BSR_COLS: tl.constexpr,
    HAS_ORDER: tl.constexpr,
    WHOLE_PACKS: tl.constexpr,
    SWAP_AB: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_predecessor(PDL)
    # programs that share rows of x are neighbours, to meet in L2
    n_tiles = N // BLOCK_N
    first_n = first_column(order_ptr, tl.program_id(0) % n_tiles, BSR_ROWS, BLOCK_N, HAS_ORDER)
    offs_m = (tl.program_id(0) // n_tiles).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = first_n + tl.arange(0, BLOCK_N)
    offs_r = tl.arange(0, BLOCK_R)

    acc = zero_tile(BLOCK_M, BLOCK_N, SWAP_AB)
    t_rows = t_ptr + tl.minimum(offs_m, M - 1) * (GROUPS * RANK)
    if GROUPS > 1:  # a tile lies in a block row, and that in a group
        t_rows += first_n // n_group * RANK
    # the bound is no constant: a loop known to run once would be unrolled, and not pipelined
    for r in range(0, rank, BLOCK_R):
        acc = add_product(
            *(acc, t_rows + r, offs_r, u_ptr + r, offs_n * RANK, offs_r),
            *(offs_r < RANK - r, RANK % BLOCK_R != 0, SWAP_AB),
        )
    acc = add_blocks(
        *(acc, x_ptr, crow_ptr, col_ptr, values_ptr, offs_m, first_n, M),
        *(stride_xm, stride_vb, stride_vr, stride_vc),
        *(BSR_ROWS, BSR_COLS, BLOCK_N, BLOCK_K, WHOLE_PACKS, SWAP_AB),
    )
    if SWAP_AB:
        acc = tl.trans(acc)
    y = apply_epilogue(
        *(acc, bias_ptr, residual_ptr, offs_m, offs_n, M, N, stride_rm),
        *(HAS_BIAS, HAS_RESIDUAL, ACTIVATION),
    )
    store_tile(y, y_ptr, offs_m, offs_n, M, N, stride_ym)


def rank_step(rank: int, dtype: torch.dtype) -> int:
    """Terms of t per step: 64, or 32 where that pads less or registers are short."""
    return 32 if dtype == torch.float32 or -rank % 64 >= 32 else 64


@functools.lru_cache(maxsize=4096)
def choose(
    m: int,
    n: int,
    k: int,
    rank: int,
    groups: int,
    block_rows: int,
    block_cols: int,
    nnz: int,
    dtype: torch.dtype,
    epilogue: str,
    dense: bool,
    device_index: int,
) -> Variant:
    """The fastest variant by the tuned tables, or else `block_sparse_linear.guess`.

    dense: True if the caller keeps the dense weight. epilogue: an `EpilogueKind`.
    """
    density = nnz * block_rows * block_cols / (n * k)
    name = sparse_low_rank_name(rank, block_rows, block_cols, density, groups)
    allowed = variants(block_rows, dense)
    key = (dtype, k, n, name, epilogue, m, device_index, allowed)
    return fastest("sparse_low_rank_linear", *key) or guess(
        m, n, k, rank, groups, block_rows, block_cols, nnz, dtype, dense
    )


def sparse_low_rank_linear_fwd(
    x: torch.Tensor,
    u: torch.Tensor,
    v: torch.Tensor,
    crow_indices: torch.Tensor,
    col_indices: torch.Tensor,
    values: torch.Tensor,
    epilogue: Epilogue,
    groups: int = 1,
    order: torch.Tensor | None = None,
    dense: torch.Tensor | None = None,
    variant: Variant | None = None,
) -> torch.Tensor:
    """``LN(act(x @ (u @ v + S).T + bias) + residual)``, x @ v.T rounded to x's dtype.

    Operands are checked by the caller: one device, one dtype (fp16, bf16 or fp32) but for the
    indices.

    Args:
        x: (M, K), contiguous in the last dimension, any row stride.
        u: (N, R), contiguous, R >= 1; each of its groups of N / groups rows has whole block rows.
        v: (groups * R, K), contiguous; group g of u is multiplied by group g of v.
        crow_indices, col_indices, values, order: S (N, K), as in `block_sparse_linear_fwd`.
        epilogue: its norm is a launch of its own.
        groups: low-rank pairs that share x, such as 3 for query, key and value.
        dense: u @ v + S (N, K) as a dense weight, if the caller keeps it; else None.
        variant: ONE_LAUNCH (after that of x @ v.T), SWAP_AB (br >= 64) or DENSE; chosen by
            `choose` if None.

    Returns:
        (M, N), contiguous, in x's dtype.
    """
    (m, k), (n, rank), (nnz, block_rows, block_cols) = x.shape, u.shape, values.shape
    if m == 0 or n == 0:
        return x.new_empty(m, n)
    if variant is None:
        variant = choose(
            *(token_bucket(m), n, k, rank, groups, block_rows, block_cols, nnz, x.dtype),
            *(epilogue.kind, dense is not None, x.get_device()),
        )
    if variant.name == VariantName.DENSE:
        assert dense is not None, "variant 'dense' needs the dense weight"
        return dense_fwd(x, dense, epilogue)
    y = x.new_empty(m, n)
    swap_ab = variant.name == VariantName.SWAP_AB
    high_pressure = epilogue.residual is not None or order is None
    tiles = variant.tiles or default_tiles(
        m, n, block_rows, block_cols, x.dtype, high_pressure, swap_ab
    )
    constants: dict[str, Any] = {
        "RANK": rank,
        "GROUPS": groups,
        "BLOCK_R": rank_step(rank, x.dtype),
    }
    _sparse_low_rank_linear_fwd_kernel[(cdiv(m, tiles.BLOCK_M) * (n // tiles.BLOCK_N),)](
        x_ptr=x,
        t_ptr=F.linear(x, v),
        u_ptr=u,
        y_ptr=y,
        M=m,
        N=n,
        n_group=n // groups,
        rank=rank,
        stride_xm=x.stride(0),
        stride_ym=y.stride(0),
        **constants,
        **block_arguments(crow_indices, col_indices, values, order, swap_ab, tiles),
        **epilogue.tile_arguments(x.dtype),
        **tiles.kwargs(),
    )
    return add_norm_fwd(y, epilogue.norm_only, variant.pdl)
