"""Names of compressed weights in tuned tables, and their parser; needs no Triton."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

RANKS = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
DENSITIES = (5, 10, 20, 30, 50, 100)
"""Per cent; like a rank, a density belongs to the next bucket up, whose times bound its own."""
_WEIGHTS = {
    "low_rank_linear": r"r(?P<rank>\d+)(?:x(?P<groups>\d+))?",
    "block_sparse_linear": r"(?P<rows>\d+)x(?P<cols>\d+)-d(?P<percent>\d+)",
    "sparse_low_rank_linear": (
        r"r(?P<rank>\d+)(?:x(?P<groups>\d+))?\+(?P<rows>\d+)x(?P<cols>\d+)-d(?P<percent>\d+)"
    ),
    "low_rank_ffn": r"r(?P<rank>\d+)-(?P<hidden>\d+)-r(?P<rank2>\d+)",
}


class WeightName(NamedTuple):
    """Numbers in the name of a weight; 0 for those of parts that it lacks."""

    stem: str
    rank: int = 0
    groups: int = 1
    rows: int = 0
    cols: int = 0
    percent: int = 0
    hidden: int = 0
    rank2: int = 0

    @classmethod
    def parse(cls, name: str) -> WeightName:
        """Parsed name, such as r128, r64x3 or 128x16-d20; ValueError if it is none."""
        for stem, pattern in _WEIGHTS.items():
            if match := re.fullmatch(pattern, name, re.ASCII):
                numbers = {k: int(v) for k, v in match.groupdict().items() if v is not None}
                if min(numbers.values()) > 0 and numbers.get("percent", 1) <= 100:
                    return cls(stem, **numbers)
        raise ValueError(
            f"weight {name!r}; expected such as r128, r64x3 (three in one), 128x16-d20 (blocks, "
            "per cent stored), r64+128x16-d05, or r64-3072-r64 (a feed-forward)"
        )

    @property
    def name(self) -> str:
        """Name in tuned tables, with rank and density rounded up to the next bucket."""
        if self.hidden:
            return ffn_name(self.rank, self.hidden, self.rank2)
        if not self.rows:
            return low_rank_name(self.rank, self.groups)
        sparse = self.rows, self.cols, self.percent / 100
        if not self.rank:
            return sparse_name(*sparse)
        return sparse_low_rank_name(self.rank, *sparse, self.groups)


def low_rank_name(rank: int, groups: int = 1) -> str:
    """Name of factors of this rank: "r128", or "r64x3" for three pairs in one."""
    return f"r{_bucket(rank, RANKS)}" + (f"x{groups}" if groups > 1 else "")


def sparse_name(block_rows: int, block_cols: int, density: float) -> str:
    """Name of a block-sparse weight: "128x16-d20" for blocks of 128x16, up to 20 % stored."""
    # a plan that meets its budget to the block may exceed the round figure by a few blocks
    percent = _bucket(density * 100 / 1.05, DENSITIES)
    return f"{block_rows}x{block_cols}-d{percent:02d}"


def sparse_low_rank_name(
    rank: int, block_rows: int, block_cols: int, density: float, groups: int = 1
) -> str:
    """Name of a sparse + low-rank weight: "r64+128x16-d05", or "r64x3+128x16-d05"."""
    return f"{low_rank_name(rank, groups)}+{sparse_name(block_rows, block_cols, density)}"


def ffn_name(rank1: int, hidden: int, rank2: int) -> str:
    """Name of the factors of a feed-forward: "r64-3072-r128"."""
    return f"{low_rank_name(rank1)}-{hidden}-{low_rank_name(rank2)}"


def token_bucket(m: int) -> int:
    """Smallest power of two of m or more, the number of tokens of a table's entry."""
    return 1 << (m - 1).bit_length()


def _bucket(size: float, buckets: tuple[int, ...]) -> int:
    """Smallest bucket of `size` or more; past the last one, the next power of two."""
    fitting = (bucket for bucket in buckets if size <= bucket)
    return next(fitting, token_bucket(math.ceil(size)))
