"""The module `SparseLowRankLinear`."""

import pytest

from lada_ops import SparseLowRankLinear
from tests.modules.bsr_module_suite import BsrModuleSuite
from tests.modules.module_suite import IN, OUT


class TestModule(BsrModuleSuite):
    cls = SparseLowRankLinear
    size = {"rank": 6, "block": (8, 4), "density": 0.2}
    exact = {"rank": 6, "block": (8, 4), "density": 1.0}
    tensors = {"u", "v", "crow_indices", "col_indices", "values"}
    repr = f"in_features={IN}, out_features={OUT}, rank=6, block=8x4, density=0.200"

    @pytest.mark.parametrize("rank", [0, -1, 25])
    def test_refuses_a_rank_out_of_range(self, rank):
        with pytest.raises(ValueError, match=f"rank {rank} .* expected 1 to 24"):
            SparseLowRankLinear(IN, OUT, rank, (8, 4), 0.5)
