"""What is measured, the most valuable first.

First the goals, then backward, then the grid: BERT-base with the epilogue each linear has in the
model, BERT-base without, BERT-large. Within each, kernels take turns, so that wherever the time
ends, all of them have been measured about as far.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

TOKENS = (8192, 2048, 128, 512, 32768, 16, 65536)
RANKS = (64, 128, 32, 96, 192, 256)
DENSITIES = (0.1, 0.3, 0.2, 0.05, 0.5)
BLOCKS = ((128, 16), (64, 16), (64, 32), (32, 32), (16, 16))
BASE, LARGE = 768, 1024  # hidden sizes; the inner one of the feed-forward is four times as wide


@dataclass(frozen=True)
class Case:
    """A compressed linear (in, out), or feed-forward (in, hidden, in), applied to `tokens` rows.

    epilogue: "plain" (bias), "gelu" (bias, GELU) or "norm" (bias, residual, LayerNorm).
    groups: how many low-rank pairs share x, each for as many columns, as query, key and value do.
    backward: a training step instead: the gradients of input and weights, forward included.
    """

    stem: str
    tokens: int
    in_features: int
    out_features: int
    epilogue: str = "plain"
    rank: int = 0
    block: tuple[int, int] = (0, 0)
    density: float = 0.0
    hidden: int = 0
    groups: int = 1
    backward: bool = False

    @property
    def shape(self) -> str:
        widths = (self.in_features, self.hidden, self.out_features)
        return "-".join(str(width) for width in widths if width)

    @property
    def weight(self) -> str:
        """Such as ``r64``, ``r64x3``, ``128x16 d10`` or ``r64+128x16 d05``."""
        parts = [f"r{self.rank}{f'x{self.groups}' * (self.groups > 1)}"] if self.rank else []
        if self.density:
            parts.append(f"{self.block[0]}x{self.block[1]} d{round(100 * self.density):02}")
        return "+".join(parts)

    @property
    def key(self) -> str:
        backward = " backward" if self.backward else ""
        return f"{self.shape} M={self.tokens} {self.weight} {self.epilogue}{backward}"

    @property
    def beside_2to4(self) -> bool:
        """2:4 keeps half of any weight: it is measured once per shape, where it is nearest."""
        return not self.backward and not self.hidden and (self.rank == 128 or self.density == 0.5)


def all_cases() -> list[Case]:
    """Every case once, in the order of its value."""
    groups = [goals(), backward(), grid(BASE, natural=True), grid(BASE, natural=False)]
    groups += [grid(LARGE, natural=True), grid(LARGE, natural=False)]
    return list(dict.fromkeys(itertools.chain.from_iterable(groups)))


def goals() -> Iterator[Case]:
    """The cases by which the project's goals are met or missed."""
    low_rank = [
        Case("low_rank_linear", tokens, BASE, 4 * BASE, "gelu", rank)
        for tokens in (8192, 32768, 65536)
        for rank in (128, 64, 96, 32)
    ]
    sparse = [
        Case("block_sparse_linear", tokens, k, n, "plain", 0, (128, 16), density)
        for k, n in ((BASE, 4 * BASE), (4 * BASE, BASE), (BASE, BASE))
        for tokens in (2048, 8192, 32768, 65536)
        for density in (0.1, 0.4, 0.3, 0.2, 0.05)
    ]
    return _in_turns([feed_forward(8192, BASE, 64)], low_rank, sparse)


def backward() -> Iterator[Case]:
    wide = (BASE, 4 * BASE)
    tokens = (8192, 2048)
    low_rank = [
        Case("low_rank_linear", m, *wide, "gelu", rank, backward=True)
        for m in tokens
        for rank in (64, 128)
    ]
    sparse = [
        Case("block_sparse_linear", m, *wide, "gelu", 0, block, density, backward=True)
        for m in tokens
        for block in ((128, 16), (32, 32))
        for density in (0.1, 0.3)
    ]
    both = [
        Case("sparse_low_rank_linear", m, *wide, "gelu", 64, (128, 16), 0.05, backward=True)
        for m in tokens
    ]
    return _in_turns(low_rank, sparse, both)


def grid(hidden: int, natural: bool) -> Iterator[Case]:
    """All token counts, ranks, blocks and densities over the linears of one encoder layer.

    natural: with the epilogue that follows the linear in the model, else none.
    """
    wide, narrow, square = (hidden, 4 * hidden), (4 * hidden, hidden), (hidden, hidden)
    places = [(wide, "gelu"), (narrow, "norm"), (square, "norm")]
    linears = [(shape, epilogue if natural else "plain") for shape, epilogue in places]
    low_rank, sparse, both = [], [], []
    for tokens, (shape, epilogue) in itertools.product(TOKENS, linears):
        here = (tokens, *shape, epilogue)
        low_rank += [Case("low_rank_linear", *here, rank) for rank in RANKS]
        sparse += [
            Case("block_sparse_linear", *here, 0, block, density)
            for block in BLOCKS
            for density in DENSITIES
        ]
        both.append(Case("sparse_low_rank_linear", *here, 64, BLOCKS[0], 0.05))
    joint = [
        Case("low_rank_linear", tokens, hidden, 3 * hidden, "plain", rank, groups=3)
        for tokens in TOKENS
        for rank in RANKS
    ]
    whole = [feed_forward(tokens, hidden, rank) for tokens in TOKENS for rank in RANKS]
    return _in_turns(low_rank, sparse, *([whole, joint] if natural else []), both)


def feed_forward(tokens: int, hidden: int, rank: int) -> Case:
    return Case("low_rank_ffn", tokens, hidden, hidden, "norm", rank, hidden=4 * hidden)


def tiny_cases() -> list[Case]:
    """One of each kind, small enough for the interpreter and for a memory checker."""
    low_rank = [
        Case("low_rank_linear", 33, 48, 80, epilogue, rank)
        for epilogue, rank in (("plain", 16), ("gelu", 24), ("norm", 128))
    ]
    sparse = [
        Case("block_sparse_linear", tokens, 128, 128, epilogue, 0, block, 0.5)
        for tokens, epilogue, block in (
            (33, "plain", (16, 16)),
            (7, "gelu", (64, 16)),
            (33, "norm", (32, 32)),
        )
    ]
    both = Case("sparse_low_rank_linear", 33, 128, 128, "gelu", 16, (16, 16), 0.5)
    joint = Case("low_rank_linear", 33, 48, 96, "plain", 16, groups=3)
    whole = Case("low_rank_ffn", 33, 64, 64, "norm", 16, hidden=128)
    steps = [
        Case("low_rank_linear", 33, 48, 80, "gelu", 16, backward=True),
        Case("block_sparse_linear", 33, 128, 128, "gelu", 0, (16, 16), 0.5, backward=True),
        Case("sparse_low_rank_linear", 33, 128, 128, "gelu", 16, (16, 16), 0.5, backward=True),
    ]
    return [whole, *low_rank, joint, *sparse, both, *steps]


def _in_turns(*groups: Iterable[Case]) -> Iterator[Case]:
    for turn in itertools.zip_longest(*groups):
        yield from (case for case in turn if case is not None)
