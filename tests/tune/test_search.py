import math
from collections import Counter
from dataclasses import replace

import pytest

from lada_kernels.variants import TileConfig
from lada_ops.tune.search import Space, descend

START = TileConfig(64, 64, 64, 4, 3)
AXES = {"BLOCK_M": (16, 32, 64, 128), "num_warps": (4, 8), "num_stages": (2, 3, 4)}


def test_neighbours_are_one_step_away():
    found = set(Space(START, AXES).neighbours(START))
    assert found == {
        TileConfig(128, 64, 64, 4, 3),
        TileConfig(32, 64, 64, 4, 3),
        TileConfig(64, 64, 64, 8, 3),
        TileConfig(64, 64, 64, 4, 4),
        TileConfig(64, 64, 64, 4, 2),
        TileConfig(128, 64, 64, 8, 3),
    }


def test_a_start_between_the_values_finds_those_beside_it():
    start = TileConfig(48, 64, 64, 4, 3)
    found = set(Space(start, {"BLOCK_M": (16, 32, 64, 128)}).neighbours(start))
    assert found == {TileConfig(32, 64, 64, 4, 3), TileConfig(64, 64, 64, 4, 3)}


@pytest.mark.parametrize(("widest", "most"), [(0, 128), (256, 64)])
def test_accumulators_beyond_the_registers_are_skipped(widest, most):
    start = TileConfig(most, 128, 64, 4, 3)
    axes = {"BLOCK_M": (32, 64, 128, 256), "num_warps": (4, 8)}
    found = set(Space(start, axes, widest).neighbours(start))
    assert replace(start, BLOCK_M=2 * most) not in found
    assert replace(start, BLOCK_M=2 * most, num_warps=8) in found
    assert replace(start, BLOCK_M=most // 2) in found


def test_the_minimum_is_found():
    bottom = TileConfig(16, 64, 64, 8, 2)

    def seconds(tiles):
        steps = abs(math.log2(tiles.BLOCK_M / bottom.BLOCK_M)) + abs(tiles.num_stages - 2)
        return 1 + steps + (tiles.num_warps != 8)

    assert descend(Space(START, AXES), seconds) == bottom


def test_a_step_of_two_fields_crosses_what_a_step_of_one_does_not():
    times = {START: 2.0, TileConfig(128, 64, 64, 8, 3): 1.0}
    found = descend(Space(START, AXES), lambda tiles: times.get(tiles, 3.0))
    assert found == TileConfig(128, 64, 64, 8, 3)


def test_the_start_stays_where_nothing_is_faster():
    assert descend(Space(START, AXES), lambda tiles: 1.0) == START


def test_a_start_that_does_not_run_is_not_returned():
    runs = TileConfig(32, 64, 64, 4, 3)
    assert descend(Space(START, AXES), lambda tiles: 1.0 if tiles == runs else math.inf) == runs


@pytest.mark.parametrize("axes", [AXES, {}], ids=["some", "none"])
def test_there_is_none_where_nothing_runs(axes):
    assert descend(Space(START, axes), lambda tiles: math.inf) is None


def test_tiles_are_timed_once():
    calls = Counter()

    def seconds(tiles):
        calls[tiles] += 1
        return tiles.BLOCK_M

    descend(Space(START, AXES), seconds)
    assert set(calls.values()) == {1}
