"""`sparse_low_rank_linear` and `SparseLowRankLinear`."""

from tests.op_suite import OpSuite


class TestOp(OpSuite):
    stem = "sparse_low_rank_linear"
