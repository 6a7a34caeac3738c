"""`split_rank`; the rest is tested through the launchers that use it."""

import itertools

import pytest


@pytest.mark.parametrize(
    ("rank", "pieces"),
    [
        (1, (16, 0)),
        (16, (16, 0)),
        (48, (32, 16)),
        (64, (64, 0)),
        (72, (64, 16)),
        (96, (64, 32)),
    ],
)
def test_split_rank(kernels, rank, pieces):
    assert kernels.low_rank_tiles.split_rank(rank) == pieces


def test_split_rank_holds_the_rank_with_the_least_padding(kernels):
    powers = [16, 32, 64, 128, 256]
    sums = {*powers, *(a + b for a, b in itertools.combinations(powers, 2))}
    for rank in range(1, 257):
        pieces = kernels.low_rank_tiles.split_rank(rank)
        assert sum(pieces) == min(s for s in sums if s >= rank)
