"""The op `low_rank_linear` and its module."""

import pytest

from lada_ops import LowRankLinear
from tests.module_suite import IN, OUT, ModuleSuite
from tests.op_suite import OpSuite
from tests.op_transform_suite import OpTransformSuite


class TestOp(OpSuite):
    stem = "low_rank_linear"


class TestOpTransforms(OpTransformSuite):
    stem = "low_rank_linear"


class TestModule(ModuleSuite):
    cls = LowRankLinear
    size = {"rank": 6}
    exact = {"rank": OUT}
    tensors = {"u", "v"}
    repr = f"in_features={IN}, out_features={OUT}, rank=6"

    @pytest.mark.parametrize("rank", [0, -1, 25])
    def test_refuses_a_rank_out_of_range(self, rank):
        with pytest.raises(ValueError, match=f"LowRankLinear: rank {rank} .* expected 1 to 24"):
            LowRankLinear(IN, OUT, rank)
