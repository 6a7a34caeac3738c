"""The module `BlockSparseLinear`."""

from lada_ops import BlockSparseLinear
from tests.modules.bsr_module_suite import BsrModuleSuite
from tests.modules.module_suite import IN, OUT


class TestModule(BsrModuleSuite):
    cls = BlockSparseLinear
    size = {"block": (8, 4), "density": 0.2}
    exact = {"block": (8, 4), "density": 1.0}
    tensors = {"crow_indices", "col_indices", "values"}
    repr = f"in_features={IN}, out_features={OUT}, block=8x4, density=0.200"
