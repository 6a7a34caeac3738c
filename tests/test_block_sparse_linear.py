"""`block_sparse_linear` and `BlockSparseLinear`."""

from tests.op_suite import OpSuite


class TestOp(OpSuite):
    stem = "block_sparse_linear"
