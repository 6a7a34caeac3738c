"""Constants that the kernels and lada_ops both state, for neither may import the other's."""

from lada_ops.engine.gpu import parts
from lada_ops.formats import grid


def test_packs_of_blocks_are_as_wide_as_a_step(kernels):
    assert grid.PACK_WIDTH == kernels.block_sparse_linear.PACK_WIDTH


def test_the_engine_fuses_feed_forwards_that_are_one_launch(kernels):
    assert parts.ONE_LAUNCH_RANK == kernels.low_rank_ffn.MAX_RANK
