"""The op `sparse_low_rank_linear` and its module."""

from tests.op_suite import OpSuite
from tests.op_transform_suite import OpTransformSuite


class TestOp(OpSuite):
    stem = "sparse_low_rank_linear"


class TestOpTransforms(OpTransformSuite):
    stem = "sparse_low_rank_linear"
