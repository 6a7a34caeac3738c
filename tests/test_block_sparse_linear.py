"""The op `block_sparse_linear` and its module."""

from lada_ops import BlockSparseLinear
from tests.bsr_module_suite import BsrModuleSuite
from tests.module_suite import IN, OUT
from tests.op_suite import OpSuite
from tests.op_transform_suite import OpTransformSuite


class TestOp(OpSuite):
    stem = "block_sparse_linear"


class TestOpTransforms(OpTransformSuite):
    stem = "block_sparse_linear"


class TestModule(BsrModuleSuite):
    cls = BlockSparseLinear
    size = {"block": (8, 4), "density": 0.2}
    exact = {"block": (8, 4), "density": 1.0}
    tensors = {"crow_indices", "col_indices", "values"}
    repr = f"in_features={IN}, out_features={OUT}, block=8x4, density=0.200"
