"""The op `low_rank_ffn`."""

import pytest
import torch

from lada_ops import low_rank_ffn
from tests.ops.op_suite import OpSuite
from tests.ops.op_transform_suite import OpTransformSuite

IN, HIDDEN, OUT = 12, 30, 10


class TestOp(OpSuite):
    stem = "low_rank_ffn"


class TestOpTransforms(OpTransformSuite):
    stem = "low_rank_ffn"


class TestDense:
    """The products of the factors, which a caller may keep."""

    WEIGHTS = torch.randn(HIDDEN, IN), torch.randn(OUT, HIDDEN)

    def weights(self) -> list[torch.Tensor]:
        shapes = (HIDDEN, 4), (4, IN), (HIDDEN,), (OUT, 5), (5, HIDDEN), (OUT,)
        return [torch.randn(shape) for shape in shapes]

    def test_are_not_needed_on_the_cpu(self):
        weights, x = self.weights(), torch.randn(3, IN)
        got = low_rank_ffn(x, *weights, dense=self.WEIGHTS)
        torch.testing.assert_close(got, low_rank_ffn(x, *weights))

    @pytest.mark.parametrize("wrong", [0, 1])
    def test_refuses_another_shape(self, wrong):
        dense = [weight.T if i == wrong else weight for i, weight in enumerate(self.WEIGHTS)]
        with pytest.raises(ValueError, match=rf"low_rank_ffn: dense\[{wrong}\] .*; expected \("):
            low_rank_ffn(torch.randn(3, IN), *self.weights(), dense=(dense[0], dense[1]))
