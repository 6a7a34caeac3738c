"""`low_rank_linear` and `LowRankLinear`."""

from tests.op_suite import OpSuite


class TestOp(OpSuite):
    stem = "low_rank_linear"
