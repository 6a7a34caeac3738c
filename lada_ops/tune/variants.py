"""Variants of our kernels that can compute a case, and the search spaces of their tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from .case import Case
from .search import Space

if TYPE_CHECKING:
    from lada_kernels.variants import TileConfig

Axes = dict[str, tuple[int, ...]]
Spaces = dict[str, Space | None]


def variants_of(case: Case) -> Spaces:
    """Search spaces by variant, "dense" aside; None for a variant that torch computes alone."""
    return _SPACES[case.stem](case)


def _low_rank_linear(case: Case) -> Spaces:
    from lada_kernels import linear, low_rank_linear
    from lada_kernels.variants import VariantName

    rank, groups, dtype = case.parts.rank, case.parts.groups, _dtype(case)
    norm = case.epilogue == "norm"
    spaces: Spaces = {VariantName.TWO_LAUNCHES: None}
    if groups > 1 or (case.epilogue != "plain" and dtype != torch.float32):
        tiles = linear.default_tiles(case.tokens, rank, dtype)
        spaces[VariantName.TWO_LAUNCHES] = _space(case, tiles)
    if rank <= low_rank_linear.MAX_RANK and (groups == 1 or not norm):
        tiles = low_rank_linear.default_tiles(case.tokens, rank, dtype, norm)
        spaces[VariantName.ONE_LAUNCH] = _space(case, tiles, rank)
    return spaces


def _low_rank_ffn(case: Case) -> Spaces:
    from lada_kernels import low_rank_ffn
    from lada_kernels.variants import VariantName

    spaces: Spaces = {VariantName.TWO_LAUNCHES: None}
    rank = max(case.parts.rank, case.parts.rank2)
    if rank <= low_rank_ffn.MAX_RANK:
        space = _space(case, low_rank_ffn.default_tiles(case.tokens, _dtype(case)), rank)
        spaces |= {VariantName.ONE_LAUNCH: space, VariantName.SPLIT_K: space}
    return spaces


def _sparse(case: Case) -> Spaces:
    from lada_kernels import block_sparse_linear
    from lada_kernels.variants import VariantName

    parts, norm = case.parts, case.epilogue == "norm"
    block = parts.rows, parts.cols
    if not block_sparse_linear.supports_block(*block):
        return {}
    axes = {
        "BLOCK_N": tuple(size for size in (16, 32, 64, 128) if parts.rows % size == 0),
        # the unmasked loop steps one pack at a time
        "BLOCK_K": tuple(size for size in (32, 64) if size % parts.cols == 0) or (parts.cols,),
    }
    spaces: Spaces = {}
    for name in block_sparse_linear.variants(parts.rows, dense=False):
        swap_ab = name == VariantName.SWAP_AB
        tiles = block_sparse_linear.default_tiles(
            case.tokens, case.n, *block, _dtype(case), norm, swap_ab
        )
        spaces[name] = _space(case, tiles, axes=axes)
    return spaces


_SPACES: dict[str, Callable[[Case], Spaces]] = {
    "low_rank_linear": _low_rank_linear,
    "block_sparse_linear": _sparse,
    "sparse_low_rank_linear": _sparse,
    "low_rank_ffn": _low_rank_ffn,
}


def _space(case: Case, start: TileConfig, widest: int = 0, axes: Axes | None = None) -> Space:
    # rows beyond the tokens would be wasted work
    rows = tuple(size for size in (16, 32, 64, 128) if size <= max(16, case.tokens))
    common = {
        "BLOCK_M": rows,
        "BLOCK_N": (32, 64, 128),
        "BLOCK_K": (32, 64, 128),
        "num_warps": (4, 8),
        "num_stages": (2, 3, 4),
    }
    return Space(start, common | (axes or {}), widest)


def _dtype(case: Case) -> torch.dtype:
    return getattr(torch, case.dtype)
