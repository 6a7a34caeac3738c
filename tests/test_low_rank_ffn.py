"""The op `low_rank_ffn` and its module."""

from tests.op_suite import OpSuite
from tests.op_transform_suite import OpTransformSuite


class TestOp(OpSuite):
    stem = "low_rank_ffn"


class TestOpTransforms(OpTransformSuite):
    stem = "low_rank_ffn"
