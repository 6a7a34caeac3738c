"""Work of one program of a launch: small enough that there are programs to fill a large GPU."""

from collections.abc import Callable
from typing import cast

import triton

# their annotations are those of kernels too, where they return constexpr
cdiv = cast("Callable[[int, int], int]", triton.cdiv)
next_power_of_2 = cast("Callable[[int], int]", triton.next_power_of_2)

MIN_PROGRAMS = 256
"""About two per multiprocessor of a large GPU."""

MIN_ROWS = 512
"""Fewest rows that a program sums over, for its partial sum to be worth its memory."""


def columns_per_program(n: int, block_n: int, row_tiles: int) -> int:
    """Columns of y (M, n), a multiple of `block_n`, that each program computes of its row tile."""
    n_tiles = cdiv(n, block_n)
    splits = min(n_tiles, cdiv(MIN_PROGRAMS, row_tiles))
    return cdiv(n_tiles, splits) * block_n


def split_rows(m: int, block_m: int, programs: int, min_programs: int) -> tuple[int, int]:
    """Splits of a sum over m rows, and rows of each, a multiple of `block_m`.

    programs: how many there are in each split.
    """
    splits = max(1, min(cdiv(min_programs, programs), m // MIN_ROWS))
    rows = cdiv(m, splits * block_m) * block_m
    return cdiv(m, rows), rows
