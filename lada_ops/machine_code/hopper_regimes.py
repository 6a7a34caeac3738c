"""Limits of the launchers' own choices on sm_90, regime by regime.

Each figure is the worst among Triton 3.6, 3.7 and 3.9, with a margin small enough that a tenth more
instructions, registers or issue cycles fails the gate.
"""

from math import inf

import torch

from .regimes import (
    ADD_NORM,
    BOTH,
    DFACTORS,
    DVALUES,
    DX,
    FFN,
    FFN_SUM,
    LINEAR,
    LOW_RANK,
    SPARSE,
    Regime,
)

REGIMES = [
    Regime(
        *(LOW_RANK, "low_rank_linear", (16,)),
        {"r32": (9, 2.8), "r64": (7, 1.8), "r96": (6, 1.55), "r128": (5, 1.2)},
        {"none": 17.5, "gelu": 29, "norm": 27},
        variant="one_launch",
    ),
    Regime(
        *(LOW_RANK, "low_rank_linear", (128, 8192)),
        {"r32": (4, 1.1), "r64": (4, 0.58), "r96": (3, 0.51), "r128": (2, 0.33)},
        {"none": 8.3, "gelu": 19.7, "gelu+residual": 22.2},
        variant="one_launch",
    ),
    Regime(
        *(LOW_RANK, "low_rank_linear", (8192,)),
        {"r32": (4, 1.1), "r64": (3, 0.58), "r96": (3, 0.51), "r128": (3, 0.33)},
        {"norm": 18},
    ),
    Regime(  # the residual of tall tiles lowers the occupancy
        *(LOW_RANK, "low_rank_linear", (16384,)),
        {"r96": (1, 0.5), "r128": (1, 0.31)},
        {"gelu": 19, "gelu+residual": 21.6, "norm": 17.4},
    ),
    Regime(
        *(LOW_RANK, "low_rank_linear", (8192,)),
        {"r192": (2, 0.51), "r256": (2, 0.31)},
        {"gelu": 28, "norm": 27},
        variant="one_launch",
    ),
    Regime(
        *(LOW_RANK, "low_rank_linear", (8192,)),
        {"r64x3": (4, 0.58)},
        {"none": 6.4},
        variant="one_launch",
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
    Regime(  # the residual lowers the occupancy
        *(LINEAR, "low_rank_linear", (8192,)),
        {"r256": (1, 0.31)},
        {"gelu": 17, "gelu+residual": 20.3, "norm": 9.8},
    ),
    Regime(
        *(SPARSE, "block_sparse_linear", (16,)),
        {"128x16-d20": (5, 2.5), "64x16-d20": (5, 2.75), "64x32-d20": (5, 2.75)},
        {"none": 11.5, "gelu": 23, "gelu+residual": 31},
        variant="weights_left",
    ),
    Regime(
        *(SPARSE, "block_sparse_linear", (16,)),
        {"128x16-d20": (4, 1.5), "64x16-d20": (7, 2.3), "64x32-d20": (7, 2.3)},
        {"gelu": 24.5},
        variant="one_launch",
    ),
    Regime(
        *(SPARSE, "block_sparse_linear", (16,)),
        {"32x32-d20": (12, 3.8)},
        {"gelu": 35},
        variant="one_launch",
    ),
    Regime(
        *(SPARSE, "block_sparse_linear", (16,)),
        {"16x16-d10": (12, 3.55)},
        {"gelu": 69},
        variant="one_launch",
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
        variant="one_launch",
        gradient="x",
    ),
    Regime(
        *(DX, "low_rank_linear", (8192,)),
        {"r192": (2, 0.59), "r256": (2, 0.39)},
        {"none": 12.5},
        variant="one_launch",
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
        variant="split",
    ),
    Regime(
        *(FFN_SUM, "low_rank_ffn", (16,)),
        {"r32-3072-r32": (10, inf), "r64-3072-r64": (8, inf)},
        {"none": 11.7, "norm": 22},
        variant="split",
    ),
    Regime(
        *(FFN_SUM, "low_rank_ffn", (16,)),
        {"r96-3072-r96": (5, inf), "r128-3072-r128": (6, inf)},
        {"none": 16, "norm": 26.5},
        variant="split",
    ),
    Regime(
        *(FFN, "low_rank_ffn", (512,)),
        {
            **{"r32-3072-r32": (3, 4.4), "r64-3072-r64": (3, 2.3)},
            **{"r96-3072-r96": (2, 1.7), "r128-3072-r128": (2, 1.22)},
        },
        {"norm": 7.7},
        variant="split",
    ),
    Regime(
        *(FFN, "low_rank_ffn", (8192,)),
        {
            **{"r32-3072-r32": (3, 4.4), "r64-3072-r64": (3, 2.3)},
            **{"r96-3072-r96": (2, 1.7), "r128-3072-r128": (2, 1.22)},
        },
        {"none": 8, "norm": 17.7},
    ),
    Regime(  # epilogue of a product computed by torch, whatever the weight
        *(ADD_NORM, "low_rank_linear", (8192,)),
        {"r64": (16, inf)},
        {"gelu": 33.5, "gelu+residual": 37.5, "norm": 38.5},
        variant="dense",
    ),
]
