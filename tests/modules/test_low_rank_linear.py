"""The module `LowRankLinear`."""

import pytest

from lada_ops import LowRankLinear
from tests.modules.module_suite import IN, OUT, ModuleSuite


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
