"""What the launchers' own choices are held to, regime by regime.

The figures are the worst that Triton 3.6, 3.7 and 3.9 make of a regime on sm_90, and a little more,
so that a change which makes its worst kernel a tenth worse is seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from .cases import Case


@dataclass(frozen=True)
class Regime:
    """Every one of the weights with every one of the epilogues, for tokens that tile alike."""

    kernel: str
    """Whose launches are held to the figures."""
    stem: str
    tokens: tuple[int, ...]
    weights: Mapping[str, tuple[int, float]]
    """By name: fewest programs per multiprocessor, most issue cycles per tensor cycle."""
    epilogues: Mapping[str, float]
    """By name: most instructions per element of the output."""
    way: str | None = None
    whole_packs: bool = True
    dtype: torch.dtype = torch.bfloat16
    gradient: str | None = None

    def cases(self) -> Iterator[tuple[Case, int, float, float]]:
        """Each with its fewest programs, most issue cycles and most instructions."""
        from lada_kernels.variants import Variant

        for tokens in self.tokens:
            for weight, (occupancy, issue) in self.weights.items():
                for epilogue, instructions in self.epilogues.items():
                    k = 3072 if epilogue == "norm" and self.stem != "low_rank_ffn" else 768
                    n = 768 if epilogue == "norm" or self.stem == "low_rank_ffn" else 3072
                    case = Case(
                        *(self.stem, tokens, k, n, weight, epilogue, self.dtype),
                        None if self.way is None else Variant(self.way),
                        *(self.whole_packs, self.gradient),
                    )
                    yield case, occupancy, issue, instructions


LOW_RANK, LINEAR = "_low_rank_linear_fwd_kernel", "_linear_fwd_kernel"
SPARSE, BOTH = "_block_sparse_linear_fwd_kernel", "_sparse_low_rank_linear_fwd_kernel"
DX, DFACTORS = "_low_rank_linear_dx_kernel", "_low_rank_linear_dfactors_kernel"
DVALUES = "_block_sparse_linear_dvalues_kernel"
FFN, FFN_SUM = "_low_rank_ffn_fwd_kernel", "_low_rank_ffn_sum_kernel"
ADD_NORM = "_add_norm_kernel"
INF = float("inf")

REGIMES = [
    Regime(
        *(LOW_RANK, "low_rank_linear", (16,)),
        {"r32": (9, 2.8), "r64": (7, 1.8), "r96": (6, 1.55), "r128": (5, 1.2)},
        {"none": 17.5, "gelu": 29, "norm": 27},
        way="one_launch",
    ),
    Regime(
        *(LOW_RANK, "low_rank_linear", (128, 8192)),
        {"r32": (4, 1.1), "r64": (4, 0.58), "r96": (3, 0.51), "r128": (2, 0.33)},
        {"none": 8.3, "gelu": 19.7, "gelu+residual": 22.2},
        way="one_launch",
    ),
    Regime(
        *(LOW_RANK, "low_rank_linear", (8192,)),
        {"r32": (4, 1.1), "r64": (3, 0.58), "r96": (3, 0.51), "r128": (3, 0.33)},
        {"norm": 18},
    ),
    Regime(  # the residual of the tall tiles costs a program
        *(LOW_RANK, "low_rank_linear", (16384,)),
        {"r96": (1, 0.5), "r128": (1, 0.31)},
        {"gelu": 19, "gelu+residual": 21.6, "norm": 17.4},
    ),
    Regime(
        *(LOW_RANK, "low_rank_linear", (8192,)),
        {"r192": (2, 0.51), "r256": (2, 0.31)},
        {"gelu": 28, "norm": 27},
        way="one_launch",
    ),
    Regime(
        *(LOW_RANK, "low_rank_linear", (8192,)),
        {"r64x3": (4, 0.58)},
        {"none": 6.4},
        way="one_launch",
    ),
    Regime(
        *(LOW_RANK, "low_rank_linear", (8192,)),
        {"r64": (4, 0.58)},
        {"gelu": 17.7},
        dtype=torch.float16,
    ),
    Regime(
        *(LINEAR, "low_rank_linear", (16,)),
        {"r256": (9, 1.8)},
        {"gelu": 22.8, "gelu+residual": 26.7},
    ),
    Regime(  # its residual costs a program
        *(LINEAR, "low_rank_linear", (8192,)),
        {"r256": (1, 0.31)},
        {"gelu": 17, "gelu+residual": 20.3, "norm": 9.8},
    ),
    Regime(
        *(SPARSE, "block_sparse_linear", (16,)),
        {"128x16-d20": (5, 2.5), "64x16-d20": (5, 2.75), "64x32-d20": (5, 2.75)},
        {"none": 11.5, "gelu": 23, "gelu+residual": 31},
        way="weights_left",
    ),
    Regime(
        *(SPARSE, "block_sparse_linear", (16,)),
        {"128x16-d20": (4, 1.5), "64x16-d20": (7, 2.3), "64x32-d20": (7, 2.3)},
        {"gelu": 24.5},
        way="one_launch",
    ),
    Regime(
        *(SPARSE, "block_sparse_linear", (16,)),
        {"32x32-d20": (12, 3.8)},
        {"gelu": 35},
        way="one_launch",
    ),
    Regime(
        *(SPARSE, "block_sparse_linear", (16,)),
        {"16x16-d10": (12, 3.55)},
        {"gelu": 69},
        way="one_launch",
    ),
    Regime(
        *(SPARSE, "block_sparse_linear", (128,)),
        {"128x16-d20": (3, 0.72), "64x16-d20": (4, 0.72), "64x32-d20": (4, 0.72)},
        {"gelu": 18.5, "gelu+residual": 22.2},
    ),
    Regime(
        *(SPARSE, "block_sparse_linear", (128,)),
        {"32x32-d20": (6, 1.36), "16x16-d10": (7, 2.65)},
        {"gelu": 23.5},
    ),
    Regime(
        *(SPARSE, "block_sparse_linear", (8192,)),
        {
            **{"128x16-d20": (2, 0.37), "64x16-d20": (3, 0.7), "64x32-d20": (3, 0.7)},
            **{"32x32-d20": (3, 0.84), "16x16-d10": (4, 1.63)},
        },
        {"none": 7.7, "gelu": 18.6},
    ),
    Regime(
        *(SPARSE, "block_sparse_linear", (8192,)),
        {
            **{"64x16-d20": (3, 0.69), "64x32-d20": (3, 0.69)},
            **{"32x32-d20": (3, 0.84), "16x16-d10": (4, 1.6)},
        },
        {"gelu+residual": 22.7},
    ),
    Regime(
        *(SPARSE, "block_sparse_linear", (8192,)),
        {
            **{"128x16-d20": (2, 0.46), "64x16-d20": (3, 0.81), "64x32-d20": (3, 0.8)},
            **{"32x32-d20": (3, 0.95), "16x16-d10": (4, 1.8)},
        },
        {"gelu": 19},
        whole_packs=False,
    ),
    Regime(
        *(SPARSE, "block_sparse_linear", (8192,)),
        {"128x16-d20": (2, 0.37)},
        {"gelu": 17},
        dtype=torch.float16,
    ),
    Regime(
        *(BOTH, "sparse_low_rank_linear", (16,)),
        {"r64+128x16-d05": (5, 2.55), "r64+64x16-d05": (5, 2.55), "r64+64x32-d05": (5, 2.55)},
        {"gelu": 23.2},
    ),
    Regime(
        *(BOTH, "sparse_low_rank_linear", (128,)),
        {
            **{"r64+128x16-d05": (3, 0.72), "r64+64x16-d05": (4, 0.7)},
            **{"r64+64x32-d05": (4, 0.7), "r64+32x32-d05": (6, 1.33)},
        },
        {"gelu": 19.7},
    ),
    Regime(
        *(BOTH, "sparse_low_rank_linear", (8192,)),
        {
            **{"r64+128x16-d05": (2, 0.35), "r64+64x16-d05": (3, 0.68)},
            **{"r64+64x32-d05": (3, 0.68), "r64+32x32-d05": (3, 0.82)},
            **{"r64+16x16-d05": (4, 1.55), "r128+128x16-d05": (2, 0.35)},
        },
        {"gelu": 18.6},
    ),
    Regime(
        *(BOTH, "sparse_low_rank_linear", (8192,)),
        {"r64+128x16-d05": (3, 0.72), "r64+64x16-d05": (3, 0.65), "r32+64x16-d05": (3, 0.96)},
        {"gelu+residual": 22},
    ),
    Regime(
        *(BOTH, "sparse_low_rank_linear", (8192,)),
        {"r64x3+128x16-d05": (2, 0.35), "r64x3+64x16-d05": (3, 0.68)},
        {"none": 7},
    ),
    Regime(
        *(DX, "low_rank_linear", (128, 8192)),
        {"r32": (5, 1.17), "r64": (4, 0.65), "r96": (3, 0.59), "r128": (3, 0.4)},
        {"none": 4.9},
        way="one_launch",
        gradient="x",
    ),
    Regime(
        *(DX, "low_rank_linear", (8192,)),
        {"r192": (2, 0.59), "r256": (2, 0.39)},
        {"none": 12.5},
        way="one_launch",
        gradient="x",
    ),
    Regime(
        *(DFACTORS, "low_rank_linear", (512, 8192)),
        {
            **{"r32": (3, 0.86), "r64": (3, 0.49), "r96": (2, 0.63), "r128": (2, 0.39)},
            **{"r64x3": (3, 0.5)},
        },
        {"none": 5.2},
        gradient="factors",
    ),
    Regime(
        *(SPARSE, "block_sparse_linear", (512,)),
        {
            **{"128x16-d05": (5, 1.98), "64x16-d05": (7, 2.85), "64x32-d05": (6, 1.5)},
            **{"32x32-d05": (6, 1.5), "16x16-d05": (7, 2.8)},
        },
        {"none": 9.2},
        gradient="x",
    ),
    Regime(
        *(SPARSE, "block_sparse_linear", (8192,)),
        {
            **{"128x16-d05": (3, 1.25), "64x16-d05": (4, 1.77), "64x32-d05": (3, 0.91)},
            **{"32x32-d05": (3, 0.91), "16x16-d05": (4, 1.77)},
        },
        {"none": 5.7},
        gradient="x",
    ),
    Regime(
        *(DVALUES, "block_sparse_linear", (512, 8192)),
        {
            **{"128x16-d05": (3, 0.42), "64x16-d05": (3, 0.56), "64x32-d05": (3, 0.56)},
            **{"32x32-d05": (6, 1.4), "16x16-d05": (7, 2.5)},
        },
        {"none": 8.1},
        gradient="values",
    ),
    Regime(
        *(FFN, "low_rank_ffn", (16,)),
        {
            **{"r32-3072-r32": (8, 6), "r64-3072-r64": (6, 3.5)},
            **{"r96-3072-r96": (4, 2.8), "r128-3072-r128": (3, 2.25)},
        },
        {"norm": 19.6},
        way="split",
    ),
    Regime(
        *(FFN_SUM, "low_rank_ffn", (16,)),
        {"r32-3072-r32": (10, INF), "r64-3072-r64": (8, INF)},
        {"none": 11.7, "norm": 22},
        way="split",
    ),
    Regime(
        *(FFN_SUM, "low_rank_ffn", (16,)),
        {"r96-3072-r96": (5, INF), "r128-3072-r128": (6, INF)},
        {"none": 16, "norm": 26.5},
        way="split",
    ),
    Regime(
        *(FFN, "low_rank_ffn", (512,)),
        {
            **{"r32-3072-r32": (3, 4.4), "r64-3072-r64": (3, 2.3)},
            **{"r96-3072-r96": (2, 1.7), "r128-3072-r128": (2, 1.22)},
        },
        {"norm": 7.7},
        way="split",
    ),
    Regime(
        *(FFN, "low_rank_ffn", (8192,)),
        {
            **{"r32-3072-r32": (3, 4.4), "r64-3072-r64": (3, 2.3)},
            **{"r96-3072-r96": (2, 1.7), "r128-3072-r128": (2, 1.22)},
        },
        {"none": 8, "norm": 17.7},
    ),
    Regime(  # what follows a product that torch makes, of whatever weight
        *(ADD_NORM, "low_rank_linear", (8192,)),
        {"r64": (16, INF)},
        {"gelu": 33.5, "gelu+residual": 37.5, "norm": 38.5},
        way="dense",
    ),
]
