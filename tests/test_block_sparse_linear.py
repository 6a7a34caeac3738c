"""The op `block_sparse_linear` and its module."""

from tests.op_suite import OpSuite
from tests.op_transform_suite import OpTransformSuite


class TestOp(OpSuite):
    stem = "block_sparse_linear"


class TestOpTransforms(OpTransformSuite):
    stem = "block_sparse_linear"
