"""The op `sparse_low_rank_linear`."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from lada_ops import Bsr, sparse_low_rank_linear
from tests.kernels.operands import factors, normal
from tests.ops.op_suite import OpSuite
from tests.ops.op_transform_suite import OpTransformSuite
from tests.ops.order_suite import OrderSuite

FP64 = {"dtype": torch.float64, "device": torch.device("cpu")}


class TestOp(OpSuite):
    stem = "sparse_low_rank_linear"


class TestOpTransforms(OpTransformSuite):
    stem = "sparse_low_rank_linear"


class TestOrder(OrderSuite):
    stem = "sparse_low_rank_linear"


class TestGroups:
    """Three pairs of factors, as of query, key and value, over blocks of all of them."""

    @pytest.fixture
    def pairs(self):
        return [factors(4, 6, 2, **FP64) for _ in range(3)]

    @pytest.fixture
    def bsr(self):
        keep = torch.tensor([[1, 0, 1], [0, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]]) > 0
        return Bsr.from_dense(normal(12, 6, **FP64), (2, 2), keep)

    @pytest.fixture
    def weights(self, pairs, bsr):
        u, v = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        return u, v, bsr.crow_indices, bsr.col_indices, bsr.values

    def test_are_linears_side_by_side(self, pairs, bsr, weights):
        x, bias = normal(5, 6, **FP64), normal(12, **FP64)
        low_rank = torch.cat([F.linear(F.linear(x, v), u) for u, v in pairs], -1)
        want = low_rank + F.linear(x, bsr.to_dense(), bias)
        got = sparse_low_rank_linear(x, *weights, bias=bias, groups=3)
        torch.testing.assert_close(got, want)
        op: Any = torch.ops.lada.sparse_low_rank_linear
        got = op(x, *weights, bias, "none", None, groups=3)
        torch.testing.assert_close(got, want)

    def test_gradients(self, weights):
        u, v, crow, col, values = weights
        tensors = [normal(5, 6, **FP64), u, v, values, normal(12, **FP64)]
        tensors = [t.requires_grad_() for t in tensors]

        def function(x, u, v, values, bias):
            op = torch.ops.lada.sparse_low_rank_linear
            return op(x, u, v, crow, col, values, bias, "gelu", None, groups=3)

        assert torch.autograd.gradcheck(function, tensors)

    def test_opcheck(self, weights):
        args = normal(5, 6, **FP64), *weights, normal(12, **FP64), "gelu", None
        op = torch.ops.lada.sparse_low_rank_linear
        torch.library.opcheck(op.default, args, {"groups": 3})

    @pytest.mark.parametrize("groups", [0, -1, 2, 4, 12])
    def test_refuses_a_number_that_does_not_fit(self, weights, groups):
        x = normal(5, 6, **FP64)
        with pytest.raises(ValueError, match=f"sparse_low_rank_linear: .*{groups}.* expected"):
            sparse_low_rank_linear(x, *weights, groups=groups)
