"""Cases of the GPU suite, the most valuable first.

First the goals, then training steps, then the grid: BERT-base with the epilogue of each linear in
the model, BERT-base without, BERT-large. Within each, the kernels alternate, so that all of them
are measured about as far wherever the time ends.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from lada_ops.tune import Case

TOKENS = (8192, 2048, 128, 512, 32768, 16, 65536)
RANKS = (64, 128, 32, 96, 192, 256)
DENSITIES = (10, 30, 20, 5, 50)  # per cent
BLOCKS = ((128, 16), (64, 16), (64, 32), (32, 32), (16, 16))
BASE, LARGE = 768, 1024  # hidden sizes; a feed-forward's inner size is four times as large
_EPILOGUES = {"plain": "plain", "fused": "gelu", "norm": "norm"}  # of a linear, in result files


@dataclass(frozen=True)
class SuiteCase(Case):
    """A case of the suite: the forward pass, or a training step.

    backward: True for a training step, with the gradients of input and weights; forward included.
    """

    backward: bool = False

    @property
    def row_key(self) -> str:
        """Key of its row in result files, such as "768-3072 M=16 128x16 d10 gelu"."""
        case = self.to_dict()
        widths = (case["in_features"], case["hidden"], case["out_features"])
        shape = "-".join(str(width) for width in widths if width)
        parts = self.parts
        rank = [f"r{parts.rank}{f'x{parts.groups}' * (parts.groups > 1)}"] if parts.rank else []
        blocks = [f"{parts.rows}x{parts.cols} d{parts.percent:02}"] if parts.rows else []
        weight = "+".join(rank + blocks)
        backward = " backward" if self.backward else ""
        return f"{shape} M={self.tokens} {weight} {case['epilogue']}{backward}"

    @property
    def beside_2to4(self) -> bool:
        """True for the one weight per shape that is compared with 2:4, of about the same size."""
        parts = self.parts
        linear = not self.backward and not parts.hidden
        return linear and (parts.rank == 128 or parts.percent == 50)

    def to_dict(self) -> dict[str, Any]:
        """Fields as result files have them."""
        parts = self.parts
        return {
            "stem": self.stem,
            "tokens": self.tokens,
            "in_features": self.k,
            "out_features": self.n,
            "epilogue": _EPILOGUES[self.epilogue],
            "rank": parts.rank,
            "block": (parts.rows, parts.cols),
            "density": parts.percent / 100,
            "hidden": parts.hidden,
            "groups": parts.groups,
            "backward": self.backward,
        }


def low_rank(rank: int, groups: int = 1) -> str:
    return f"r{rank}x{groups}" if groups > 1 else f"r{rank}"


def sparse(block: tuple[int, int], percent: int) -> str:
    return f"{block[0]}x{block[1]}-d{percent:02}"


def sparse_low_rank(rank: int, block: tuple[int, int], percent: int) -> str:
    return f"{low_rank(rank)}+{sparse(block, percent)}"


def all_cases(dtype: str = "bfloat16") -> list[SuiteCase]:
    """Distinct cases in decreasing value."""
    groups = [goals(), backward(), grid(BASE, natural=True), grid(BASE, natural=False)]
    groups += [grid(LARGE, natural=True), grid(LARGE, natural=False)]
    distinct = dict.fromkeys(itertools.chain.from_iterable(groups))
    return [replace(case, dtype=dtype) for case in distinct]


def goals() -> Iterator[SuiteCase]:
    """Cases by which the project's goals are met or missed."""
    low_rank_cases = [
        SuiteCase(BASE, 4 * BASE, low_rank(rank), "fused", tokens)
        for tokens in (8192, 32768, 65536)
        for rank in (128, 64, 96, 32)
    ]
    sparse_cases = [
        SuiteCase(k, n, sparse((128, 16), percent), "plain", tokens)
        for k, n in ((BASE, 4 * BASE), (4 * BASE, BASE), (BASE, BASE))
        for tokens in (2048, 8192, 32768, 65536)
        for percent in (10, 40, 30, 20, 5)
    ]
    return _alternated([feed_forward(8192, BASE, 64)], low_rank_cases, sparse_cases)


def backward() -> Iterator[SuiteCase]:
    blocks = [sparse(block, percent) for block in ((128, 16), (32, 32)) for percent in (10, 30)]
    ranks = [low_rank(rank) for rank in (64, 128)]
    sums = [sparse_low_rank(64, (128, 16), 5)]
    return _alternated(
        *(
            [
                SuiteCase(BASE, 4 * BASE, weight, "fused", tokens, backward=True)
                for tokens in (8192, 2048)
                for weight in weights
            ]
            for weights in (ranks, blocks, sums)
        )
    )


def grid(hidden: int, natural: bool) -> Iterator[SuiteCase]:
    """Grid of token counts, ranks, blocks and densities over the linears of an encoder layer.

    natural: True for the epilogue that follows the linear in the model, False for a bias alone.
    """
    wide, narrow, square = (hidden, 4 * hidden), (4 * hidden, hidden), (hidden, hidden)
    epilogues = [(wide, "fused"), (narrow, "norm"), (square, "norm")]
    linears = [(shape, epilogue if natural else "plain") for shape, epilogue in epilogues]

    def cases(weights: list[str]) -> list[SuiteCase]:
        return [
            SuiteCase(*shape, weight, epilogue, tokens)
            for tokens in TOKENS
            for shape, epilogue in linears
            for weight in weights
        ]

    ranks = cases([low_rank(rank) for rank in RANKS])
    blocks = cases([sparse(block, percent) for block in BLOCKS for percent in DENSITIES])
    sums = cases([sparse_low_rank(64, BLOCKS[0], 5)])
    merged = [
        SuiteCase(hidden, 3 * hidden, low_rank(rank, groups=3), "plain", tokens)
        for tokens in TOKENS
        for rank in RANKS
    ]
    feed_forwards = [feed_forward(tokens, hidden, rank) for tokens in TOKENS for rank in RANKS]
    return _alternated(ranks, blocks, *([feed_forwards, merged] if natural else []), sums)


def feed_forward(tokens: int, hidden: int, rank: int) -> SuiteCase:
    return SuiteCase(hidden, hidden, f"r{rank}-{4 * hidden}-r{rank}", "norm", tokens)


def tiny_cases(dtype: str = "float16") -> list[SuiteCase]:
    """One case of each kind, small enough for Triton's interpreter and for a memory checker."""
    return [
        SuiteCase(*shape, weight, epilogue, tokens, dtype, backward)
        for shape, weight, epilogue, tokens, backward in (
            ((64, 64), "r16-128-r16", "norm", 33, False),
            ((48, 80), "r16", "plain", 33, False),
            ((48, 80), "r24", "fused", 33, False),
            ((48, 80), "r128", "norm", 33, False),
            ((48, 96), "r16x3", "plain", 33, False),
            ((128, 128), "16x16-d50", "plain", 33, False),
            ((128, 128), "64x16-d50", "fused", 7, False),
            ((128, 128), "32x32-d50", "norm", 33, False),
            ((128, 128), "r16+16x16-d50", "fused", 33, False),
            ((48, 80), "r16", "fused", 33, True),
            ((128, 128), "16x16-d50", "fused", 33, True),
            ((128, 128), "r16+16x16-d50", "fused", 33, True),
        )
    ]


def _alternated(*groups: Iterable[SuiteCase]) -> Iterator[SuiteCase]:
    for turn in itertools.zip_longest(*groups):
        yield from (case for case in turn if case is not None)
